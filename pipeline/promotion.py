"""The sealed test: a challenger beside the champion, on pictures that chose nothing. Promotes what is better."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

from catdog.checkpoint import load_model, read_header, save_model
from catdog.data.dataset import Data, HeldOutTest, load_data, load_test
from catdog.device import find_devices
from catdog.evaluate import confusion, evaluate, losses
from catdog.model import CNN, count_mult_adds, have_same_weights
from catdog.serving.model_card import write_card
from catdog.serving.reference import make_reference
from pipeline.registry import CHAMPION, HISTORY, promote, rollback
from search.analysis.confirmation import Candidate
from search.analysis.statistics import Comparison, Outcomes, accuracy_interval, compare
from search.formatting import short
from search.study.sweep import CANDIDATES, PROMOTION, load_study
from search.workers.tracking import read_note

__all__ = [
    "BEST_MODEL",
    "Outcome",
    "champion_of",
    "holder_of",
    "name_of",
    "name_of_model",
    "promote_trial",
    "promote_weights",
    "restore",
]

BEST_MODEL = Path("best_model")
REMEDY = "python -m search.promote --rollback, or --promote always"


@dataclass(frozen=True)
class Outcome:
    """What came of an attempt to promote weights."""

    promoted: bool
    reason: str  # one sentence
    notes: tuple[str, ...] = ()  # what else a person should know
    challenger: Mapping[str, Any] = field(default_factory=dict)  # its provenance and test figures
    champion: Mapping[str, Any] = field(default_factory=dict)  # of the one before, where it was an opponent
    comparison: Mapping[str, Any] = field(default_factory=dict)
    test: Mapping[str, Any] = field(default_factory=dict)  # the pictures, and how often they were looked at


@dataclass(frozen=True)
class _Contestant:
    """A saved network, opened."""

    model: CNN
    header: dict[str, Any]

    @property
    def name(self) -> str:
        return name_of_model(self.header["provenance"])

    @property
    def mult_adds(self) -> int:
        return count_mult_adds(self.model.config)

    def trained_on(self) -> tuple[Any, Any]:
        data = self.header["provenance"].get("data")
        return (data.get("fingerprint") if isinstance(data, dict) else data), list(self.header["classes"])


def promote_weights(weights: Path, best_model: Path, source: str, device: str, *, always: bool = False) -> Outcome:
    """Make the model file `weights` the champion of `best_model`, if it is better, or tied and cheaper.

    Both are tested on the sealed pictures of `source`; each such look is counted in the champion's header. With
    `always` nothing is compared. Raises ValueError, one sentence, for files or pictures that do not serve; the
    champion is then untouched.
    """
    challenger = _open(weights)
    if url := read_note(weights.parent).get("url"):
        challenger.header["provenance"]["experiment"] = url
    outcome = Outcome(promoted=False, reason="")

    def judge(champion: Path | None, target: Path) -> bool:
        nonlocal outcome
        outcome = _judge(challenger, champion, target, source, device, always=always)
        return outcome.promoted

    kept = promote(best_model, judge, write_card)
    notes = (f"the champion before it is kept as {kept}",) if kept else ()
    return Outcome(**{**vars(outcome), "notes": (*outcome.notes, *notes)})


def holder_of(best_model: Path) -> dict[str, Any]:
    """Return the provenance of the champion, empty where there is none.

    Raises ValueError, one sentence, for one that is not whole and true.
    """
    champion = best_model / CHAMPION
    try:
        provenance: dict[str, Any] = read_header(champion)["provenance"] if champion.exists() else {}
    except ValueError as error:
        raise ValueError(f"{error}: {REMEDY}") from error
    return provenance


def name_of_model(provenance: Mapping[str, Any]) -> str:
    """Say which model it is that came from there."""
    if "trial" not in provenance:
        return "a model that no sweep trained"
    again = f" (run {provenance['confirmation']} of its confirmation)" if "confirmation" in provenance else ""
    return f"trial {provenance['trial']} of {provenance['run']}{again}"


def promote_trial(folder: Path, number: int | None, always: bool, source: str = "") -> list[str]:
    """Promote a trial of the sweep in `folder`, its winner by default, if it is better; say what came of it.

    A trial that was confirmed is promoted with the weights of its best run. The pictures are at `source`, else where
    they were when it was trained. Raises ValueError, one sentence.
    """
    study = load_study(folder)
    candidates = [Candidate(**entry) for entry in study.user_attrs.get(CANDIDATES, [])]
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
    weights = _weights_of(folder, number, candidates)
    promotions = study.user_attrs.get(PROMOTION, {})
    before = promotions.get(name_of(weights), {})
    lost_to = {} if always or before.get("promoted") else before.get("champion", {})
    if lost_to and _identity(lost_to) == _identity(holder_of(BEST_MODEL)):  # no second look for the same answer
        return [f"kept the champion, as on {before['time']}: {before['reason']}; --promote always replaces it"]
    if not weights.exists() and weights.parent.is_dir():
        again = "command.txt beside it trains such a network, for use as it is"
        raise ValueError(f"{weights} was not kept (--keep), so it cannot be promoted; {again}")
    provenance = load_model(weights)[1]["provenance"]
    if "trial" not in provenance:
        raise ValueError(f"{weights} was not trained by a sweep; promote a file that was")
    source = source or provenance["data"]["source"]
    outcome = promote_weights(weights, BEST_MODEL, source, find_devices("auto")[0], always=always)
    study.set_user_attr(PROMOTION, {**promotions, name_of(weights): record_of(outcome, before)})
    return sentences_of(outcome)


def _weights_of(folder: Path, number: int, candidates: Sequence[Candidate]) -> Path:
    """Return the weights of a trial's best confirmed run, or those that the search left, where there are no others."""
    own = folder / "trials" / f"{number:04}" / "model.safetensors"
    confirmed = next((candidate for candidate in candidates if candidate.trial == number), None)
    if confirmed is None or confirmed.folder(folder) == own.parent:
        return own
    again = confirmed.folder(folder) / "model.safetensors"
    return again if again.exists() or not own.exists() else own


