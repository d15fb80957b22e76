"""Promotion: a challenger against the champion on the held-out test set. The better model is installed."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

from catdog.checkpoint import load_model, save_model
from catdog.data.dataset import HeldOutTest, load_data, load_test
from catdog.device import find_devices
from catdog.evaluate import confusion, evaluate, losses
from catdog.model import CNN, count_mult_adds, have_same_weights
from catdog.serving.model_card import write_card
from catdog.serving.reference import make_reference
from pipeline.registry import CHAMPION, REMEDY, count_looks, install, provenance_of, replaceable, rollback
from search.analysis.confirmation import Candidate
from search.analysis.statistics import Comparison, Outcomes, accuracy_interval, compare
from search.formatting import short
from search.study.sweep import CANDIDATES, PROMOTION, load_study
from search.workers.tracking import read_note

BEST_MODEL = Path("best_model")
WEIGHTS = "model.safetensors"  # in a trial's folder
IDENTITY = ("sweep", "run", "trial", "confirmation", "time")  # entries of a provenance that tell models apart


@dataclass(frozen=True)
class Outcome:
    """The outcome of an attempt to promote weights."""

    promoted: bool
    reason: str  # one sentence
    notes: tuple[str, ...] = ()  # further sentences for people
    challenger: Mapping[str, Any] = field(default_factory=dict)  # its provenance and test figures
    champion: Mapping[str, Any] = field(default_factory=dict)  # likewise, if it was compared
    comparison: Mapping[str, Any] = field(default_factory=dict)
    test: Mapping[str, Any] = field(default_factory=dict)  # the test set, and how often it was used


@dataclass(frozen=True)
class _Contestant:
    """A saved network, opened."""

    model: CNN
    header: dict[str, Any]

    @property
    def name(self) -> str:
        return model_name(self.header["provenance"])

    def trained_on(self) -> tuple[Any, list[str]]:
        """Return the fingerprint of the data and the classes."""
        data = self.header["provenance"].get("data")
        return (data.get("fingerprint") if isinstance(data, dict) else data), list(self.header["classes"])


@dataclass(frozen=True)
class _Tested:
    """A contestant with its results on the test set."""

    contestant: _Contestant
    outcomes: Outcomes
    figures: Mapping[str, Any]

    def entry(self) -> dict[str, Any]:
        return {**self.contestant.header["provenance"], **self.figures}


def promote_trial(folder: Path, number: int | None, always: bool, source: str = "") -> list[str]:
    """Promote a trial of the sweep in `folder`, its winner by default, if it is better; return sentences about it.

    A confirmed trial is promoted with the weights of its best run. `source` has the images, by default the source of
    the training. Raises ValueError, one sentence.
    """
    study = load_study(folder)
    candidates = [Candidate(**entry) for entry in study.user_attrs.get(CANDIDATES, [])]
    weights = _weights_of(folder, _finished_trial(folder, study, candidates, number), candidates)
    promotions = study.user_attrs.get(PROMOTION, {})
    before = promotions.get(record_key(weights), {})
    if not always and is_settled(before, by_hand=True):
        return [f"kept the champion, as on {before['time']}: {before['reason']}; --promote always replaces it"]
    if not weights.exists() and weights.parent.is_dir():
        remedy = "command.txt beside it trains this network again, outside the sweep"
        raise ValueError(f"{weights} was not kept (--keep), so it cannot be promoted; {remedy}")
    provenance = load_model(weights)[1]["provenance"]
    if "trial" not in provenance:
        raise ValueError(f"{weights} was not trained by a sweep; promote a file that was")
    source = source or provenance["data"]["source"]
    outcome = promote_weights(weights, BEST_MODEL, source, find_devices("auto")[0], always=always)
    study.set_user_attr(PROMOTION, {**promotions, record_key(weights): record_of(outcome, before)})
    return describe_outcome(outcome)


def promote_weights(weights: Path, best_model: Path, source: str, device: str, *, always: bool = False) -> Outcome:
    """Make the model file `weights` the champion of `best_model`, if it is better, or tied and cheaper.

    Both are tested on the held-out images of `source`; the champion's header counts these tests. With `always`
    nothing is compared. Raises ValueError, one sentence, for unusable files or images; the champion is then untouched.
    """
    challenger = _Contestant(*load_model(weights))
    if url := read_note(weights.parent).get("url"):
        challenger.header["provenance"]["experiment"] = url
    with replaceable(best_model, write_card) as new:
        champion = _open_champion(best_model, always=always)
        if reason := _reason_against_test(challenger, champion, always=always):
            return Outcome(promoted=False, reason=reason)
        data = load_data(source, challenger.model.config.image_size)
        if data.fingerprint != challenger.trained_on()[0]:
            raise ValueError(f"{challenger.name} was not trained on the images of {source}; give its training images")
        test = load_test(source, challenger.model.config.image_size)
        tested = _test(challenger, test, source, device)
        opponent = None if always or champion is None else _test(champion, test, source, device)
        outcome = _decide(tested, opponent, is_first=not (best_model / CHAMPION).exists())
        winner = tested if outcome.promoted or opponent is None else opponent
        looks = 1 + count_looks(best_model, test.fingerprint)
        about = {"fingerprint": test.fingerprint, "left_out": test.num_left_out, "looks": looks}
        model, header = winner.contestant.model, _tested_header(winner.contestant.header, {**winner.figures, **about})
        if outcome.promoted:
            header["reference"] = make_reference(model, data, device)
        save_model(model, new, header)
        kept = install(best_model, new, keep=outcome.promoted)
    notes = (*test.notes, f"the champion before it is kept as {kept}") if kept else test.notes
    return replace(outcome, notes=notes, test={**about, "pictures": len(test.subset)})


def restore(best_model: Path) -> str:
    """Make the champion's predecessor the champion again; return a sentence about it."""
    restored, withdrawn = rollback(best_model, load_model, write_card)
    with replaceable(best_model, write_card) as new:
        champion = _Contestant(*load_model(best_model / CHAMPION))
        test = champion.header["metrics"].get("test", {})
        if looks := count_looks(best_model, test.get("fingerprint", "")):  # later champions were tested since
            save_model(champion.model, new, _tested_header(champion.header, {**test, "looks": looks}))
            install(best_model, new, keep=False)
    kept = f"; its successor is kept as {withdrawn}" if withdrawn else ""
    return f"{best_model / CHAMPION} is {champion.name} again (it was {restored}){kept}"


