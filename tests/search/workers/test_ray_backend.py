"""Workers on a Ray cluster: two nodes on this machine, of two CPUs and two GPUs that are only said to be there."""

import os
import re
import signal
import subprocess
import sys
from collections import Counter
from importlib.util import find_spec

import pytest

from search.study.sweep import load_study
from tests.conftest import ROOT, lack
from tests.search.workers.test_supervisor import assert_exact, epochs_in, start
from tests.servers.processes import is_alive, wait_until

NODE = {"num_cpus": 2, "num_gpus": 2}


@pytest.fixture(autouse=True)
def _ray_is_here(monkeypatch):
    if not find_spec("ray"):
        lack("Ray (extra cluster)")


@pytest.fixture(scope="module")
def cluster():
    if not find_spec("ray"):
        lack("Ray (extra cluster)")
    patch = pytest.MonkeyPatch()
    patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    patch.setenv("PYTHONPATH", "")
    from ray.cluster_utils import Cluster

    before = signal.getsignal(signal.SIGTERM)
    cluster = Cluster()
    try:
        for _ in range(2):
            cluster.add_node(**NODE)
        yield cluster
    finally:
        cluster.shutdown()
        signal.signal(signal.SIGTERM, before)
        patch.undo()


def on_ray(cluster, *options):
    return ("--pruner", "none", "--backend", "ray", "--ray-address", cluster.address, *options)


def attempts(folder):
    """Every trial that a worker took, as (pid, node, GPU, trial), in order."""
    path = folder / "worker_slots.log"
    return [tuple(line.split()[:4]) for line in path.read_text().splitlines()] if path.exists() else []


def slots_of(folder):
    return {(node, gpu) for _, node, gpu, _ in attempts(folder)}


@pytest.mark.slow
def test_workers_have_a_gpu_each_are_replaced_when_they_die_and_go_with_the_command(cluster, tmp_path):
    folder = tmp_path / "runs/one"
    process = start(folder, "100", "4", *on_ray(cluster, "--seconds", "0.3"))
    wait_until(lambda: len(slots_of(folder)) == 4, process)
    workers = {pid: (node, gpu) for pid, node, gpu, _ in attempts(folder)}
    assert sorted(workers.values()) == sorted((node, gpu) for node in nodes_of(cluster) for gpu in "01")
    victim, slot = workers.popitem()
    os.kill(int(victim), signal.SIGKILL)
    wait_until(lambda: [slot for pid, *slot, _ in attempts(folder) if pid not in {victim, *workers}], process)
    assert next(tuple(slot) for pid, *slot, _ in attempts(folder) if pid not in {victim, *workers}) == slot

    process.kill()
    process.wait()
    wait_until(lambda: not any(is_alive(pid) for pid, *_ in attempts(folder)))

    num_trials = len(load_study(folder).get_trials())
    assert start(folder, str(num_trials), "4", *on_ray(cluster)).wait() == 0
    trials = assert_exact(folder, num_trials)
    assert [trial.user_attrs["deaths"]["count"] for trial in trials if "deaths" in trial.user_attrs] == [1]
    assert sum(count - 1 for count in Counter(epochs_in(folder)).values()) <= 5  # one of each that was killed
    assert {trial.user_attrs["worker"]["device"].split()[1] for trial in trials} <= {"cuda:0", "cuda:1"}


def nodes_of(cluster):
    return [node.node_id for node in cluster.list_all_nodes()]


@pytest.mark.slow
def test_node_that_is_killed_costs_no_trial(cluster, tmp_path):
    folder, lost = tmp_path / "runs/one", cluster.worker_nodes.copy().pop()
    process = start(folder, "10", "4", *on_ray(cluster, "--seconds", "0.3"))
    wait_until(lambda: len(slots_of(folder)) == 4, process)
    cluster.remove_node(lost, allow_graceful=False)
    assert process.wait() == 0
    cluster.add_node(**NODE)
    trials = assert_exact(folder, 10)
    assert not any(trial.user_attrs.get("deaths", {"count": 0})["count"] for trial in trials)  # lost machines apart
    assert sum(count - 1 for count in Counter(epochs_in(folder)).values()) <= 2
    again = [number for number, count in Counter(number for *_, number in attempts(folder)).items() if count > 1]
    assert 1 <= len(again) <= 2  # the one that each worker on that node had
    assert {node for _, node, _, number in attempts(folder)[-2:]} == {cluster.head_node.node_id}


