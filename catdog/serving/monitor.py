"""What the model in service does: counts, drift from what validation showed, alerts; no picture and no name is kept."""

import logging
import threading
import time
from bisect import bisect
from collections import Counter as Tally
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from catdog.serving.drift import psi, shares_of

__all__ = ["FIGURES", "Interval", "Monitor"]

INTERVAL_SECONDS = 10.0  # of a point of the plots
NUM_INTERVALS = 360  # an hour
FIGURES = {  # what is compared with a threshold, and its name for people
    "class_psi": "drift of classes",
    "confidence_psi": "drift of confidence",
    "abstained": "share called neither",
    "errors": "share without answer",
}
SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)  # bounds of the latency histogram

log = logging.getLogger("catdog")


@dataclass(frozen=True)
class Interval:
    """A point of the plots."""

    time: float  # Unix seconds at its end
    requests: int
    errors: int
    p50: float  # seconds from decoding to the answer; nan without requests
    p95: float
    figures: Mapping[str, float]  # of the drift, as far as they can be told


@dataclass
class _Window:
    """The last pictures that the model in service has seen."""

    reference: Mapping[str, Any]
    seen: deque[tuple[int, int, bool]]  # class, bin of the margin, abstained
    failed: deque[bool]  # of each of the last requests

    @classmethod
    def of(cls, reference: Mapping[str, Any]) -> "_Window":
        size = reference.get("window", 300)
        return cls(reference, deque(maxlen=size), deque(maxlen=size))

    def figures(self) -> dict[str, float]:
        """Return what is compared with the thresholds; nothing before the window is full."""
        found = {}
        if len(self.failed) == self.failed.maxlen:
            found["errors"] = sum(self.failed) / len(self.failed)
        if self.reference and len(self.seen) == self.seen.maxlen:
            called, bins, abstained = zip(*self.seen, strict=True)
            for name, values, expected in (
                ("class_psi", called, self.reference["classes"]),
                ("confidence_psi", bins, self.reference["margins"]),
            ):
                counts = np.bincount(values, minlength=len(expected)).tolist()
                found[name] = psi(shares_of(counts), expected)
            found["abstained"] = sum(abstained) / len(abstained)
        return found


