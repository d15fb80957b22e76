"""Files of settings that Comet's reader dislikes: it goes on without them, in every process that uses its client."""

import json
import os
import subprocess
import sys
from argparse import Namespace

import pytest

from tests.conftest import ROOT, SMALL_SPACE

KEY = "abcdefghijklmnopqrstuvwxy"
ASK = """import json
from search.comet.client import has_api_key
from shell.comet_settings import UNREADABLE
print(json.dumps([has_api_key(), list(UNREADABLE.values())]))"""
OTHERS = ["export TOKEN=abc", "just words", "A: 1", "my-key=1", "1ST=2", 'NAME="first\nsecond"', "NAME=caf\xe9"]
WRONG = {
    "export": (".env", f"export COMET_API_KEY={KEY}\n", "line 1 cannot be understood"),
    "a colon": (".env", f"A=1\nCOMET_API_KEY: {KEY}\n", "line 2 cannot be understood"),
    "latin-1": (".env", f"NAME=caf\xe9\nCOMET_API_KEY={KEY}\n", "it is not UTF-8"),
    "JSON": (".comet.config", json.dumps({"api_key": KEY}), "line 1 cannot be understood"),
    "twice": (".comet.config", f"[comet]\napi_key={KEY}\napi_key={KEY}\n", "line 3 cannot be understood"),
    "a section": (".comet.config", f"[comet\napi_key={KEY}\n", "line 1 cannot be understood"),
    "latin-1 here": (".comet.config", f"[comet]\n# caf\xe9\napi_key={KEY}\n", "it is not UTF-8"),
}


def ask(folder, **variables):
    """Return whether there is an API key, and what is said of the files in a folder."""
    environ = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HOME": str(folder / "none"), **variables}
    command = [sys.executable, "-W", "ignore", "-c", ASK]
    ended = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


def test_the_env_file_of_another_program_is_left_out_without_a_word(tmp_path):
    (tmp_path / ".env").write_text("\n".join(OTHERS), encoding="latin-1")
    assert ask(tmp_path) == [False, []]


@pytest.mark.parametrize(("name", "content", "problem"), WRONG.values(), ids=WRONG)
def test_a_wrong_file_is_named_without_its_content(tmp_path, name, content, problem):
    (tmp_path / name).write_text(content, encoding="latin-1")
    has_key, (said,) = ask(tmp_path)
    assert not has_key
    assert said.startswith(f"{tmp_path / name}: {problem}")
    assert KEY[:4] not in said


@pytest.mark.parametrize(
    ("content", "has_key"),
    [
        (f"api_key={KEY}\n", False),
        (f"# mine\nAPI_KEY = {KEY}\nworkspace=us\n", False),
        (f"[main]\napi_key={KEY}\n", False),
        (f"[comet]\nCOMET_API_KEY={KEY}\n", False),
        (f"COMET_API_KEY={KEY}\n", True),
        (f"[comet]\napi_key={KEY}\n", True),
    ],
)
def test_a_key_outside_the_section_comet_is_named(tmp_path, content, has_key):
    (tmp_path / ".comet.config").write_text(content)
    said = f"{tmp_path / '.comet.config'} lacks api_key under a line [comet], so Comet's client finds no API key in it"
    expected = [] if has_key else [f"{said}; correct it, or set COMET_API_KEY"]
    assert ask(tmp_path) == [has_key, expected]


def test_settings_that_can_be_read_count_beside_a_file_that_cannot(tmp_path):
    (tmp_path / ".env").write_text("export TOKEN=abc")
    (tmp_path / ".comet.config").write_text(f"[comet]\napi_key={KEY}\n")
    assert ask(tmp_path) == [True, []]


def test_folders_and_dead_links_in_place_of_the_files_are_no_settings(tmp_path):
    (tmp_path / ".env").mkdir()
    (tmp_path / ".comet.config").symlink_to(tmp_path / "gone")
    assert ask(tmp_path) == [False, []]
    assert ask(tmp_path, COMET_CONFIG=str(tmp_path)) == [False, []]


def test_a_value_that_the_client_refuses_is_named_in_one_sentence(tmp_path):
    (tmp_path / ".env").write_text("COMET_LOGGING_FILE_OVERWRITE=maybe\n")
    (tmp_path / "optimizer.json").write_text(json.dumps(SMALL_SPACE))
    command = [sys.executable, ROOT / "run_sweep.py", "optimizer.json", "--dry-run"]
    environ = {name: value for name, value in os.environ.items() if name != "COMET_API_KEY"}
    ended = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert "refuses the value of COMET_LOGGING_FILE_OVERWRITE; correct that setting" in ended.stderr


def test_online_is_refused_with_the_file_that_may_hold_the_key(tmp_path, monkeypatch):
    from pipeline.plan import _tracking
    from shell import comet_settings

    said = []
    monkeypatch.setitem(comet_settings.UNREADABLE, "/x/.env", "/x/.env: line 1 cannot be understood")
    with pytest.raises(ValueError, match=r"needs an API key.*/x/\.env: line 1"):
        _tracking(Namespace(tracking="online", dry_run=False), "optuna", said.append)
    with pytest.raises(ValueError, match=r"needs an API key.*/x/\.env: line 1"):
        _tracking(Namespace(tracking="auto", dry_run=False), "comet", said.append)
    assert _tracking(Namespace(tracking="auto", dry_run=False), "optuna", said.append) == "offline"
    assert said == ["note: /x/.env: line 1 cannot be understood"]
