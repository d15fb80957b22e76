"""Show every trial in Comet. This file decides what is sent; a process beside the worker (comet/writer.py) sends it.

A worker passes its epochs on and never waits: if the writer hangs, fails or dies, the trial is not affected. The next
run of the same command reads the study and the trials' folders and sends Comet what it lacks. The writer writes a note
to each trial's folder: comet.json with `delivered`, `fault`, `url` and a promoted model's `version`.
"""

import hashlib
import json
import math
import os
import shlex
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

from search.comet.client import ENVIRONMENT, REFUSAL
from search.comet.optimizer import TICKET
from search.comet.writer import NOTE
from search.formatting import count
from search.study.sweep import Sweep
from search.study.trials import CONFIRMS, parameters_of, state_of
from search.task import EpochMetrics
from search.workers.history import read_history

UPLOAD_SECONDS = 60.0  # that a model's upload may take
UNFINISHED = ".unfinished"  # folder of archives that are being written


@dataclass(frozen=True)
class Tracking:
    """The destination of a sweep's experiments, and their common content."""

    mode: Literal["online", "offline"]
    sweep: Sweep
    uid: str  # of the sweep, unique
    facts: Mapping[str, Any]  # about machine and code
    notify: bool = False
    patience: float = 20.0  # seconds that the writer may take to end, and four times to send a trial

    @property
    def folder(self) -> Path:
        return self.sweep.folder / "comet"

    def key(self, number: int) -> str:
        """Return the key of a trial's experiment, always the same, so that none is created twice."""
        return hashlib.sha256(f"{self.uid}/{number}".encode()).hexdigest()[:32]

    def archive(self, number: int) -> str:
        """Return the file name of a trial's archive; both parts of a sweep share the folder."""
        return f"{'trial' if self.sweep.part == 'search' else self.sweep.part}-{number:04}.zip"

    def note(self, number: int) -> dict[str, Any]:
        return read_note(self.sweep.trial_folder(number))

    def is_settled(self, number: int) -> bool:
        """Say whether a finished trial is complete in Comet, or in its archive."""
        is_archived = self.mode == "offline" and (self.folder / self.archive(number)).exists()
        return is_archived or bool(self.note(number).get("delivered"))


@dataclass(frozen=True)
class Model:
    """A promoted trial's file, for Comet's Model Registry."""

    trial: int  # its number
    file: Path
    name: str  # in the registry
    version: str  # semantic


class Reporter:
    """Reports trials to a writer process. Call `finish` at the end."""

    def __init__(self, tracking: Tracking) -> None:
        self.tracking = tracking
        self.process: subprocess.Popen[str] | None = None
        self.fault = ""  # why there is no writer
        self._start()

    def tracked(self, trial: FrozenTrial, epochs: Iterator[EpochMetrics]) -> Iterator[EpochMetrics]:
        """Yield the same epochs and report each. Call `close` when the study has the trial's result."""
        self._open(trial)
        for row in epochs:
            self._send("epoch", row=dict(row))
            yield row

    def close(self, trial: FrozenTrial, model: Model | None = None, news: str = "") -> None:
        """Report the result of a trial, as the study has it."""
        goal, is_complete = self.tracking.sweep.space.goal, trial.state == TrialState.COMPLETE
        value = {"optimizer_metric_value": trial.value} if is_complete else {}
        self._send(
            "close",
            others={"state": state_of(trial), "reason": trial.user_attrs.get("reason", ""), **value},
            final={goal.metric: trial.value} if is_complete and goal.metric != goal.column else {},
            column=goal.column,
            confusion=str(self.tracking.sweep.trial_folder(trial.number) / "confusion.json"),
            model={"file": str(model.file), "name": model.name, "version": model.version} if model else None,
            news=news if self.tracking.notify else "",
        )

    def publish(self, trial: FrozenTrial, model: Model | None = None, news: str = "") -> None:
        """Report a finished trial completely, from the study and its folder."""
        for _ in self.tracked(trial, read_history(self.tracking.sweep.trial_folder(trial.number))):
            pass
        self.close(trial, model, news)

    def finish(self, seconds: float = 0.0) -> None:
        """Wait until the writer has sent everything, at most `tracking.patience` plus `seconds`; then kill it."""
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
        if self.process and self.process.poll() is not None:  # it died; start another one for this trial
            self.finish()
            self._start()
        sweep, number = self.tracking.sweep, trial.number
        is_baseline = number < sweep.space.first_proposed and sweep.part == "search"
        self._send(
            "open",
            key=self.tracking.key(number),
            archive=self.tracking.archive(number),
            name=f"{sweep.title} {number:04}" + (" baseline" if is_baseline else ""),
            tags=[f"sweep:{sweep.title}", *(["baseline"] if is_baseline else [])],
            parameters=parameters_of(trial),
            others={**self._facts(trial), "baseline": is_baseline},
            folder=str(sweep.trial_folder(number)),
        )

    def _facts(self, trial: FrozenTrial) -> dict[str, Any]:
        sweep, goal = self.tracking.sweep, self.tracking.sweep.space.goal
        ticket, again = trial.user_attrs.get(TICKET, {}), trial.user_attrs.get(CONFIRMS)
        return {
            **self.tracking.facts,
            "sweep": sweep.title,
            "trial": trial.number,
            **({} if again is None else {CONFIRMS: again}),
            # Comet's optimizer panels read these; its own client writes the same for its own searches.
            "optimizer_id": sweep.search_id or self.tracking.uid,
            "optimizer_name": sweep.title,
            "optimizer_pid": ticket.get("pid", f"{trial.number}"),
            "optimizer_trial": ticket.get("trial", 1),
            "optimizer_count": ticket.get("count", trial.number),
            "optimizer_metric": goal.metric,
            "optimizer_objective": "minimum" if goal.direction == "minimize" else "maximize",
            "optimizer_parameters": json.dumps(parameters_of(trial)),
        }

    def _start(self) -> None:
        folder = self.tracking.folder
        try:
            (folder / UNFINISHED).mkdir(parents=True, exist_ok=True)
            log = (folder / "log.txt").open("a", encoding="utf-8")
        except OSError as error:
            self.process, self.fault = None, f"{folder}: {error.strerror}"
            return
        command = [sys.executable, "-P", "-m", "search.comet.writer", self.tracking.mode, str(folder)]
        env = self._environment()
        with log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=log, encoding="utf-8", env=env
            )
        self.messages: SimpleQueue[str | None] = SimpleQueue()
        self.thread = threading.Thread(target=_deliver, args=(self.process, self.messages), daemon=True)
        self.thread.start()

    def _environment(self) -> dict[str, str]:
        hidden = ["COMET_OPTIMIZER_ID", "COMET_EXPERIMENT_KEY"]
        hidden += ["COMET_API_KEY"] if self.tracking.mode == "offline" else []
        code = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]  # for `import search`
        return {
            **{name: value for name, value in os.environ.items() if name not in hidden},
            **ENVIRONMENT,
            "TMPDIR": str((self.tracking.folder / UNFINISHED).resolve()),
            "PYTHONPATH": os.pathsep.join(code),
        }

    def _send(self, kind: str, **content: Any) -> None:
        if self.process:
            self.messages.put(json.dumps({"do": kind, **content}))


