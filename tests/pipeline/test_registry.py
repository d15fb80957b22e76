import subprocess
import sys

import pytest

from catdog.checkpoint import read_header, save_model
from catdog.model import ModelConfig, build_model
from catdog.serving.model_card import write_card
from pipeline.registry import CHAMPION, install, replaceable, require_writable, rollback, undo_rollback
from tests.conftest import ROOT
from tests.servers.processes import start

TINY = ModelConfig(stem_width=1, body_width=2, body_repeats=1, image_size=8)


def nothing(_):
    """Describe or verify nothing."""


def promote(best, text, *, keep=True):
    with replaceable(best, nothing) as new:
        new.write_text(text)
        return install(best, new, keep=keep)


def kept_in(best):
    return {path.name: path.read_text() for path in sorted((best / "history").iterdir())}


def test_card_of_a_model_that_no_sweep_trained_names_no_trial(tmp_path):
    header = {"classes": ["cat", "dog"], "preprocessing": {}, "metrics": {}, "provenance": {"data": "ab12"}}
    save_model(build_model(TINY), tmp_path / CHAMPION, header)
    write_card(tmp_path / CHAMPION)
    assert "A training outside of a sweep. Data: ab12." in (tmp_path / "README.md").read_text()


def test_champion_before_is_kept_under_the_next_number(tmp_path):
    for name in ("one", "two", "three"):
        promote(tmp_path / "best", name)
    assert (tmp_path / "best" / CHAMPION).read_text() == "three"
    assert kept_in(tmp_path / "best") == {"0001.safetensors": "one", "0002.safetensors": "two"}


def test_history_keeps_the_last_ten(tmp_path):
    for number in range(15):
        promote(tmp_path / "best", str(number))
    assert list(kept_in(tmp_path / "best").values()) == [str(number) for number in range(4, 14)]


def test_champion_that_defended_itself_is_no_new_one(tmp_path):
    best = tmp_path / "best"
    promote(best, "one")
    assert promote(best, "one, looked at twice", keep=False) is None
    assert (best / CHAMPION).read_text() == "one, looked at twice"
    with replaceable(best, nothing):
        pass
    assert (best / CHAMPION).read_text() == "one, looked at twice"
    assert not kept_in(best)


def test_failed_test_leaves_the_champion_untouched(tmp_path):
    best = tmp_path / "best"
    promote(best, "one")

    def fail():
        with replaceable(best, nothing) as new:
            new.write_text("half")
            raise ValueError("weights do not match")

    with pytest.raises(ValueError, match="weights do not match"):
        fail()
    assert (best / CHAMPION).read_text() == "one"
    assert sorted(path.name for path in best.iterdir()) == [".lock", "history", CHAMPION]


def test_rollbacks_go_back_one_by_one_and_lose_nothing(tmp_path):
    best = tmp_path / "best"
    for name in ("one", "two", "three"):
        promote(best, name)
    rollback(best, nothing, nothing)
    assert (best / CHAMPION).read_text() == "two"
    rollback(best, nothing, nothing)
    assert (best / CHAMPION).read_text() == "one"
    assert kept_in(best) == {"0003-withdrawn.safetensors": "three", "0004-withdrawn.safetensors": "two"}
    with pytest.raises(ValueError, match="holds no champion to go back to: rollbacks withdrew all earlier ones"):
        rollback(best, nothing, nothing)
    promote(best, "four")
    rollback(best, nothing, nothing)
    assert (best / CHAMPION).read_text() == "one"


def test_rollbacks_are_undone_one_by_one(tmp_path):
    best = tmp_path / "best"
    for name in ("one", "two", "three"):
        promote(best, name)
    for exchange, name in ((rollback, "two"), (rollback, "one"), (undo_rollback, "two"), (undo_rollback, "three")):
        exchange(best, nothing, nothing)
        assert (best / CHAMPION).read_text() == name
    assert list(kept_in(best).values()) == ["one", "two"]
    with pytest.raises(ValueError, match="holds no champion that a rollback withdrew, so there is none to undo"):
        undo_rollback(best, nothing, nothing)


@pytest.mark.parametrize("exchange", [rollback, undo_rollback])
def test_nothing_is_made_where_nothing_was_promoted(tmp_path, exchange):
    with pytest.raises(ValueError, match=f"{tmp_path}/best_model/history holds no champion"):
        exchange(tmp_path / "best_model", nothing, nothing)
    assert not list(tmp_path.glob("best_model"))


