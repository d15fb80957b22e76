"""A process beside a worker that writes trials to Comet. workers/tracking.py starts it and sends it messages.

It reads one JSON object per line from its standard input: `open` the experiment of a trial, an `epoch`, `close`. Each
trial ends in a note in its folder, whether Comet answered or not. The file imports little, so that it starts fast.

    python -m search.comet.writer online|offline FOLDER
"""

import json
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

from search.comet.client import describe_fault, hide_credentials_of_git, quiet_client
from search.durable import write_text

NOTE = "comet.json"
PROJECT = "catdog"  # if the user configured none
RETRY_SECONDS = 60.0  # without a request after Comet could not be reached
CONFIRM_SECONDS = 10.0  # that Comet may take to show what was sent
STATUSES = ("Staging", "QA", "Development")  # a new version gets the first that the workspace allows


class NotDeliveredError(Exception):
    """Says in one sentence why an experiment is not complete in Comet."""


class CometWriter:
    """One experiment after another."""

    def __init__(self, *, online: bool, folder: Path) -> None:
        comet_ml = quiet_client()
        # The client's log of the hardware asks cloud services about this machine, which no option turns off.
        vars(comet_ml.experiment)["get_env_cloud_details"] = lambda: None
        self.comet, self.online, self.folder = comet_ml, online, folder
        hide_credentials_of_git()
        self.experiment: Any = None
        self.lock: FileLock | None = None
        self.fault, self.down_until = "", 0.0  # why Comet could not be reached, and when to try again

    def open(self, message: dict[str, Any]) -> None:
        """Start or continue the experiment of a trial."""
        self.end()
        self.message, self.rows = message, 0
        self.logged: dict[str, set[int]] = {}  # steps of each metric that Comet must have in the end
        self.known: dict[str, set[int]] = {}  # steps that it had at the beginning
        self.unfinished = self.folder / ".unfinished" / message["key"]
        # The writer of a worker that was killed may still be sending the same trial.
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
            self._note_fault(error)
            return
        self.experiment.log_parameters(message["parameters"])
        self.experiment.log_others({"state": "running", **message["others"]})
        network = Path(message["folder"]) / "network.txt"
        if network.exists():
            self.experiment.set_model_graph(network.read_text(encoding="utf-8"))

    def log_epoch(self, message: dict[str, Any]) -> None:
        self.rows += 1
        row: dict[str, float] = message["row"]
        step = int(row.pop("epoch", self.rows))
        if self.experiment:
            values = {name: value for name, value in row.items() if math.isfinite(value)}
            for name in values:
                self.logged.setdefault(name, set()).add(step)
            new = {name: value for name, value in values.items() if step not in self._steps(name)}
            if new:
                self.experiment.log_metrics(new, step=step, epoch=step)

    def close(self, message: dict[str, Any]) -> None:
        """Log a trial's result, end its experiment and write the note."""
        path, model = Path(self.message["folder"]) / NOTE, message["model"]
        before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        note = {"key": self.message["key"], "delivered": False, "fault": self.fault, "version": before.get("version")}
        if self.experiment:
            try:
                url, workspace = self.experiment.url if self.online else None, self.experiment.workspace
                self._log_result(message)
                self.end()
                wanted = {message["column"]: self.logged.get(message["column"], set())}
                self._confirm({**wanted, **{name: {self.rows} for name in message["final"]}})
                if model:
                    self._confirm_model(model, workspace)
                    note.update(version=model["version"])
                note.update(delivered=self.online, url=url)
                self._remove_archives(but="" if self.online else self.message["archive"])
            except Exception as error:  # noqa: BLE001 - see above
                note.update(fault=self._note_fault(error))
        self.end()
        write_text(path, json.dumps(note))

    def _log_result(self, message: dict[str, Any]) -> None:
        experiment, others, final = self.experiment, message["others"], message["final"]
        experiment.log_others(others)
        experiment.add_tag(others["state"])
        for name, value in final.items():
            if not self._steps(name):
                experiment.log_metric(name, value, step=self.rows, epoch=self.rows)
        confusion = Path(message["confusion"])
        if confusion.exists():
            content = json.loads(confusion.read_text(encoding="utf-8"))
            experiment.log_confusion_matrix(matrix=content["matrix"], labels=content["labels"], overwrite=True)
        if message["news"]:
            self.comet.Experiment.send_notification(experiment, message["news"], others["state"], {**others, **final})
        if message["model"]:
            self._register(message["model"])

    def end(self) -> None:
        """End the experiment, if one is open. It may be continued later."""
        if self.experiment:
            self.experiment.end()
            self.experiment = None
        if self.lock:
            self.lock.release()

    def _note_fault(self, error: Exception) -> str:
        """Send Comet no request for a while; return the reason."""
        self.fault, self.down_until = _sentence(error), time.monotonic() + RETRY_SECONDS
        return self.fault

    def _start(self) -> Any:
        comet, message = self.comet, self.message
        off = ["auto_output_logging", "auto_metric_logging", "auto_param_logging", "auto_log_co2", "parse_args"]
        off += ["log_code", "log_git_patch", "log_env_host", "log_env_network", "log_env_disk"]
        config = comet.ExperimentConfig(
            name=message["name"],
            tags=message["tags"],
            offline_directory=str(self.unfinished),
            display_summary_level=0,
            log_git_metadata=True,
            log_env_details=True,
            **dict.fromkeys(off, False),
        )
        experiment = comet.start(
            online=self.online,
            # A new archive each time: its content comes from the study, not from files of a dead process.
            mode="get_or_create" if self.online else "create",
            experiment_key=message["key"],
            project_name=comet.config.get_config("comet.project_name") or PROJECT,
            experiment_config=config,
        )
        if not experiment.alive:
            raise NotDeliveredError("Comet does not accept the experiment")
        self.is_new = not isinstance(experiment, comet.ExistingExperiment)
        return experiment

    def _api(self) -> Any:
        return self.comet.API(cache=False)

    def _steps(self, name: str) -> set[int]:
        """Return the steps of a metric that Comet had when the experiment was opened."""
        if self.is_new:
            return set()
        if name not in self.known:
            self.known[name] = self._sent(name)
        return self.known[name]

    def _sent(self, name: str) -> set[int]:
        """Ask Comet for the steps of a metric that it has."""
        experiment = self._api().get_experiment_by_key(self.message["key"])
        metrics = experiment.get_metrics(name) if experiment else None
        return {int(metric["step"] or 0) for metric in metrics or []}

    def _confirm(self, wanted: dict[str, set[int]]) -> None:
        """Raise NotDeliveredError unless everything logged has arrived: the client hides its failures."""
        if not self.online:
            archive = self.unfinished / f"{self.message['key']}.zip"
            if not zipfile.is_zipfile(archive) or "experiment.json" not in zipfile.ZipFile(archive).namelist():
                raise NotDeliveredError("the archive could not be written")
            archive.replace(self.folder / self.message["archive"])
            shutil.rmtree(self.unfinished, ignore_errors=True)
            return
        deadline = time.monotonic() + CONFIRM_SECONDS
        while not all(steps <= self._sent(name) for name, steps in wanted.items()):
            if time.monotonic() > deadline:
                raise NotDeliveredError("Comet does not show all metrics yet")
            time.sleep(0.5)

    def _remove_archives(self, but: str) -> None:
        """Remove a trial's archives that something newer replaces; those of earlier versions are named by its key."""
        for name in {self.message["archive"], f"{self.message['key']}.zip"} - {but}:
            (self.folder / name).unlink(missing_ok=True)

    def _confirm_model(self, model: dict[str, str], workspace: str) -> None:
        """Raise NotDeliveredError unless the model is in the registry."""
        if self.online:
            versions = self._api().get_registry_model_versions(workspace, model["name"])
            if model["version"] not in (versions or []):
                raise NotDeliveredError(f"the Model Registry has no version {model['version']}")

    def _register(self, model: dict[str, str]) -> None:
        self.experiment.log_other("promoted", time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
        self.experiment.add_tag("champion")
        self.experiment.log_model(model["name"], model["file"], overwrite=True)
        status = None
        if self.online:
            allowed = self._api().model_registry_allowed_status_values(self.experiment.workspace)
            status = next((status for status in STATUSES if status in allowed), None)
        self.experiment.register_model(
            model["name"], version=model["version"], tags=["champion"], status=status, sync=self.online, timeout=30
        )


def _sentence(error: Exception) -> str:
    """Describe an error in one line of ours."""
    if isinstance(error, NotDeliveredError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}"
    return describe_fault(error)


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the worker decides when to end
    os.nice(10)  # it starts during its worker's first training step
    writer = CometWriter(online=sys.argv[1] == "online", folder=Path(sys.argv[2]))
    handlers = {"open": writer.open, "epoch": writer.log_epoch, "close": writer.close}
    for line in sys.stdin:
        try:
            message = json.loads(line)
            handlers[message["do"]](message)
        except Exception as error:  # noqa: BLE001 - the next trial may succeed
            print(f"{type(error).__name__}: {_sentence(error)}", flush=True)
    if writer.online:
        writer.end()


if __name__ == "__main__":
    main()
