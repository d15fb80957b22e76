"""Every command in README and docs is in the table below, which says how it is tested.

A command with an entry `Here` is run as it is written, in a temporary folder, with small options appended. One with an
entry `By` takes a server or a cluster: the test that is named runs it. One that needs the network says so in a comment.
"""

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.servers.app_server import AppServer

PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "benchmarks/README.md", ROOT / "configs/README.md"]
NETWORK = "needs the network"  # in the comment of a command


@dataclass(frozen=True)
class Here:
    """Run it here."""

    options: str = ""  # appended; of an option that is given twice, the last one counts
    instead: str = ""  # the command, with its words in capitals filled in


@dataclass(frozen=True)
class By:
    """Run by another test."""

    test: str


SMALL = "--epochs 1 --trials 2 --no-baseline --confirm 1 --confirm-seeds 1 --workers 1 --tracking off"
ON_128 = "python run_sweep.py --data FOLDER --image-size 128 --epochs 18"
PHOTOS = f"{ON_128} --trials 10 --no-baseline --name photos"
ON_PHOTOGRAPHS = f"--data FOLDER {SMALL}"
CI = By("tests.docs.test_commands:test_targets_of_make_run_after_each_push")
APP = By("tests.docs.test_commands:test_app_is_served")
BENCH = By("tests.docs.test_commands:test_make_bench_runs_scripts_of_this_table")
SOAK = By("tests.soak.test_soak:test_random_faults_cost_no_trial")
RENAMED = By("tests.docs.test_commands:test_run_of_an_older_version_resumes_after_the_rename")
RAY = By("tests.search.workers.test_ray_backend:test_whole_command_runs_over_the_cluster")
POSTGRES = By("tests.docs.test_commands:test_sweep_with_its_study_on_a_server")
PUSH = By("tests.search.panels.test_panels:test_push_installs_panel_and_view_and_again_replaces_them")
CURL = By("tests.catdog.test_app:test_lines_of_the_docs_work")

