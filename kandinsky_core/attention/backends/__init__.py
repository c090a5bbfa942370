"""Backends of `attend`: each computes what `attend_reference` does, or refuses."""
