"""Sweeps in environments as people have them. Each ends well, or with one sentence that says what is short.

Afterwards the same command in a sane environment finishes the same sweep: nothing was charged to a trial.
"""

import csv
import json
import os
import shutil
import subprocess
import sys

import pytest

from tests.conftest import ROOT, SMALL_SPACE

OPTIONS = ["--image-size", "64", "--epochs", "1", "--trials", "2", "--no-baseline", "--confirm", "0", "--workers", "1"]
OPTIONS += ["--promote", "never"]
AS_ROOT = "setpriv --bounding-set=-dac_override,-dac_read_search --inh-caps=-dac_override,-dac_read_search"
AS_USER = AS_ROOT if os.getuid() == 0 else ""  # to whom the permissions of files apply
AS_NOBODY = "setpriv --reuid 61234 --clear-groups --inh-caps=+dac_override --ambient-caps=+dac_override"

pytestmark = pytest.mark.slow


class Place:
    """A folder with a space, images and a cache of its own, to sweep in."""

    def __init__(self, folder, images, name="place"):
        self.folder = folder / name
        self.folder.mkdir()
        shutil.copytree(images / "training_set/training_set", self.folder / "images")
        parameters = {**SMALL_SPACE["parameters"], "body_repeats": [1], "share_body": ["true"]}
        (self.folder / "optimizer.json").write_text(json.dumps({**SMALL_SPACE, "parameters": parameters}))
        self.data, self.cache = "images", "cache"

    def sweep(self, before="", after="", tracking="off", **variables):
        """Sweep in the shell: the command stands between what changes its environment and its redirections."""
        command = [sys.executable, str(ROOT / "run_sweep.py"), "optimizer.json", "--data", self.data, "--name", "one"]
        environ = {**os.environ, "CATDOG_CACHE": self.cache, **variables}
        environ = {name: value for name, value in environ.items() if value is not None}
        shell = ["bash", "-c", f'set -o pipefail; {before} "$@" {after}', "bash", *command, *OPTIONS]
        shell += ["--tracking", tracking]
        return subprocess.run(shell, cwd=self.folder, env=environ, capture_output=True, check=False)

    def results(self):
        with (self.folder / "runs/one/ranking.csv").open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))


@pytest.fixture
def place(tmp_path, photographs):
    return Place(tmp_path, photographs)


@pytest.fixture(scope="session")
def expected():
    """The results of the first sweep that ends; all others must have the same."""
    return []


def require_finished(place, expected):
    """Require two complete trials, the same ones in every environment."""
    results = place.results()
    assert [row["state"] for row in results] == ["complete", "complete"]
    found = [(row["trial"], row["learning_rate"], row["best_val_loss"]) for row in results]
    expected[:] = expected or found
    assert found == expected


def require_one_sentence(ended, words):
    said = ended.stderr.decode()
    assert ended.returncode in (1, 2), said
    assert said.count("\n") == 1, said
    assert words in said


@pytest.mark.parametrize("name", ["C", "ISO-8859-1", "EUC-JP"])
def test_locales_change_nothing(place, expected, locales, name):
    variables = {"LC_ALL": locales.get(name, name), "LOCPATH": locales["folder"], "PYTHONCOERCECLOCALE": "0"}
    ended = place.sweep(**variables)
    assert (ended.returncode, ended.stderr) == (0, b"")
    require_finished(place, expected)
    sane = place.sweep()
    assert b"all 2 trials of one have ended" in sane.stdout
    texts = [path for path in place.folder.glob("runs/one/**/*") if path.suffix in (".csv", ".txt", ".json", ".html")]
    assert len(texts) >= 10
    assert all(path.read_bytes().decode() for path in texts)


GOOD = {
    "no HOME": {"before": "unset HOME;"},
    "a HOME that does not exist": {"HOME": "/proc/none", "tracking": "offline"},
    "no folder for temporary files": {"TMPDIR": "/proc/none"},
    "standard output closed": {"after": ">&-"},
    "every stream closed": {"after": "<&- >&- 2>&-"},
    "32 open files": {"before": "ulimit -n 32;"},
    "python -O": {"PYTHONOPTIMIZE": "1"},
    "no files of bytecode": {"PYTHONDONTWRITEBYTECODE": "1"},
    "an .env of another program": {"before": "echo 'export TOKEN=abc' > .env;", "tracking": "offline"},
}


