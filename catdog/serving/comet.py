"""Tells Comet what the monitor counts: one experiment for each version of the model, continued after a restart.

    python -m catdog.serving.comet    the process that speaks to Comet: a JSON object a line, and it may hang or die

Comet's client blocks for half a minute when it is refused, and for longer when it is ignored: never in the service.
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
from pathlib import Path
from typing import Any

__all__ = ["CometReporter", "has_api_key"]

SECONDS = 15.0  # between two reports without an alert
PROJECT = "catdog"  # where the user configured none
RETRY_SECONDS = 60.0  # after Comet could not be reached, before it is asked again
ENVIRONMENT = {  # the client then does nothing of its own accord
    "COMET_DISABLE_AUTO_LOGGING": "1",
    "COMET_ERROR_TRACKING_ENABLE": "false",
    "COMET_INTERNAL_REPORTING": "false",
    "COMET_LOGGING_CONSOLE": "CRITICAL",
    "COMET_AUTO_LOG_OUTPUT_LOGGER": "",
}

log = logging.getLogger("catdog")


def has_api_key() -> bool:
    """Say whether there may be an API key where Comet's users keep it: the environment or a .comet.config."""
    places = [Path(os.environ.get("COMET_CONFIG", ".comet.config")), Path.home() / ".comet.config"]
    if "COMET_API_KEY" in os.environ:
        return bool(os.environ["COMET_API_KEY"])
    return any(place.is_file() for place in places)


class CometReporter:
    """A listener of the monitor: hands what it hears to a process of its own, and never waits for it."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "catdog.serving.comet"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
        assert self.process.stdin
        os.set_blocking(self.process.stdin.fileno(), False)
        self.heard: Mapping[str, Any] = {}
        self.version, self.told = "", -math.inf

    def __call__(self, heard: Mapping[str, Any]) -> None:
        self.heard, now = heard, time.monotonic()
        if heard["version"] and (heard["alerts"] or heard["version"] != self.version or now - self.told > SECONDS):
            self.version, self.told = heard["version"], now
            self._tell(heard)

    def _tell(self, heard: Mapping[str, Any]) -> None:
        assert self.process.stdin
        if self.process.poll() is not None:
            return  # it has ended, and said why
        try:  # less than a pipe's atomic 4096 bytes
            os.write(self.process.stdin.fileno(), (json.dumps(heard) + "\n").encode())
        except BlockingIOError:
            log.warning("Comet does not listen; what it was to hear is lost")
        except OSError as error:
            log.warning("Comet is not told any more: %s", error.strerror)

    def close(self) -> None:
        """Let it say what it has heard last, and end."""
        if self.version:
            self._tell({**self.heard, "alerts": []})
        assert self.process.stdin
        self.process.stdin.close()


class _Experiment:
    """The experiment of one version at Comet, opened again when Comet comes back."""

    def __init__(self, comet: Any, heard: Mapping[str, Any]) -> None:
        self.comet, self.version = comet, heard["version"]
        self.experiment: Any = None
        self.down_until = 0.0
        self.alerts: list[str] = []  # that Comet has not been told yet

    def tell(self, heard: Mapping[str, Any]) -> None:
        self.alerts += heard["alerts"]
        if time.monotonic() < self.down_until:
            return
        try:
            self.experiment = self.experiment or self._open(heard)
            values = {name: value for name, value in heard["values"].items() if math.isfinite(value)}
            self.experiment.log_metrics(values, step=int(time.time()))
            while self.alerts:
                sentence = self.alerts[0]
                self.experiment.log_other("last alert", sentence)
                self.experiment.add_tag("alert")
                title = f"model {self.version} in service: {sentence}"
                self.comet.Experiment.send_notification(self.experiment, title, "alert", values)
                self.alerts.pop(0)
        except Exception as error:  # noqa: BLE001 - whatever the client raises, it is tried again
            self.experiment, self.down_until = None, time.monotonic() + RETRY_SECONDS
            print(f"Comet was not told: {type(error).__name__}", file=sys.stderr, flush=True)

    def _open(self, heard: Mapping[str, Any]) -> Any:
        comet = self.comet
        config = comet.ExperimentConfig(
            name=f"model {self.version} in service",
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
            experiment_key=hashlib.sha256(f"serving {self.version}".encode()).hexdigest()[:32],
            project_name=comet.config.get_config("comet.project_name") or PROJECT,
            experiment_config=config,
        )
        if not experiment.alive:
            raise ConnectionError("Comet does not answer")
        experiment.log_others({"model version": self.version, **heard["model"]})
        return experiment

    def end(self) -> None:
        if self.experiment:
            self.experiment.end()
            self.experiment = None


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the service says when it is over
    os.environ.update(ENVIRONMENT)
    import comet_ml  # noqa: PLC0415 - takes a second, and only this process wants it
    from comet_ml.config import get_api_key, get_config  # noqa: PLC0415

    if not get_api_key(None, get_config()):
        return
    experiment: _Experiment | None = None
    for line in sys.stdin:
        heard = json.loads(line)
        if experiment is None or experiment.version != heard["version"]:
            if experiment:
                experiment.end()
            experiment = _Experiment(comet_ml, heard)
        experiment.tell(heard)
    if experiment:
        experiment.end()


if __name__ == "__main__":
    main()
