"""Launch or resume a sweep, rank its trials, promote the winner. `python run_sweep.py --help` lists the options."""

import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # which Python leaves out with -I, -P or PYTHONSAFEPATH

from shell import environment

signal.signal(signal.SIGINT, signal.SIG_DFL)  # until main: Ctrl-C while torch is imported ends without a traceback
environment.prepare()

from pipeline.cli import main

if __name__ == "__main__":
    sys.exit(main())
