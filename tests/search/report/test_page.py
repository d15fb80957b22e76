import sqlite3
import sys
import time
from contextlib import closing

import pytest

from search.report import page as report
from search.report.__main__ import main
from search.report.figures import parallel_coordinates, slices
from search.report.page import kept_up_to_date, write_last_page, write_page
from search.report.record import read_record
from search.report.summary import sentences
from search.space.space import Goal
from search.study.queue import acquire
from search.study.sweep import load_study
from shell.environment import module_command
from tests.servers.app_server import HANG
from tests.servers.counting_sweep import make_sweep
from tests.servers.finished_sweep import make_finished_sweep
from tests.servers.processes import wait_until

GOAL = {"metric": "best_loss", "direction": "minimize"}


@pytest.fixture(scope="module")
def finished(made_once):
    """The folder of a finished sweep of 500 trials, with its report."""

    def make(folder):
        make_finished_sweep(folder / "finished", 500)
        write_page(folder / "finished")

    return made_once("report", make) / "finished"


@pytest.fixture
def opened(finished, browser):
    """The report in a browser without a network; what it complained about is in `opened.complaints`."""
    context = browser.new_context(offline=True, viewport={"width": 1200, "height": 900})
    context.set_default_timeout(1000 * HANG)
    tab = context.new_page()
    tab.complaints = []
    tab.on("console", lambda message: message.type in ("error", "warning") and tab.complaints.append(message.text))
    tab.on("pageerror", lambda error: tab.complaints.append(str(error)))
    tab.on("request", lambda request: request.url.startswith("http") and tab.complaints.append(request.url))
    tab.goto(f"file://{finished}/report.html")
    yield tab
    context.close()


def test_report_of_500_trials_is_at_most_8_mb(finished):
    assert (finished / "report.html").stat().st_size < 8e6


def test_every_plot_draws_and_nothing_complains(opened):
    plots = ["learning-curves", "parallel-coordinates", "importances", "slices", "timeline", "validation", "test"]
    for name in plots:
        box = opened.locator(f"#{name} .main-svg").first.bounding_box()
        assert box["width"] > 200, name
        assert box["height"] > 100, name
    assert opened.locator("#learning-curves .scatterlayer .trace").count() == 500
    assert opened.locator("#importances .bars .point").count() == 5
    assert opened.locator("#slices .scatterlayer .trace").count() == 5
    assert opened.locator("#timeline .bars .point").count() > 500
    assert opened.locator("img[alt^='a ']").count() == 6
    assert opened.locator("img").evaluate_all("all => all.every(image => image.naturalWidth > 0)")
    assert opened.complaints == []


def column(opened, index):
    return opened.locator(f"#ranking tbody tr td:nth-child({index})").all_inner_texts()


def test_ranking_sorts_by_click_and_by_keyboard(opened):
    names = [text.strip() for text in opened.locator("#ranking th").all_inner_texts()]
    assert column(opened, 1) == [str(rank) for rank in range(1, 501)]
    by_trial = names.index("trial") + 1
    opened.get_by_role("button", name="trial", exact=True).nth(1).click()
    assert column(opened, by_trial) == [str(number) for number in range(500)]
    opened.keyboard.press("Enter")  # the heading has the focus
    assert column(opened, by_trial) == [str(number) for number in reversed(range(500))]
    opened.locator("#ranking").get_by_role("button", name="dropout").click()
    values = [float(text) for text in column(opened, names.index("dropout") + 1) if text]
    assert values == sorted(values)


def test_figures_show_what_varies(finished):
    trials, goal = load_study(finished).get_trials(), Goal("best_val_loss", "minimize")
    axes = ["body_repeats", "body_width", "dropout", "learning_rate", "share_body"]
    assert list(parallel_coordinates(trials, goal).layout.xaxis.ticktext) == ["best_val_loss", *axes]
    panels = slices(trials, goal)
    assert [axis.title.text for axis in panels.select_xaxes()] == axes
    assert panels.layout.width == 260 * len(axes)


def test_parameters_that_are_not_searched_are_named_once(opened):
    names = [text.strip() for text in opened.locator("#ranking th").all_inner_texts()]
    assert names[10:] == ["body_width", "share_body", "dropout", "learning_rate", "body_repeats", "reason"]
    assert "The same in every trial of the space: ema=0.9995.\n" in opened.locator("body").inner_text()


def test_summary_says_what_matters(opened):
    cards = opened.locator(".cards").inner_text()
    assert "97.0%" in cards
    assert "95.0 to 98.0 % of 900 held-out test images" in cards
    assert "winner minus baseline" in cards
    text = opened.locator("body").inner_text()
    assert "2026-01-01T13:00:00+00:00: promoted; trial 5 is the champion" in text
    assert "2 test images were left out" in text
    assert "<b>no memory</b>" in text  # shown, not obeyed
    assert opened.locator("#candidates tbody tr").count() == 3
    assert opened.locator("#failures tbody tr").count() == 2
    assert opened.locator("#ranking tr.winner").count() == 1


