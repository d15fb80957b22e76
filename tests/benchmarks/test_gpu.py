"""The benchmark for GPUs in its small form, on the CPU."""

import json
import math
import os
import subprocess
import sys
import tarfile

import pytest

from tests.conftest import ROOT

SECTIONS = {
    "agreement", "resume", "insight", "peak", "first seed", "plain loop", "steps", "other seeds", "workers", "sweep",
}  # fmt: skip


def run(data, output, *options):
    command = [sys.executable, "benchmarks/gpu.py", "--data", data, "--device", "cpu", "--small", "--output", output]
    return subprocess.run(
        [*map(str, command), *options],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_every_section_of_the_gpu_benchmark_gives_finite_figures(photographs, tmp_path):
    done = run(photographs, tmp_path / "gpu.json")
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "gpu.json").read_text())
    assert result["errors"] == {}
    assert set(result["sections"]) == SECTIONS
    for name, figures in result["sections"].items():
        assert len(figures) > 1, name
        assert all(math.isfinite(value) for value in figures.values()), figures


def test_section_that_fails_is_named_and_leaves_the_others_their_turn(photographs, tmp_path):
    with tarfile.open(tmp_path / "photographs.tar", "w") as tar:
        tar.add(photographs / "training_set/training_set/cats", "training_set/cats")  # no dogs
    done = run(tmp_path / "photographs.tar", tmp_path / "gpu.json", "--only", "resume,peak")
    assert done.returncode == 1
    assert "1 sections failed" in done.stdout
    result = json.loads((tmp_path / "gpu.json").read_text())
    assert list(result["errors"]) == ["resume"]
    assert len(result["sections"]["peak"]) > 1
