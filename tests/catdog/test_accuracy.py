"""A step is fast by bfloat16, channels-last, fewer passes and a fused optimizer; it learns what a plain one learns."""

from dataclasses import replace
from statistics import fmean, stdev

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name that the field uses

from benchmarks.peers.tutorial import plain_network
from catdog.data.dataset import ImageSubset
from catdog.data.preprocess import MEAN, STD
from catdog.data.synthetic import synthetic
from catdog.evaluate import evaluate
from catdog.model import ModelConfig, build_model
from catdog.train import TrainConfig, train

SHAPE = ModelConfig(stem_width=8, body_width=16, body_repeats=2, image_size=32)
RECIPE = TrainConfig(learning_rate=3e-3, batch_size=16, epochs=3, precision="bfloat16")
SEEDS = range(12)


@pytest.fixture(scope="module")
def sides():
    images, labels = (torch.from_numpy(array) for array in synthetic(640, 32, seed=0))
    return [ImageSubset(images, labels.long(), rows) for rows in (torch.arange(240), torch.arange(240, 640))]


def plain(seed, training):
    """Train as a tutorial does: float32, channels first, an optimizer that loops over the weights."""
    torch.manual_seed(seed)
    model = plain_network(SHAPE, seed).train()
    optimizer = torch.optim.Adam(model.parameters(), RECIPE.learning_rate, foreach=False, fused=False)
    x = (training.images[training.rows] / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    x, y = x.permute(0, 3, 1, 2).contiguous(), training.y
    for _ in range(RECIPE.epochs):
        for batch in torch.randperm(len(x)).split(RECIPE.batch_size):
            optimizer.zero_grad()
            F.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
    return model


def fast(seed, sides):
    model = build_model(SHAPE, seed)
    list(train(model, replace(RECIPE, seed=seed), *sides))
    return model


@pytest.mark.slow
def test_it_learns_what_the_plain_float32_path_learns_within_the_noise_of_the_seeds(sides):
    ours, plains = (
        [evaluate(model, sides[1], precision="float32") for model in models]
        for models in ([fast(seed, sides) for seed in SEEDS], [plain(seed, sides[0]) for seed in SEEDS])
    )
    for figure in ("accuracy", "loss"):
        one, other = ([getattr(scores, figure) for scores in side] for side in (ours, plains))
        noise = ((stdev(one) ** 2 + stdev(other) ** 2) / len(SEEDS)) ** 0.5
        assert abs(fmean(one) - fmean(other)) < 3.5 * noise, (figure, one, other)
