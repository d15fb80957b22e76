import io

import pytest
from optuna.trial import TrialState
from rich.console import Console

from catdog.model import ModelConfig, count_mult_adds, count_parameters
from pipeline import console
from pipeline.cli import parse
from pipeline.console import _describe_missing_baseline, _describe_progress, progress, say_fixed, show_plan
from pipeline.plan import make_plan
from search.formatting import short
from search.study.create import create_study
from search.study.queue import acquire
from tests.servers.counting_sweep import make_sweep


def test_plan_says_what_is_searched_for_each_trial_and_the_constants_once(home, with_baseline, write_space, capsys):
    searched = {"body_width": [4, 8], "stem_width": [2, 4]}
    config = str(write_space(parameters={**searched, "optimizer": ["muon"], "ema": [0.9995], "share_body": ["true"]}))
    show_plan(make_plan(parse([config, *with_baseline[1:]]), print))
    said = capsys.readouterr().out
    assert "\nthe same in every trial of the space: optimizer=muon, ema=0.9995, share_body=true\n" in said
    baseline, *others = [line.split("│")[2].split() for line in said.splitlines() if line.startswith("│")]
    assert baseline == ["body_width=512", "stem_width=64", "optimizer=adam", "ema=0"]  # outside the space
    assert [[text.split("=")[0] for text in other] for other in others] == [["body_width", "stem_width"]] * 2


SEARCHED = [
    ({"stem_width": [8, 16], "body_width": [32, 64, 128]}, "stem_width 8 or 16; body_width 32, 64 or 128"),
    (
        {
            "learning_rate": {"type": "float", "min": 0.001, "max": 0.01, "scalingType": "loguniform"},
            "ema": [0, 0.5, 0.9],
        },
        "learning_rate 0.001 to 0.01 (log); ema 0, 0.5 or 0.9",
    ),
    (
        {"batch_size": {"type": "integer", "min": 8, "max": 64}, "share_body": ["true", "false"]},
        "batch_size 8 to 64; share_body true or false",
    ),
    (
        {
            "body_repeats": {"type": "integer", "min": 2, "max": 4},
            "body_width": {"type": "discrete", "values": [8 * n for n in range(1, 9)]},
        },
        "body_repeats 2, 3 or 4; body_width 8 to 64 in steps of 8",
    ),
    ({"body_width": [8], "optimizer": ["sgd"]}, "nothing"),
]


@pytest.mark.parametrize(("parameters", "ranges"), SEARCHED, ids=[case[1] for case in SEARCHED])
def test_plan_names_what_is_searched(home, small, write_space, capsys, parameters, ranges):
    say_fixed(make_plan(parse([str(write_space(parameters=parameters)), *small[1:]]), print))
    assert capsys.readouterr().out.startswith(f"searched: {ranges}\n")


def test_plan_without_constants_does_not_speak_of_them(home, small, capsys):
    show_plan(make_plan(parse(small), print))
    assert "the same in every trial" not in capsys.readouterr().out


UNNAMED = [
    (
        {"learning_rate": {"type": "float", "min": 0.001, "max": 0.01}},
        "stem_width 64, body_width 512, body_repeats 4, share_body true, image_size 64, batch_size 32, epochs 2, ",
        '"body_width": [64]',
        {},
    ),
    (
        {"body_width": [4, 8], "body_repeats": [2], "share_body": ["false"], "optimizer": ["sgd", "muon"]},
        "stem_width 64, image_size 64, learning_rate 0.0001, batch_size 32, epochs 2, schedule constant, precis",
        '"batch_size": [64]',
        None,
    ),
    (
        {"body_width": [8], "batch_size": [16], "stem_width": [4], "epochs": [1, 2], "dropout": [0, 0.5]},
        "body_repeats 4, share_body true, image_size 64, learning_rate 0.0001, optimizer adam, schedule constant, ",
        '"optimizer": ["adamw"]',
        None,
    ),
    (
        {"stem_width": [4, 8], "schedule": ["cosine"], "precision": ["float32"], "seed": [7]},
        "body_width 512, body_repeats 4, share_body true, image_size 64, learning_rate 0.0001, batch_size 32, ",
        '"body_width": [64]',
        {"stem_width": 8},
    ),
]


@pytest.mark.parametrize("case", UNNAMED)
def test_plan_names_every_parameter_that_the_space_does_not(home, small, write_space, capsys, case):
    parameters, fixed, example, largest = case
    options = [option for option in small[1:] if "epochs" not in parameters or option not in ("--epochs", "2")]
    show_plan(make_plan(parse([str(write_space(parameters=parameters)), *options]), print))
    said = capsys.readouterr().out
    assert f"\nnot searched: {fixed}" in said
    assert f"\nto fix another value, give it alone in the file's parameters, for example {example}\n" in said
    (unused,) = (line for line in said.splitlines() if line.startswith("not used: "))
    assert "label_smoothing, ema, start_scale" in unused
    assert ("dropout" in unused) == ("dropout" not in parameters)
    assert "seed 0" not in said
    notes = [line for line in said.splitlines() if line.startswith("note: body_width is the baseline's")]
    assert len(notes) == (largest is not None)
    for note in notes:
        usual, narrow = (ModelConfig(**largest, body_width=width, image_size=64) for width in (512, 64))
        assert f" up to {count_parameters(usual):,} weights and {short(count_mult_adds(usual))} mult-adds an " in note
        assert f"; with 64 channels up to {count_parameters(narrow):,} weights and " in note


def test_long_work_shows_how_far_it_is_on_a_terminal_and_elsewhere(monkeypatch, capsys):
    monkeypatch.setattr(console, "LINE_SECONDS", 0.0)
    with progress("profiling") as show:
        for text in ("1 of 2", "1 of 2", "2 of 2"):
            show(text)
    assert capsys.readouterr().out == "1 of 2\n2 of 2\n"
    monkeypatch.setattr(console, "LINE_SECONDS", 1e9)
    with progress("profiling") as show:
        show("1 of 2")
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(console, "console", Console(file=io.StringIO(), force_terminal=True))
    with progress("profiling") as show:
        show("1 of 2")
    assert "1 of 2" in console.console.file.getvalue()


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


def test_only_trial_of_a_sweep_is_not_called_all_of_them(tmp_path):
    study = create_study(make_sweep(tmp_path / "runs/one", 1), {})
    claim = acquire(study, 0, "cpu")
    study.tell(claim.trial, TrialState.FAIL)
    claim.release()
    assert list(_describe_progress(study)) == ["nothing left to search: the only trial of one has ended"]
