"""What every command does with its interpreter, its standard streams and its locale, seen in small programs."""

import ast
import errno
import os
import resource
import subprocess
import sys

import pytest

from shell import environment
from shell.environment import describe, is_environments, module_command
from tests.conftest import ROOT

COMMANDS = (
    ["run_sweep.py"],
    ["-I", "run_sweep.py"],
    ["-m", "search.report", "x"],
    ["-m", "search.promote", "x"],
    ["-m", "search.panels", "push"],
    ["-m", "catdog.train"],
    ["-m", "catdog.predict", "x"],
    ["-m", "catdog.app"],
)
OLD = ("shell/environment.py", "run_sweep.py", "catdog/__init__.py", "search/__init__.py")


def run(program, redirection="", **variables):
    """Run a prepared Python program in the shell."""
    command = [sys.executable, "-c", f"from shell import environment; environment.prepare()\n{program}"]
    variables = {"PYTHONPATH": str(ROOT), **variables}
    environ = {name: value for name, value in {**os.environ, **variables}.items() if value is not None}
    shell = ["bash", "-c", f'set -o pipefail; "$@" {redirection}', "bash", *command]
    return subprocess.run(shell, env=environ, capture_output=True, check=False)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[-1])
def test_without_its_packages_a_command_says_what_to_do_in_one_sentence(command):
    bare = [sys.executable, "-S", *command]  # -S: as an interpreter that has no packages
    ended = subprocess.run(bare, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (1, "", 1)
    assert " is not installed for " in ended.stderr
    assert "start it with" in ended.stderr


@pytest.mark.parametrize("name", OLD)
def test_old_versions_of_python_can_read_what_says_that_they_are_too_old(name):
    ast.parse((ROOT / name).read_text(encoding="utf-8"), feature_version=(3, 7))


def test_an_old_version_of_python_ends_in_one_sentence(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 8, 18, "final", 0))
    with pytest.raises(SystemExit, match=r"Python 3\.11 or newer is needed"):
        environment.prepare()


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_no_file_takes_the_place_of_a_closed_stream(tmp_path, closed):
    program = f"""import sys
file = open({str(tmp_path / "file")!r}, "w", encoding="utf-8")
print("shown"), print("shown", file=sys.stderr), sys.stdin.read
file.write(f"{{file.fileno() > 2}}")"""
    assert run(program, closed).returncode == 0
    assert (tmp_path / "file").read_text(encoding="utf-8") == "True"


@pytest.mark.parametrize("lost", ["| head -1 >/dev/null", "| true", ">/dev/full", "2>&1 | true", "2>/dev/full | true"])
def test_output_that_nobody_takes_any_more_does_not_end_the_command(tmp_path, lost):
    program = f"""import pathlib, sys
for number in range(50_000): print(number, flush=number % 1000 == 0)
print("an error", file=sys.stderr)
pathlib.Path({str(tmp_path / "done")!r}).touch()"""
    ended = run(program, lost)
    assert ended.returncode == 0
    assert (tmp_path / "done").exists()
    assert b"Traceback" not in ended.stderr
    assert (ended.stderr.count(b"standard output is lost") == 1) == (not lost.startswith("2"))


WRITES = """import pathlib, sys
pathlib.Path("caf\\u00e9").write_text("\\u00e9\\u65e5\\n")
print("caf\\u00e9", "\\u65e5", "\\udcff")"""


@pytest.mark.parametrize(
    ("name", "shown"),
    [("C", "café 日 \\udcff"), ("POSIX", "café 日 \\udcff"), ("ISO-8859-1", "café \\u65e5 \\udcff"), ("EUC-JP", None)],
)
def test_files_are_the_same_in_every_locale_and_output_suits_the_terminal(tmp_path, locales, monkeypatch, name, shown):
    monkeypatch.chdir(tmp_path)
    ended = run(WRITES, LC_ALL=locales.get(name, name), LOCPATH=locales["folder"], PYTHONUTF8=None)
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert (tmp_path / "café").read_bytes().decode() == "é日\n"
    encoding = name if name in ("ISO-8859-1", "EUC-JP") else "utf-8"
    assert ended.stdout.decode(encoding).split("\n")[0] == (shown or "café 日 \\udcff")


def test_a_low_soft_limit_of_open_files_is_raised():
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    program = "import resource; print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    command = [sys.executable, "-c", f"from shell import environment; environment.prepare(); {program}"]
    shell = ["bash", "-c", 'ulimit -Sn 40; exec "$@"', "bash", *command]
    shown = subprocess.run(shell, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert int(shown) == min(hard, environment.NUM_FILES)


def test_module_runs_from_any_folder_by_the_command_that_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert module_command("shell.redact") == "python -m shell.redact"
    for folder, safe in ((ROOT, "1"), (tmp_path, "1"), (tmp_path, "")):
        monkeypatch.chdir(folder)
        monkeypatch.setenv("PYTHONSAFEPATH", safe)
        subprocess.run(module_command("shell.redact"), shell=True, check=True)


ENVIRONMENTS = {
    "too many open files": (OSError(errno.EMFILE, os.strerror(errno.EMFILE), "/x"), "ulimit -n"),
    "no thread": (RuntimeError("can't start new thread"), "ulimit -u"),
    "torch's shared memory": (RuntimeError("unable to write: No space left on device (28)"), "free some space"),
    "SQLite": (RuntimeError("(sqlite3.OperationalError) database or disk is full"), "free some space"),
    "a read-only disk": (OSError(errno.EROFS, os.strerror(errno.EROFS), "/x"), "use a folder that can be written"),
    "a folder in the way": (OSError(errno.EISDIR, os.strerror(errno.EISDIR), "/x"), "move that folder away"),
    "a library": (ImportError("libgomp.so.1: cannot open shared object file"), "libgomp"),
    "a text": (UnicodeDecodeError("ascii", b"\xff", 0, 1, "ordinal not in range"), "ordinal"),
}


@pytest.mark.parametrize(("error", "remedy"), ENVIRONMENTS.values(), ids=ENVIRONMENTS)
def test_an_error_of_the_environment_is_described_with_its_remedy(error, remedy):
    assert is_environments(error)
    assert remedy in describe(error)
    assert "Errno" not in describe(error)


@pytest.mark.parametrize("error", [ValueError("a width of 0"), RuntimeError("mat1 and mat2 shapes"), KeyError("x")])
def test_a_mistake_of_a_configuration_is_not_the_environments(error):
    assert not is_environments(error)
    assert str(error) in describe(error)


def test_limits_of_this_process_are_named_with_their_values():
    program = """import errno, os; from shell.environment import describe
for error in (OSError(errno.EFBIG, os.strerror(errno.EFBIG)), OSError("disk I/O error"), MemoryError()):
    print(describe(error))"""
    command = [sys.executable, "-c", program]
    shell = ["bash", "-c", 'ulimit -f 7 -v 4000000; exec "$@"', "bash", *command]
    shown = subprocess.run(shell, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    assert ["now 7168 bytes (ulimit -f)" in line for line in shown] == [True, True, False]
    assert shown[-1] == "not enough memory; raise the memory of a process, now 4096000000 bytes (ulimit -v)"


def test_without_a_home_the_cache_says_what_to_set(monkeypatch):
    from catdog.data.cache import cache_folder

    monkeypatch.delenv("CATDOG_CACHE")
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("os.getuid", lambda: 4_000_000)  # nobody's
    with pytest.raises(ValueError, match="set CATDOG_CACHE to a writable folder"):
        cache_folder()