def champion_of(study: optuna.Study, best_model: Path) -> dict[str, Any] | None:
    """Return the champion's header, if the sweep's winner was tested against it. Raises ValueError if it is damaged."""
    champion = best_model / CHAMPION
    return load_model(champion)[1] if PROMOTION in study.user_attrs and champion.exists() else None


def is_settled(before: Mapping[str, Any], *, by_hand: bool = False) -> bool:
    """Say whether the record `before` of some weights makes another test unnecessary.

    A sweep tests its winner once, if there is a champion. By hand it is tested again unless it lost to this champion.
    """
    if not by_hand:
        return bool(before and provenance_of(BEST_MODEL))
    lost_to = {} if before.get("promoted") else before.get("champion", {})
    if not lost_to:
        return False
    champion = provenance_of(BEST_MODEL)
    return all(lost_to.get(name) == champion.get(name) for name in IDENTITY)


def record_of(outcome: Outcome, before: Mapping[str, Any]) -> dict[str, Any]:
    """Return the study's record of some weights: the record `before` if only that has a test."""
    if not outcome.test and before.get("test"):
        return dict(before)
    return {**vars(outcome), "time": datetime.now(UTC).isoformat(timespec="seconds")}


def record_key(weights: Path) -> str:
    """Return the key of the record of a trial's weights: confirmation/0003, for example."""
    return "/".join(weights.parts[-3:-1])


def model_name(provenance: Mapping[str, Any]) -> str:
    """Name a model by its trial."""
    if "trial" not in provenance:
        return "a model that no sweep trained"
    run = f" (run {provenance['confirmation']} of its confirmation)" if "confirmation" in provenance else ""
    return f"trial {provenance['trial']} of {provenance['run']}{run}"


def describe_outcome(outcome: Outcome) -> list[str]:
    """Describe an attempt to promote weights, in sentences."""
    lines = [f"note: {note}" for note in outcome.notes]
    for title, found in (("challenger", outcome.challenger), ("champion", outcome.champion)):
        if found:
            low, high = found["accuracy_interval"]
            interval = f"{low:.1%} to {high:.1%} of {found['pictures']} images"
            lines.append(f"{title}: {model_name(found)}, test accuracy {found['accuracy']:.1%} ({interval})")
    if looks := outcome.test.get("looks"):
        lines.append(f"the test set was used {'once' if looks == 1 else f'{looks} times'} so far")
    return [*lines, f"{'promoted' if outcome.promoted else 'kept the champion'}: {outcome.reason}"]


def _finished_trial(folder: Path, study: optuna.Study, candidates: Sequence[Candidate], number: int | None) -> int:
    """Return the number of a trial that may be promoted, the winner's by default."""
    trials = study.get_trials(deepcopy=False)
    if number is None:
        if not any(trial.state == TrialState.COMPLETE for trial in trials):
            raise ValueError(f"{folder} has no winner: none of its {len(trials)} trials completed")
        if not candidates:
            raise ValueError(f"{folder} has no winner yet; let its sweep end, or give --trial")
        number = candidates[0].trial
    if not 0 <= number < len(trials):
        raise ValueError(f"{folder} has no trial {number}; its trials are 0 to {len(trials) - 1}")
    if not trials[number].state.is_finished():
        raise ValueError(f"trial {number} of {folder} is unfinished; let its sweep end")
    return number


