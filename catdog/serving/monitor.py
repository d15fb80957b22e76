"""Monitor of a service: counts, drift from the validation images, alerts. It keeps no image and no file name."""

import logging
import threading
import time
from bisect import bisect
from collections import Counter as Tally
from collections import deque
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from catdog.serving.reference import psi, shares_of

INTERVAL_SECONDS = 10.0  # of a point in the plots
NUM_INTERVALS = 360  # an hour
FIGURES = {  # figures with a threshold, and their names on the page
    "class_psi": "class drift",
    "confidence_psi": "confidence drift",
    "abstained": "share called neither",
    "errors": "share of errors",
}
LATENCY_BUCKETS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)  # seconds

log = logging.getLogger("catdog")


@dataclass(frozen=True)
class Interval:
    """A point in the plots."""

    time: float  # Unix seconds at its end
    requests: int
    errors: int
    p50: float  # seconds from decoding to the answer; nan without requests
    p95: float
    figures: Mapping[str, float]  # those of FIGURES that were available


class _Window:
    """The last images that the model in service has answered."""

    def __init__(self, reference: Mapping[str, Any]) -> None:
        size = reference.get("window", 300)
        self.reference = reference
        self.thresholds: dict[str, float] = dict(reference.get("thresholds", {}))
        self.answers: deque[tuple[int, int, bool]] = deque(maxlen=size)  # class, bin of the margin, abstained
        self.failures: deque[bool] = deque(maxlen=size)  # of each of the last requests
        self.size = size

    def figures(self) -> dict[str, float]:
        """Return the figures that have thresholds, as soon as there are enough images or requests."""
        figures = {}
        if len(self.failures) == self.size:
            figures["errors"] = sum(self.failures) / self.size
        if self.reference and len(self.answers) == self.size:
            labels, margin_bins, abstained = zip(*self.answers, strict=True)
            figures["class_psi"] = _psi(labels, self.reference["classes"])
            figures["confidence_psi"] = _psi(margin_bins, self.reference["margins"])
            figures["abstained"] = sum(abstained) / self.size
        return figures

    def alerts(self, figures: Mapping[str, float]) -> dict[str, str]:
        """Return a sentence for each figure above its threshold."""
        crossed = {name: value for name, value in figures.items() if value > self.thresholds.get(name, np.inf)}
        return {name: _describe_alert(name, value, self.reference) for name, value in crossed.items()}


class _Metrics:
    """Metrics for Prometheus. Dashboards and alert rules depend on their names."""

    def __init__(self) -> None:
        self.registry = on = CollectorRegistry()
        self.requests = Counter("catdog_requests", "Requests by outcome", ["outcome"], registry=on)
        self.images = Counter("catdog_pictures", "Images by predicted class", ["label"], registry=on)
        self.abstained = Counter("catdog_abstained", "Images that are probably none of the classes", registry=on)
        self.swaps = Counter("catdog_swaps", "Models that were put into service", registry=on)
        text = "Seconds from the decoding of an image to its answer"
        self.seconds = Histogram("catdog_seconds", text, buckets=LATENCY_BUCKETS, registry=on)
        self.model = Gauge("catdog_model_info", "The model in service", ["version"], registry=on)
        self.drift = Gauge("catdog_drift", "Drift of the last images from validation", ["figure"], registry=on)
        self.threshold = Gauge("catdog_drift_threshold", "Alert threshold of a figure", ["figure"], registry=on)
        self.alert = Gauge("catdog_alert", "1 while a figure exceeds its threshold", ["figure"], registry=on)

    def watch(self, version: str, thresholds: Mapping[str, float]) -> None:
        for gauge in (self.model, self.drift, self.threshold, self.alert):
            gauge.clear()
        self.model.labels(version).set(1)
        self.swaps.inc()
        for name, value in thresholds.items():
            self.threshold.labels(name).set(value)
            self.alert.labels(name).set(0)

    def update(self, figures: Mapping[str, float], alerts: Container[str]) -> None:
        for name, value in figures.items():
            self.drift.labels(name).set(value)
            self.alert.labels(name).set(name in alerts)


