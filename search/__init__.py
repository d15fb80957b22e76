"""Propose, run, rank and promote trials, independently of images, models and torch."""

import sys

if sys.argv[:1] == ["-m"]:  # `python -m search...`: Python imports this file before it runs the command
    from shell.environment import prepare

    prepare()
