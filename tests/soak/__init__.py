"""Random faults over real sweeps. `python -m tests.soak --help`"""
