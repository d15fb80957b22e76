import pytest
import torch

from catdog import device
from catdog.device import find_devices
from catdog.evaluate import confusion, evaluate, losses
from catdog.model import ModelConfig, build_model

SHAPE = ModelConfig(stem_width=2, body_width=4, body_repeats=2, image_size=32)


def test_scores_follow_from_the_logits(subset):
    scores = evaluate(build_model(SHAPE), subset, precision="float32")
    y = subset.labels[subset.rows]
    assert scores.logits.shape == (120, 2)
    assert scores.accuracy == (scores.logits.argmax(1) == y).double().mean()
    assert losses(scores.logits, y).mean().item() == pytest.approx(scores.loss)
    assert scores.loss == pytest.approx(-scores.logits.log_softmax(1)[torch.arange(120), y].mean().item())


def test_each_image_is_evaluated_independently_of_its_batch(subset, monkeypatch):
    whole = evaluate(build_model(SHAPE), subset, precision="float32").logits
    monkeypatch.setattr("catdog.evaluate.BATCH_PIXELS", 7 * 32 * 32)
    assert torch.allclose(whole, evaluate(build_model(SHAPE), subset, precision="float32").logits, atol=1e-5)


def test_confusion_counts_true_classes_in_rows():
    logits = torch.tensor([[2.0, 1.0], [0.0, 1.0], [0.0, 3.0], [1.0, 0.0]])
    assert confusion(logits, torch.tensor([0, 0, 1, 0])) == [[2, 1], [0, 1]]


def test_auto_takes_every_gpu_else_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert find_devices("auto") == ["cpu"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert find_devices("auto") == ["cuda:0", "cuda:1"]
    assert find_devices("cuda:1, cpu") == ["cuda:1", "cpu"]


def test_unknown_device_is_refused_with_those_there_are(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="unknown device 'cuda:7'; this machine has cpu, cuda:0"):
        find_devices("cuda:7")


def test_keeping_memory_is_skipped_where_there_is_no_glibc(monkeypatch):
    monkeypatch.setattr(device.ctypes, "CDLL", lambda _: object())
    device.keep_freed_memory()
