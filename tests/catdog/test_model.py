from dataclasses import replace

import pytest
import torch
from torchinfo import summary

from catdog.kernels.block import ResidualBlock
from catdog.model import (
    ModelConfig,
    add_options,
    build_model,
    config_from,
    count_mult_adds,
    count_parameters,
    main,
)
from shell.command_line import CommandLine

SMALL = ModelConfig(stem_width=2, body_width=4, body_repeats=2, image_size=32)
DOUBLED = ModelConfig(4, 32, 3, share_body=False, double_width=True, residual_blocks=2, global_pool=True, image_size=64)


def test_default_network_is_the_readme_table():
    table = summary(build_model(ModelConfig()), input_size=(1, 3, 224, 224), verbose=0)
    text = str(table)
    assert table.total_params == 2_668_418
    assert round(table.total_mult_adds / 1e9, 2) == 13.62
    for shape in ("64, 112, 112", "512, 56, 56", "512, 28, 28", "512, 14, 14", "512, 7, 7", "512, 3, 3", "1, 2"):
        assert f"{shape}]" in text
    assert text.count("(recursive)") == 9  # three applications of a block, its convolution and its BatchNorm
    for line in (
        "Input size (MB): 0.60",
        "pass size (MB): 188.26",
        "Params size (MB): 10.67",
        "Total Size (MB): 199.54",
    ):
        assert line in text


@pytest.mark.parametrize(
    "config",
    [
        ModelConfig(),
        SMALL,
        ModelConfig(16, 32, 3, share_body=False, image_size=96),
        ModelConfig(8, 8, 1),
        DOUBLED,
        replace(DOUBLED, body_width=16, body_repeats=4, share_body=True, residual_blocks=6, flip_average=True),
    ],
)
def test_counts_are_those_of_torchinfo(config):
    size = (1, 3, config.image_size, config.image_size)
    table = summary(build_model(config), input_size=size, verbose=0)
    assert count_parameters(config) == table.total_params
    assert count_mult_adds(config) == table.total_mult_adds


def test_doubled_widths_end_at_the_body_width():
    assert DOUBLED.widths == [4, 8, 16, 32, 32]
    assert replace(DOUBLED, double_width=False).widths == [4, 32, 32, 32, 32]
    assert replace(DOUBLED, stem_width=64).widths == [64, 32, 32, 32, 32]


def test_shared_body_shares_the_blocks_of_equal_channels():
    model = build_model(replace(DOUBLED, body_repeats=4, body_width=16, share_body=True, image_size=64))
    applied = list(map(id, model.blocks()))
    assert model.config.widths == [4, 8, 16, 16, 16, 16]
    assert len(applied) == 6 + 2
    assert len(set(applied)) == 4 + 2


def test_residual_block_adds_to_its_input():
    block, x = ResidualBlock(4).eval(), torch.randn(2, 4, 5, 5)
    torch.testing.assert_close(block(x), x + block.branch(x))


def test_flip_average_is_the_mean_over_both_outside_training():
    model, x = build_model(replace(SMALL, flip_average=True)).eval(), torch.randn(2, 3, 32, 32)
    plain = build_model(SMALL).eval()
    torch.testing.assert_close(model(x), (plain(x) + plain(x.flip(3))) / 2)
    torch.testing.assert_close(model(x), model(x.flip(3)))
    torch.testing.assert_close(model.train()(x), plain.train()(x))


def test_pooled_network_takes_images_of_other_sizes():
    model = build_model(DOUBLED).eval()
    assert [model(torch.zeros(1, 3, size, size)).shape for size in (32, 64, 96)] == [(1, 2)] * 3


def test_parts_that_do_not_suit_the_network_are_refused():
    with pytest.raises(ValueError, match="residual_blocks is 5; it must be 0 to 4, the number of blocks"):
        replace(SMALL, residual_blocks=5)


def test_unshared_body_has_weights_of_its_own_for_each_application():
    shared, unshared = (count_parameters(ModelConfig(share_body=share)) for share in (True, False))
    assert unshared - shared == 3 * (512 * 512 * 9 + 512 + 2 * 512)


def test_too_small_image_is_refused_with_both_numbers():
    with pytest.raises(
        ValueError,
        match=r"body_repeats 4 needs an image_size of at least 64, and not 63; set body_repeats to at most 3",
    ):
        ModelConfig(image_size=63)


@pytest.mark.parametrize("field", ["stem_width", "body_width", "body_repeats", "classes"])
def test_counts_below_one_are_refused(field):
    with pytest.raises(ValueError, match=f"{field} is 0; it must be at least 1"):
        ModelConfig(**{field: 0})


def test_dropout_of_one_is_refused():
    with pytest.raises(ValueError, match="dropout is 1"):
        ModelConfig(dropout=1.0)


def test_weights_follow_from_the_seed_and_leave_the_global_state_alone():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one, same, other = (build_model(SMALL, seed) for seed in (7, 7, 8))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(one.stem[0].weight, same.stem[0].weight)
    assert not torch.equal(one.stem[0].weight, other.stem[0].weight)


@pytest.mark.parametrize(
    ("words", "share"),
    [
        ("", True),
        ("--share-body", True),
        ("--share-body True", True),
        ("--share-body false", False),
        ("--share-body=false", False),
        ("--no-share-body", False),
    ],
)
def test_option_of_two_values_is_given_as_a_value_or_as_a_flag(words, share):
    parser = CommandLine("test", "A test.")
    add_options(parser, ModelConfig)
    assert config_from(parser.parse(words.split()), ModelConfig) == ModelConfig(share_body=share)


def test_table_is_printed_for_any_configuration(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["model", "--stem-width", "8", "--no-share-body", "--image-size", "64"])
    main()
    assert "[1, 8, 32, 32]" in capsys.readouterr().out


def test_impossible_configuration_is_one_sentence(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["model", "--image-size", "8"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "body_repeats 4 needs an image_size of at least 64, and not 8" in capsys.readouterr().err
