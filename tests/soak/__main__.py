"""Random faults over real sweeps: each must end with exactly the trials that were asked for, whatever was done to it.

    python -m tests.soak [--faults 200] [--trials 40] [--workers 4] [--seed N]
    python -m tests.soak --compare [--python FILE]   the same faults on what others do, kind by kind

The first form runs run_sweep.py with real networks. Faults come at random moments; study and champion are read after
each. The second gives each kind of fault to a sweep of its own, of ours, of Optuna's (heartbeats, retries,
MaxTrialsCallback) and of Ray Tune's (FailureConfig, restore), whose training is counting; FILE is a Python with Ray.
Faults that need root (a full disk) or a C compiler (the clock) are left out where those are not to be had.
"""

import argparse
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

from tests.servers.processes import all_ended
from tests.soak.faults import FAULTS, FOR_PEERS, Injector, small_disk
from tests.soak.programs import CountingSweep, OptunaSweep, RaySweep, RealSweep


def inject(program, num_faults, kinds, rng, pause):
    """Run a program to its end, with at most so many faults. Return their numbers, and how many epochs they may cost.

    Raises TimeoutError where it does not come to its end.
    """
    faults, allowed, injector = Counter(), 0, Injector(program, rng)
    program.start()
    deadline = time.monotonic() + program.patience
    while True:
        try:
            status = program.process.wait(rng.uniform(*pause))
        except subprocess.TimeoutExpired:
            status = None
        if status == 0:
            return faults, allowed
        if time.monotonic() > deadline:
            raise TimeoutError(f"no end {program.patience:g} s after {faults.total()} faults: {program.said()}")
        if status is not None:
            assert status != 2, f"exit status {status}: {program.said()}"
            program.statuses[status] += 1
            program.start()
        elif faults.total() < num_faults and program.began():
            name = rng.choice(list(kinds))
            try:
                cost = kinds[name](injector)
            except ProcessLookupError:  # it had just ended
                cost = 0
            if cost is not None:
                faults[name] += 1
                allowed += cost
                deadline = time.monotonic() + program.patience
                program.look()


def soak(folder, *, faults, trials, workers, each, seed):
    """Inject so many faults, `each` of them into one sweep; return how many of which kind there were."""
    began, done, again, number = time.monotonic(), Counter(), 0, 0
    while done.total() < faults:
        home = folder / str(number)
        with small_disk(home):
            program = RealSweep(home / "home", trials, workers)
            rng = random.Random(f"{seed}/{number}")
            try:
                with all_ended():
                    injected, allowed = inject(program, min(each, faults - done.total()), FAULTS, rng, (0.3, 4))
                outcome = program.outcome()
                assert outcome["again"] <= allowed, f"{outcome['again']} epochs begun again, {allowed} allowed"
            except BaseException:
                shutil.copytree(home, folder / f"failed-{number}")
                raise
        done, again, number = done + injected, again + outcome["again"], number + 1
        ends = ", ".join(f"{count} x {status}" for status, count in sorted(program.statuses.items()))
        print(
            f"sweep {number}: {injected.total()} faults, {outcome['finished']} trials, {outcome['again']} epochs begun "
            f"again (at most {allowed}); ended early with {ends or 'nothing'}; {time.monotonic() - began:.0f} s",
            flush=True,
        )
    print(f"\n{done.total()} faults in {number} sweeps of {trials} trials, {workers} workers; every one ended with")
    print(f"exactly {trials}; {again} epochs were begun again; {time.monotonic() - began:.0f} s\n")
    print("\n".join(f"| {name} | {done[name]} |" for name in FAULTS))
    return done


def compare(folder, *, trials, workers, each, seed, python):
    """Give each kind of fault, `each` times, to one sweep of each program; print what came of it."""
    print(f"{trials} trials of 4 epochs, {workers} workers, {each} faults of one kind in each sweep")
    print("finished / asked; epochs begun again; how often it had to be started again\n", flush=True)
    programs = [CountingSweep, OptunaSweep, *([RaySweep] if python else [])]
    print(f"| fault | {' | '.join(program.name for program in programs)} |\n|---{'|---' * len(programs)}|")
    for name, fault in {"none": None, **FOR_PEERS}.items():
        cells = []
        for index, kind in enumerate(programs):
            home = folder / f"{name.split()[0]}-{len(name)}-{index}"
            program = kind(home, trials, workers, **({"python": python} if kind is RaySweep else {}))
            cells.append(_fate(program, each if fault else 0, {name: fault}, random.Random(f"{seed}/{name}")))
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def _fate(program, num_faults, kinds, rng):
    try:
        with all_ended():
            inject(program, num_faults, kinds, rng, (0.5, 2))
        outcome, ends = program.outcome(), sum(program.statuses.values())
    except TimeoutError:
        return "does not end"
    return f"{outcome['finished']} / {program.num_trials}; {outcome['again']}; {ends}"


def main():
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the programs inherit a shell's wish to ignore it
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("faults", 200), ("trials", 40), ("workers", 4)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--each", type=int, help="faults in one sweep (default: 25; with --compare 4)")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 2**32)
    parser.add_argument("--compare", action="store_true")
    parser.add_argument("--python", default=sys.executable if find_spec("ray") and find_spec("pyarrow") else "")
    parser.add_argument("--folder", type=Path, help="where the sweeps are kept (default: nowhere)")
    options = parser.parse_args()
    common = {"trials": options.trials, "workers": options.workers, "seed": options.seed}
    folder = (options.folder or Path(tempfile.mkdtemp())).resolve()
    print(f"seed {options.seed}, folder {folder}", flush=True)
    if options.compare:
        compare(folder, each=options.each or 4, python=options.python, **common)
    else:
        soak(folder, faults=options.faults, each=options.each or 25, **common)
    if not options.folder:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
