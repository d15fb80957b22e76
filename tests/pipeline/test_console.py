import pytest

from catdog.model import ModelConfig, count_mult_adds
from pipeline.cli import parse
from pipeline.console import _describe_missing_baseline, show_plan
from pipeline.plan import make_plan
from search.formatting import short


def test_plan_says_what_is_searched_for_each_trial_and_the_constants_once(home, with_baseline, write_space, capsys):
    searched = {"body_width": [4, 8], "stem_width": [2, 4]}
    config = str(write_space(parameters={**searched, "optimizer": ["muon"], "ema": [0.9995], "share_body": ["true"]}))
    show_plan(make_plan(parse([config, *with_baseline[1:]]), print))
    said = capsys.readouterr().out
    assert "\nthe same in every trial of the space: optimizer=muon, ema=0.9995, share_body=true\n" in said
    baseline, *others = [line.split("│")[2].split() for line in said.splitlines() if line.startswith("│")]
    assert baseline == ["body_width=512", "stem_width=64", "optimizer=adam", "ema=0"]  # outside the space
    assert [[text.split("=")[0] for text in other] for other in others] == [["body_width", "stem_width"]] * 2


def test_plan_without_constants_does_not_speak_of_them(home, small, capsys):
    show_plan(make_plan(parse(small), print))
    assert "the same in every trial" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("shape", "image_size", "depths", "costliest"),
    [
        ({"stem_width": 16, "body_width": 256, "residual_blocks": 2}, 128, (2, 4), 2),
        ({"stem_width": 8, "body_width": 256, "residual_blocks": 4}, 256, (2, 5), 3),
        ({"stem_width": 8, "body_width": 16}, 128, (2, 4), 4),
    ],
)
def test_largest_network_need_not_be_the_deepest(home, small, write_space, shape, image_size, depths, costliest):
    depth = {"type": "integer", "min": depths[0], "max": depths[1]}
    parameters = {"body_repeats": depth, **shape, "double_width": ["false", "true"], "dropout": [0, 0.5]}
    config = str(write_space(parameters=parameters))
    plan = make_plan(parse([config, *small[1:], "--image-size", str(image_size)]), print)
    cost = count_mult_adds(ModelConfig(**shape, body_repeats=costliest, image_size=image_size))
    assert _describe_missing_baseline(plan).endswith(f"the largest of this space {short(cost)}")
