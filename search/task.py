"""The interface between a sweep and its task: the code that trains one trial."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

EpochMetrics = Mapping[str, float]
"""Metrics of one epoch by name, among them the goal's column; `seconds` and `epoch` (from 1) where they are known."""


class ProcessLostError(Exception):
    """The process cannot train any more; a new one must continue the trial."""


class OutOfMemoryError(ProcessLostError):
    """Memory ran out; fewer workers on the device may fit."""


@dataclass(frozen=True)
class WorkerSlot:
    """A place for one worker: a device and CPU threads."""

    index: int  # among the workers of this machine, from 0
    device: str  # cpu, cuda:0, ...
    threads: int  # CPU threads reserved for it (OMP_NUM_THREADS)
    label: str = ""  # shown to people where `device` is ambiguous
    alone: bool = False  # no other worker is known to share the physical device


@dataclass(frozen=True)
class TrialContext:
    """One trial, as the task sees it."""

    number: int
    confirms: int | None  # the trial that a confirmation run repeats
    parameters: Mapping[str, Any]  # values of the parameters in optimizer.json
    seed: int  # of this trial, the same after a restart
    folder: Path  # runs/NAME/trials/NNNN, for this trial only
    device: str
    checkpoint: Path  # a file that the task may write, and read after a restart, until the trial ends
    check: Callable[[], None] = lambda: None  # raises TrialLostError if another worker has the trial: write nothing


class Task(Protocol):
    """Train one trial. Pickled and sent to each worker."""

    def __call__(self, context: TrialContext, /) -> Iterator[EpochMetrics]:
        """Yield the metrics of each epoch, those from an earlier process first.

        Raises ProcessLostError or OutOfMemoryError where a new process has to continue, OSError where every trial on
        this machine would fail. Any other exception fails the trial.
        """
