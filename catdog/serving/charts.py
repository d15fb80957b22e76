"""Plots of the Monitor tab, legible on a light and on a dark page."""

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import plotly.graph_objects as go

from catdog.serving.monitor import FIGURES, Interval

GREY, BLUE, ORANGE, GREEN, RED = "#8b8b94", "#3b82f6", "#f59e0b", "#10b981", "#dc2626"
COLOURS = {"class_psi": BLUE, "confidence_psi": ORANGE, "abstained": GREEN, "errors": RED}
MIN_SPAN_SECONDS = 600.0  # of the time axis
GRID = "rgba(128,128,128,.2)"


def draw_charts(summary: Mapping[str, Any], points: Sequence[Interval]) -> list[go.Figure]:
    """Return the plots of requests, latency, drift and classes."""
    times = [_utc(round(point.time)) for point in points]
    figures = [_requests(times, points), _latency(times, points), _drift(times, points, summary["thresholds"])]
    last = points[-1].time if points else time.time()
    first = min(points[0].time if points else last, last - MIN_SPAN_SECONDS)
    for figure in figures:
        figure.update_xaxes(range=[_utc(first), _utc(last)])
    return [*figures, _classes(summary["classes"])]


def _requests(times: Sequence[datetime], points: Sequence[Interval]) -> go.Figure:
    figure = _figure("Images per ten seconds (times in UTC)")
    figure.add_bar(x=times, y=[p.requests - p.errors for p in points], name="answered", marker_color=BLUE)
    figure.add_bar(x=times, y=[p.errors for p in points], name="errors", marker_color=RED)
    return figure.update_layout(barmode="stack")


def _latency(times: Sequence[datetime], points: Sequence[Interval]) -> go.Figure:
    figure = _figure("Latency in milliseconds")
    figure.add_trace(_line(times, [1000 * p.p50 for p in points], "median", BLUE))
    return figure.add_trace(_line(times, [1000 * p.p95 for p in points], "95th percentile", ORANGE))


def _drift(times: Sequence[datetime], points: Sequence[Interval], thresholds: Mapping[str, float]) -> go.Figure:
    figure = _figure("Drift divided by its alert threshold")
    for name, threshold in thresholds.items():
        values = [p.figures.get(name, float("nan")) / threshold for p in points]
        figure.add_trace(_line(times, values, FIGURES[name], COLOURS[name]))
    return figure.add_hline(1, line_color=RED, line_dash="dot").update_yaxes(rangemode="tozero")


def _classes(shares: Mapping[str, Mapping[str, float]]) -> go.Figure:
    figure = _figure("Share of each class")
    for images, colour in (("validation", GREY), ("in service", BLUE)):
        share = shares.get(images, {})
        figure.add_bar(x=list(share), y=list(share.values()), name=images, marker_color=colour)
    return figure.update_yaxes(range=[0, 1], tickformat=".0%")


def _utc(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _line(times: Sequence[datetime], values: Sequence[float], name: str, colour: str) -> go.Scatter:
    return go.Scatter(x=times, y=values, name=name, mode="lines+markers", line_color=colour, marker_size=4)


def _figure(title: str) -> go.Figure:
    return go.Figure().update_layout(
        title={"text": title, "font_size": 14},
        height=280,
        margin={"l": 40, "r": 10, "t": 40, "b": 30},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font_color=GREY,
        showlegend=True,
        legend={"orientation": "h", "y": -0.2},
        xaxis_gridcolor=GRID,
        yaxis_gridcolor=GRID,
    )