def test_damaged_predecessors_are_told_with_what_helps(tmp_path):
    for name in ("one", "two"):
        promote(tmp_path / "best", name)

    def verify(_):
        raise ValueError("altered")

    with pytest.raises(
        ValueError, match="holds no champion to go back to: 1 are damaged; promote a trial with python -m"
    ):
        rollback(tmp_path / "best", verify, nothing)
    assert (tmp_path / "best" / CHAMPION).read_text() == "two"


def test_two_promotions_at_once_wait_for_each_other(tmp_path):
    code = (
        f"import sys, time; sys.path.insert(0, {str(ROOT)!r})\nfrom pathlib import Path\n"
        "from pipeline.registry import CHAMPION, install, replaceable\n"
        f"best = Path({str(tmp_path / 'best')!r})\n"
        "with replaceable(best, lambda _: None) as new:\n"
        "    before = (best / CHAMPION).read_text() if (best / CHAMPION).exists() else ''\n"
        "    new.write_text(before + sys.argv[1]); time.sleep(0.3); install(best, new, keep=True)"
    )
    promotions = [start([sys.executable, "-c", code, name]) for name in "abc"]
    assert [process.wait() for process in promotions] == [0, 0, 0]
    assert sorted((tmp_path / "best" / CHAMPION).read_text()) == ["a", "b", "c"]


@pytest.mark.parametrize("blocked", ["", "history"])
def test_folder_that_cannot_be_written_is_one_sentence(tmp_path, blocked):
    best = tmp_path / "best"
    (best / blocked).parent.mkdir(exist_ok=True)
    (best / blocked).write_text("a file")
    with pytest.raises(ValueError, match=f"^{best / blocked} is not a folder; move it away$"):
        require_writable(best)


KILLER = """
import os, random, signal, sys, time; sys.path.insert(0, {root!r})
from pathlib import Path
import torch
from catdog.serving.model_card import write_card
from catdog.checkpoint import load_model, read_header, save_model
from pipeline.registry import CHAMPION, install, replaceable, rollback
torch.set_num_threads(1)
best, number = Path({best!r}), 0

def promote(number):
    model, header = load_model(Path({challenger!r}))
    header["provenance"]["trial"] = number
    with replaceable(best, write_card) as new:
        save_model(model, new, {{key: value for key, value in header.items() if key != "model"}})
        install(best, new, keep=number % 3 != 0)

for number in (1, 2):
    promote(number)
holders = set()
kills = 0
while kills < 100 or len(holders) < 2:  # promotions do happen
    child = os.fork()  # a process that has imported everything: what is killed is a promotion
    while not child:
        number += 1
        promote(number)
        if number % 5 == 4:
            rollback(best, load_model, write_card)
    time.sleep(random.uniform(0, 0.1))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    kills += 1
    holders.add(read_header(best / CHAMPION)["provenance"]["trial"])  # raises where it is not whole and true
    for path in (best / "history").glob("*.safetensors"):
        read_header(path)
"""


def test_killed_at_a_hundred_random_moments_the_champion_is_whole(tmp_path):
    header = {"classes": ["cat", "dog"], "preprocessing": {}, "metrics": {}, "provenance": {"run": "one"}}
    best, challenger = tmp_path / "best", tmp_path / "challenger.safetensors"
    save_model(build_model(TINY), challenger, header)
    code = KILLER.format(root=str(ROOT), best=str(best), challenger=str(challenger))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with replaceable(best, write_card):
        pass
    assert sorted(path.name for path in best.iterdir()) == [".lock", "README.md", "history", CHAMPION]
    trial = read_header(best / CHAMPION)["provenance"]["trial"]
    assert f"Trial {trial} of" in (best / "README.md").read_text()


def test_what_a_killed_promotion_left_is_never_promoted(tmp_path):
    best = tmp_path / "best"
    promote(best, "one")
    (best / ".work").mkdir()
    (best / ".work" / CHAMPION).write_text("two, of a promotion that was killed")
    with replaceable(best, nothing):
        pass
    assert (best / CHAMPION).read_text() == "one"


def test_promotion_killed_before_its_rename_leaves_no_second_champion(tmp_path):
    best = tmp_path / "best"
    for name in ("one", "two"):
        promote(best, name)
    for mark in ("", "-withdrawn"):
        (best / f"history/0002{mark}.safetensors").hardlink_to(best / CHAMPION)
        promote(best, "two, looked at again", keep=False)
        assert kept_in(best) == {"0001.safetensors": "one"}


def test_rollback_passes_over_a_damaged_champion(tmp_path):
    best = tmp_path / "best"
    for name in ("one", "damaged", "three"):
        promote(best, name)

    def verify(path):
        if path.read_text() == "damaged":
            raise ValueError("altered")

    rollback(best, verify, nothing)
    assert (best / CHAMPION).read_text() == "one"