@pytest.mark.parametrize("environment", GOOD.values(), ids=GOOD)
def test_environments_that_no_sweep_minds(place, expected, environment):
    ended = place.sweep(**environment)
    assert (ended.returncode, ended.stderr) == (0, b"")
    require_finished(place, expected)
    if environment.get("tracking") == "offline":
        assert len(list(place.folder.glob("runs/one/comet/*.zip"))) == 2


def test_a_reader_that_goes_away_is_said_once_and_the_sweep_goes_on(place, expected):
    ended = place.sweep(after="| head -1")
    assert ended.returncode == 0
    assert ended.stderr.decode() == "standard output is lost (Broken pipe); the command goes on without it\n"
    require_finished(place, expected)


@pytest.mark.parametrize("name", ["a space", b"caf\xe9", "a?b#c%20d&e", "日本 'x'"], ids=repr)
def test_folders_of_any_name_work_also_behind_links(tmp_path, photographs, expected, name):
    name = os.fsdecode(name)
    place = Place(tmp_path, photographs, name)
    place.data, place.cache = f"images {name}", str(tmp_path / f"cache {name}")
    (place.folder / "images").rename(place.folder / f"real {name}")
    (place.folder / place.data).symlink_to(f"real {name}")
    (tmp_path / f"runs {name}").mkdir()
    (place.folder / "runs").symlink_to(tmp_path / f"runs {name}")
    ended = place.sweep(tracking="offline")
    assert (ended.returncode, ended.stderr) == (0, b"")
    require_finished(place, expected)
    assert len(list(place.folder.glob("runs/one/comet/*.zip"))) == 2


SHORT = {
    "read-only run": ("chmod -R 555 runs", AS_USER, {}, "runs/one cannot be written"),
    "read-only cache": ("chmod 555 cache", AS_USER, {}, "set CATDOG_CACHE to a writable folder"),
    "read-only place": ("rmdir runs/one runs && chmod 555 .", AS_USER, {}, "cannot be written"),
    "unreadable images": ("chmod 0 images", AS_USER, {}, "images"),
    "small files": ("true", "ulimit -f 20;", {}, "(ulimit -f)"),
    "little memory": ("true", "ulimit -v 2000000;", {}, "(ulimit -v)"),
    "few files": ("true", "ulimit -n 14;", {}, "ulimit -n 1024"),
    "no home at all": ("true", f"unset HOME; {AS_NOBODY}", {"CATDOG_CACHE": None}, "set CATDOG_CACHE"),
    "few processes": ("true", f"ulimit -u 8; {AS_NOBODY}", {}, "(ulimit -u)"),
}


@pytest.mark.parametrize(("makes", "before", "variables", "words"), SHORT.values(), ids=SHORT)
def test_what_is_short_is_said_in_one_sentence_and_charged_to_no_trial(
    place, expected, makes, before, variables, words
):
    if "reuid" in before and os.getuid():
        pytest.skip("only root can become nobody")
    for folder in ("cache", "runs/one"):
        (place.folder / folder).mkdir(parents=True)
    subprocess.run(["bash", "-c", makes], cwd=place.folder, check=True)
    try:
        require_one_sentence(place.sweep(before, **variables), words)
    finally:
        subprocess.run(["chmod", "-R", "u+rwX", "."], cwd=place.folder, check=True)
    ended = place.sweep()
    assert (ended.returncode, ended.stderr) == (0, b"")
    require_finished(place, expected)


def test_a_read_only_dev_shm_is_said_in_one_sentence(place, expected):
    read_only = "unshare -m sh -c 'mount -o remount,bind,ro /dev/shm && exec \"$@\"' sh"
    if subprocess.run(f"{read_only} true", shell=True, capture_output=True, check=False).returncode:
        pytest.skip("this system lets nobody mount")
    require_one_sentence(place.sweep(read_only), "/dev/shm cannot be written")
    assert place.sweep().returncode == 0
    require_finished(place, expected)
