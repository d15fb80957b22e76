import csv
from pathlib import Path

import pytest
from optuna.trial import TrialState
from rich.console import Console

from search.analysis.ranking import print_ranking, rank, winner_of, write_ranking
from search.report.__main__ import main
from search.report.record import read_record
from search.report.summary import cards
from search.space.space import Goal
from search.study.create import create_study
from search.study.queue import acquire
from tests.servers.counting_sweep import make_sweep

LOSS = Goal("best_loss", "minimize")


@pytest.fixture
def study(tmp_path):
    """Six trials: complete 0.5, complete 0.3, pruned at 0.2, failed, running at 0.4, and one not begun."""
    study = create_study(
        make_sweep(tmp_path / "runs/one", 6), {"goal": {"metric": "best_loss", "direction": "minimize"}}
    )
    claims = [acquire(study, slot, "cpu") for slot in range(5)]
    trials = [claim.trial for claim in claims]
    for trial, value in zip(trials, (0.5, 0.3, 0.2, 0.9, 0.4), strict=True):
        study.report(trial, 1, value)
    study.note(trials[1], metrics={"loss": 0.3, "val_accuracy": 0.875}, seconds=12.5)
    study.note(trials[3], reason="diverged in epoch 1: loss is nan")
    study.tell(trials[0], TrialState.COMPLETE, 0.5)
    study.tell(trials[1], TrialState.COMPLETE, 0.3)
    study.tell(trials[2], TrialState.PRUNED)
    study.tell(trials[3], TrialState.FAIL)
    yield study
    for claim in claims:
        claim.release()


def test_complete_trials_come_first_and_a_pruned_one_never_wins(study):
    ranking = rank(study.trials(), LOSS)
    assert [(line.trial, line.state) for line in ranking] == [
        (1, "complete"),
        (0, "complete"),
        (2, "pruned"),
        (4, "unfinished"),
        (3, "failed"),
    ]
    assert winner_of(ranking).trial == 1


def test_without_a_complete_trial_there_is_no_winner(study):
    unfinished = [trial for trial in study.trials() if trial.state != TrialState.COMPLETE]
    assert winner_of(rank(unfinished, LOSS)) is None
    assert winner_of([]) is None


def test_larger_is_better_where_the_goal_says_so(study):
    complete = [trial for trial in study.trials() if trial.state == TrialState.COMPLETE]
    assert winner_of(rank(complete, Goal("best_loss", "maximize"))).trial == 0


def test_csv_has_one_row_per_trial_with_the_contracts_columns(study, tmp_path):
    write_ranking(tmp_path / "ranking.csv", rank(study.trials(), LOSS), LOSS)
    rows = list(csv.reader((tmp_path / "ranking.csv").read_text().splitlines()))
    assert rows[0] == ["rank", "trial", "state", "best_loss", "val_accuracy", "epochs", "seconds", "x", "reason"]
    assert rows[1][:7] == ["1", "1", "complete", "0.3", "0.875", "1", "12.5"]
    assert rows[2][7] == "2.0"  # the baseline, outside the space
    assert rows[5][8] == "diverged in epoch 1: loss is nan"


@pytest.mark.parametrize(("width", "shown"), [(80, True), (70, False), (60, False)])
def test_parameters_are_shown_where_there_is_room(study, width, shown):
    console = Console(width=width)
    with console.capture() as captured:
        print_ranking(console, rank(study.trials(), LOSS), LOSS, Path("ranking.csv"), baseline=True)
    lines = captured.get().splitlines()
    header = next(line for line in lines if "rank " in line and "trial" in line and "state" in line)
    assert header.endswith(" x  ") is shown
    assert ("the parameters of all: ranking.csv" in lines) is not shown
    assert "trial 3 failed: diverged in epoch 1: loss is nan" in lines
    assert not any("…" in line for line in lines)


@pytest.mark.parametrize("width", [80, 70])
def test_searched_parameters_have_columns_and_constants_one_line(tmp_path, width):
    constants = {name: {"type": "discrete", "values": [0.9995]} for name in "yz"}
    parameters = {"x": {"type": "float", "min": 0, "max": 1}, **constants}
    settings = {"goal": {"metric": "best_loss", "direction": "minimize"}}
    study = create_study(make_sweep(tmp_path / "runs/two", 3, parameters=parameters), settings)
    for value in (0.5, 0.4, 0.3):
        claim = acquire(study, 0, "cpu")
        study.report(claim.trial, 1, value)
        study.tell(claim.trial, TrialState.COMPLETE, value)
        claim.release()
    ranking, console = rank(study.trials(), LOSS), Console(width=width)
    with console.capture() as captured:
        print_ranking(console, ranking, LOSS, tmp_path / "ranking.csv", baseline=True)
    lines = captured.get().splitlines()
    header = next(line for line in lines if "rank " in line and "state" in line)
    assert [name in header.split() for name in "xyz"] == [width == 80, False, False]
    assert "the same in every trial of the space: y=0.9995, z=0.9995" in lines
    best = f"trial 2 has x={ranking[0].parameters['x']:.3g}"
    assert (best in lines) is (width == 70)
    write_ranking(tmp_path / "ranking.csv", ranking, LOSS)
    (*_, x, y, z, _), *rows = csv.reader((tmp_path / "ranking.csv").read_text().splitlines())
    assert [x, y, z] == ["x", "y", "z"]
    assert [row[-3:-1] for row in rows] == [["0.9995", "0.9995"]] * 2 + [["2.0", "2.0"]]  # the baseline is outside


def test_command_ranks_a_sweep_at_any_time(study, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["report", "one"])
    main()
    assert "complete" in capsys.readouterr().out
    assert (tmp_path / "runs/one/ranking.csv").exists()


@pytest.mark.parametrize("baseline", [True, False])
def test_trial_0_is_called_the_baseline_only_where_it_is(study, monkeypatch, capsys, tmp_path, baseline):
    study.optuna.set_user_attr("settings", {**study.optuna.user_attrs["settings"], "baseline": baseline})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["report", "one"])
    main()
    assert ("trial 0 is the baseline" in capsys.readouterr().out) is baseline
    titles = [card.title for card in cards(read_record(tmp_path / "runs/one"), None)]
    assert ("baseline (trial 0)" in titles) is baseline


def test_command_refuses_an_unknown_run(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["report", "none"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "runs/none holds no sweep" in capsys.readouterr().err
