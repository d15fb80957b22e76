"""What showing a trial in Comet costs: the same sweep with tracking off, offline and online (loopback), in turn.

    python benchmarks/tracking.py [--rounds 3] [--trials 8]

The training is counting (tests/servers/counting_sweep.py), 4 epochs of half a second, so that the rest of the time is
ours: one worker, the real client, Comet's services on loopback (tests/servers/comet_server.py). Seconds of a trial are
those of the whole command, divided; the cost is the difference to tracking off.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.servers.comet_server import CometServer

MODES = ("off", "offline", "online")


def seconds_of(mode, num_trials, environment):
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            ROOT / "tests/servers/counting_sweep.py",
            f"{folder}/runs/timed",
            str(num_trials),
            "1",
        ]
        command += ["--seconds", "0.5", "--pruner", "none", "--tracking", mode]
        began = time.perf_counter()
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        seconds = time.perf_counter() - began
        archives = len(list(Path(folder).glob("runs/timed/comet/*.zip")))
        assert (archives, "trials in Comet" in done.stdout) == {
            "off": (0, False),
            "offline": (num_trials, False),
            "online": (0, True),
        }[mode], done.stdout
        return seconds / num_trials


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=8)
    options = parser.parse_args()
    measured = {mode: [] for mode in MODES}
    with CometServer() as server, tempfile.TemporaryDirectory() as home:
        environment = {**os.environ, **server.environment(home)}
        for _ in range(options.rounds):
            for mode in MODES:
                measured[mode].append(seconds_of(mode, options.trials, environment))
    print(f"{os.cpu_count()} cores, {platform.machine()}, python {platform.python_version()}, ", end="")
    print(f"comet-ml {version('comet-ml')}, {options.trials} trials, one worker, medians of {options.rounds} rounds")
    print(f"{'tracking':10}{'seconds a trial':>17}{'cost a trial':>15}")
    off = statistics.median(measured["off"])
    for mode in MODES:
        seconds = statistics.median(measured[mode])
        print(f"{mode:10}{seconds:17.2f}{f'{seconds - off:+.2f} s':>15}")


if __name__ == "__main__":
    main()
