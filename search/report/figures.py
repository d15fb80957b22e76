"""Trials of a sweep -> the pictures of its report: plotly figures, None where there is nothing to see."""

import warnings
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial

import optuna
import plotly.graph_objects as go
import plotly.io
from optuna.distributions import CategoricalDistribution, IntDistribution
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.trial import FrozenTrial, TrialState
from optuna.visualization import plot_parallel_coordinate, plot_param_importances, plot_slice

from search.space.space import Goal
from search.study.trials import state_of

__all__ = ["confusion_matrix", "importances", "learning_curves", "parallel_coordinates", "slices", "timeline"]

plotly.io.templates.default = "plotly_white"  # set in each figure, it would cost a quarter of a report
COLORS = {"complete": "#2563eb", "pruned": "#f59e0b", "failed": "#dc2626", "unfinished": "#9ca3af"}
WINNER = "#16a34a"
ABOVE = {"orientation": "h", "y": 1.02, "yanchor": "bottom"}
BELOW = {"orientation": "h", "y": -0.2}
MAX_LEGIBLE = 60  # curves that are drawn in full strength


def learning_curves(trials: Sequence[FrozenTrial], goal: Goal, winner: int | None, leads: str) -> go.Figure | None:
    """Draw what each trial was worth after each epoch: what the pruner saw, and where it said no."""
    figure = go.Figure()
    seen = [trial for trial in trials if trial.intermediate_values]
    strength = 0.8 if len(seen) <= MAX_LEGIBLE else 0.3
    for trial in sorted(seen, key=lambda trial: trial.number == winner):  # the winner on top
        epochs = sorted(trial.intermediate_values)
        state, wins = state_of(trial), trial.number == winner
        markers = ["x" if state == "pruned" and epoch == epochs[-1] else "circle" for epoch in epochs]
        sizes = [9 if marker == "x" else 5 if wins or len(epochs) == 1 else 0 for marker in markers]
        figure.add_scatter(
            x=epochs,
            y=[trial.intermediate_values[epoch] for epoch in epochs],
            mode="lines+markers",
            name=f"trial {trial.number} ({leads if wins else state})",
            line={"color": WINNER if wins else COLORS[state], "width": 4 if wins else 1.5},
            marker={"symbol": markers, "size": sizes},
            opacity=1 if wins else strength,
            showlegend=wins or len(seen) <= 12,
        )
    best = "best " if goal.metric != goal.column else ""
    axis = {
        "title": "epoch",
        "tickformat": "d",
        "dtick": max(1, max((t.last_step or 0 for t in seen), default=0) // 20),
    }
    figure.update_layout(xaxis=axis, yaxis_title=f"{best}{goal.column} so far", legend=BELOW)
    return figure if seen else None


def timeline(trials: Sequence[FrozenTrial], runs: Sequence[FrozenTrial]) -> go.Figure | None:
    """Draw which worker had which trial when; of a trial that was gone on with, the last worker's part."""
    figure = go.Figure()
    begun = [("trial", t) for t in trials] + [("run", t) for t in runs]
    begun = [(kind, trial) for kind, trial in begun if trial.datetime_start and trial.user_attrs.get("worker")]
    for state, color in COLORS.items():
        mine = [(kind, trial) for kind, trial in begun if state_of(trial) == state]
        if not mine:
            continue
        now = datetime.now()  # noqa: DTZ005 - as Optuna's
        spans = [(_since(trial), trial.datetime_complete or now) for _, trial in mine]
        figure.add_bar(
            base=[start for start, _ in spans],
            x=[(end - start).total_seconds() * 1000 for start, end in spans],
            y=[_worker(trial) for _, trial in mine],
            text=[f"{'' if kind == 'trial' else 'run '}{trial.number}" for kind, trial in mine],
            hovertext=[f"{kind} {trial.number} ({state})" for kind, trial in mine],
            orientation="h",
            name=state,
            marker={"color": color, "line": {"color": "white", "width": 1}},
            insidetextanchor="middle",
        )
    figure.update_layout(barmode="overlay", xaxis={"type": "date"}, legend=ABOVE)
    figure.update_yaxes(categoryorder="category descending")
    figure.update_layout(height=140 + 36 * len({_worker(trial) for _, trial in begun}))
    return figure if begun else None


def parallel_coordinates(trials: Sequence[FrozenTrial], goal: Goal) -> go.Figure | None:
    """Draw each complete trial as a line through its parameters."""
    return _of_optuna(partial(plot_parallel_coordinate, target_name=goal.metric), trials, goal)


def importances(trials: Sequence[FrozenTrial], goal: Goal) -> go.Figure | None:
    """Draw how much each parameter decides over being among the best tenth (PED-ANOVA, Watanabe et al., IJCAI 2023)."""
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE and trial.params]
    names = {name for trial in complete for name in trial.params}
    varied = sorted(name for name in names if len({trial.params.get(name) for trial in complete}) > 1)
    if not varied:  # what is the same in all decides nothing
        return None
    evaluator = PedAnovaImportanceEvaluator()
    draw = partial(plot_param_importances, evaluator=evaluator, params=varied, target_name=goal.metric)
    return _of_optuna(draw, trials, goal)


def slices(trials: Sequence[FrozenTrial], goal: Goal) -> go.Figure | None:
    """Draw the goal over each parameter by itself."""
    figure = _of_optuna(partial(plot_slice, target_name=goal.metric), trials, goal)
    if figure:
        names = {name for trial in trials for name in trial.params}
        figure.update_layout(width=max(900, 260 * len(names)))
        kinds = {name: distribution for trial in trials for name, distribution in trial.distributions.items()}
        for axis in figure.select_xaxes():
            kind = kinds.get(axis.title.text)
            if not isinstance(kind, CategoricalDistribution):
                axis.update(nticks=4, tickformat="d" if isinstance(kind, IntDistribution) else None)
    return figure


def confusion_matrix(labels: Sequence[str], matrix: Sequence[Sequence[int]], title: str) -> go.Figure:
    """Draw counts by true (rows) and predicted class (columns)."""
    figure = go.Figure(
        go.Heatmap(
            z=matrix, x=[f"called {name}" for name in labels], y=list(labels), texttemplate="%{z}", showscale=False
        )
    )
    figure.data[0].colorscale = "Blues"
    figure.update_layout(title=title, yaxis={"autorange": "reversed"}, width=420, height=360)
    return figure


def _since(trial: FrozenTrial) -> datetime:
    """Return when its last worker took a trial, which another may have begun."""
    start = trial.datetime_start
    assert start, "it was taken"
    return max(start, datetime.fromisoformat(trial.user_attrs["worker"].get("since", start.isoformat())))


def _worker(trial: FrozenTrial) -> str:
    worker = trial.user_attrs["worker"]
    return f"worker {worker['slot']} ({worker['device']})"


def _of_optuna(
    draw: Callable[[optuna.Study], go.Figure], trials: Sequence[FrozenTrial], goal: Goal
) -> go.Figure | None:
    """Return Optuna's figure of the complete trials that lie in the space; None while there are too few for it."""
    study = optuna.create_study(direction=goal.direction)
    study.add_trials([trial for trial in trials if trial.state == TrialState.COMPLETE and trial.params])
    if len(study.get_trials(deepcopy=False)) < 2:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            figure = draw(study)
        except (ValueError, RuntimeError):  # what Optuna raises where all values are equal, say
            return None
    figure.update_layout(title=None)
    return figure
