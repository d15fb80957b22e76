import os
import signal
import subprocess
import sys

import pytest

from search.promote import CHAMPION, promote
from tests.conftest import ROOT


def copy(challenger, target):
    target.write_text(f"tested {challenger.read_text()}")


@pytest.fixture
def challenger(tmp_path):
    def write(text):
        path = tmp_path / f"{text}.safetensors"
        path.write_text(text)
        return path

    return write


def test_champion_before_is_kept_under_the_next_number(tmp_path, challenger):
    best = tmp_path / "best_model"
    for name in ("one", "two", "three"):
        promote(challenger(name), best, copy)
    assert (best / CHAMPION).read_text() == "tested three"
    kept = sorted((best / "history").iterdir())
    assert [path.name for path in kept] == ["0001.safetensors", "0002.safetensors"]
    assert [path.read_text() for path in kept] == ["tested one", "tested two"]


def test_failed_judgement_leaves_the_champion_untouched(tmp_path, challenger):
    best = tmp_path / "best_model"
    promote(challenger("one"), best, copy)

    def refuse(_, target):
        target.write_text("half")
        raise ValueError("weights do not match")

    with pytest.raises(ValueError, match="weights do not match"):
        promote(challenger("two"), best, refuse)
    assert (best / CHAMPION).read_text() == "tested one"
    assert sorted(path.name for path in best.iterdir()) == [".lock", "history", CHAMPION]


def test_killed_promotion_leaves_the_champion_whole(tmp_path, challenger):
    best = tmp_path / "best_model"
    promote(challenger("one"), best, copy)
    code = (
        f"import sys, time; sys.path.insert(0, {str(ROOT)!r})\nfrom pathlib import Path\n"
        "from search.promote import promote\n"
        "def slow(challenger, target):\n"
        "    target.write_text('half'); print('judging', flush=True); time.sleep(60)\n"
        f"promote(Path('x'), Path({str(best)!r}), slow)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "judging\n"
        os.kill(process.pid, signal.SIGKILL)
    assert (best / CHAMPION).read_text() == "tested one"
    promote(challenger("two"), best, copy)
    assert (best / CHAMPION).read_text() == "tested two"
