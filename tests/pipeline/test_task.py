import shutil

import pytest
import torch

from catdog.data.dataset import load_data
from pipeline.cli import parse
from pipeline.plan import make_plan
from pipeline.task import TrainTrial
from search.task import OutOfMemoryError, ProcessLostError, TrialContext


@pytest.mark.parametrize(
    ("change", "message"), [("gone", "does not exist"), ("other", "have changed since the sweep began")]
)
def test_data_that_goes_or_changes_is_no_trials_fault(home, small, photographs, change, message):
    plan = make_plan(parse(small), print)
    train_trial = TrainTrial(plan.sweep, plan.source, plan.fixed, "fingerprint of before", {})
    if change == "gone":
        shutil.rmtree(photographs)
    with pytest.raises(OSError, match=message):
        next(train_trial(TrialContext(0, None, {}, 0, home, "cpu", home / "checkpoint.pt")))


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), ProcessLostError),
        (torch.AcceleratorError("CUDA error: out of memory"), OutOfMemoryError),
        (torch.OutOfMemoryError("CUDA out of memory."), OutOfMemoryError),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"), OutOfMemoryError),
        (MemoryError("out of memory"), OutOfMemoryError),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), RuntimeError),
    ],
)
def test_lost_gpu_and_lack_of_memory_are_told_from_what_a_trial_does_wrong(home, small, monkeypatch, error, kind):
    def lost(*_, **__):
        raise error

    monkeypatch.setattr("pipeline.task.train", lost)
    plan = make_plan(parse(small), print)
    data = load_data(plan.source, 64)
    train_trial = TrainTrial(plan.sweep, plan.source, plan.fixed, data.fingerprint, {})
    with pytest.raises(kind, match=str(error)) as raised:
        next(train_trial(TrialContext(4, None, {}, 0, home, "cpu", home / "checkpoint.pt")))
    assert raised.type is kind
