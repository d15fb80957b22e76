"""Every trial, also shown in Comet: what is sent is decided here, and sent by a process beside the worker (scribe.py).

A worker hands its epochs over and never waits: the scribe may hang, be refused or die, and the trial does not notice.
What Comet did not take is sent by the next call of the same command, because all of it stands in the study and in the
trial's folder. A scribe leaves a note there, comet.json: what became of the trial's experiment.
"""

import csv
import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal

from optuna.trial import FrozenTrial, TrialState

from search.comet.client import ENVIRONMENT
from search.comet.optimizer import TICKET
from search.formatting import count
from search.study.sweep import Sweep
from search.study.trials import CONFIRMS, parameters_of, state_of
from search.task import EpochMetrics

__all__ = [
    "Model",
    "Tracker",
    "Tracking",
    "experiment_url",
    "how_to_upload",
    "notify",
    "outcome_of",
    "settle",
]

NOTE = "comet.json"  # in a trial's folder
SECONDS_FOR_A_MODEL = 60.0  # that its upload may take


@dataclass(frozen=True)
class Tracking:
    """Where experiments go, and what all those of a sweep share."""

    mode: Literal["online", "offline"]
    sweep: Sweep
    uid: str  # of the sweep, unlike any other's
    facts: Mapping[str, Any]  # about machine and code
    notify: bool = False
    patience: float = 20.0  # seconds that a scribe has to end, and four times to send a trial

    @property
    def folder(self) -> Path:
        return self.sweep.folder / "comet"

    def key(self, number: int) -> str:
        """Return the key of a trial's experiment: always the same, so that nothing is doubled."""
        return hashlib.sha256(f"{self.uid}/{number}".encode()).hexdigest()[:32]

    def archive(self, number: int) -> Path:
        return self.folder / f"{self.key(number)}.zip"

    def is_settled(self, number: int) -> bool:
        """Say whether all of a finished trial is in Comet, or in its archive."""
        if self.mode == "offline" and self.archive(number).exists():
            return True
        return bool(outcome_of(self.sweep, number).get("delivered"))


@dataclass(frozen=True)
class Model:
    """A promoted trial's file, for Comet's Model Registry."""

    trial: int  # its number
    file: Path
    name: str  # in the registry
    version: str  # semantic


class Tracker:
    """One scribe and what it is told; at the end, `finish`."""

    def __init__(self, tracking: Tracking) -> None:
        self.tracking = tracking
        self.messages: SimpleQueue[str | None] = SimpleQueue()
        self.process: subprocess.Popen[str] | None = None
        self.fault = ""  # why there is no scribe
        self._start()

    def tracked(self, trial: FrozenTrial, epochs: Iterator[EpochMetrics]) -> Iterator[EpochMetrics]:
        """Yield the same epochs, each also told to Comet; `close` follows when the study knows how the trial ended."""
        self._open(trial)
        for row in epochs:
            self._send("epoch", row=dict(row))
            yield row

    def close(self, trial: FrozenTrial, model: Model | None = None, news: str = "") -> None:
        """Tell how a trial ended, as the study has it."""
        sweep, goal = self.tracking.sweep, self.tracking.sweep.space.goal
        complete = trial.state == TrialState.COMPLETE
        others = {
            "state": state_of(trial),
            "reason": trial.user_attrs.get("reason", ""),
            **({"optimizer_metric_value": trial.value} if complete else {}),
        }
        self._send(
            "close",
            others=others,
            final={goal.metric: trial.value} if complete and goal.metric != goal.column else {},
            column=goal.column,
            confusion=str(sweep.trial_folder(trial.number) / "confusion.json"),
            model={"file": str(model.file), "name": model.name, "version": model.version} if model else None,
            news=news if self.tracking.notify else "",
        )

    def publish(self, trial: FrozenTrial, model: Model | None = None, news: str = "") -> None:
        """Tell all about a finished trial, from the study and its folder."""
        for _ in self.tracked(trial, _read_history(self.tracking.sweep.trial_folder(trial.number) / "history.csv")):
            pass
        self.close(trial, model, news)

    def finish(self, seconds: float = 0.0) -> None:
        """Let the scribe end what it was told, for so much longer than the usual at most."""
        if not self.process:
            return
        self.messages.put(None)
        try:
            self.process.wait(self.tracking.patience + seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.thread.join()

    def _open(self, trial: FrozenTrial) -> None:
        if self.process and self.process.poll() is not None:  # it died; this trial gets another one
            self.finish()
            self._start()
        sweep, goal = self.tracking.sweep, self.tracking.sweep.space.goal
        parameters = parameters_of(trial)
        ticket = trial.user_attrs.get(TICKET, {})
        baseline = trial.number < sweep.space.first_proposed and sweep.part == "search"
        self._send(
            "open",
            key=self.tracking.key(trial.number),
            name=f"{sweep.title} {trial.number:04}" + (" baseline" if baseline else ""),
            tags=[f"sweep:{sweep.title}", *(["baseline"] if baseline else [])],
            parameters=parameters,
            others={
                **self.tracking.facts,
                "sweep": sweep.title,
                "trial": trial.number,
                **({} if (again := trial.user_attrs.get(CONFIRMS)) is None else {CONFIRMS: again}),
                "baseline": baseline,
                # What Comet's optimizer panels read; its own client writes the same for its own searches.
                "optimizer_id": sweep.search_id or self.tracking.uid,
                "optimizer_name": sweep.title,
                "optimizer_pid": ticket.get("pid", f"{trial.number}"),
                "optimizer_trial": ticket.get("trial", 1),
                "optimizer_count": ticket.get("count", trial.number),
                "optimizer_metric": goal.metric,
                "optimizer_objective": "minimum" if goal.direction == "minimize" else "maximize",
                "optimizer_parameters": json.dumps(parameters),
            },
            folder=str(sweep.trial_folder(trial.number)),
        )

    def _start(self) -> None:
        folder = self.tracking.folder
        try:
            (folder / ".unfinished").mkdir(parents=True, exist_ok=True)
            log = (folder / "log.txt").open("a")
        except OSError as error:
            self.process, self.fault = None, f"{folder}: {error.strerror}"
            return
        code = str(Path(__file__).parents[2])  # the folder of search/
        hidden = ["COMET_OPTIMIZER_ID", "COMET_EXPERIMENT_KEY"]
        hidden += ["COMET_API_KEY"] if self.tracking.mode == "offline" else []
        environment = {name: value for name, value in os.environ.items() if name not in hidden}
        with log:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "search.comet.writer", self.tracking.mode, str(folder)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                text=True,
                env={
                    **environment,
                    **ENVIRONMENT,
                    "TMPDIR": str((folder / ".unfinished").resolve()),
                    "PYTHONPATH": os.pathsep.join(filter(None, [code, os.environ.get("PYTHONPATH")])),
                },
            )
        self.thread = threading.Thread(target=self._deliver, args=(self.process, self.messages), daemon=True)
        self.thread.start()

    def _send(self, do: str, **content: Any) -> None:
        if self.process:
            self.messages.put(json.dumps({"do": do, **content}))

    @staticmethod
    def _deliver(process: "subprocess.Popen[str]", messages: "SimpleQueue[str | None]") -> None:
        """Write to the scribe, in a thread of its own: a pipe that nobody reads blocks."""
        assert process.stdin
        with suppress(OSError):  # it died
            while (message := messages.get()) is not None:
                process.stdin.write(message + "\n")
                process.stdin.flush()
            process.stdin.close()
            return
        while messages.get() is not None:
            pass


