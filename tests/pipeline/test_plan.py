import re
from pathlib import Path

import pytest

from pipeline.cli import main, parse
from pipeline.plan import make_plan
from tests.conftest import ROOT


def test_space_of_small_networks_takes_small_images(home, small, write_space):
    depths = {"type": "integer", "min": 2, "max": 3}
    config = str(write_space(parameters={"body_repeats": depths, "body_width": [4, 8]}))
    options = [config, *small[1:], "--image-size", "32"]
    assert make_plan(parse(options), print).fixed["image_size"] == 32
    depths["max"] = 4
    write_space(parameters={"body_repeats": depths})
    with pytest.raises(ValueError, match=r"\.json: body_repeats 4 needs an image_size of at least 64, and not 32"):
        make_plan(parse(options), print)
    write_space(parameters={"body_width": [4, 8], "schedule": ["step"]})
    with pytest.raises(ValueError, match=r"\.json: parameters\.schedule: schedule is 'step'"):
        make_plan(parse(options), print)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"residual_blocks": [0, 6]}, "residual_blocks is 6; it must be 0 to 4"),
        ({"start_scale": [0.5, 1]}, r"start_scale is 0\.5; only a network with global_pool"),
        ({"residual_blocks": [0, 1], "batch_size": [1, 16]}, "batch_size is 1; the last residual block needs"),
        ({"ema": [0.9, 1.5]}, r"parameters\.ema: ema is 1.5"),
    ],
)
def test_parts_that_do_not_suit_each_other_are_refused_before_the_sweep(home, small, write_space, parameters, message):
    config = str(write_space(parameters={"body_repeats": [2, 3], "body_width": [4, 8], **parameters}))
    with pytest.raises(ValueError, match=message):
        make_plan(parse([config, *small[1:], "--image-size", "32"]), print)


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/*.json")), ids=lambda path: path.stem)
def test_shipped_space_can_be_planned(home, small, path):
    options = ["--image-size", "128", *(small[1:3])]
    make_plan(parse([str(path), *options]), print)


def test_parts_that_suit_each_other_are_planned(home, small, write_space):
    parts = {"residual_blocks": [1, 4], "start_scale": [0.5, 1], "global_pool": ["true"]}
    config = str(write_space(parameters={"body_repeats": [2], "body_width": [4, 8], **parts}))
    make_plan(parse([config, *small[1:], "--image-size", "32"]), print)


def test_search_at_comet_has_no_warm_start(home, small, capsys, monkeypatch):
    monkeypatch.setenv("COMET_API_KEY", "nobody's")
    assert main([*small, "--engine", "comet", "--warm-start", "earlier"]) == 2
    assert "a Comet search takes no results of another sweep" in capsys.readouterr().err
    assert not list(home.iterdir())


def test_no_budget_in_file_or_command_is_refused(home, small, write_space, capsys):
    path = write_space(spec={"metric": "best_val_loss"})
    assert main([str(path), *small[1:]]) == 2
    assert 'spec.maxCombo is missing; add "maxCombo": 12, or give --trials' in capsys.readouterr().err


def test_searched_field_cannot_be_given_on_the_command_line_too(home, small, write_space, capsys):
    path = write_space(parameters={"epochs": [1, 2]})
    assert main([str(path), *small[1:]]) == 2
    assert "epochs is searched; leave out --epochs" in capsys.readouterr().err
    write_space(parameters={"epochs": [3]})
    assert main([str(path), *small[1:]]) == 2
    assert "epochs is fixed at 3 there; leave out --epochs" in capsys.readouterr().err


def test_longest_trial_is_that_of_the_searched_epochs_or_the_baseline(home, small, write_space):
    place = small.index("--epochs")
    options = [str(write_space(parameters={"epochs": [1, 2]})), *small[1:place], *small[place + 2 :]]
    assert make_plan(parse(options), print).sweep.epochs == 2
    options.remove("--no-baseline")
    assert make_plan(parse(options), print).sweep.epochs == 20


NAMES = {  # in the file, and of the folder
    "photos-2": "photos-2",
    "My Evening Search": "My-Evening-Search",
    "widths (second try)": "widths-second-try",
    "Optimize ": "Optimize",
    "../../etc/passwd": "etc-passwd",
    "lr=1e-3, 50%": "lr-1e-3-50",
    "Größe 1.5": "Größe-1.5",
    "Gro\u0308ße": "Größe",
    ".hidden": "hidden",
    "a\nb\x1b[2J": "a-b-2J",
    "x" * 300: "x" * 200,
    "": "optimizer",
    "  ": "optimizer",
}


@pytest.mark.parametrize("name", NAMES, ids=repr)
def test_name_in_the_file_is_any_text(home, small, write_space, name):
    options = [str(write_space(name=name)), "--tracking", "off", "--image-size", "64"]
    assert make_plan(parse(options), print).sweep.folder == Path("runs") / NAMES[name]


@pytest.mark.parametrize("name", ["...", "---", "../..", "!?"])
def test_name_without_a_letter_is_named_with_its_file_and_key(home, small, write_space, name):
    path = write_space(name=name)
    with pytest.raises(ValueError, match=rf"{path}: name is '{re.escape(name)}'; use at least one letter"):
        make_plan(parse([str(path), "--tracking", "off", "--image-size", "64"]), print)


@pytest.mark.parametrize(
    ("name", "example"), [("a b", ", as in a-b"), ("../x", ", as in x"), ("..", "$"), ("x" * 300, "")]
)
def test_name_on_the_command_line_is_that_of_a_folder(home, small, name, example):
    with pytest.raises(ValueError, match=rf"--name is .*; use letters, digits, '\.', '_' and '-'{example}"):
        make_plan(parse([*small, "--name", name]), print)


def test_name_of_a_folder_in_runs_is_told_from_its_path(home, small):
    for folder in ("runs/my copy", "runs/my-copy", "runs/a", "old/runs/a", "old/c"):
        Path(folder).mkdir(parents=True)
        Path(folder, "study.db").touch()
    for name, answer in (
        ("runs/y", "give {} y"),
        ("./runs/y/", "give {} y"),
        (f"{home}/runs/a", "give {} a"),
        ("my copy", "move the folder runs/my copy to runs/my-copy-2 first, and give {} my-copy-2"),
        ("old/runs/a", "move the folder old/runs/a to runs/a-2 first, and give {} a-2"),
        (f"{home}/old/c", f"move the folder {home}/old/c to runs/c first, and give {{}} c"),
    ):
        for option in ("--name", "--warm-start"):
            with pytest.raises(ValueError, match=f"^{option} is .*; {answer.format(option)}$"):
                make_plan(parse([*small, option, name]), print)
    with pytest.raises(ValueError, match="is a sweep, not a search space; move the folder old/c to runs/c first, and"):
        make_plan(parse(["old/c", *small[1:]]), print)


def test_another_folder_than_the_projects_is_named(home):
    with pytest.raises(ValueError, match=rf"there is no configs/optimizer.json in {home}; start the command in {ROOT}"):
        make_plan(parse(["--tracking", "off"]), print)


def test_baseline_is_left_out_only_where_that_helps(home, small, write_space):
    write_space(parameters={"body_repeats": [1], "body_width": [4]})
    options = [option for option in small if option != "--no-baseline"]
    for size, end in (("32", ", or --no-baseline to sweep without that network"), ("7", ""), ("4", "")):
        with pytest.raises(ValueError, match=f"--image-size is {size}; .*: give --image-size 64 or more{end}$"):
            make_plan(parse([*options, "--image-size", size]), print)


def test_sweep_given_as_a_search_space_is_named(home, small):
    Path("runs/night").mkdir(parents=True)
    Path("runs/night/study.db").touch()
    for config in ("night", "runs/night"):
        with pytest.raises(ValueError, match=rf"{config} is a sweep, not a search space; .* --name night"):
            make_plan(parse([config, *small[1:]]), print)
    with pytest.raises(ValueError, match=r"xxx: cannot be read \(File name too long\)"):
        make_plan(parse(["x" * 300, *small[1:]]), print)


def test_many_values_that_must_suit_each_other_are_checked_at_their_ends(home, small, write_space):
    many = {
        "image_size": list(range(64, 1064)),
        "batch_size": list(range(1, 1001)),
        "start_scale": [0.001 * number for number in range(500, 1001)],
        "global_pool": ["true"],
    }
    options = ["--tracking", "off", "--no-baseline"]
    make_plan(parse([str(write_space(parameters=many)), *options]), print)
    many.update(image_size=[64, 31, 128], body_repeats=[3, 1])
    with pytest.raises(ValueError, match=r"body_repeats 3 needs an image_size of at least 32, and not 31"):
        make_plan(
            parse(
                [str(write_space(parameters={**many, "image_size": [64, 31, 128], "body_repeats": [3, 1]})), *options]
            ),
            print,
        )


def test_sweep_of_more_trials_than_any_study_holds_is_refused(home, small, write_space):
    axis = {"type": "float", "min": 0.001, "max": 0.1, "gridSize": 10_000}
    path = write_space(algorithm="grid", parameters={"learning_rate": axis, "dropout": axis}, spec={})
    with pytest.raises(ValueError, match=r"the sweep has 100,000,000 trials; set spec.maxCombo to 1,000,000 or less"):
        make_plan(parse([str(path), *small[1:]]), print)
