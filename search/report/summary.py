"""Summarise a sweep: one line of counts, cards, and a sentence per attempt to promote."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from search.analysis.confirmation import explain_winner, gain_over_baseline
from search.formatting import bounds, count, rough_duration
from search.report.record import Record


@dataclass(frozen=True)
class Card:
    title: str
    value: str
    text: str = ""
    wins: bool = False  # highlighted


def status(record: Record) -> str:
    """Count trials by state, and the runs of the confirmation."""
    states = Counter(trial.state for trial in record.ranking)
    counts = ", ".join(f"{number} {state}" for state, number in states.items())
    ended = sum(run.state.is_finished() for run in record.counted)
    runs = f" and {len(record.counted)} runs to confirm the best, {ended} of them ended" if record.counted else ""
    if ahead := len(record.runs) - len(record.counted):
        early = f"{count(ahead, 'run')} begun during the search"
        runs += f"; {early} not counted: better trials came" if record.counted else f" and {early}, to confirm"
    return f"{count(len(record.trials), 'trial')} ({counts}){runs}."


def cards(record: Record, champion: Mapping[str, Any] | None) -> Iterator[Card]:
    """Yield the cards of the page; `champion` is the header of the model in service."""
    yield from _winner(record)
    tested = record.promotion.get("challenger", {})
    if tested.get("accuracy") is not None:
        low, high = tested["accuracy_interval"]
        text = f"{bounds((100 * low, 100 * high), '.1f')} % of {tested['pictures']} held-out test images"
        yield Card("test accuracy of the winner", f"{tested['accuracy']:.1%}", text, wins=True)
    if record.baseline:
        yield from _baseline(record)
    seconds = sum(trial.user_attrs.get("seconds", 0) for trial in (*record.trials, *record.runs))
    text = f"of training by all workers; {rough_duration(_span(record))} from first start to last end"
    yield Card("cost", rough_duration(seconds), text)
    text = "each one is counted in the champion's header"
    yield Card("evaluations on the test images", str(_num_test_evaluations(record, champion)), text)


def _winner(record: Record) -> Iterator[Card]:
    metric = record.goal.metric
    if record.candidates:
        best = record.candidates[0]
        source = f"mean of {len(best.runs)} fresh seeds" if best.runs else "in the search, not confirmed"
        interval = f" ({bounds(best.interval)})" if best.interval else ""
        yield Card("winner", f"trial {best.trial}", f"{metric} {best.mean:.4f}{interval}, {source}", wins=True)
    elif (number := record.winner) is not None:
        yield Card("best so far", f"trial {number}", f"{metric} {record.trials[number].value:.4f}, not confirmed")


def _baseline(record: Record) -> Iterator[Card]:
    """Yield trial 0, and the winner's gains over it."""
    baseline = next((trial for trial in record.ranking if trial.trial == 0), None)
    if baseline is None:
        return
    value = "no result" if baseline.value is None else f"{baseline.value:.4f}"
    yield Card("baseline (trial 0)", value, f"{baseline.state} after {baseline.epochs} epochs")
    for column, (mean, (low, high)) in gain_over_baseline(record.folder, record.candidates, record.goal.column).items():
        scale, form, unit = (100, "+.2f", " points") if "accuracy" in column else (1, "+.4f", "")
        text = bounds((scale * low, scale * high), form) + unit
        text += f"; the baseline was {baseline.state}" if baseline.state != "complete" else ""
        yield Card(f"{column}: winner minus baseline", f"{scale * mean:{form}}{unit}", text)


def _span(record: Record) -> float:
    """Return the seconds from the first start to the last end."""
    jobs = (*record.trials, *record.runs)
    starts = [job.datetime_start for job in jobs if job.datetime_start]
    ends = [job.datetime_complete for job in jobs if job.datetime_complete]
    return (max(ends) - min(starts)).total_seconds() if ends else 0.0


def _num_test_evaluations(record: Record, champion: Mapping[str, Any] | None) -> int:
    """Return how often the test images were used; the champion counts if it was tested on the same images."""
    ours, theirs = record.promotion.get("test", {}), (champion or {}).get("metrics", {}).get("test", {})
    is_same = theirs.get("fingerprint") == ours.get("fingerprint")
    return int(max(ours.get("looks", 0), theirs.get("looks", 0) if is_same else 0))


def sentences(record: Record, champion: Mapping[str, Any] | None) -> Iterator[str]:
    """Yield sentences on the winner, on each attempt to promote, on the test images, and on the model in service."""
    if record.shortfall:
        yield f"{record.shortfall}."
    if why := explain_winner(record.candidates, record.ranking):
        yield f"{why}."
    for weights, attempt in sorted(record.promotions.items(), key=lambda item: item[1]["time"]):
        outcome = "promoted" if attempt["promoted"] else "kept the champion"
        yield f"{attempt['time']}: {outcome}; {attempt['reason']} ({weights})."
        if attempt.get("advice"):
            yield f"{attempt['advice']}."
    if left_out := record.promotion.get("test", {}).get("left_out"):
        yield f"{left_out} test images were left out: training images have the same content."
    if champion:
        provenance = champion["provenance"]
        trial = f"trial {provenance['trial']} of {provenance.get('run')}" if "trial" in provenance else ""
        yield f"In service: {trial or 'a model that no sweep trained'}."