def test_groups_of_trials_that_cannot_be_told_apart_share_a_letter(opened):
    names = [text.strip() for text in opened.locator("#ranking th").all_inner_texts()]
    letters = [text for text in column(opened, names.index("tie") + 1) if text]
    assert letters[0] == "a"
    assert letters.count("a") > 1
    assert letters == sorted(letters, key=lambda text: (len(text), text))
    assert len(set(letters)) > 3


def test_page_of_a_sweep_that_has_just_begun(tmp_path):
    from search.study.create import create_study

    folder = tmp_path / "runs/begun"
    study = create_study(make_sweep(folder, 3), {"goal": GOAL})
    assert "Too few trials so far" in write_page(folder).read_text()
    claim = acquire(study, 0, "cpu")
    study.report(claim.trial, 1, 0.5)
    assert "trial 0 (unfinished)" in write_page(folder).read_text()
    claim.release()


def test_page_is_kept_up_to_date_while_the_sweep_runs(tmp_path, monkeypatch):
    from search.study.create import create_study

    monkeypatch.setattr(report, "EVERY_SECONDS", 0.1)
    folder = tmp_path / "runs/begun"
    create_study(make_sweep(folder, 3), {"goal": GOAL})
    with kept_up_to_date(folder):
        wait_until((folder / "report.html").exists)
    assert len(load_study(folder).get_trials()) == 0


def test_page_of_an_interrupted_sweep_is_not_waited_for_if_its_study_does_not_answer(tmp_path, monkeypatch):
    from search.study.create import create_study

    monkeypatch.setattr(report, "LAST_SECONDS", 0.2)
    folder = tmp_path / "runs/begun"
    create_study(make_sweep(folder, 3), {"goal": GOAL}).close()
    with closing(sqlite3.connect(folder / "study.db", isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        began = time.monotonic()
        assert write_last_page(folder) is None
        assert time.monotonic() - began < HANG
        other.execute("ROLLBACK")
    monkeypatch.setattr(report, "LAST_SECONDS", HANG)
    assert write_last_page(folder) == folder / "report.html"
    assert write_last_page(tmp_path / "nothing") is None


@pytest.mark.parametrize(
    ("name", "made", "message"),
    [
        ("unknown", False, "runs/unknown holds no sweep; name one of runs/"),
        ("empty", True, "runs/empty holds no sweep; name one of runs/"),
    ],
)
def test_command_refuses_what_holds_no_sweep(tmp_path, monkeypatch, capsys, name, made, message):
    monkeypatch.chdir(tmp_path)
    if made:
        (tmp_path / "runs" / name).mkdir(parents=True)
    monkeypatch.setattr(sys, "argv", ["report", name])
    with pytest.raises(SystemExit, match="2"):
        main()
    said = f"{message} in {tmp_path} (none: runs/ belongs to the folder in which run_sweep.py was started)\n"
    assert capsys.readouterr().err == said


def test_command_refuses_a_champion_that_is_not_whole(tmp_path, monkeypatch, capsys):
    from search.study.create import create_study

    folder = tmp_path / "runs/one"
    study = create_study(make_sweep(folder, 3), {"goal": GOAL})
    study.optuna.set_user_attr("promotion", {})
    monkeypatch.chdir(tmp_path)
    (tmp_path / "best_model").mkdir()
    (tmp_path / "best_model/model.safetensors").write_bytes(b"torn")
    monkeypatch.setattr(sys, "argv", ["report", "one"])
    with pytest.raises(SystemExit, match="2"):
        main()
    said = "best_model/model.safetensors is not a whole safetensors file; put back a copy of it, or"
    assert f"{said} replace it: {module_command('search.promote')} NAME --promote always" in capsys.readouterr().err
    (tmp_path / "best_model/history").mkdir()
    (tmp_path / "best_model/history/0001.safetensors").touch()
    with pytest.raises(SystemExit, match="2"):
        main()
    assert f"{said} take the one before it: {module_command('search.promote')} --rollback" in capsys.readouterr().err


def test_command_reads_the_champion_as_it_was_saved_and_refuses_an_altered_one(tmp_path, monkeypatch):
    from catdog.checkpoint import read_header, save_model
    from catdog.model import ModelConfig, build_model
    from search.report.__main__ import CHAMPION, _champion_of
    from search.study.create import create_study

    study = create_study(make_sweep(tmp_path / "runs/one", 3), {"goal": GOAL}).optuna
    study.set_user_attr("promotion", {})
    monkeypatch.chdir(tmp_path)
    CHAMPION.parent.mkdir()
    header = {"classes": ["cat", "dog"], "preprocessing": {}, "metrics": {}, "provenance": {"run": "one"}}
    save_model(build_model(ModelConfig(2, 4, 2, image_size=32)), CHAMPION, header)
    assert _champion_of(study) == {name: entry for name, entry in read_header(CHAMPION).items() if name != "sha256"}
    *_, last = sentences(read_record(tmp_path / "runs/one"), _champion_of(study))
    assert last == "In service: a model that no sweep trained."
    CHAMPION.write_bytes(CHAMPION.read_bytes().replace(b'\\"one\\"', b'\\"two\\"'))
    with pytest.raises(ValueError, match="was altered: its sha256 does not match"):
        _champion_of(study)
