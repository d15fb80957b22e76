import numpy as np
import pytest

from catdog.model import ModelConfig, build_model
from pipeline import verdict
from pipeline.verdict import decide, describe_outcome
from search.analysis.statistics import Outcomes, accuracy_interval

SMALL, LARGE = (ModelConfig(stem_width=width, body_width=2, body_repeats=1, image_size=8) for width in (1, 2))
ANYWAY = "python -m search.promote one --trial 1 --promote always replaces it anyway"


def make_tested(config, trial, correct, loss, cats=0.5):
    """A network that classifies these images correctly, each with this loss; a share of them are cats."""
    correct, num = np.array(correct, dtype=bool), len(correct)
    rows = [[round(cats * num), 0], [0, num - round(cats * num)]]
    figures = {"accuracy": correct.mean(), "accuracy_interval": accuracy_interval(correct.mean(), num)}
    contestant = verdict.Contestant(build_model(config), {"provenance": {"run": "one", "trial": trial}})
    losses = loss * np.random.default_rng(0).uniform(0.5, 1.5, num)
    return verdict.Tested(contestant, Outcomes(losses, correct), {**figures, "confusion": rows, "pictures": num})


def right(num, total=400):
    return np.arange(total) < num


@pytest.mark.parametrize(
    ("num_right", "total", "cats", "warns"),
    [(210, 400, 0.5, True), (12, 20, 0.5, True), (330, 400, 0.8, True), (300, 400, 0.5, False), (100, 400, 0.5, True)],
)
def test_winner_that_may_be_guessing_is_promoted_with_a_warning(num_right, total, cats, warns):
    outcome = decide(make_tested(SMALL, 1, right(num_right, total), 0.5, cats), None, is_first=True, anyway=ANYWAY)
    assert outcome.promoted
    warning = f"; warning: it may know nothing (guessing gives {cats:.0%}, its interval is "
    assert (warning in outcome.reason) is warns
    assert "the champion: there was none before" in outcome.reason


def test_tie_and_costs_are_told_plainly():
    cheap, costly = make_tested(SMALL, 1, right(380), 0.2), make_tested(LARGE, 0, right(380), 0.2)
    outcome = decide(cheap, costly, is_first=False, anyway=ANYWAY)
    assert outcome.promoted
    assert "trial 1 of one is tied with trial 0 of one, the champion, and cheaper (" in outcome.reason
    assert outcome.advice == ""
    outcome = decide(costly, cheap, is_first=False, anyway=ANYWAY)
    assert not outcome.promoted
    assert "trial 0 of one is tied with trial 1 of one, the champion, and no cheaper (" in outcome.reason


def test_kept_champion_comes_with_the_images_that_a_gain_takes_and_the_way_round():
    wrong = [*range(10), *range(200, 207)]  # the challenger is wrong on 7 of 400 images, the champion on 10 others
    challenger, champion = np.ones(400, dtype=bool), np.ones(400, dtype=bool)
    champion[wrong[:10]] = challenger[wrong[10:]] = False
    outcome = decide(
        make_tested(LARGE, 1, challenger, 0.2), make_tested(SMALL, 0, champion, 0.2), is_first=False, anyway=ANYWAY
    )
    images, way = outcome.advice.split("; ")
    assert way == ANYWAY
    assert images.startswith("about ")
    assert images.endswith(" from chance, these are 400")
    assert describe_outcome(outcome)[-1] == outcome.advice
    worse = decide(
        make_tested(LARGE, 1, right(300), 0.9), make_tested(SMALL, 0, right(390), 0.2), is_first=False, anyway=ANYWAY
    )
    assert "is worse than the champion, trial 0 of one: accuracy -22.50 points" in worse.reason
    assert worse.advice == ANYWAY