def settle(tracking: Tracking, trials: Sequence[FrozenTrial], model: Model | None, say: Callable[[str], None]) -> str:
    """Tell Comet whatever it does not know yet of finished trials, and of the promoted `model`.

    Return a sentence for the user: where the experiments are.
    """
    finished = [trial for trial in trials if trial.state.is_finished()]
    left = [trial for trial in finished if not tracking.is_settled(trial.number)]
    if model and outcome_of(tracking.sweep, model.trial).get("version") != model.version:
        others = [trial for trial in left if trial.number != model.trial]
        left = [*others, *(trial for trial in trials if trial.number == model.trial)]
    fault = "no answer in time"
    if left:
        tracker = Tracker(tracking)
        fault = tracker.fault or fault
        for trial in left:
            tracker.publish(trial, model if model and trial.number == model.trial else None)
        seconds = len(left) * tracking.patience / 4 + SECONDS_FOR_A_MODEL * bool(model)
        say(f"{'sending' if tracking.mode == 'online' else 'archiving'} {count(len(left), 'trial')}")
        tracker.finish(seconds)
    if (unfinished := tracking.folder / ".unfinished").is_dir():
        shutil.rmtree(unfinished, ignore_errors=True)
    missing = [trial.number for trial in finished if not tracking.is_settled(trial.number)]
    if missing:
        fault = next((f for n in missing if (f := outcome_of(tracking.sweep, n).get("fault"))), fault)
        where = "in Comet" if tracking.mode == "online" else "archived"
        return f"{len(missing)} of {len(finished)} trials are not {where} yet ({fault}); the same command sends them"
    if tracking.mode == "offline":
        return f"{count(len(finished), 'trial')} archived for Comet"
    urls = [outcome_of(tracking.sweep, trial.number).get("url") for trial in finished]
    where = f": {urls[-1].rpartition('/')[0]}" if urls and urls[-1] else ""
    return f"{count(len(finished), 'trial')} in Comet{where}"


def how_to_upload(sweep: Sweep) -> str:
    """Say how the archives of both parts of a sweep get to Comet; nothing where there are none."""
    folder = sweep.folder / "comet"
    command = f"comet upload {folder}/*.zip"
    return f"with an API key set, this sends what is archived: {command}" if any(folder.glob("*.zip")) else ""


def notify(tracking: Tracking, trials: Sequence[FrozenTrial], news: str) -> None:
    """Have Comet send the user a message, where that is wanted: through the best trial there is."""
    finished = [trial for trial in trials if trial.state.is_finished()]
    if tracking.notify and tracking.mode == "online" and finished:
        sign = 1 if tracking.sweep.space.goal.direction == "minimize" else -1
        best = min(finished, key=lambda trial: math.inf if trial.value is None else sign * trial.value)
        tracker = Tracker(tracking)
        tracker.publish(best, news=news)
        tracker.finish()


def outcome_of(sweep: Sweep, number: int) -> dict[str, Any]:
    """Return the scribe's note on a trial: `delivered`, `fault`, `url` and, of a promoted one, `version`."""
    return _note_in(sweep.trial_folder(number))


def experiment_url(folder: Path) -> str | None:
    """Return the address of the experiment that shows the trial in `folder`, where Comet has one."""
    return _note_in(folder).get("url")


def _note_in(folder: Path) -> dict[str, Any]:
    try:
        note: dict[str, Any] = json.loads((folder / NOTE).read_text())
    except (OSError, ValueError):
        return {}
    return note


def _read_history(path: Path) -> Iterator[EpochMetrics]:
    if path.exists():
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                yield {name: float(value) for name, value in row.items()}