class Monitor:
    """Counts what a service does: microseconds a request. `tick`, called every second or so, does the rest."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.registry = CollectorRegistry()
        self.version = ""
        self.header: dict[str, Any] = {}
        self.window = _Window.of({})
        self.alerts: dict[str, str] = {}  # figure -> what is wrong, one sentence
        self.intervals: deque[Interval] = deque(maxlen=NUM_INTERVALS)
        self.tally: Tally[str] = Tally()  # since the start: each class, abstained, refused, failed
        self.latencies: list[float] = []  # of the interval that is not over
        self.errors, self.since = 0, time.time()
        self.listeners: list[Callable[[dict[str, Any]], None]] = []  # told the figures and the alerts at each tick

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=self.registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(name, text, labels, registry=self.registry)

        self.requests = counter("catdog_requests", "Requests by outcome", "outcome")
        self.pictures = counter("catdog_pictures", "Pictures by the class they were called", "label")
        self.abstained = counter("catdog_abstained", "Pictures called probably none of the classes")
        self.swaps = counter("catdog_swaps", "Models that were put into service")
        self.seconds = Histogram(
            "catdog_seconds", "Seconds from a picture's decoding to its answer", buckets=SECONDS, registry=self.registry
        )
        self.model = gauge("catdog_model_info", "The model in service", "version")
        self.drift = gauge("catdog_drift", "Figures of the last pictures beside validation's", "figure")
        self.threshold = gauge("catdog_drift_threshold", "What they must not exceed", "figure")
        self.alert = gauge("catdog_alert", "1 where a figure exceeds its threshold", "figure")

    def serve(self, version: str, header: Mapping[str, Any]) -> None:
        """Watch another model from here on."""
        with self.lock:
            self.version, self.header = version, dict(header)
            self.window = _Window.of(header.get("reference", {}))
            self.alerts = {}
            for gauge in (self.model, self.drift, self.threshold, self.alert):
                gauge.clear()
            self.model.labels(version).set(1)
            self.swaps.inc()
            for name, value in self.window.reference.get("thresholds", {}).items():
                self.threshold.labels(name).set(value)
                self.alert.labels(name).set(0)

    def answered(self, version: str, label: str, margin: float, *, familiar: bool, seconds: float) -> None:
        """Count a picture that was answered by the model of that version."""
        with self.lock:
            self.tally[label] += 1
            self.tally["abstained"] += not familiar
            self.latencies.append(seconds)
            if version == self.version:
                self.window.failed.append(False)
                reference = self.window.reference
                if reference:
                    called = self.header["classes"].index(label)
                    self.window.seen.append((called, bisect(reference["margin_edges"], margin), not familiar))
        self.requests.labels("answered").inc()
        self.pictures.labels(label).inc()
        self.abstained.inc(not familiar)
        self.seconds.observe(seconds)

    def failed(self, outcome: str) -> None:
        """Count a request without an answer: `refused`, the sender's fault, or `failed`, ours."""
        with self.lock:
            self.tally[outcome] += 1
            self.errors += 1
            self.window.failed.append(True)
        self.requests.labels(outcome).inc()

    def tick(self) -> None:
        """Compare with the thresholds, raise and clear alerts, close an interval of the plots, tell the listeners."""
        with self.lock:
            figures, reference, now = self.window.figures(), self.window.reference, time.time()
            thresholds = reference.get("thresholds", {})
            crossed = [name for name, value in figures.items() if value > thresholds.get(name, np.inf)]
            before, self.alerts = self.alerts, {name: _sentence(name, figures[name], reference) for name in crossed}
            new = [self.alerts[name] for name in crossed if name not in before]
            if now - self.since >= INTERVAL_SECONDS:
                self._close_interval(now, figures)
            last = self.intervals[-1] if self.intervals else None
            values = {**self._counts(), **figures}
        for name, value in figures.items():
            self.drift.labels(name).set(value)
            self.alert.labels(name).set(name in crossed)
        for sentence in new:
            log.warning("alert: %s", sentence)
        for name in before.keys() - crossed:
            log.warning("alert over: %s is below its threshold again", FIGURES[name])
        if last:
            values |= {"p50_seconds": last.p50, "p95_seconds": last.p95}
        provenance = self.header.get("provenance", {})
        model = {name: provenance[name] for name in ("run", "trial", "confirmation", "time") if name in provenance}
        for listener in self.listeners:
            listener({"version": self.version, "model": model, "values": values, "alerts": new})

    def _counts(self) -> dict[str, int]:
        """Return what was counted since the start; also what never came up."""
        return {name: self.tally[name] for name in (*self.header.get("classes", []), "abstained", "refused", "failed")}

    def _close_interval(self, now: float, figures: Mapping[str, float]) -> None:
        p50, p95 = np.quantile(self.latencies, (0.5, 0.95)) if self.latencies else (np.nan, np.nan)
        requests = len(self.latencies) + self.errors
        self.intervals.append(Interval(now, requests, self.errors, float(p50), float(p95), figures))
        self.latencies, self.errors, self.since = [], 0, now

    def points(self) -> list[Interval]:
        """Return the points of the plots, the oldest first."""
        with self.lock:
            return list(self.intervals)

    def summary(self) -> dict[str, Any]:
        """Return what is known at the moment, JSON-able."""
        with self.lock:
            window = self.window
            classes: list[str] = list(self.header.get("classes", []))
            reference = window.reference
            called = Tally(classes[index] for index, _, _ in window.seen)
            missing = (window.seen.maxlen or 0) - len(window.seen)
            summary: dict[str, Any] = {
                "version": self.version,
                "counts": self._counts(),
                "figures": window.figures(),
                "thresholds": dict(reference.get("thresholds", {})),
                "alerts": dict(self.alerts),
                "classes": {"in service": {name: called[name] / len(window.seen) for name in classes if window.seen}},
            }
        if reference:
            summary["window"] = window.seen.maxlen
            summary["classes"]["validation"] = dict(zip(classes, reference["classes"], strict=True))
            summary["waits_for"] = f"Drift is told from {window.seen.maxlen} pictures on; {missing} are to come."
        else:
            never = "the model in service was never promoted" if self.version else "there is no model in service"
            summary["waits_for"] = f"Drift cannot be told: {never}."
        return summary

    def metrics(self) -> bytes:
        """Return everything in Prometheus' text format."""
        content: bytes = generate_latest(self.registry)
        return content


def _sentence(name: str, value: float, reference: Mapping[str, Any]) -> str:
    """Say what a figure above its threshold means."""
    window, threshold = reference["window"], reference["thresholds"][name]
    text = {
        "class_psi": "the classes come up in other shares than on the validation pictures",
        "confidence_psi": "the network is surer or less sure than on the validation pictures",
        "abstained": f"{value:.0%} of the pictures are probably none of the classes; on the validation pictures it was "
        f"{reference['abstained']:.0%}",
        "errors": f"{value:.0%} of the requests had no answer",
    }[name]
    return f"{text} (last {window}: {FIGURES[name]} {value:.3g}, above {threshold:.3g})"