def test_machine_with_another_version_is_refused_by_name(cluster, tmp_path):
    folder = tmp_path / "runs/one"
    process = start(folder, "3", "1", *on_ray(cluster, "--needs", "optuna=1.0"), stderr=subprocess.PIPE, text=True)
    _, complained = process.communicate()
    assert "its optuna is 5." in complained
    assert complained.splitlines()[-1].endswith(", not 1.0")
    assert not load_study(folder).get_trials()


@pytest.mark.slow
def test_whole_command_runs_over_the_cluster(cluster, tmp_path, write_space, photographs):
    options = ["--image-size", "64", "--epochs", "1", "--tracking", "off", "--confirm", "0", "--name", "small"]
    options += ["--backend", "ray", "--ray-address", cluster.address, "--workers", "1", "--trials", "1"]
    command = [sys.executable, ROOT / "run_sweep.py", write_space(), "--data", photographs, "--no-baseline", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    # Ray may not yet have heard of the end of a node that another test ended.
    assert re.search(r"Ray: 1 worker with 1 GPU and 1 CPU each, on a cluster of [23] nodes", done.stdout)
    assert (tmp_path / "best_model/model.safetensors").exists()


def refused(*options):
    from pipeline.cli import parse
    from pipeline.plan import make_plan

    with pytest.raises(ValueError) as error:
        make_plan(parse(["--tracking", "off", "--backend", "ray", *options]), print)
    return str(error.value)


def test_cluster_that_cannot_be_had_is_one_sentence():
    assert refused("--ray-address", "127.0.0.1:1").startswith("--ray-address: no answer from 127.0.0.1:1 (")
    assert "takes HOST or HOST:PORT" in refused("--ray-address", "ray://head:10001")
    assert "on a cluster Ray assigns the GPUs" in refused("--devices", "cpu")
    assert "leave out --backend ray" in refused("--dry-run")


def test_study_in_a_file_is_refused_on_two_machines(cluster):
    import ray

    other = cluster.add_node(num_cpus=1, node_ip_address="127.0.0.2")
    try:
        complained = refused("--ray-address", cluster.address)
        assert complained.startswith("--backend ray over 2 machines needs --storage postgresql://")
    finally:
        ray.shutdown()
        cluster.remove_node(other)


def test_workers_are_shared_out_by_gpus_else_by_cpus():
    from search.workers.ray_backend import Share, share_out

    assert share_out([(16, 4), (8, 1), (2, 0)], None, None) == Share(5, 4, 1)
    assert share_out([(2, 2), (2, 2)], None, 3) == Share(12, 0.3333, 0.3333)
    assert share_out([(8, 2), (8, 2)], 3, None) == Share(3, 4, 1)
    assert share_out([(4, 0), (6, 0)], None, None) == Share(10, 1, 0)
    assert share_out([(4, 0), (6, 0)], 3, None) == Share(3, 3, 0)
    assert [slot.threads for slot in share_out([(4, 0)], 8, None).worker_slots()] == [1] * 8
    with pytest.raises(ValueError, match="has none; give --workers"):
        share_out([(4, 0)], None, 2)
    with pytest.raises(ValueError, match="neither GPUs nor CPUs"):
        share_out([(0, 0)], None, None)


def test_machine_that_differs_from_the_commands_is_refused(tmp_path):
    from search.workers.ray_backend import Home, _join

    with pytest.raises(OSError, match=f"has no folder {tmp_path}/none"):
        _join(Home(f"{tmp_path}/none", {}, single=True))
    with pytest.raises(OSError, match="its nothing-at-all is missing, not 1"):
        _join(Home(str(tmp_path), {"nothing-at-all": "1"}, single=True))
    with pytest.raises(OSError, match=r"has joined the Ray cluster of elsewhere; many machines need --storage"):
        _join(Home(str(tmp_path), {}, single=True, host="elsewhere"))
