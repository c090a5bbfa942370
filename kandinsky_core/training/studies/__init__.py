"""What trained weights can do, measured, and reports of it; each a command of its own."""
