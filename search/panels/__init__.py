"""Show a sweep in a Comet project: a Python panel, and a saved view around it."""
