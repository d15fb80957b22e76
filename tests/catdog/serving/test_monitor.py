import logging
import math
import time

import numpy as np
import pytest

from catdog.serving import monitor as module
from catdog.serving.monitor import FIGURES, Monitor

EDGES = np.linspace(1, 5, 9).tolist()
REFERENCE = {
    "pictures": 1000,
    "classes": [0.5, 0.5],
    "margin_edges": EDGES,
    "margins": [0.1] * 10,
    "abstained": 0.02,
    "window": 300,
    "thresholds": {"class_psi": 0.2, "confidence_psi": 0.2, "abstained": 0.1, "errors": 0.2},
}
HEADER = {"classes": ["cat", "dog"], "provenance": {"run": "photos", "trial": 3}, "reference": REFERENCE}


@pytest.fixture
def monitor():
    monitor = Monitor()
    monitor.watch("abc", HEADER)
    return monitor


def show(monitor, number, *, cats=0.5, margins=(0.5, 5.5), strange=0.02, seed=0):
    """Let the monitor see images of that kind."""
    rng = np.random.default_rng(seed)
    for _ in range(number):
        label = "cat" if rng.random() < cats else "dog"
        margin = float(rng.uniform(*margins))
        monitor.count_answer("abc", label, margin, familiar=bool(rng.random() >= strange), seconds=0.01)


def alerts(monitor):
    monitor.tick()
    return set(monitor.summary()["alerts"])


def test_images_like_validations_raise_no_alert(monitor):
    for seed in range(20):
        show(monitor, 150, seed=seed)
        assert alerts(monitor) == set()
    assert set(monitor.summary()["figures"]) == {"class_psi", "confidence_psi", "abstained", "errors"}


def test_nothing_is_told_before_the_window_is_full(monitor):
    show(monitor, 299, cats=1)
    assert alerts(monitor) == set()
    assert "1 more are needed" in monitor.summary()["waits_for"]
    show(monitor, 1, cats=1)
    assert alerts(monitor) == {"class_psi"}


@pytest.mark.parametrize(
    ("kind", "alert"),
    [({"cats": 1.0}, "class_psi"), ({"margins": (3, 5.5)}, "confidence_psi"), ({"strange": 0.3}, "abstained")],
)
def test_each_shift_raises_its_own_alert_and_its_end_is_logged(monitor, kind, alert, caplog):
    show(monitor, 300, **kind)
    assert alerts(monitor) == {alert}
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.message.startswith("alert: ")
    assert f"{FIGURES[alert]} " in record.message
    assert alerts(monitor) == {alert}
    assert len(caplog.records) == 1  # told once
    show(monitor, 300)
    assert alerts(monitor) == set()
    assert "alert over" in caplog.records[-1].message


def test_failing_requests_raise_an_alert(monitor):
    show(monitor, 230)
    for _ in range(70):
        monitor.count_failure("refused")
    assert alerts(monitor) == {"errors"}
    assert "23% of the requests had no answer" in monitor.summary()["alerts"]["errors"]


def test_metrics_are_prometheus_text(monitor):
    show(monitor, 300, cats=1.0)
    monitor.count_failure("failed")
    monitor.tick()
    lines = monitor.prometheus_text().decode().splitlines()
    assert 'catdog_requests_total{outcome="answered"} 300.0' in lines
    assert 'catdog_requests_total{outcome="failed"} 1.0' in lines
    assert 'catdog_pictures_total{label="cat"} 300.0' in lines
    assert 'catdog_model_info{version="abc"} 1.0' in lines
    assert 'catdog_alert{figure="class_psi"} 1.0' in lines
    assert 'catdog_alert{figure="abstained"} 0.0' in lines
    assert 'catdog_seconds_bucket{le="0.02"} 300.0' in lines
    assert any(line.startswith('catdog_drift{figure="class_psi"}') for line in lines)


def test_another_model_begins_anew(monitor):
    show(monitor, 300, cats=1.0)
    assert alerts(monitor) == {"class_psi"}
    monitor.watch("def", HEADER)
    monitor.count_answer("abc", "cat", 3.0, familiar=True, seconds=0.01)  # a late answer of the one before
    assert alerts(monitor) == set()
    assert "300 more are needed" in monitor.summary()["waits_for"]
    metrics = monitor.prometheus_text().decode()
    assert 'catdog_model_info{version="abc"}' not in metrics
    assert 'catdog_alert{figure="class_psi"} 0.0' in metrics
    assert "catdog_drift{" not in metrics


def test_model_without_reference_is_counted_and_not_compared():
    monitor = Monitor()
    monitor.watch("abc", {**HEADER, "reference": {}})
    show(monitor, 400, cats=1.0)
    assert alerts(monitor) == set()
    assert monitor.summary()["counts"]["cat"] == 400
    assert "was never promoted" in monitor.summary()["waits_for"]


def test_plots_get_a_point_per_interval(monitor, monkeypatch):
    monkeypatch.setattr(module, "INTERVAL_SECONDS", 0.05)
    show(monitor, 10)
    monitor.count_failure("refused")
    time.sleep(0.06)
    monitor.tick()
    time.sleep(0.06)
    monitor.tick()
    first, second = monitor.points()
    assert (first.requests, first.errors, second.requests) == (11, 1, 0)
    assert first.p50 == pytest.approx(0.01)
    assert math.isnan(second.p95)


def test_reports_have_the_figures_and_each_alert_once(monitor):
    show(monitor, 300, cats=1.0)
    reports = [monitor.tick(), monitor.tick()]
    assert [len(report["alerts"]) for report in reports] == [1, 0]
    assert reports[0]["version"] == "abc"
    assert reports[0]["model"] == {"run": "photos", "trial": 3}
    assert reports[0]["values"]["cat"] == 300
