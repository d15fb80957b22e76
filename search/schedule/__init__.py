"""How long a sweep takes: simulated before it starts, estimated while it runs."""
