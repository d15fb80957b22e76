import re
import time

import pytest
import torch

from catdog.kernels import precision
from catdog.kernels.precision import has_bfloat16, uses_bfloat16

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def machine(monkeypatch, tmp_path):
    """A CPU that says it has bfloat16, and that nothing is known of."""
    monkeypatch.setenv("CATDOG_CACHE", str(tmp_path / "unknown"))
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    precision.bfloat16_fault.cache_clear()
    yield tmp_path
    precision.bfloat16_fault.cache_clear()


def stand_in(monkeypatch, *, wrong=False, slow=False, waits=0.0):
    """Let bfloat16 be float32 that is exact and takes no time, or is wrong, or slow, or waits so many seconds."""
    kept = []

    def in_bfloat16(*tensors):
        if slow or not kept:
            for _ in range(20):
                kept[:] = precision._in_float32(*tensors)
        time.sleep(waits)
        return [2 * tensor if wrong else tensor for tensor in kept]

    monkeypatch.setattr(precision, "_in_bfloat16", in_bfloat16)


@pytest.mark.parametrize(
    ("abilities", "expected"), [({}, False), ({"avx512_bf16": True}, True), ({"amx_bf16": True}, True)]
)
def test_processor_is_asked_for_bfloat16(monkeypatch, abilities, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: abilities)
    assert has_bfloat16(CPU) is expected


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [({"wrong": True}, "differs from float32's by 100% on"), ({"slow": True}, "takes .* as long as in float32 on")],
)
def test_bfloat16_that_is_wrong_or_slow_gives_way_to_float32_with_one_sentence(monkeypatch, fault, sentence):
    stand_in(monkeypatch, **fault)
    pattern = f"^bfloat16 is not used: a convolution in it {sentence} this machine$"
    assert re.match(pattern, precision.bfloat16_fault())
    assert not uses_bfloat16(CPU)
    with precision.autocast(CPU, "auto"):
        assert not torch.is_autocast_enabled("cpu")
    with precision.autocast(CPU, "bfloat16"):  # who asks for it gets it
        assert torch.is_autocast_enabled("cpu")


def test_bfloat16_that_is_right_and_fast_is_used(monkeypatch):
    stand_in(monkeypatch)
    assert precision.bfloat16_fault() == ""
    assert uses_bfloat16(CPU)


def test_time_that_other_processes_have_the_cores_does_not_count(monkeypatch):
    stand_in(monkeypatch, waits=0.2)
    threads = torch.get_num_threads()
    assert precision.bfloat16_fault() == ""
    assert torch.get_num_threads() == threads


def test_verdict_is_kept_for_the_next_process(monkeypatch, machine):
    stand_in(monkeypatch, wrong=True)
    verdict = precision.bfloat16_fault()
    precision.bfloat16_fault.cache_clear()
    monkeypatch.setattr(precision, "_in_bfloat16", None)
    assert precision.bfloat16_fault() == verdict


def test_processor_without_bfloat16_is_not_tried(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    monkeypatch.setattr(precision, "_in_bfloat16", None)
    assert not uses_bfloat16(CPU)