def _deliver(process: "subprocess.Popen[str]", messages: "SimpleQueue[str | None]") -> None:
    """Write messages to the process. Run it in a thread of its own: a full pipe blocks."""
    assert process.stdin
    with suppress(OSError), process.stdin as pipe:  # it may die
        for message in iter(messages.get, None):
            pipe.write(message + "\n")
            pipe.flush()


def settle(tracking: Tracking, trials: Sequence[FrozenTrial], model: Model | None, say: Callable[[str], None]) -> str:
    """Send Comet the finished trials that it lacks, and the promoted `model`.

    Return a sentence about the outcome; nothing if all are archived, which `how_to_upload` describes.
    """
    finished = [trial for trial in trials if trial.state.is_finished()]
    left = [trial for trial in finished if not tracking.is_settled(trial.number)]
    if model and tracking.note(model.trial).get("version") != model.version:
        left = [trial for trial in left if trial.number != model.trial]
        left += [trial for trial in trials if trial.number == model.trial]
    fault = _publish(tracking, left, model, say) if left else ""
    shutil.rmtree(tracking.folder / UNFINISHED, ignore_errors=True)
    return _outcome(tracking, finished, fault or "no answer in time")


def _publish(tracking: Tracking, trials: Sequence[FrozenTrial], model: Model | None, say: Callable[[str], None]) -> str:
    """Report finished trials. Return why no writer could be started; empty if one was."""
    reporter = Reporter(tracking)
    for trial in trials:
        reporter.publish(trial, model if model and trial.number == model.trial else None)
    if tracking.mode == "online":
        say(f"sending {count(len(trials), 'trial')}")
    reporter.finish(len(trials) * tracking.patience / 4 + UPLOAD_SECONDS * bool(model))
    return reporter.fault


def _outcome(tracking: Tracking, finished: Sequence[FrozenTrial], fault: str) -> str:
    """Say where the experiments are, or why some have not been sent."""
    notes = [tracking.note(trial.number) for trial in finished if not tracking.is_settled(trial.number)]
    if notes:
        fault = next((note["fault"] for note in notes if note.get("fault")), fault)
        where = "in Comet" if tracking.mode == "online" else "archived"
        how = "with a valid COMET_API_KEY, the same command" if fault.startswith(REFUSAL) else "the same command"
        verb = "sends" if tracking.mode == "online" else "writes"
        return f"{len(notes)} of {len(finished)} trials are not {where} yet ({fault}); {how} {verb} them"
    if tracking.mode == "offline":
        return ""
    url = tracking.note(finished[-1].number).get("url") if finished else None
    where = f": {url.rpartition('/')[0]}" if url else ""
    return f"{count(len(finished), 'trial')} in Comet{where}"


def how_to_upload(sweep: Sweep) -> str:
    """Return the command that uploads the archives of both parts of a sweep; empty if there are none."""
    folder = sweep.folder / "comet"
    number = len(list(folder.glob("*.zip")))
    how = f"with a valid COMET_API_KEY set, this sends them: comet upload {shlex.quote(str(folder))}/*.zip"
    return f"{count(number, 'trial')} archived for Comet; {how}" if number else ""


def notify(tracking: Tracking, trials: Sequence[FrozenTrial], news: str) -> None:
    """Have Comet send the user a message with the best trial's experiment, if notifications are on."""
    finished = [trial for trial in trials if trial.state.is_finished()]
    if tracking.notify and tracking.mode == "online" and finished:
        as_loss = tracking.sweep.space.goal.as_loss
        best = min(finished, key=lambda trial: math.inf if trial.value is None else as_loss(trial.value))
        reporter = Reporter(tracking)
        reporter.publish(best, news=news)
        reporter.finish()


def read_note(folder: Path) -> dict[str, Any]:
    """Return the writer's note on the trial in `folder`; empty if there is none."""
    try:
        return dict(json.loads((folder / NOTE).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}
