"""Draw the figures of a report with plotly. A function returns None if there is nothing to draw."""

import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any

import optuna
import plotly.graph_objects as go
import plotly.io
from optuna.distributions import CategoricalDistribution, IntDistribution
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.trial import FrozenTrial, TrialState
from optuna.visualization import plot_parallel_coordinate, plot_param_importances, plot_slice

from search.space.space import Goal
from search.study.trials import state_of

plotly.io.templates.default = "plotly_white"  # set in each figure, it would cost a quarter of a report
COLORS = {"complete": "#2563eb", "pruned": "#f59e0b", "failed": "#dc2626", "unfinished": "#9ca3af"}
WINNER = "#16a34a"
ABOVE = {"orientation": "h", "y": 1.02, "yanchor": "bottom"}
BELOW = {"orientation": "h", "y": -0.2}
MAX_LEGIBLE = 60  # curves drawn almost opaque
MAX_LEGEND = 12  # curves named in the legend


def learning_curves(trials: Sequence[FrozenTrial], goal: Goal, winner: int | None, leader: str) -> go.Figure | None:
    """Draw each trial's value after each epoch, as the pruner saw it; the `winner` is titled `leader`."""
    reported = [trial for trial in trials if trial.intermediate_values]
    if not reported:
        return None
    figure = go.Figure()
    opacity, is_named = 0.8 if len(reported) <= MAX_LEGIBLE else 0.3, len(reported) <= MAX_LEGEND
    for trial in sorted(reported, key=lambda trial: trial.number == winner):  # the winner on top
        if trial.number == winner:
            _add_curve(figure, trial, leader, 5, line={"color": WINNER, "width": 4}, opacity=1.0, showlegend=True)
        else:
            line = {"color": COLORS[state_of(trial)], "width": 1.5}
            _add_curve(figure, trial, state_of(trial), 0, line=line, opacity=opacity, showlegend=is_named)
    step = max(1, max(trial.last_step or 0 for trial in reported) // 20)
    best = "best " if goal.metric != goal.column else ""
    axis = {"title": "epoch", "tickformat": "d", "dtick": step}
    return figure.update_layout(xaxis=axis, yaxis_title=f"{best}{goal.column} so far", legend=BELOW)


def _add_curve(figure: go.Figure, trial: FrozenTrial, title: str, marker_size: int, **style: Any) -> None:
    """Add a trial's curve: a cross where it was pruned, a dot where it has a single epoch."""
    values = dict(sorted(trial.intermediate_values.items()))
    symbols, sizes = ["circle"] * len(values), [marker_size if len(values) > 1 else 5] * len(values)
    if trial.state == TrialState.PRUNED:
        symbols[-1], sizes[-1] = "x", 9
    figure.add_scatter(
        x=list(values),
        y=list(values.values()),
        mode="lines+markers",
        name=f"trial {trial.number} ({title})",
        marker={"symbol": symbols, "size": sizes},
        **style,
    )


def timeline(trials: Sequence[FrozenTrial], runs: Sequence[FrozenTrial]) -> go.Figure | None:
    """Draw the trials of each worker over time; a resumed trial is shown from its last start."""
    jobs = [*(("", trial) for trial in trials), *(("run ", run) for run in runs)]
    jobs = [(kind, job) for kind, job in jobs if job.datetime_start and job.user_attrs.get("worker")]
    if not jobs:
        return None
    figure = go.Figure()
    now = datetime.now()  # noqa: DTZ005 - as Optuna's
    for state, color in COLORS.items():
        shown = [(kind, job) for kind, job in jobs if state_of(job) == state]
        if not shown:
            continue
        spans = [(_last_start(job), job.datetime_complete or now) for _, job in shown]
        figure.add_bar(
            base=[start for start, _ in spans],
            x=[(end - start).total_seconds() * 1000 for start, end in spans],
            y=[_worker(job) for _, job in shown],
            text=[f"{kind}{job.number}" for kind, job in shown],
            hovertext=[f"{kind or 'trial '}{job.number} ({state})" for kind, job in shown],
            orientation="h",
            name=state,
            marker={"color": color, "line": {"color": "white", "width": 1}},
            insidetextanchor="middle",
        )
    height = 140 + 36 * len({_worker(job) for _, job in jobs})
    figure.update_yaxes(categoryorder="category descending")
    return figure.update_layout(barmode="overlay", xaxis={"type": "date"}, legend=ABOVE, height=height)


def parallel_coordinates(trials: Sequence[FrozenTrial], goal: Goal) -> go.Figure | None:
    """Draw each complete trial as a line through the parameters that vary."""
    return _of_optuna(plot_parallel_coordinate, trials, goal)


def importances(trials: Sequence[FrozenTrial], goal: Goal) -> go.Figure | None:
    """Draw each parameter's importance for being among the best tenth (PED-ANOVA, Watanabe et al., IJCAI 2023)."""
    return _of_optuna(plot_param_importances, trials, goal, evaluator=PedAnovaImportanceEvaluator())


def slices(trials: Sequence[FrozenTrial], goal: Goal) -> go.Figure | None:
    """Draw the goal over each parameter that varies."""
    figure = _of_optuna(plot_slice, trials, goal)
    if figure is None:
        return None
    distributions = {name: kind for trial in trials for name, kind in trial.distributions.items()}
    axes = list(figure.select_xaxes())
    for axis in axes:
        kind = distributions.get(axis.title.text)
        if not isinstance(kind, CategoricalDistribution):
            axis.update(nticks=4, tickformat="d" if isinstance(kind, IntDistribution) else None)
    return figure.update_layout(width=max(900, 260 * len(axes)))


def confusion_matrix(labels: Sequence[str], matrix: Sequence[Sequence[int]], title: str) -> go.Figure:
    """Draw counts by true (rows) and predicted class (columns)."""
    names = [f"predicted {name}" for name in labels]
    counts = go.Heatmap(z=matrix, x=names, y=list(labels), texttemplate="%{z}", showscale=False, colorscale="Blues")
    return go.Figure(counts).update_layout(title=title, yaxis={"autorange": "reversed"}, width=340, height=320)


def _last_start(trial: FrozenTrial) -> datetime:
    """Return when the last worker took a trial; another worker may have begun it."""
    start = trial.datetime_start
    assert start, "a trial of a worker was started"
    return max(start, datetime.fromisoformat(trial.user_attrs["worker"].get("since", start.isoformat())))


def _worker(trial: FrozenTrial) -> str:
    worker = trial.user_attrs["worker"]
    return f"worker {worker['slot']} ({worker['device']})"


def _of_optuna(draw: Callable[..., Any], trials: Sequence[FrozenTrial], goal: Goal, **options: Any) -> go.Figure | None:
    """Return Optuna's figure of what varies between the complete trials in the space; None if nothing does."""
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE and trial.params]
    names = {name for trial in complete for name in trial.params}
    varied = sorted(name for name in names if len({trial.params.get(name) for trial in complete}) > 1)
    if not varied:
        return None
    study = optuna.create_study(direction=goal.direction)
    study.add_trials(complete)
    # Optuna raises these errors, for example, if all values are equal.
    with warnings.catch_warnings(action="ignore"), suppress(ValueError, RuntimeError):
        return draw(study, params=varied, target_name=goal.metric, **options).update_layout(title=None)
    return None