class Monitor:
    """Counts requests, in microseconds each. Call `tick` every second or so: it does the rest."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.metrics = _Metrics()
        self.version = ""
        self.header: Mapping[str, Any] = {}
        self.window = _Window({})
        self.alerts: dict[str, str] = {}  # figure -> sentence
        self.intervals: deque[Interval] = deque(maxlen=NUM_INTERVALS)
        self.totals: Tally[str] = Tally()  # since the start: each class, abstained, refused, failed
        self.latencies: list[float] = []  # seconds, in the current interval
        self.num_errors, self.interval_start = 0, time.time()

    def watch(self, version: str, header: Mapping[str, Any]) -> None:
        """Start a new window for another model; the totals continue."""
        with self.lock:
            self.version, self.header, self.alerts = version, header, {}
            self.window = _Window(header.get("reference", {}))
            self.metrics.watch(version, self.window.thresholds)

    def count_answer(self, version: str, label: str, margin: float, *, familiar: bool, seconds: float) -> None:
        """Count an image that the model of that version has answered."""
        with self.lock:
            self.totals[label] += 1
            self.totals["abstained"] += not familiar
            self.latencies.append(seconds)
            if version == self.version:  # else a late answer of the model before
                self.window.failures.append(False)
                if reference := self.window.reference:
                    index, margin_bin = self.header["classes"].index(label), bisect(reference["margin_edges"], margin)
                    self.window.answers.append((index, margin_bin, not familiar))
        self.metrics.requests.labels("answered").inc()
        self.metrics.images.labels(label).inc()
        self.metrics.abstained.inc(not familiar)
        self.metrics.seconds.observe(seconds)

    def count_failure(self, outcome: str) -> None:
        """Count a request without an answer: `refused` is the client's fault, `failed` the server's."""
        with self.lock:
            self.totals[outcome] += 1
            self.num_errors += 1
            self.window.failures.append(True)
        self.metrics.requests.labels(outcome).inc()

    def tick(self) -> dict[str, Any]:
        """Update figures, alerts and plots. Return a JSON-able report; its `alerts` are the new ones."""
        with self.lock:
            figures = self.window.figures()
            before, self.alerts = self.alerts, self.window.alerts(figures)
            started = [text for name, text in self.alerts.items() if name not in before]
            self.metrics.update(figures, self.alerts)
            if time.time() - self.interval_start >= INTERVAL_SECONDS:
                self._close_interval(figures)
            report = self._report(figures, started)
        for text in started:
            log.warning("alert: %s", text)
        for name in before.keys() - self.alerts:
            log.warning("alert over: %s is below its threshold again", FIGURES[name])
        return report

    def _counts(self) -> dict[str, int]:
        """Return the totals, zeros included."""
        return {name: self.totals[name] for name in (*self.header.get("classes", []), "abstained", "refused", "failed")}

    def _report(self, figures: Mapping[str, float], started: list[str]) -> dict[str, Any]:
        values = {**self._counts(), **figures}
        if self.intervals:
            values |= {"p50_seconds": self.intervals[-1].p50, "p95_seconds": self.intervals[-1].p95}
        provenance = self.header.get("provenance", {})
        model = {name: provenance[name] for name in ("run", "trial", "confirmation", "time") if name in provenance}
        return {"version": self.version, "model": model, "values": values, "alerts": started}

    def _close_interval(self, figures: Mapping[str, float]) -> None:
        p50, p95 = np.quantile(self.latencies, (0.5, 0.95)).tolist() if self.latencies else (np.nan, np.nan)
        num_requests, now = len(self.latencies) + self.num_errors, time.time()
        self.intervals.append(Interval(now, num_requests, self.num_errors, p50, p95, figures))
        self.latencies, self.num_errors, self.interval_start = [], 0, now

    def points(self) -> list[Interval]:
        """Return the points of the plots, oldest first."""
        with self.lock:
            return list(self.intervals)

    def summary(self) -> dict[str, Any]:
        """Return all figures of this moment, JSON-able."""
        with self.lock:
            window, reference = self.window, self.window.reference
            classes: list[str] = list(self.header.get("classes", []))
            called = Tally(classes[index] for index, _, _ in window.answers)
            num_answers = len(window.answers)
            shares = {"in service": {name: called[name] / num_answers for name in classes if num_answers}}
            summary = {
                "version": self.version,
                "counts": self._counts(),
                "figures": window.figures(),
                "thresholds": window.thresholds,
                "alerts": dict(self.alerts),
                "classes": shares,
            }
        if reference:
            shares["validation"] = dict(zip(classes, reference["classes"], strict=True))
            missing = f"{window.size - num_answers} more are needed"
            return {**summary, "window": window.size, "waits_for": f"Drift needs {window.size} images; {missing}."}
        reason = "the model in service was never promoted" if self.version else "there is no model in service"
        return {**summary, "waits_for": f"Drift is not available: {reason}."}

    def prometheus_text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return bytes(generate_latest(self.metrics.registry))


def _psi(values: tuple[int, ...], expected: list[float]) -> float:
    """Return the population stability index of class or bin numbers against expected shares."""
    return psi(shares_of(np.bincount(values, minlength=len(expected))), expected)


def _describe_alert(name: str, value: float, reference: Mapping[str, Any]) -> str:
    """Return a sentence on a figure above its threshold."""
    usual, threshold = f"{reference['abstained']:.0%}", f"{reference['thresholds'][name]:.3g}"
    text = {
        "class_psi": "the classes have other shares than among the validation images",
        "confidence_psi": "the confidence is distributed differently than on the validation images",
        "abstained": f"{value:.0%} of the images are probably none of the classes; of the validation images: {usual}",
        "errors": f"{value:.0%} of the requests had no answer",
    }[name]
    return f"{text} (last {reference['window']}: {FIGURES[name]} {value:.3g}, above {threshold})"
