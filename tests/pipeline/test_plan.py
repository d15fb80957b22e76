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
    with pytest.raises(ValueError, match=r"\.json: image_size 32 is too small for body_repeats 4"):
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
    assert "spec.maxCombo is 0; set it, or give --trials" in capsys.readouterr().err


def test_searched_field_cannot_be_given_on_the_command_line_too(home, small, write_space, capsys):
    path = write_space(parameters={"epochs": [1, 2]})
    assert main([str(path), *small[1:]]) == 2
    assert "epochs is searched; leave out --epochs" in capsys.readouterr().err