COMMANDS = {
    "make sweep": Here(),
    "make app": APP,
    "make check": CI,
    "make check test": CI,
    "make test": CI,
    "make test COVERAGE=yes": CI,
    "make test-slow": CI,
    "make test-avx2": CI,
    "make soak": SOAK,
    "make bench": BENCH,
    "source .venv/bin/activate": Here(),
    # sweeps
    "python run_sweep.py configs/quick.json --image-size 64 --epochs 4 --no-baseline": Here(ON_PHOTOGRAPHS),
    "python run_sweep.py my_space.json --dry-run": Here("--data FOLDER --image-size 64 --trials 1 --no-baseline"),
    "python run_sweep.py configs/long.json --data FOLDER --image-size 160 --epochs 110 --no-baseline --workers 1 "
    "--pruner none --confirm 0": Here(f"{SMALL} --trials 1"),
    f"{ON_128} --trials 10 --no-baseline --dry-run": Here(SMALL),
    PHOTOS: Here(SMALL),
    f"{ON_128} --trials 20 --no-baseline --name photos": Here(f"{SMALL} --trials 3"),
    f"{PHOTOS}-2 --warm-start photos": Here(SMALL),
    "python run_sweep.py --storage postgresql://USER@HOST/DATABASE --name night --data FOLDER "
    "--artifacts /shared/store": POSTGRES,
    "python run_sweep.py --backend ray --ray-address HEAD --storage postgresql://USER@HOST/DATABASE --name night "
    "--data FOLDER": RAY,
    "mv runs/photos/ledger.db runs/photos/study.db": RENAMED,
    "mv runs/NAME/ledger.db runs/NAME/study.db": RENAMED,
    # other commands
    "python -m search.report quick": Here(instead="python -m search.report photos"),
    "python -m search.promote NAME": Here(instead="python -m search.promote photos"),
    "python -m search.promote NAME --trial 4": Here(instead="python -m search.promote photos --trial 1"),
    "python -m search.promote --rollback": Here(),
    "python -m search.promote --undo-rollback": Here(
        instead="python -m search.promote --rollback; python -m search.promote --undo-rollback"
    ),
    "python -m search.panels push": PUSH,
    "python -m catdog.predict cat.jpg dog.jpg": Here(),
    "python -m catdog.train --data FOLDER --image-size 64 --epochs 8": Here("--epochs 1 --stem-width 4 --body-width 8"),
    "python -m catdog.model --image-size 64": Here(),
    "python -m catdog.app --host 0.0.0.0 --auth password.txt": APP,
    '(printf \'{"data": [{"url": "data:;base64,\'; base64 -w0 cat.jpg; printf \'"}, false]}\') | '
    "curl -s --json @- http://127.0.0.1:7860/gradio_api/run/classify": CURL,
    "curl -s http://127.0.0.1:7860/health": CURL,
    "curl -s http://127.0.0.1:7860/metrics": CURL,
    "python -m tests.test_structure": Here(),
    "python -m tests.soak --compare": Here("--trials 2 --workers 2 --each 1 --python ''"),
    # headings and tables of docs/cli.md
    "python run_sweep.py [CONFIG]": Here(f"--image-size 64 {ON_PHOTOGRAPHS}", "python run_sweep.py configs/quick.json"),
    "python -m search.report NAME": Here(instead="python -m search.report photos"),
    "python -m catdog.app": APP,
    "python -m catdog.predict IMAGE...": Here(instead="python -m catdog.predict cat.jpg dog.jpg"),
    "python -m catdog.train": Here("--image-size 32 --epochs 1 --stem-width 2 --body-width 4 --body-repeats 1"),
    "python -m catdog.model": Here(),
    "python -m catdog.train --help": Here(),
    # benchmarks
    "python benchmarks/contention.py": By("tests.benchmarks.test_contention:test_no_process_reports_a_locked_study"),
    "python benchmarks/gpu.py --data FOLDER": By(
        "tests.benchmarks.test_gpu:test_every_section_of_the_gpu_benchmark_gives_finite_figures"
    ),
    "python benchmarks/sweep.py --data FOLDER": By(
        "tests.benchmarks.test_sweep:test_small_form_measures_ours_and_the_tutorial"
    ),
    "python benchmarks/ablation.py": Here(),
    "python benchmarks/ablation.py --record benchmarks/ablation_long.json": Here(),
    "python benchmarks/ablation.py --data FOLDER --record mine.json": Here("--epochs 2 --seeds 1 --only erasing"),
    "python benchmarks/to_93.py --data FOLDER": Here("--epochs 1 --seeds 2 --no-origin"),
    "python benchmarks/convolutions.py": Here("--rounds 1"),
    "python benchmarks/cores.py": Here("--rounds 1"),
    "python benchmarks/decoding.py [--data FOLDER]": Here("--rounds 1", "python benchmarks/decoding.py"),
    "python benchmarks/forecast.py": Here(f"--rounds 1 $PWD/configs/quick.json --image-size 64 {SMALL}"),
    "python benchmarks/idle.py": Here("--rounds 1 --scale 0.01"),
    "python benchmarks/larger.py": Here("--rounds 1 --images 2000"),
    "python benchmarks/memory.py": Here("--numbers 100"),
    "python benchmarks/overhead.py": Here(
        "--trials 4 --bayes-trials '' --workers 2 --storages sqlite --libraries harness optuna --rounds 1"
    ),
    "python benchmarks/overhead.py --parent-only": Here("--trials 4 --rounds 1"),
    "python benchmarks/promotion.py": Here("--sweeps 3"),
    "python benchmarks/replay.py": Here("--orders 2"),
    "python benchmarks/report.py": Here(),
    "python benchmarks/serving.py": Here("--seconds 0.5 --rounds 1 --swaps 2"),
    "python benchmarks/startup.py": Here("--rounds 1"),
    "python benchmarks/strange.py": Here("--data FOLDER"),
    "python benchmarks/tracking.py": Here("--rounds 1 --trials 2"),
    "python benchmarks/training.py": Here("--rounds 1 --networks '32/128 64 px'"),
}


def documented():
    """Yield (page, command, comment) of every line in a block of shell commands, and of every command in a text."""
    for page in sorted(PAGES):
        text = page.read_text()
        for block in re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            for line in re.sub(r"(\||\\)\n\s*", r"\1 ", block).splitlines():
                command, _, comment = line.partition("  #")
                yield page.name, command.strip(), comment
        prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
        for command in re.findall(r"`((?:python|make|mv) [^`\n]+)`", prose):
            yield page.name, command, ""


def test_every_command_has_its_test():
    unknown = {
        (page, command) for page, command, note in documented() if command not in COMMANDS and NETWORK not in note
    }
    assert unknown == set()


def test_every_entry_is_documented_and_every_named_test_exists():
    assert COMMANDS.keys() - {command for _, command, _ in documented()} == set()
    for way in COMMANDS.values():
        if isinstance(way, By):
            module, name = way.test.split(":")
            assert hasattr(importlib.import_module(module), name), way


