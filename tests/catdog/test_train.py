import math
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import islice

import pytest
import torch

from catdog.checkpoint import load_model, save_model
from catdog.data.dataset import ImageSubset
from catdog.evaluate import evaluate
from catdog.model import ModelConfig, build_model
from catdog.train import TrainConfig, main, train
from tests.conftest import ROOT
from tests.servers import processes

SHAPE = ModelConfig(stem_width=4, body_width=8, body_repeats=2, dropout=0.2, image_size=32)
POOLED = replace(SHAPE, double_width=True, residual_blocks=2, global_pool=True, flip_average=True)
RECIPE = TrainConfig(learning_rate=3e-3, batch_size=16, epochs=4, augmentation="color", schedule="one_cycle", seed=3)


def sides(subset):
    return replace(subset, rows=subset.rows[:100]), replace(subset, rows=subset.rows[100:])


def run(subset, recipe=RECIPE, shape=SHAPE, **options):
    model = build_model(shape, recipe.seed)
    return model, train(model, recipe, *sides(subset), **options)


def same_weights(one, other):
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def without_time(epochs):
    return [replace(epoch, seconds=0, images_per_second=0) for epoch in epochs]


def test_network_learns(subset):
    model, epochs = run(subset, replace(RECIPE, augmentation="none", epochs=8, label_smoothing=0.05))
    records = list(epochs)
    assert [record.epoch for record in records] == list(range(1, 9))
    assert records[-1].train_loss < 0.8 * records[0].train_loss
    assert not model.training


def test_equal_seeds_train_equal_weights_and_others_do_not(subset):
    trained = []
    for seed in (3, 3, 4):
        model, epochs = run(subset, replace(RECIPE, seed=seed, epochs=2))
        list(epochs)
        trained.append(model)
    assert same_weights(trained[0], trained[1])
    assert not same_weights(trained[0], trained[2])


EXTRAS = {"augmentation": "strong", "erasing": 0.5, "ema": 0.9, "start_scale": 0.5, "schedule": "wsd"}


@pytest.mark.parametrize(
    ("shape", "changes"),
    [
        (SHAPE, {"optimizer": "adam"}),
        (SHAPE, {"optimizer": "adamw"}),
        (SHAPE, {"optimizer": "sgd"}),
        (POOLED, {"optimizer": "muon", **EXTRAS}),
        (POOLED, {"optimizer": "muon", **EXTRAS, "precision": "bfloat16"}),
    ],
)
@pytest.mark.parametrize("done", [1, 3])
def test_resumed_run_ends_bit_identical(subset, tmp_path, shape, changes, done):
    recipe = replace(RECIPE, weight_decay=1e-4, **changes)
    whole, epochs = run(subset, recipe, shape)
    expected = list(epochs)
    _, epochs = run(subset, recipe, shape, checkpoint=tmp_path / "checkpoint.pt")
    list(islice(epochs, done))
    torch.manual_seed(99)  # whatever the next process did before
    resumed, epochs = run(subset, recipe, shape, checkpoint=tmp_path / "checkpoint.pt")
    records = list(epochs)
    assert same_weights(whole, resumed)
    assert without_time(records) == without_time(expected)
    assert [record.logits is None for record in records] == [number < done for number in range(1, 5)]
    assert torch.equal(records[done - 1].logits, expected[done - 1].logits)


def test_resumed_run_keeps_its_precision_whatever_auto_means_by_then(subset, tmp_path, monkeypatch):
    monkeypatch.setattr("catdog.kernels.precision.uses_bfloat16", lambda _: False)
    whole, epochs = run(subset)
    records = list(epochs)
    next(run(subset, checkpoint=tmp_path / "checkpoint.pt")[1])
    monkeypatch.setattr("catdog.kernels.precision.uses_bfloat16", lambda _: True)
    resumed, epochs = run(subset, checkpoint=tmp_path / "checkpoint.pt")
    assert without_time(epochs) == without_time(records)
    assert same_weights(resumed, whole)


@pytest.mark.parametrize(("is_there", "precision"), [(True, "bfloat16"), (False, "float32")])
def test_run_begun_in_bfloat16_goes_on_in_it_where_it_can(subset, tmp_path, monkeypatch, is_there, precision):
    path = tmp_path / "checkpoint.pt"
    monkeypatch.setattr("catdog.kernels.precision.uses_bfloat16", lambda _: True)
    next(run(subset, checkpoint=path)[1])
    assert torch.load(path, weights_only=True)["precision"] == "bfloat16"
    monkeypatch.setattr("catdog.kernels.precision.uses_bfloat16", lambda _: False)
    monkeypatch.setattr("catdog.train.has_bfloat16", lambda _: is_there)
    list(islice(run(subset, checkpoint=path)[1], 2))
    assert torch.load(path, weights_only=True)["precision"] == precision


