"""Whether a GPU trains what the CPU trains."""

import tempfile
import warnings
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch

import catdog.train
from catdog.data.dataset import load_data
from catdog.explain import extract_features
from catdog.kernels.cuda_graph import NoGraphWarning
from catdog.model import ModelConfig, build_model
from catdog.train import TrainConfig, train

TOLERANCE = 0.02  # nats between the losses of two ways to do the same in float32, in each of three epochs
TOLERANCE_BFLOAT16 = 0.1
TINY = ModelConfig(stem_width=8, body_width=16, body_repeats=2, image_size=64)
TINY_RECIPE = TrainConfig(learning_rate=1e-3, epochs=3, precision="float32", seed=3)


@contextmanager
def cudnn(**settings):
    """Set flags of torch.backends.cudnn for a while."""
    before = {name: getattr(torch.backends.cudnn, name) for name in settings}
    for name, value in settings.items():
        setattr(torch.backends.cudnn, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(torch.backends.cudnn, name, value)


@contextmanager
def stepping(way):
    """Have train() run its steps so for a while; a graph that cannot be recorded is an error."""
    before, catdog.train.STEP = catdog.train.STEP, way
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", NoGraphWarning)
            yield
    finally:
        catdog.train.STEP = before


def few(images, number):
    """Every k-th image, so that both classes are there."""
    step = max(1, len(images) // number)
    return replace(images, rows=images.rows[::step][:number])


def tiny_sides(bench):
    data = load_data(bench.source, TINY.image_size)
    return few(data.training, 600), few(data.validation, 200)


def losses_of(sides, device, recipe=TINY_RECIPE):
    epochs = train(build_model(TINY, recipe.seed), recipe, *sides, device=device)
    return [loss for epoch in epochs for loss in (epoch.train_loss, epoch.val_loss)]


def agreement(bench):
    """One training on the CPU, on the GPU, in bfloat16, and by a CUDA graph."""
    sides = tiny_sides(bench)
    recipes = [replace(TINY_RECIPE, optimizer=optimizer) for optimizer in ("adam", "sgd")]
    recipes.append(replace(TINY_RECIPE, optimizer="muon", ema=0.9, schedule="linear"))
    with cudnn(allow_tf32=False):
        with stepping("eager"):
            pairs = [(losses_of(sides, "cpu", recipe), losses_of(sides, bench.device, recipe)) for recipe in recipes]
            bfloat16 = losses_of(sides, bench.device, replace(recipes[1], precision="bfloat16"))
        for recipe, (on_cpu, on_gpu) in zip(recipes, pairs, strict=True):
            yield f"{recipe.optimizer}: last training loss on the CPU, nats", on_cpu[-2]
            yield from compare(f"{recipe.optimizer}: CPU and GPU", on_cpu, on_gpu, TOLERANCE)
        yield from compare("sgd: float32 and bfloat16", pairs[1][1], bfloat16, TOLERANCE_BFLOAT16)
        with stepping("graph"):
            for recipe, (_, eager) in zip(recipes, pairs, strict=True):
                recorded = losses_of(sides, bench.device, recipe)
                yield from compare(f"{recipe.optimizer}: eager and graph", eager, recorded, TOLERANCE)


def compare(what, expected, found, tolerance):
    apart = max(abs(one - other) for one, other in zip(expected, found, strict=True))
    yield f"{what}: losses apart at most, nats (limit {tolerance})", apart
    if not apart <= tolerance:
        raise AssertionError(f"{what} disagree by {apart:.4g} nats")


def resume(bench):
    """Go on from a checkpoint; the weights should end bit-identical where cuDNN is told to be deterministic."""
    sides = tiny_sides(bench)
    recipe = replace(TINY_RECIPE, augmentation="color", schedule="one_cycle", precision="auto")
    models = [build_model(replace(TINY, dropout=0.2), recipe.seed) for _ in range(3)]
    with tempfile.TemporaryDirectory() as folder, cudnn(deterministic=True):
        options = {"device": bench.device, "checkpoint": Path(folder) / "checkpoint.pt"}
        list(train(models[0], recipe, *sides, device=bench.device))
        list(islice(train(models[1], recipe, *sides, **options), 1))
        list(train(models[2], recipe, *sides, **options))
    pairs = zip(models[0].state_dict().values(), models[2].state_dict().values(), strict=True)
    apart = max((one.double() - other.double()).abs().max().item() for one, other in pairs)
    yield "weights of a resumed and a whole run: apart at most", apart
    if apart:
        raise AssertionError("a resumed run does not end with the same bits")


def insight(bench):
    """Features and saliency of images on both devices."""
    images = tiny_sides(bench)[1].images[:32]
    model = build_model(TINY).eval()
    one = extract_features(model, images, torch.device("cpu"), saliency=True)
    other = extract_features(model.to(bench.device), images, torch.device(bench.device), saliency=True)
    for name in ("logits", "statistics", "saliency"):
        apart = (getattr(one, name) - getattr(other, name)).abs()
        yield f"{name} on CPU and GPU: apart on average", apart.mean().item()
        assert apart.mean() < 0.05, f"{name} disagree"
