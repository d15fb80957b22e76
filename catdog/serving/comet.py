"""Log the monitor's reports to Comet: one experiment for each version of the model, continued after a restart.

    python -m catdog.serving.comet    the process that uses Comet's client; reads a JSON object per line

It is a separate process because Comet's client blocks: for half a minute if refused, longer without an answer.
"""

import hashlib
import json
import logging
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from http import HTTPStatus
from itertools import groupby
from operator import itemgetter
from typing import Any

from shell.comet_settings import UNREADABLE, leave_out_unreadable_files, settings_exist

REPORT_SECONDS = 15.0  # between two reports without an alert
RETRY_SECONDS = 60.0  # after Comet could not be reached
PROJECT = "catdog"  # if the user has configured none
ENVIRONMENT = {  # switches off the client's automatic logging
    "COMET_DISABLE_AUTO_LOGGING": "1",
    "COMET_ERROR_TRACKING_ENABLE": "false",
    "COMET_INTERNAL_REPORTING": "false",
    "COMET_LOGGING_CONSOLE": "CRITICAL",
    "COMET_AUTO_LOG_OUTPUT_LOGGER": "",
}
log = logging.getLogger("catdog")


def has_api_key() -> bool:
    """Return whether there may be an API key in the environment or in a .comet.config."""
    if "COMET_API_KEY" in os.environ:
        return bool(os.environ["COMET_API_KEY"])
    return settings_exist()


class CometReporter:
    """Sends the monitor's reports to the process that uses Comet's client, and never waits for it."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "catdog.serving.comet"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
        assert self.process.stdin
        self.pipe = self.process.stdin
        os.set_blocking(self.pipe.fileno(), False)
        self.report: Mapping[str, Any] = {}  # the last one
        self.sent_version, self.sent_at = "", -math.inf

    def send(self, report: Mapping[str, Any]) -> None:
        """Send a report if it has an alert, if the model is another one, or after REPORT_SECONDS."""
        self.report, now, version = report, time.monotonic(), report["version"]
        if version and (report["alerts"] or version != self.sent_version or now - self.sent_at > REPORT_SECONDS):
            self.sent_version, self.sent_at = version, now
            self._write(report)

    def _write(self, report: Mapping[str, Any]) -> None:
        if self.process.poll() is not None:
            return  # it has ended and printed the reason
        try:  # less than a pipe's atomic 4096 bytes
            os.write(self.pipe.fileno(), (json.dumps(report) + "\n").encode())
        except BlockingIOError:
            log.warning("Comet does not respond; a report is lost")
        except OSError as error:
            log.warning("reports to Comet have ended: %s", error.strerror)

    def close(self) -> None:
        """Send the last report, and let the process end."""
        if self.sent_version:
            self._write({**self.report, "alerts": []})
        self.pipe.close()


class _Experiment:
    """The Comet experiment of one version of the model, opened again after a failure."""

    def __init__(self, comet: Any, version: str) -> None:
        self.comet, self.version = comet, version
        self.experiment: Any = None
        self.retry_at, self.fault = 0.0, ""
        self.alerts: list[str] = []  # not yet logged

    def log(self, report: Mapping[str, Any]) -> None:
        self.alerts += report["alerts"]
        if time.monotonic() < self.retry_at:
            return
        try:
            self.experiment = self.experiment or _open_experiment(self.comet, report)
            values = {name: value for name, value in report["values"].items() if math.isfinite(value)}
            self.experiment.log_metrics(values, step=int(time.time()))
            while self.alerts:
                self._log_alert(self.alerts[0], values)
                self.alerts.pop(0)
            self.fault = ""
        except Exception as error:  # noqa: BLE001 - the client raises anything; the next report tries again
            self.experiment, self.retry_at = None, time.monotonic() + RETRY_SECONDS
            before, self.fault = self.fault, _describe_fault(error)
            if self.fault != before:
                print(f"the Monitor's figures are not in Comet: {self.fault}", file=sys.stderr, flush=True)

    def _log_alert(self, text: str, values: Mapping[str, float]) -> None:
        self.experiment.log_other("last alert", text)
        self.experiment.add_tag("alert")
        title = f"model {self.version} in service: {text}"
        self.comet.Experiment.send_notification(self.experiment, title, "alert", values)

    def end(self) -> None:
        if self.experiment:
            self.experiment.end()


def _describe_fault(error: Exception) -> str:
    """Describe an error of the client in words of ours: its own may hold the API key."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN) or type(error).__name__ == "InvalidAPIKey":
        return "Comet refuses the API key; start again with a valid COMET_API_KEY, or with --tracking off"
    what = f"HTTP {status}" if status else type(error).__name__
    return f"Comet does not answer ({what}); the app tries again every {RETRY_SECONDS:.0f} s"


def _open_experiment(comet: Any, report: Mapping[str, Any]) -> Any:
    version = report["version"]
    config = comet.ExperimentConfig(
        name=f"model {version} in service",
        tags=["serving"],
        display_summary_level=0,
        auto_output_logging=False,
        auto_metric_logging=False,
        auto_param_logging=False,
        parse_args=False,
        log_code=False,
        log_git_patch=False,
        log_git_metadata=False,
        log_env_details=False,
    )
    experiment = comet.start(
        online=True,
        mode="get_or_create",
        experiment_key=hashlib.sha256(f"serving {version}".encode()).hexdigest()[:32],
        project_name=comet.config.get_config("comet.project_name") or PROJECT,
        experiment_config=config,
    )
    if not experiment.alive:
        raise ConnectionError("Comet does not answer")
    experiment.log_others({"model version": version, **report["model"]})
    return experiment


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the service closes the pipe at its end
    os.environ.update(ENVIRONMENT)
    leave_out_unreadable_files()
    import comet_ml  # noqa: PLC0415 - takes a second, and only this process needs it

    if not comet_ml.config.get_api_key(None, comet_ml.config.get_config()):
        print(*UNREADABLE.values(), sep="\n", end="\n" * bool(UNREADABLE), file=sys.stderr)
        return
    for version, reports in groupby(map(json.loads, sys.stdin), itemgetter("version")):
        experiment = _Experiment(comet_ml, version)
        for report in reports:
            experiment.log(report)
        experiment.end()


if __name__ == "__main__":
    main()
