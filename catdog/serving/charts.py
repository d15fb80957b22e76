"""What the monitor knows -> the Monitor tab's four plots."""

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import plotly.graph_objects as go

from catdog.serving.monitor import FIGURES, Interval

__all__ = ["charts"]

GREY, BLUE, ORANGE, RED = "#8b8b94", "#3b82f6", "#f59e0b", "#dc2626"  # legible on white and on black
SHORTEST_SPAN = 600.0  # seconds
COLOURS = {"class_psi": BLUE, "confidence_psi": ORANGE, "abstained": "#10b981", "errors": RED}


def charts(summary: Mapping[str, Any], points: Sequence[Interval]) -> list[go.Figure]:
    """Return the plots of requests, latency, drift and classes."""
    figures = [_requests(points), _latency(points), _drift(points, summary["thresholds"])]
    for figure in figures:
        figure.update_xaxes(range=_span(points))
    return [*figures, _classes(summary["classes"])]


def _requests(points: Sequence[Interval]) -> go.Figure:
    times = _times(points)
    return _figure("Pictures in ten seconds (times are UTC)").add_traces(
        [
            go.Bar(x=times, y=[p.requests - p.errors for p in points], name="answered", marker_color=BLUE),
            go.Bar(x=times, y=[p.errors for p in points], name="errors", marker_color=RED),
        ]
    ).update_layout(barmode="stack")  # fmt: skip


def _latency(points: Sequence[Interval]) -> go.Figure:
    times = _times(points)
    return _figure("Milliseconds to an answer").add_traces(
        [
            _line(times, [1000 * p.p50 for p in points], "half are faster", BLUE),
            _line(times, [1000 * p.p95 for p in points], "95 % are faster", ORANGE),
        ]
    )


def _drift(points: Sequence[Interval], thresholds: Mapping[str, float]) -> go.Figure:
    figure = _figure("Drift: an alert above 1")
    for name, threshold in thresholds.items():
        values = [p.figures.get(name, float("nan")) / threshold for p in points]
        figure.add_trace(_line(_times(points), values, FIGURES[name], COLOURS.get(name, GREY)))
    return figure.add_hline(1, line_color=RED, line_dash="dot").update_yaxes(rangemode="tozero")


def _classes(shares: Mapping[str, Mapping[str, float]]) -> go.Figure:
    figure = _figure("Share of each class")
    for pictures, colour in (("validation", GREY), ("in service", BLUE)):
        share = shares.get(pictures, {})
        figure.add_trace(go.Bar(x=list(share), y=list(share.values()), name=pictures, marker_color=colour))
    return figure.update_yaxes(range=[0, 1], tickformat=".0%")


def _times(points: Sequence[Interval]) -> list[datetime]:
    return [datetime.fromtimestamp(round(point.time), UTC) for point in points]


def _span(points: Sequence[Interval]) -> list[datetime]:
    """Return what the time axis shows: all points, and ten minutes at least."""
    last = points[-1].time if points else time.time()
    first = min(points[0].time if points else last, last - SHORTEST_SPAN)
    return [datetime.fromtimestamp(moment, UTC) for moment in (first, last)]


def _line(times: Sequence[datetime], values: Sequence[float], name: str, colour: str) -> go.Scatter:
    return go.Scatter(x=times, y=values, name=name, mode="lines+markers", line_color=colour, marker_size=4)


def _figure(title: str) -> go.Figure:
    """Return an empty figure for a light or a dark page."""
    return go.Figure().update_layout(
        title={"text": title, "font_size": 14},
        height=280,
        margin={"l": 40, "r": 10, "t": 40, "b": 30},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font_color=GREY,
        showlegend=True,
        legend={"orientation": "h", "y": -0.2},
        xaxis_gridcolor="rgba(128,128,128,.2)",
        yaxis_gridcolor="rgba(128,128,128,.2)",
    )