def test_weights_are_those_of_the_last_replayed_epoch_when_it_is_yielded(subset, tmp_path):
    first, epochs = run(subset, checkpoint=tmp_path / "checkpoint.pt")
    list(islice(epochs, 2))
    second, epochs = run(subset, checkpoint=tmp_path / "checkpoint.pt")
    last = list(islice(epochs, 2))[-1]
    assert last.epoch == 2
    assert last.logits is not None
    assert same_weights(first, second)


def test_checkpoint_that_is_torn_anywhere_gives_way_to_the_one_before(subset, tmp_path):
    path = tmp_path / "checkpoint.pt"
    first, _ = islice(run(subset, checkpoint=path)[1], 2)
    whole = path.read_bytes()
    for share in (0, 0.01, 0.3, 0.5, 0.7, 0.9, 0.99):
        path.write_bytes(whole[: int(share * len(whole))])
        _, epochs = run(subset, checkpoint=path)
        assert next(epochs) == first, share  # replayed, its seconds too
        next(epochs)
        path.write_bytes(b"torn again")  # as the next epoch's is written
        assert next(run(subset, checkpoint=path)[1]) == first, share
    path.with_name("checkpoint.pt.before").unlink()
    path.write_bytes(whole[:-1000])
    assert len(list(run(subset, checkpoint=path)[1])) == RECIPE.epochs


def test_checkpoint_of_other_settings_is_refused(subset, tmp_path):
    path = tmp_path / "checkpoint.pt"
    next(run(subset, shape=POOLED, checkpoint=path)[1])
    for recipe, shape in ((replace(RECIPE, epochs=5), POOLED), (RECIPE, replace(POOLED, flip_average=False))):
        with pytest.raises(ValueError, match="belongs to other settings"):
            next(run(subset, recipe, shape, checkpoint=path)[1])


def test_checkpoint_from_before_a_field_existed_is_resumed(subset, tmp_path):
    path = tmp_path / "checkpoint.pt"
    _, epochs = run(subset, checkpoint=path)
    list(islice(epochs, 2))
    state = torch.load(path, weights_only=True)
    del state["config"]["ema"], state["trained"], state["network"]
    torch.save(state, path)
    _, epochs = run(subset, checkpoint=path)
    assert [epoch.epoch for epoch in epochs] == [1, 2, 3, 4]


def test_moving_average_is_what_is_evaluated_and_kept(subset):
    model, epochs = run(subset, replace(RECIPE, ema=0.99))
    averaged = list(epochs)
    assert torch.equal(evaluate(model, sides(subset)[1]).logits, averaged[-1].logits)
    other, epochs = run(subset)
    for mine, plain in zip(averaged, epochs, strict=True):
        assert mine.train_loss == plain.train_loss  # the average does not change the training
        assert mine.val_loss != plain.val_loss
    assert not same_weights(model, other)


def test_network_learns_with_every_part_of_the_recipe(subset):
    recipe = replace(
        RECIPE, optimizer="muon", epochs=8, ema=0.8, start_scale=0.75, schedule="linear", augmentation="flip"
    )
    records = list(run(subset, recipe, POOLED)[1])
    assert records[-1].train_loss < 0.8 * records[0].train_loss


def test_loss_that_is_not_finite_names_its_epoch(subset):
    model, epochs = run(subset, replace(RECIPE, precision="float32"))
    next(epochs)
    with torch.no_grad():
        model.head[2].weight.fill_(math.nan)
    with pytest.raises(FloatingPointError, match="diverged in epoch 2: training loss is nan"):
        next(epochs)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_both_precisions_train(subset, precision):
    _, epochs = run(subset, replace(RECIPE, precision=precision, epochs=1))
    assert math.isfinite(next(epochs).val_loss)


def test_batches_of_one_image_train(subset):
    few = replace(subset, rows=subset.rows[:6])
    assert math.isfinite(next(train(build_model(SHAPE), replace(RECIPE, batch_size=1), few, few)).train_loss)


def test_last_batch_of_one_image_is_left_out(subset):
    model = build_model(replace(POOLED, image_size=16), 0)  # ends at 1 x 1: BatchNorm refuses a single value
    small = ImageSubset(subset.images[:, ::2, ::2], subset.labels, subset.rows[:17])
    assert math.isfinite(next(train(model, RECIPE, small, small)).train_loss)


@pytest.mark.parametrize(
    ("schedule", "expected"),  # after steps 1 and 3 of 4, counted from 0: the rate of each epoch's last step
    [("constant", [1, 1]), ("cosine", [0.8536, 0.1464]), ("one_cycle", [1, 0.25])],
)
def test_rate_follows_its_schedule(subset, schedule, expected):
    recipe = replace(RECIPE, schedule=schedule, epochs=2, learning_rate=1e-3, batch_size=50)
    _, epochs = run(subset, recipe)
    assert [epoch.learning_rate / 1e-3 for epoch in epochs] == pytest.approx(expected, abs=1e-3)


