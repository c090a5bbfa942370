"""Side-by-side measurements against the reference: the only source of speed claims."""