def _weights_of(folder: Path, number: int, candidates: Sequence[Candidate]) -> Path:
    """Return the weights of a trial's best confirmed run, else those of the trial itself."""
    own = folder / "trials" / f"{number:04}" / WEIGHTS
    confirmed = next((candidate for candidate in candidates if candidate.trial == number), None)
    best = confirmed.folder(folder) / WEIGHTS if confirmed else own
    return best if best.exists() or not own.exists() else own


def _open_champion(best_model: Path, *, always: bool) -> _Contestant | None:
    try:
        return _Contestant(*load_model(best_model / CHAMPION)) if (best_model / CHAMPION).exists() else None
    except ValueError as error:
        if always:
            return None  # it cannot be compared, and history/ keeps it
        raise ValueError(f"{error}: {REMEDY}") from error


def _reason_against_test(challenger: _Contestant, champion: _Contestant | None, *, always: bool) -> str:
    """Return the reason against a test of these two, empty if there is none."""
    if champion is None:
        return ""
    if have_same_weights(challenger.model, champion.model):
        return f"{challenger.name} is already the champion (identical weights)"
    if always or champion.trained_on() == challenger.trained_on():
        return ""
    was, now = (one.header["provenance"].get("data") for one in (champion, challenger))
    sources = [data.get("source") if isinstance(data, dict) else None for data in (was, now)]
    told = f" ({sources[0]}, not {sources[1]})" if all(sources) and sources[0] != sources[1] else ""
    reason = f"the champion, {champion.name}, was trained on other data or classes and cannot be compared{told}"
    return f"{reason}; --promote always replaces it without a comparison"


def _test(contestant: _Contestant, test: HeldOutTest, source: str, device: str) -> _Tested:
    """Evaluate a network on the test set, at its own image size."""
    size = contestant.model.config.image_size
    subset = test.subset if test.subset.images.shape[1] == size else load_test(source, size).subset
    scores, y = evaluate(contestant.model, subset, device=device), subset.y
    outcomes = Outcomes(losses(scores.logits, y).numpy(), (scores.logits.argmax(1) == y).numpy())
    figures = {
        "loss": scores.loss,
        "accuracy": scores.accuracy,
        "accuracy_interval": accuracy_interval(scores.accuracy, len(subset)),
        "pictures": len(subset),
        "confusion": confusion(scores.logits, y),
    }
    return _Tested(contestant, outcomes, figures)


def _decide(challenger: _Tested, opponent: _Tested | None, *, is_first: bool) -> Outcome:
    """Decide whether the challenger replaces the champion, with the reason in one sentence."""
    if opponent is None:
        why = ": there was none before" if is_first else " without a comparison, because of --promote always"
        reason = f"{challenger.contestant.name} is the champion{why}"
        return Outcome(promoted=True, reason=reason, challenger=challenger.entry())
    comparison = compare(challenger.outcomes, opponent.outcomes)
    promoted, reason = _verdict(challenger.contestant, opponent.contestant, comparison)
    figures = {**asdict(comparison), "verdict": comparison.verdict}
    return Outcome(promoted, reason, (), challenger.entry(), opponent.entry(), figures)


def _verdict(challenger: _Contestant, champion: _Contestant, comparison: Comparison) -> tuple[bool, str]:
    low, high = comparison.accuracy_interval
    figures = f"accuracy {100 * comparison.accuracy:+.2f} points ({100 * low:+.2f} to {100 * high:+.2f}), "
    low, high = comparison.loss_interval
    figures += f"loss {comparison.loss:+.4f} ({low:+.4f} to {high:+.4f})"
    than = f"the champion, {champion.name}: {figures}"
    if comparison.verdict == "better":
        return True, f"{challenger.name} is better than {than}"
    if comparison.verdict == "worse":
        return False, f"{challenger.name} is worse than {than}"
    own, other = count_mult_adds(challenger.model.config), count_mult_adds(champion.model.config)
    cost = f"{short(own)} against {short(other)} mult-adds"
    if own < other:
        return True, f"{challenger.name} is tied with and cheaper ({cost}) than {than}"
    return False, f"{challenger.name} is no better and no cheaper ({cost}) than {than}"


def _tested_header(header: Mapping[str, Any], test: Mapping[str, Any]) -> dict[str, Any]:
    return {**header, "metrics": {**header["metrics"], "test": dict(test)}}
