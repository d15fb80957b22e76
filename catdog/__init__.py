"""Train, evaluate and use one small convolutional network that tells cats from dogs. It works without search/."""

import sys

if sys.argv[:1] == ["-m"]:  # `python -m catdog...`: Python imports this file before it runs the command
    from shell.environment import prepare

    prepare()