def _identity(provenance: Mapping[str, Any]) -> list[Any]:
    return [provenance.get(name) for name in ("sweep", "run", "trial", "confirmation", "time")]


def champion_of(study: optuna.Study, best_model: Path) -> dict[str, Any] | None:
    """Return the header of the champion, where a sweep's winner met it, and there still is one.

    Raises ValueError, one sentence, for a champion that is not whole and true.
    """
    champion = best_model / CHAMPION
    return load_model(champion)[1] if PROMOTION in study.user_attrs and champion.exists() else None


def record_of(outcome: Outcome, before: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the study is to keep of some weights: the record `before`, where only that is of a test."""
    if not outcome.test and before.get("test"):
        return dict(before)
    return {**vars(outcome), "time": datetime.now(UTC).isoformat(timespec="seconds")}


def name_of(weights: Path) -> str:
    """Return what a record calls a trial's weights: confirmation/0003, say."""
    return "/".join(weights.parts[-3:-1])


def sentences_of(outcome: Outcome) -> list[str]:
    """Say what came of an attempt, a sentence each."""
    lines = [f"note: {note}" for note in outcome.notes]
    for title, found in (("challenger", outcome.challenger), ("champion", outcome.champion)):
        if found:
            low, high = found["accuracy_interval"]
            accuracy = (
                f"test accuracy {found['accuracy']:.1%} ({low:.1%} to {high:.1%} of {found['pictures']} pictures)"
            )
            lines.append(f"{title}: {name_of_model(found)}, {accuracy}")
    if looks := outcome.test.get("looks"):
        lines.append(f"the test pictures were looked at {'once' if looks == 1 else f'{looks} times'} so far")
    return [*lines, f"{'promoted' if outcome.promoted else 'kept the champion'}: {outcome.reason}"]


def restore(best_model: Path) -> str:
    """Make the champion before the present one the champion again; say which one that is."""
    restored, withdrawn = rollback(best_model, load_model, write_card)
    promote(best_model, _recount, write_card)
    name = _open(best_model / CHAMPION).name
    kept = f"; the one that was is kept as {withdrawn}" if withdrawn else ""
    return f"{best_model / CHAMPION} is {name} again (it was {restored}){kept}"


def _recount(champion: Path | None, target: Path) -> bool:
    """Write down in the header of a champion that came back how often its test pictures were looked at meanwhile."""
    assert champion, "it was just restored"
    again = _open(champion)
    test = again.header["metrics"].get("test", {})
    if looks := _looks(champion.parent, test.get("fingerprint", "")):
        _save(again, target, {**test, "looks": looks})
    return False


def _open(path: Path) -> _Contestant:
    model, header = load_model(path)
    return _Contestant(model, header)


def _judge(
    challenger: _Contestant, champion: Path | None, target: Path, source: str, device: str, *, always: bool
) -> Outcome:
    """Decide, and write the file that best_model/ is to hold, with what the test showed, to `target`.

    What takes the champion's place also gets the entry by which it is watched when it serves.
    """
    opponent = _opponent(champion, always=always)
    if opponent and have_same_weights(challenger.model, opponent.model):
        return Outcome(promoted=False, reason=f"{challenger.name} is the champion already: the very same weights")
    if opponent and not always and opponent.trained_on() != challenger.trained_on():
        reason = f"the champion, {opponent.name}, was made on other data or classes and is no opponent"
        return Outcome(promoted=False, reason=f"{reason}; --promote always replaces it without a comparison")
    size = challenger.model.config.image_size
    data = load_data(source, size)
    if data.fingerprint != challenger.trained_on()[0]:
        raise ValueError(f"the pictures of {source} are not those that {challenger.name} was trained on; give these")
    test = load_test(source, size)
    outcomes, figures = _figures(challenger, test, source, device)
    looks = 1 + _looks(target.parents[1], test.fingerprint)
    about = {"fingerprint": test.fingerprint, "left_out": test.num_left_out, "looks": looks}
    found = {
        "challenger": {**challenger.header["provenance"], **figures},
        "test": {**about, "pictures": len(test.subset)},
    }
    if always or opponent is None:
        _save(_with_reference(challenger, data, device), target, {**figures, **about})
        why = " without a comparison, as --promote always asks" if champion else ": there was none before"
        return Outcome(promoted=True, reason=f"{challenger.name} is the champion{why}", notes=test.notes, **found)
    others, opponents_figures = _figures(opponent, test, source, device)
    comparison = compare(outcomes, others)
    promoted, why = _decide(challenger, opponent, comparison)
    if promoted:
        _save(_with_reference(challenger, data, device), target, {**figures, **about})
    else:
        _save(opponent, target, {**opponents_figures, **about})
    return Outcome(
        promoted=promoted,
        reason=why,
        notes=test.notes,
        champion={**opponent.header["provenance"], **opponents_figures},
        comparison={**asdict(comparison), "verdict": comparison.verdict},
        **found,
    )


def _opponent(champion: Path | None, *, always: bool) -> _Contestant | None:
    if champion is None:
        return None
    try:
        return _open(champion)
    except ValueError as error:
        if always:
            return None  # nobody can be compared with it; history/ keeps it
        raise ValueError(f"{error}: {REMEDY}") from error


def _decide(challenger: _Contestant, champion: _Contestant, comparison: Comparison) -> tuple[bool, str]:
    """Say whether the challenger is to replace the champion, and why, in one sentence with the numbers."""
    low, high = comparison.accuracy_interval
    figures = f"accuracy {100 * comparison.accuracy:+.2f} points ({100 * low:+.2f} to {100 * high:+.2f}), "
    low, high = comparison.loss_interval
    figures += f"loss {comparison.loss:+.4f} ({low:+.4f} to {high:+.4f})"
    beside = f"beside the champion, {champion.name}: {figures}"
    if comparison.verdict == "better":
        return True, f"{challenger.name} is better {beside}"
    if comparison.verdict == "worse":
        return False, f"{challenger.name} is worse {beside}"
    cost = f"{short(challenger.mult_adds)} against {short(champion.mult_adds)} mult-adds"
    if challenger.mult_adds < champion.mult_adds:
        return True, f"{challenger.name} is tied and cheaper ({cost}) {beside}"
    return False, f"{challenger.name} is no better and no cheaper ({cost}) {beside}"


def _figures(contestant: _Contestant, test: HeldOutTest, source: str, device: str) -> tuple[Outcomes, dict[str, Any]]:
    """Test a network on the same pictures, at its own size."""
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
    return outcomes, figures


def _with_reference(contestant: _Contestant, data: Data, device: str) -> _Contestant:
    """Add what a model that serves is asked for: what is usual to it."""
    reference = make_reference(contestant.model, data, device)
    return _Contestant(contestant.model, {**contestant.header, "reference": reference})


def _looks(best_model: Path, fingerprint: str) -> int:
    """Return how often these test pictures were looked at so far, by the champion's header and those in history/."""
    looks = 0
    for path in (best_model / CHAMPION, *(best_model / HISTORY).glob("*.safetensors")):
        with suppress(ValueError):  # a damaged file counts nothing
            test = read_header(path)["metrics"].get("test", {})
            looks = max(looks, test.get("looks", 0) if test.get("fingerprint") == fingerprint else 0)
    return looks


def _save(contestant: _Contestant, target: Path, figures: Mapping[str, Any]) -> None:
    metrics = {**contestant.header["metrics"], "test": dict(figures)}
    save_model(contestant.model, target, {**contestant.header, "metrics": metrics})
