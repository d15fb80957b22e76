"""What Comet can do to a sweep: no trial is lost or run twice, training does not wait, and in the end all is told."""

import os
import re
import subprocess
from collections import Counter
from itertools import pairwise

import pytest

from search.study.create import create_study
from tests.conftest import ROOT
from tests.search.comet.test_comet import assert_complete, environment, experiments_of, run, server, start  # noqa: F401 - fixtures
from tests.search.workers.test_supervisor import assert_exact, epochs_in
from tests.servers.counting_sweep import make_sweep
from tests.servers.processes import wait_until

pytestmark = pytest.mark.slow

SECONDS = 0.15  # of an epoch
LONGEST_WAIT = 30.0  # seconds between two epochs: half of the 60 that a silent Comet would take
ALWAYS = 10**9
FAULTS = {  # (path's end, what, how often): refused and key are no answers of a server
    "connection refused": "refused",
    "401": "key",
    "500 on create": ("/optimizer/create", 500, 2),
    "500 on next": ("/optimizer/next", 500, 2),
    "500 on update": ("/optimizer/update", 500, ALWAYS),
    "500 on metric": ("/experiment/metric", 500, ALWAYS),
    "500 on upload": ("/asset/upload", 500, ALWAYS),
    "429": ("/experiment/metric", 429, ALWAYS),
    "60 s of silence": ("logger/add/run", "hang", ALWAYS),
    "60 s of silence on next": ("/optimizer/next", "hang", 1),
    "dying in mid-sweep": "dying",
}
ENGINES = {"optuna", "comet"}
OF_THE_OPTIMIZER = {"500 on create", "500 on next", "500 on update", "60 s of silence on next"}
OF_EXPERIMENTS = {"500 on metric", "500 on upload", "429"}  # which are written alike, whoever proposes
STOPPED = {"connection refused", "401"}  # Comet's engine cannot even begin


@pytest.mark.parametrize(
    ("fault", "engine"),
    [(f, e) for f in FAULTS for e in sorted(ENGINES) if e == "comet" or f not in OF_THE_OPTIMIZER | OF_EXPERIMENTS],
)
def test_fault(tmp_path, server, environment, fault, engine):
    folder = tmp_path / "runs/f"
    folder.mkdir(parents=True)
    num_workers = 2 if fault == "dying in mid-sweep" else 1
    options = [3, num_workers, "--tracking", "online", "--engine", engine, "--pruner", "none", "--seconds", SECONDS]
    options += ["--patience", 6 if fault == "connection refused" else 60]
    broken = dict(environment)
    match FAULTS[fault]:
        case "refused":
            broken["COMET_URL_OVERRIDE"] = "http://127.0.0.1:9/clientlib/"
        case "key":
            broken["COMET_API_KEY"] = "another-key-of-the-tests"
        case "dying":
            pass
        case (end, what, times):
            server.break_down(end, what, times)
    process = start(folder, *options, "--finish", 4, environment=broken)
    if fault == "dying in mid-sweep":
        wait_until((folder / "epochs.log").exists, process)
        server.break_down("", "drop", 12)
    said = process.communicate()[0]
    if engine == "comet" and fault in STOPPED:
        assert process.returncode != 0, said
        assert not (folder / "epochs.log").exists()
    else:
        assert process.returncode == 0, said
        assert_exact(folder, 3)
        assert longest_wait(folder) < LONGEST_WAIT
    server.repair()
    again = start(folder, *options, environment=environment)
    said = again.communicate()[0]
    assert again.returncode == 0, said
    assert "3 trials in Comet" in said
    trials = assert_exact(folder, 3)
    assert max(Counter(epochs_in(folder)).values()) == 1
    for number, experiment in experiments_of(server, folder).items():
        if fault != "500 on upload":  # the confusion matrix of a trial may be missing, and nothing else
            assert_complete(experiment, trials[number], folder)
    for search in server.searches.values():
        scores = {a["pid"]: a["score"] for a in search.assignments if a["status"] == "completed"}
        assert len(scores) == 2


@pytest.mark.parametrize("engine", sorted(ENGINES))
def test_disk_full_in_the_folder_of_archives(tmp_path, server, environment, engine):
    folder = tmp_path / "runs/f"
    create_study(make_sweep(folder, 4, "none"), {"goal": "loss"}).close()  # else a folder with files is refused
    (folder / "comet").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder / "comet"]
    if os.geteuid() or subprocess.run(mount, check=False).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    options = [4, 2, "--tracking", "offline", "--engine", engine, "--pruner", "none", "--seconds", SECONDS]
    try:
        said = run(folder, *options, environment=environment)
    finally:
        subprocess.run(["umount", "-l", folder / "comet"], check=True)
    assert "of 4 trials are not archived yet" in said
    assert longest_wait(folder) < LONGEST_WAIT
    assert "4 trials archived for Comet" in run(folder, *options, environment=environment)
    assert_exact(folder, 4)
    assert len(list(folder.glob("comet/*.zip"))) == 4
    assert max(Counter(epochs_in(folder)).values()) == 1


def longest_wait(folder):
    """Seconds that a trial's epochs took longest to follow each other, beyond the epoch itself."""
    times = {}
    for line in (folder / "epochs.log").read_text().splitlines():
        number, _, _, _, time = line.split()
        times.setdefault(number, []).append(float(time))
    return max(later - earlier for of in times.values() for earlier, later in pairwise(of)) - SECONDS


def test_every_fault_is_in_the_docs():
    table = (ROOT / "docs/comet.md").read_text()
    assert [
        fault for fault in [*FAULTS, "disk full"] if not re.search(rf"^\| {re.escape(fault)} \|", table, re.MULTILINE)
    ] == []