@pytest.fixture
def home(tmp_path, made_once, drawn_files):
    """A copy of a folder with the program, photographs, a small finished sweep and two champions in turn."""
    shutil.copytree(
        made_once("documented", lambda folder: make_home(folder, drawn_files)), tmp_path / "home", symlinks=True
    )
    return tmp_path / "home"


PROGRAM = ("run_sweep.py", "Makefile", "configs", "shell", "catdog", "search", "pipeline", "benchmarks", "tests")


def make_home(folder, drawn_files):
    for name in PROGRAM:
        (folder / name).symlink_to(ROOT / name)
    (folder / ".venv").symlink_to(sys.prefix)
    for label, kind in enumerate(("cat", "dog")):
        (folder / f"{kind}.jpg").write_bytes(drawn_files[label][0])
        for index, content in enumerate(drawn_files[label]):
            path = folder / "FOLDER" / ("train" if index < 20 else "test") / f"{kind}s/{index}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    (folder / "password.txt").write_text("somebody:secret")
    space = (ROOT / "docs/search-space.md").read_text()
    (folder / "my_space.json").write_text(re.search(r"```json\n(.*?)```", space, re.DOTALL)[1])
    for command in (
        f"{PHOTOS} {SMALL}",
        *(f"python -m search.promote photos --trial {n} --promote always" for n in (0, 1)),
    ):
        assert run(folder, command).returncode == 0


def run(folder, command):
    """Run a documented command in `folder`, where make finds an environment."""
    command = re.sub(r"^make ", f"make -o .venv/installed PYTHON={sys.executable} ", command)
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    done = subprocess.run(
        ["bash", "-ec", command], cwd=folder, env={**os.environ, "PATH": path, "CATDOG_CACHE": str(folder / "cache")},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    print(done.stdout, done.stderr)
    return done


def mark_of(command):
    takes_minutes = "benchmarks/" in command or "soak" in command
    return pytest.mark.benchmark if takes_minutes else pytest.mark.slow


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(f"{way.instead or command} {way.options}", id=command, marks=mark_of(command))
        for command, way in COMMANDS.items()
        if isinstance(way, Here)
    ],
)
def test_command_runs(home, command):
    assert run(home, command).returncode == 0


@pytest.mark.slow
def test_python_of_the_quickstart_runs(home):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/quickstart.md").read_text(), re.DOTALL)
    assert run(home, f"python -c {shlex.quote(code)}").stdout.startswith("('cat', 'dog')")


@pytest.mark.slow
def test_run_of_an_older_version_resumes_after_the_rename(home):
    study = home / "runs/photos/study.db"
    study.rename(study.with_name("ledger.db"))
    assert run(home, f"{PHOTOS} {SMALL}").returncode == 2
    assert run(home, "mv runs/photos/ledger.db runs/photos/study.db").returncode == 0
    assert "nothing left to search" in run(home, f"{PHOTOS} {SMALL}").stdout


@pytest.mark.slow
def test_sweep_with_its_study_on_a_server(home, postgres):
    (command,) = (text for text, way in COMMANDS.items() if way is POSTGRES)
    for word, value in (("postgresql://USER@HOST/DATABASE", postgres.url), ("/shared/store", "store")):
        command = command.replace(word, value)
    assert run(home, f"{command} --image-size 64 {SMALL}").returncode == 0


@pytest.mark.slow
def test_app_is_served(home):
    recipe = subprocess.run(
        ["make", "-n", "--no-print-directory", "-o", ".venv/installed", "app"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert recipe.stdout.split() == [".venv/bin/python", "-m", "catdog.app"]
    with AppServer(home) as server:
        assert server.get("/health")[0] == 200
    with AppServer(home, "--host", "0.0.0.0", "--auth", "password.txt") as server:
        assert server.get("/health")[0] == 200
        assert server.run("model")[0] == 401


def test_targets_of_make_run_after_each_push():
    made = re.findall(r"\bmake (.*)", (ROOT / ".ci/run").read_text())
    targets = {word for words in made for word in words.split()}
    wanted = {word for command, way in COMMANDS.items() if way is CI for word in command.split()[1:]}
    assert wanted <= targets


def test_make_bench_runs_scripts_of_this_table():
    recipe = re.search(r"^bench:.*?\n\n", (ROOT / "Makefile").read_text(), re.MULTILINE | re.DOTALL)[0]
    scripts = re.findall(r"\$\(PYTHON\) (\S+)", recipe)
    assert scripts
    assert {f"python {script}" for script in scripts} <= COMMANDS.keys()