def test_run_goes_on_on_another_kind_of_device(subset, tmp_path):
    path = tmp_path / "checkpoint.pt"
    _, epochs = run(subset, checkpoint=path)
    list(islice(epochs, 2))
    state = torch.load(path, weights_only=True)
    state["device"], state["random"]["order"] = "cuda", torch.zeros(16, dtype=torch.uint8)  # the size of CUDA's
    torch.save(state, path)
    _, epochs = run(subset, checkpoint=path)
    assert [epoch.epoch for epoch in epochs] == [1, 2, 3, 4]


HEADER = {"classes": ["cat", "dog"], "preprocessing": {}, "metrics": {}, "provenance": {}}
OPTIONS = ["--image-size", "64", "--stem-width", "2", "--body-width", "4", "--epochs", "2"]


def test_command_trains_and_saves_the_best_epoch(photographs, tmp_path, monkeypatch, capsys):
    output = tmp_path / "out.safetensors"
    save_model(build_model(SHAPE), output, HEADER)
    monkeypatch.setattr("sys.argv", ["train", "--data", str(photographs), *OPTIONS, "--output", str(output)])
    main()
    _, header = load_model(output)
    assert header["provenance"]["training"]["epochs"] == 2
    said = capsys.readouterr().out
    assert said.startswith(f"note: the best epoch replaces {output}, the model of an earlier training\n")
    assert said.count("epoch  ") == 2
    assert f"is in {output}" in said


def test_command_that_cannot_save_ends_with_one_sentence(photographs, monkeypatch, capsys):
    output = "/nowhere/out.safetensors"
    monkeypatch.setattr("sys.argv", ["train", "--data", str(photographs), *OPTIONS, "--output", output])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "of --output /nowhere/out.safetensors does not exist" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("output", "answer"),
    [
        ("note.txt", "exists and is no model of catdog.train; name another file"),
        ("pipe", "exists and is no model of catdog.train; name another file"),
        ("nowhere", "exists and is no model of catdog.train; name another file"),
        ("trial.safetensors", "exists and is no model of catdog.train; name another file"),
        ("best_model/model.safetensors", "is the champion's place, where search.promote alone writes; name another"),
        ("linked/model.safetensors", "is the champion's place, where search.promote alone writes; name another"),
        ("m" * 250, "cannot be written (File name too long); name another file"),
    ],
)
def test_command_overwrites_nothing_but_its_own_models(tmp_path, monkeypatch, capsys, output, answer):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "note.txt").write_text("a note")
    (tmp_path / "linked").symlink_to("best_model")
    (tmp_path / "nowhere").symlink_to("none")
    os.mkfifo(tmp_path / "pipe")
    save_model(build_model(SHAPE), tmp_path / "trial.safetensors", {**HEADER, "provenance": {"trial": 3}})
    monkeypatch.setattr("sys.argv", ["train", *OPTIONS, "--output", output])
    before = sorted((path, path.lstat().st_mtime_ns) for path in tmp_path.rglob("*"))
    with pytest.raises(SystemExit, match="2"):
        main()
    assert f"--output {output} {answer}" in capsys.readouterr().err
    assert [(path, path.lstat().st_mtime_ns) for path in sorted(tmp_path.rglob("*"))] == before


def test_command_refuses_bad_input_in_one_sentence(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["train", "--data", "/nowhere", *OPTIONS])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "data folder /nowhere does not exist" in capsys.readouterr().err


KILLED = """
import torch, sys
sys.path.insert(0, {root!r})
from pathlib import Path
from catdog.data.dataset import ImageSubset
from catdog.data.synthetic import synthetic
from catdog.model import build_model
from tests.catdog.test_train import SHAPE, RECIPE, sides
from catdog.train import train
torch.set_num_threads(1)
images, labels = synthetic(120, 32, seed=0)
subset = ImageSubset(torch.from_numpy(images), torch.from_numpy(labels).long(), torch.arange(120))
model = build_model(SHAPE, RECIPE.seed)
for epoch in train(model, RECIPE, *sides(subset), checkpoint=Path({checkpoint!r})):
    print(epoch.epoch, flush=True)
torch.save(model.state_dict(), {output!r})
"""


def test_process_killed_and_started_again_ends_bit_identical(tmp_path):
    def start(name):
        files = {"checkpoint": str(tmp_path / f"{name}.pt"), "output": str(tmp_path / f"{name}.weights")}
        code = KILLED.format(root=str(ROOT), **files)
        return processes.start([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)

    whole, killed = start("whole"), start("killed")
    assert [killed.stdout.readline() for _ in "12"] == ["1\n", "2\n"]
    time.sleep(random.uniform(0, 0.1))  # somewhere in the third epoch, or its checkpoint
    os.kill(killed.pid, signal.SIGKILL)
    for process in (whole, killed, start("killed")):
        process.communicate()
    one, other = (torch.load(tmp_path / f"{name}.weights", weights_only=True) for name in ("whole", "killed"))
    assert all(torch.equal(one[key], other[key]) for key in one)
