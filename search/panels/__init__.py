"""What a Comet project shows of a sweep: a Python panel, and a saved view around it."""
