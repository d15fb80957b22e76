"""A process beside a worker that writes what it is told to Comet; tracking.py starts it and talks to it.

It reads one JSON object per line from its standard input: `open` a trial's experiment, an `epoch`, `close`. Whatever
Comet does, or does not, ends in a note in the trial's folder. It imports as little as it can: it starts in a second.

    python -m search.comet.writer online|offline FOLDER
"""

import json
import logging
import math
import os
import shutil
import signal
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

from filelock import FileLock

from search.files import write_text

NOTE = "comet.json"
PROJECT = "catdog"  # where the user configured none
RETRY_SECONDS = 60.0  # after Comet could not be reached, before it is asked again
CONFIRM_SECONDS = 10.0  # that Comet may take to show what it was sent
STATUSES = ("Staging", "QA", "Development")  # for a new version, the first that the workspace allows


class Fault(Exception):  # noqa: N818 - not an error of ours
    """Why an experiment is not in Comet as it should be, in one sentence."""


class CometWriter:
    """One experiment after another."""

    def __init__(self, *, online: bool, folder: Path) -> None:
        import comet_ml  # noqa: PLC0415

        # Its log of the hardware cannot be had without asking clouds' addresses who we are; no option turns that off.
        vars(comet_ml.experiment)["get_env_cloud_details"] = lambda: None
        self.comet, self.online, self.folder = comet_ml, online, folder
        self.errors = _LastError()
        logging.getLogger("comet_ml").addHandler(self.errors)
        self.experiment: Any = None
        self.lock: FileLock | None = None
        self.fault, self.down_until = "", 0.0  # why Comet could not be reached, and when to try again

    def open(self, **message: Any) -> None:
        self.end()
        self.message, self.rows = message, 0
        self.told: dict[str, set[int]] = {}  # steps of each metric that Comet must have in the end
        self.known: dict[str, set[int]] = {}
        self.errors.text = ""
        self.unfinished = self.folder / ".unfinished" / message["key"]
        # A scribe whose worker was killed may still be sending what it had.
        self.lock = FileLock(Path(message["folder"]) / ".comet.lock", timeout=RETRY_SECONDS)
        self.lock.acquire()
        if not self.online:
            shutil.rmtree(self.unfinished, ignore_errors=True)
            self.unfinished.mkdir(parents=True)
        if time.monotonic() < self.down_until:
            return
        self.fault = ""
        try:
            self.experiment = self._start()
        except Exception as error:  # noqa: BLE001 - whatever the client raises, the trial goes on
            self._leave_alone(error)
            return
        self.experiment.log_parameters(message["parameters"])
        self.experiment.log_others({"state": "running", **message["others"]})
        network = Path(message["folder"]) / "network.txt"
        if network.exists():
            self.experiment.set_model_graph(network.read_text())

    def epoch(self, row: dict[str, float]) -> None:
        self.rows += 1
        step = int(row.pop("epoch", self.rows))
        if self.experiment:
            values = {name: value for name, value in row.items() if math.isfinite(value)}
            for name in values:
                self.told.setdefault(name, set()).add(step)
            new = {name: value for name, value in values.items() if step not in self._steps(name)}
            if new:
                self.experiment.log_metrics(new, step=step, epoch=step)

    def close(
        self,
        others: dict[str, Any],
        final: dict[str, float],
        column: str,
        confusion: str,
        model: dict[str, str] | None,
        news: str,
    ) -> None:
        path = Path(self.message["folder"]) / NOTE
        before = json.loads(path.read_text()) if path.exists() else {}
        note = {"key": self.message["key"], "delivered": False, "fault": self.fault, "version": before.get("version")}
        if self.experiment:
            try:
                url, workspace = self._url(), self.experiment.workspace
                self._close(others, final, confusion, model, news)
                self.end()
                self._confirm({column: self.told.get(column, set()), **{name: {self.rows} for name in final}})
                if model:
                    self._confirm_model(model, workspace)
                    note.update(version=model["version"])
                note.update(delivered=self.online, url=url)
            except Exception as error:  # noqa: BLE001 - see above
                note.update(fault=self._leave_alone(error))
        self.end()
        write_text(path, json.dumps(note))

    def _close(
        self, others: dict[str, Any], final: dict[str, float], confusion: str, model: dict[str, str] | None, news: str
    ) -> None:
        experiment = self.experiment
        experiment.log_others(others)
        experiment.add_tag(others["state"])
        for name, value in final.items():
            if not self._steps(name):
                experiment.log_metric(name, value, step=self.rows, epoch=self.rows)
        if Path(confusion).exists():
            content = json.loads(Path(confusion).read_text())
            experiment.log_confusion_matrix(matrix=content["matrix"], labels=content["labels"], overwrite=True)
        if news:
            self.comet.Experiment.send_notification(experiment, news, others["state"], {**others, **final})
        if model:
            self._register(model)

    def end(self) -> None:
        """End the experiment, if one is open; it may be continued."""
        if self.experiment:
            self.experiment.end()
            self.experiment = None
        if self.lock:
            self.lock.release()

    def _leave_alone(self, error: Exception) -> str:
        """Ask nothing of Comet for a while; return why."""
        self.fault, self.down_until = _sentence(error), time.monotonic() + RETRY_SECONDS
        return self.fault

    def _start(self) -> Any:
        comet, message = self.comet, self.message
        config = comet.ExperimentConfig(
            name=message["name"],
            tags=message["tags"],
            offline_directory=str(self.unfinished),
            display_summary_level=0,
            auto_output_logging=False,
            auto_metric_logging=False,
            auto_param_logging=False,
            auto_log_co2=False,
            parse_args=False,
            log_code=False,
            log_git_patch=False,
            log_git_metadata=True,
            log_env_details=True,
            log_env_host=False,
            log_env_network=False,
            log_env_disk=False,
        )
        # A new archive each time: what it holds comes from the study, not from what a dead process left.
        mode = "get_or_create" if self.online else "create"
        experiment = comet.start(
            online=self.online,
            mode=mode,
            experiment_key=message["key"],
            project_name=comet.config.get_config("comet.project_name") or PROJECT,
            experiment_config=config,
        )
        if not experiment.alive:
            raise Fault(self.errors.text or "Comet does not answer")
        self.is_new = not isinstance(experiment, comet.ExistingExperiment)
        return experiment

    def _steps(self, name: str) -> set[int]:
        """Return the steps of a metric that Comet had when the experiment was opened."""
        if self.is_new:
            return set()
        if name not in self.known:
            self.known[name] = self._sent(name)
        return self.known[name]

    def _sent(self, name: str) -> set[int]:
        """Ask Comet which steps of a metric it has."""
        experiment = self.comet.API(cache=False).get_experiment_by_key(self.message["key"])
        metrics = experiment.get_metrics(name) if experiment else None
        return {int(metric["step"] or 0) for metric in metrics or []}

    def _url(self) -> str | None:
        return self.experiment.url if self.online else None

    def _confirm(self, wanted: dict[str, set[int]]) -> None:
        """Raise Fault unless what was logged has arrived: the client swallows what goes wrong."""
        if not self.online:
            archive = self.unfinished / f"{self.message['key']}.zip"
            if not zipfile.is_zipfile(archive) or "experiment.json" not in zipfile.ZipFile(archive).namelist():
                raise Fault(self.errors.text or "the archive could not be written")
            archive.replace(self.folder / archive.name)
            shutil.rmtree(self.unfinished, ignore_errors=True)
            return
        deadline = time.monotonic() + CONFIRM_SECONDS
        while not all(steps <= self._sent(name) for name, steps in wanted.items()):
            if time.monotonic() > deadline:
                raise Fault(self.errors.text or "Comet has not shown all that it was sent")
            time.sleep(0.5)

    def _confirm_model(self, model: dict[str, str], workspace: str) -> None:
        """Raise Fault unless the model is in the registry, or, offline, in the archive."""
        if self.online:
            versions = self.comet.API(cache=False).get_registry_model_versions(workspace, model["name"])
            if model["version"] not in (versions or []):
                raise Fault(self.errors.text or f"the Model Registry has no version {model['version']}")

    def _register(self, model: dict[str, str]) -> None:
        """Put a promoted model into Comet's Model Registry."""
        self.experiment.log_other("promoted", time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
        self.experiment.add_tag("champion")
        self.experiment.log_model(model["name"], model["file"], overwrite=True)
        status = self._status() if self.online else None
        self.experiment.register_model(
            model["name"], version=model["version"], tags=["champion"], status=status, sync=self.online, timeout=30
        )

    def _status(self) -> str | None:
        allowed = self.comet.API(cache=False).model_registry_allowed_status_values(self.experiment.workspace)
        return next((status for status in STATUSES if status in allowed), None)


class _LastError(logging.Handler):
    """Remembers the client's last complaint, which it raises to nobody."""

    text = ""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)

    def emit(self, record: logging.LogRecord) -> None:
        self.text = _sentence(record.getMessage())


def _sentence(error: object) -> str:
    """Say what went wrong in a line, without the API key, which some of the client's errors carry."""
    if type(error).__name__ == "InvalidAPIKey":
        return "Comet refuses the API key"
    text = str(error).strip() or type(error).__name__
    if key := _api_key():
        text = text.replace(key, "...")
    return text.splitlines()[0][:200]


def _api_key() -> str | None:
    from comet_ml.config import get_api_key, get_config  # noqa: PLC0415

    key: str | None = get_api_key(None, get_config())
    return key


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the worker says when it is over
    os.nice(10)  # it is started as its worker's first step begins
    scribe = CometWriter(online=sys.argv[1] == "online", folder=Path(sys.argv[2]))
    for line in sys.stdin:
        try:
            message = json.loads(line)
            getattr(scribe, message.pop("do"))(**message)
        except Exception as error:  # noqa: BLE001 - the next trial may fare better
            print(f"{type(error).__name__}: {_sentence(error)}", flush=True)
    if scribe.online:
        scribe.end()


if __name__ == "__main__":
    main()
