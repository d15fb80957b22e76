"""What can happen to a sweep. Each fault returns how many epochs it may cost.

Nothing is returned where it could not be injected.
"""

import os
import random
import resource
import shutil
import signal
import sqlite3
import subprocess
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.soak.programs import STOPPED_SECONDS, Program, clock_library

DISK_MIB = 256  # of the folder of a sweep


@dataclass
class Injector:
    """Whoever does something to a program."""

    program: Program
    rng: random.Random

    def kill_worker(self):
        return self.signal_workers(signal.SIGKILL, 1) if self.program.bears_a_death() else None

    def signal_workers(self, number, times):
        victims = self.program.workers()[:]
        self.rng.shuffle(victims)
        for victim in victims[:times]:
            with suppress(ProcessLookupError):
                os.kill(victim, number)
        return len(victims[:times]) or None

    def kill_parent(self):
        self.program.process.kill()
        return self.program.num_workers

    def kill_group(self):
        os.killpg(self.program.process.pid, signal.SIGKILL)
        return self.program.num_workers

    def interrupt_once(self):
        return self.signal_parent(1)

    def interrupt_twice(self):
        return self.signal_parent(2)

    def signal_parent(self, times):
        number = self.rng.choice((signal.SIGINT, signal.SIGTERM))
        for _ in range(times):
            self.program.process.send_signal(number)
            time.sleep(self.rng.uniform(0, 0.3))
        return self.program.num_workers

    def stop_worker(self):
        """Stop a worker for about as long as the grace or longer, sometimes kill another meanwhile; then wake it."""
        workers = self.program.workers()
        if not workers:
            return None
        victim, cost = self.rng.choice(workers), 1
        os.kill(victim, signal.SIGSTOP)
        if self.rng.random() < 0.5 and len(workers) > 1 and self.program.bears_a_death():
            with suppress(ProcessLookupError):
                os.kill(self.rng.choice([pid for pid in workers if pid != victim]), signal.SIGKILL)
            cost += 1
        time.sleep(STOPPED_SECONDS * self.rng.uniform(0.5, 2.5))
        with suppress(ProcessLookupError):
            os.kill(victim, signal.SIGCONT)
        return cost

    def stop_all(self):
        """Stop everything for longer than the grace, and go on: nobody was there to miss anybody."""
        os.killpg(self.program.process.pid, signal.SIGSTOP)
        time.sleep(STOPPED_SECONDS * 1.5)
        os.killpg(self.program.process.pid, signal.SIGCONT)
        return 0

    def lock_study(self):
        """Keep everybody from writing for a while."""
        connection = sqlite3.connect(next(self.program.folder.glob("*.db")), timeout=60, isolation_level=None)
        connection.execute("BEGIN IMMEDIATE")
        time.sleep(self.rng.uniform(0.5, 3))
        connection.execute("ROLLBACK")
        connection.close()
        return 0

    def protect_study(self):
        """Make the study read-only for a while, in which a worker has to begin."""
        if not self.program.bears_a_death():
            return None
        files = list(self.program.folder.glob("*.db*"))
        for file in files:
            file.chmod(0o444)
        cost = self.signal_workers(signal.SIGKILL, 1)
        time.sleep(self.rng.uniform(1, 6))
        for file in files:
            with suppress(FileNotFoundError):
                file.chmod(0o644)
        return cost

    def fill_disk(self):
        """Leave no room on the disk for a while: the command may end, and goes on when there is room again."""
        filler = self.program.home / "filler"
        free = shutil.disk_usage(self.program.home).free
        if free > DISK_MIB * 2**20:
            return None
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(b"\0" * 4096)
        time.sleep(self.rng.uniform(0.5, 3))
        filler.unlink()
        return self.program.num_workers

    def tear_checkpoint(self):
        """Cut a checkpoint in two, as a power cut may, and kill everybody: one epoch more than the kill costs."""
        checkpoints = list(self.program.folder.glob("trials/*/checkpoint.pt"))
        if not checkpoints:
            return None
        cost = self.kill_group()
        self.program.process.wait()
        with suppress(FileNotFoundError):
            path = self.rng.choice(checkpoints)
            os.truncate(path, path.stat().st_size // 2)
        return cost + 1

    def refuse_memory(self):
        """Let a worker have no more memory than it has, until it is ended for that."""
        victims = self.program.workers()
        if not victims or not self.program.bears_a_death():
            return None
        victim = self.rng.choice(victims)
        with suppress(ProcessLookupError, FileNotFoundError):
            size = int(Path(f"/proc/{victim}/statm").read_text().split()[0]) * resource.getpagesize()
            resource.prlimit(victim, resource.RLIMIT_AS, (size, size))
        return 1

    def set_clock_back(self):
        """Set the program's clock back by up to two hours, or right again."""
        if not clock_library():
            return None
        (self.program.home / "clock").write_text(self.rng.choice(["0", f"-{self.rng.randint(1, 7200)}"]))
        time.sleep(1)
        return 0

    def start_again(self):
        """Start the same command beside it, as a colleague would."""
        status, said = self.program.again()
        assert status == 0 or "is being swept by another process" in said, said[-500:]
        return 0


FAULTS = {
    "a worker killed (-9)": Injector.kill_worker,
    "the parent killed (-9)": Injector.kill_parent,
    "the whole process group killed (-9)": Injector.kill_group,
    "SIGINT or SIGTERM": Injector.interrupt_once,
    "SIGINT or SIGTERM, twice": Injector.interrupt_twice,
    "a worker suspended, sometimes another killed, then continued": Injector.stop_worker,
    "everything suspended, then continued": Injector.stop_all,
    "no memory for a worker": Injector.refuse_memory,
    "a full disk": Injector.fill_disk,
    "all killed, a checkpoint truncated": Injector.tear_checkpoint,
    "the study locked": Injector.lock_study,
    "the study read-only as a worker starts": Injector.protect_study,
    "the clock set back": Injector.set_clock_back,
    "the command started twice": Injector.start_again,
}
FOR_PEERS = {  # what can be done to any program, with nothing known of its files
    name: FAULTS[name]
    for name in (
        "a worker killed (-9)",
        "the parent killed (-9)",
        "the whole process group killed (-9)",
        "SIGINT or SIGTERM",
        "a worker suspended, sometimes another killed, then continued",
        "everything suspended, then continued",
    )
}


@contextmanager
def small_disk(folder):
    """Mount a file system of DISK_MIB at a folder, where this system lets us; else it is a folder like any other."""
    folder.mkdir(parents=True, exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "none", str(folder)], capture_output=True, check=False
    )
    try:
        yield mounted.returncode == 0
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", "-l", str(folder)], check=True)
