"""No text of others shows a key or a password."""

import subprocess
import sys

import pytest

from shell import redact as module
from shell.redact import keep_secret, redact, without_password
from tests.conftest import ROOT


@pytest.fixture(autouse=True)
def _no_secrets_kept(monkeypatch):
    monkeypatch.setattr(module, "_kept", set())


@pytest.mark.parametrize(
    ("name", "secret", "text", "shown"),
    [
        ("COMET_API_KEY", "marked-key", "API key: marke*****, refused", "API key: ********, refused"),
        ("COMET_API_KEY", "marked-key", "'mark' or marked-key?", "'***' or ***?"),
        ("COMET_API_KEY", "abc", "the key abc", "the key ***"),
        ("AWS_SECRET_ACCESS_KEY", "a/b+c==d", "?signature=a%2Fb%2Bc%3D%3Dd", "?signature=***"),
        ("CATDOG_AUTH", "anna:pass word", "anna has pass word", "*** has ***"),
        ("PGPASSWORD", "", "nothing", "nothing"),
    ],
)
def test_secrets_of_the_environment_and_their_beginnings_are_hidden(monkeypatch, name, secret, text, shown):
    monkeypatch.setenv(name, secret)
    assert redact(text) == shown


def test_secrets_of_files_and_options_are_hidden():
    keep_secret("of a file")
    keep_secret(None)
    assert redact(ValueError("of a file")) == "***"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("at postgresql://u:pass@host/db, port 5", "at postgresql://u:***@host/db, port 5"),
        ("http:/u:pass@host/images", "http:/u:***@host/images"),
        ("postgresql://u:pass word@host/db", "postgresql://u:***@host/db"),
        ("postgresql://u:1234@host/db", "postgresql://u:***@host/db"),
        ("postgresql+psycopg://u:p@ss@host/db", "postgresql+psycopg://u:***@host/db"),
        ("postgresql://u@host/db?password=x&sslmode=y", "postgresql://u@host/db?password=***&sslmode=y"),
        ("host=h PASSWORD=secret dbname=d", "host=h PASSWORD=*** dbname=d"),
        ("http://host:80/a and a@b", "http://host:80/a and a@b"),
    ],
)
def test_addresses_are_shown_without_their_passwords(text, shown):
    assert without_password(text) == shown


FAIL = "import os\ndef fail(): raise KeyError(os.environ['COMET_API_KEY'])\n"
PREPARED = [
    "from shell import redact; redact.redact_tracebacks()",
    "from shell import environment; environment.prepare()",
]


@pytest.mark.parametrize("where", ["fail()", "import threading; threading.Thread(target=fail).start()"])
@pytest.mark.parametrize("prepare", PREPARED)
def test_tracebacks_of_a_process_are_shown_without_secrets(monkeypatch, prepare, where):
    monkeypatch.setenv("COMET_API_KEY", "marked-key")
    command = [sys.executable, "-c", f"{FAIL}{prepare}\n{where}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "KeyError: '***'" in done.stderr
    assert "mark" not in done.stderr
