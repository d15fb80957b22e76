"""The verdict on two tested networks, and how it is told."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from catdog.data.dataset import HeldOutTest, load_test
from catdog.evaluate import confusion, evaluate, losses
from catdog.model import CNN, count_mult_adds, have_same_weights
from search.analysis.statistics import Comparison, Outcomes, accuracy_interval, compare
from search.formatting import short

SAME = "(identical weights)"


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
    advice: str = ""  # one sentence, if the champion was kept


@dataclass(frozen=True)
class Contestant:
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
class Tested:
    """A contestant with its results on the test set."""

    contestant: Contestant
    outcomes: Outcomes
    figures: Mapping[str, Any]

    def entry(self) -> dict[str, Any]:
        return {**self.contestant.header["provenance"], **self.figures}


def reason_against_test(challenger: Contestant, champion: Contestant | None, *, always: bool) -> str:
    """Return the reason against a test of these two, empty if there is none."""
    if champion is None:
        return ""
    if have_same_weights(challenger.model, champion.model):
        return f"{challenger.name} is already the champion {SAME}"
    if always or champion.trained_on() == challenger.trained_on():
        return ""
    was, now = (one.header["provenance"].get("data") for one in (champion, challenger))
    sources = [data.get("source") if isinstance(data, dict) else None for data in (was, now)]
    told = f" ({sources[0]}, not {sources[1]})" if all(sources) and sources[0] != sources[1] else ""
    return f"the champion, {champion.name}, was trained on other data or classes and cannot be compared{told}"


def measure(contestant: Contestant, test: HeldOutTest, source: str, device: str) -> Tested:
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
    return Tested(contestant, outcomes, figures)


def decide(challenger: Tested, opponent: Tested | None, *, is_first: bool, anyway: str) -> Outcome:
    """Decide whether the challenger replaces the champion. `anyway`: the command that replaces it in any case."""
    if opponent is None:
        why = ": there was none before" if is_first else " without a comparison, because of --promote always"
        reason = f"{challenger.contestant.name} is the champion{why}{_warning(challenger)}"
        return Outcome(promoted=True, reason=reason, challenger=challenger.entry())
    comparison = compare(challenger.outcomes, opponent.outcomes)
    promoted, reason = _verdict(challenger.contestant, opponent.contestant, comparison)
    figures = {**asdict(comparison), "verdict": comparison.verdict}
    if promoted:
        return Outcome(promoted, reason + _warning(challenger), (), challenger.entry(), opponent.entry(), figures)
    advice = f"{_images_needed(comparison, len(challenger.outcomes.loss))}{anyway}"
    return Outcome(promoted, reason, (), challenger.entry(), opponent.entry(), figures, advice=advice)


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
    lines.append(f"{'promoted' if outcome.promoted else 'kept the champion'}: {outcome.reason}")
    return [*lines, *filter(None, [outcome.advice])]


def _verdict(challenger: Contestant, champion: Contestant, comparison: Comparison) -> tuple[bool, str]:
    low, high = comparison.accuracy_interval
    figures = f"accuracy {100 * comparison.accuracy:+.2f} points ({100 * low:+.2f} to {100 * high:+.2f}), "
    low, high = comparison.loss_interval
    figures += f"loss {comparison.loss:+.4f} ({low:+.4f} to {high:+.4f})"
    if comparison.verdict != "tied":
        than = f"{comparison.verdict} than the champion, {champion.name}"
        return comparison.verdict == "better", f"{challenger.name} is {than}: {figures}"
    own, other = count_mult_adds(challenger.model.config), count_mult_adds(champion.model.config)
    both = f"{short(own)} mult-adds both" if own == other else f"{short(own)} against {short(other)} mult-adds"
    cost = f"{'' if own < other else 'no '}cheaper ({both})"
    tie = f"tied with {champion.name}, the champion, and {cost}"
    return own < other, f"{challenger.name} is {tie}: {figures}"


def _images_needed(comparison: Comparison, num_images: int) -> str:
    """Say how many test images would show the challenger's gain, if it has one and is not worse."""
    needed = comparison.images_to_tell_a_gain(num_images)
    if comparison.verdict == "worse" or needed is None:
        return ""
    number, name = needed
    rounded = round(number, 2 - len(str(round(number))))
    return f"about {rounded:,.0f} test images would tell this gain in {name} from chance, these are {num_images:,}; "


def _warning(tested: Tested) -> str:
    """Return the end of a sentence if always naming the commonest class could have the same accuracy."""
    low, high = tested.figures["accuracy_interval"]
    sizes = [sum(row) for row in tested.figures["confusion"]]
    guessing = max(sizes) / sum(sizes)
    if low > guessing:
        return ""
    scores = f"guessing gives {guessing:.0%}, its interval is {low:.1%} to {high:.1%}"
    return f"; warning: it may know nothing ({scores}): train longer, or on more images"
