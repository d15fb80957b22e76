"""No command shows or stores a part of a key or password, whatever Comet or a database does."""

import os
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.servers import comet_server
from tests.servers.app_server import AppServer
from tests.servers.comet_server import CometServer
from tests.servers.processes import start, wait_until

pytestmark = pytest.mark.slow

KEY, STORAGE, APP = "Zq7Kx-marked-key", "Wv3Jp-marked-password", "Yb9Td-marked-password"
FAULTS = [401, 403, 404, 429, 500, 502, "html", "invalid", "drop", "redirect", "echo", "refused", "certificate"]
SWEEP = [ROOT / "tests/servers/counting_sweep.py", "run", 2, 1, "--pruner", "none", "--seconds", 0, "--finish", 3]
IMPATIENT = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
from functools import partial
from pipeline import cli, plan
plan.Sweep = partial(plan.Sweep, patience=0.1); plan.Sweep.patience = 0.1
sys.exit(cli.main())
"""


@pytest.fixture(scope="module")
def comet():
    with CometServer() as server:
        yield server


@pytest.fixture
def options(write_space, photographs):
    """Arguments of a sweep of a few seconds."""
    small = ["--image-size", "64", "--epochs", "1", "--confirm", "0", "--no-baseline", "--workers", "1", "--name", "s"]
    return [write_space(), "--data", photographs, *small]


@pytest.fixture
def run(comet, tmp_path, monkeypatch):
    """Run a Python program under a fault; add what it said to a file, with everything else that is written."""
    monkeypatch.setattr(comet_server, "API_KEY", KEY)
    comet.experiments.clear()
    environment = {**os.environ, **comet.environment(tmp_path), "COMET_API_KEY": KEY, "PYTHONPATH": str(ROOT)}

    def run(*arguments, fault=None, **changes):
        comet.repair()
        address = {"refused": "http://127.0.0.1:9", "certificate": comet.root.replace("http", "https")}.get(fault)
        if address:
            changes["COMET_URL_OVERRIDE"] = f"{address}/clientlib/"
        elif fault:
            comet.break_down(changes.pop("path", ""), fault)
        changes.pop("path", None)
        command = [sys.executable, *map(str, arguments)]
        done = subprocess.run(
            command, cwd=tmp_path, env={**environment, **changes}, capture_output=True, text=True, check=False
        )
        with (tmp_path / "said.txt").open("a") as file:
            file.write(done.stdout + done.stderr)
        assert "Traceback" not in done.stdout + done.stderr
        return done

    run.environment = environment
    return run


def assert_no_secrets(folder, but=()):
    """Look for the beginnings of the marked secrets in all files below a folder, and in the files of archives."""
    found, num_files = [], 0
    for path in folder.rglob("*"):
        if not path.is_file() or path.is_symlink() or path.name in but:
            continue
        contents = {str(path): path.read_bytes()}
        if zipfile.is_zipfile(path):  # archives of Comet, arrays of NumPy
            with zipfile.ZipFile(path) as archive:
                contents |= {f"{path}:{name}": archive.read(name) for name in archive.namelist()}
        for name, content in contents.items():
            num_files += 1
            found += [name for secret in (KEY, STORAGE, APP) if has_beginning(content, secret.encode())]
    assert found == []
    return num_files


def has_beginning(content, secret):
    """Random bytes of a binary file may hold four certain ones."""
    length = 4 if content.isascii() else 6
    return secret[:length].lower() in content.lower()


def test_the_search_for_secrets_finds_them(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x", f"...{KEY[:4]}...")
    with pytest.raises(AssertionError, match=r"a\.zip:x"):
        assert_no_secrets(tmp_path)


@pytest.mark.parametrize("fault", FAULTS)
def test_push_and_the_start_of_a_sweep_show_no_key(run, tmp_path, options, fault):
    pushed = run("-m", "search.panels", "push", fault=fault)
    assert pushed.returncode in (1, 2)
    assert pushed.stderr.startswith("python -m search.panels: Comet ")
    began = run("-c", IMPATIENT, *options, "--engine", "comet", fault=fault)
    assert began.returncode in (1, 2)
    assert re.search(r"^run_sweep.py: .*Comet ", began.stderr, re.MULTILINE)
    assert_no_secrets(tmp_path)


@pytest.mark.parametrize("fault", FAULTS)
def test_sweep_that_meets_a_fault_later_shows_and_stores_no_key(run, tmp_path, fault):
    done = run(*SWEEP, "--tracking", "online", "--failing", 1, "--notify", fault=fault, WORDS=f"sent {KEY[:7]}***")
    assert done.returncode == 0, done.stderr
    assert "trials are not in Comet yet" in done.stdout
    assert not re.search("HTTPConnection|urllib3|requests|<html>", done.stdout + done.stderr)
    assert assert_no_secrets(tmp_path) > 10


@pytest.mark.parametrize("path", ["/experiment/metric", "/log-other", "/status-report/update", "/experiment/parameter"])
def test_comet_that_echoes_the_key_in_mid_sweep_is_not_quoted(run, tmp_path, path):
    done = run(*SWEEP, "--tracking", "online", fault="echo", path=path)
    assert done.returncode == 0, done.stderr
    assert assert_no_secrets(tmp_path) > 10


@pytest.mark.parametrize("fault", [None, "echo", "refused"])
def test_whole_sweep_shows_and_stores_no_key(run, tmp_path, options, fault):
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    remote = ["git", "remote", "add", "origin", f"https://{APP}@host/r.git"]
    subprocess.run(remote, cwd=tmp_path, check=True)
    for mode in ("auto", "offline"):
        done = run(ROOT / "run_sweep.py", *options, "--notify", "--tracking", mode, fault=fault)
        assert done.returncode == 0, done.stderr
        said = [line for line in done.stdout.splitlines() if "Comet" in line]
        assert len(said) <= 4
        assert ("this run archives its trials" in said[0]) == (mode == "auto" and fault is not None)
    for command in (["search.report", "s"], ["search.promote", "s"], ["catdog.predict", "none.jpg"]):
        run("-m", *command, fault=fault)
    assert assert_no_secrets(tmp_path, but=("config",)) > 20


def test_killed_worker_shows_and_stores_no_key(run, tmp_path, comet):
    comet.break_down("/experiment/metric", "echo")
    command = [sys.executable, *map(str, SWEEP), "--tracking", "online", "--held", "1,1"]
    with (tmp_path / "said.txt").open("w") as said:
        process = start(command, cwd=tmp_path, env=run.environment, stdout=said, stderr=said)
        log = tmp_path / "run/epochs.log"
        wait_until(lambda: log.exists() and "\n1 1 " in log.read_text(), process)
        children = subprocess.run(
            ["pgrep", "-f", "-P", f"{process.pid}", "popen_loky"], capture_output=True, check=True
        )
        os.kill(int(children.stdout.split()[0]), signal.SIGKILL)
        (tmp_path / "run/go").touch()
        assert process.wait() == 0
    assert "Traceback" not in (tmp_path / "said.txt").read_text()
    assert_no_secrets(tmp_path)


@pytest.mark.parametrize(
    "address",
    [
        "postgresql://u:{}@127.0.0.1:9/db",
        "postgresql://u:a@{}@127.0.0.1:9/db",
        "postgresql://u@127.0.0.1:9/db?password={}",
        "postgresql://u:{}@no.such.host.invalid/db",
        "postgresql://u:{}@127.0.0.1:port/db",
        "mysql://u:{}@127.0.0.1:9/db",
    ],
)
def test_study_that_cannot_be_reached_shows_no_password(run, tmp_path, options, address):
    url = address.format(STORAGE)
    for storage in (["--storage", url], [f"--storage={url}"], ["--storag", url, "--no-such-option"], ["--strg", url]):
        done = run(ROOT / "run_sweep.py", *options, "--tracking", "off", *storage)
        assert done.returncode in (1, 2)
        assert done.stderr.startswith("run_sweep.py: ")
    (tmp_path / "runs/s").mkdir(parents=True, exist_ok=True)
    (tmp_path / "runs/s/storage.txt").write_text(url)
    for command in ("search.report", "search.promote"):
        refused = run("-m", command, "s")
        assert refused.returncode in (1, 2)
        assert "the study " in refused.stderr or "--storage " in refused.stderr
    assert_no_secrets(tmp_path, but=("storage.txt",))


def test_study_on_a_server_stores_its_password_in_one_file_alone(run, tmp_path, postgres):
    url = postgres.url.replace("sweeper@", f"sweeper:{STORAGE}@")
    words = f"connecting to {url} failed: {STORAGE[:5]}"
    done = run(*SWEEP, "--storage", url, "--failing", 1, "--tracking", "offline", WORDS=words)
    assert done.returncode == 0, done.stderr
    assert_no_secrets(tmp_path, but=("storage.txt",))
    assert (tmp_path / "run/storage.txt").stat().st_mode & 0o077 == 0
    dump = subprocess.run(
        [shutil.which("psql"), postgres.url, "-Atc", "SELECT value_json FROM trial_user_attributes"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "RuntimeError: connecting to" in dump.stdout
    assert not has_beginning(dump.stdout.encode(), STORAGE.encode())


@pytest.mark.parametrize("fault", ["echo", "refused"])
def test_app_shows_neither_key_nor_password(run, tmp_path, comet, champion, fault):
    (tmp_path / "auth").write_text(f"anna:{APP}")
    environment = {**run.environment, "CATDOG_CACHE": str(tmp_path / "cache")}
    if fault == "refused":
        environment["COMET_URL_OVERRIDE"] = "http://127.0.0.1:9/clientlib/"
    else:
        comet.break_down("", fault)
    with AppServer(tmp_path, "--auth", tmp_path / "auth", environment=environment) as server:
        shutil.copy(champion(), server.model)
        wait_until(lambda: server.get("/health")[0] == 200)
        for name in ("classify", "nothing"):
            server.run(name, Authorization=APP, Cookie=f"access-token={APP}")
        wait_until(lambda: "Comet" in server.log.read_text())
    assert "Traceback" not in server.log.read_text()
    assert_no_secrets(tmp_path, but=("auth",))


def test_mistakes_around_passwords_do_not_print_them(run, tmp_path):
    Path(tmp_path, "auth").write_bytes(f"änna:{APP}\nbob:{APP}".encode("latin-1"))
    for options in (["--auth", f"anna:{APP}"], ["--auth", "auth"], ["--autth", f"x://anna:{APP}@host"]):
        assert run("-m", "catdog.app", *options).returncode == 2
    assert run("-m", "catdog.app", CATDOG_AUTH=APP).returncode == 2
    assert run("-m", "catdog.train", "--data", f"http://anna:{APP}@host/images").returncode == 2
    assert_no_secrets(tmp_path, but=("auth",))
