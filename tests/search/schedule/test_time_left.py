import json
from dataclasses import replace
from itertools import accumulate
from statistics import fmean, median

import pytest

from search.schedule.time_left import ObservedTrial, Snapshot, full_epochs, seconds_left
from tests.conftest import ROOT

RECORDED = sorted((ROOT / "tests/servers/recorded").glob("*.json"))
CLOSE = 0.3  # of what is still to come
GROWING = (0.25, 0.5, 1.0, 1.0)  # costs of epochs whose images grow


def ended(number, pace, values, state="complete"):
    return ObservedTrial(number, state, pace, values)


def snapshot(trials, num_waiting=0, runs=(), **changes):
    usual = {"num_workers": 2, "epochs": 4, "confirm": 0, "repeats": 0, "baseline": False}
    return Snapshot(trials=trials, runs=runs, num_waiting=num_waiting, **{**usual, **changes})


WHOLE = [ended(0, 10.0, [4, 3, 2, 1]), ended(1, 20.0, [4, 3, 2, 2])]


def test_nothing_is_guessed_before_anything_is_measured():
    assert seconds_left(snapshot([])) is None
    assert seconds_left(snapshot([ObservedTrial(0, "running", None, [], elapsed=7.0)], 4)) is None


def test_running_trials_are_taken_at_their_own_pace_and_waiting_ones_at_that_of_the_others():
    running = ObservedTrial(2, "running", 30.0, [4], elapsed=10.0)
    assert seconds_left(snapshot([*WHOLE, running])) == 3 * 30 - 10
    # It is the other worker's turn: it takes both that wait, of four epochs of 20 seconds, the mean of all.
    assert seconds_left(snapshot([*WHOLE, running], 2)) == 2 * 80
    first = ObservedTrial(2, "running", None, [], elapsed=5.0)
    assert seconds_left(snapshot([*WHOLE, first])) == 4 * 15 - 5
    assert seconds_left(snapshot(WHOLE, 3)) == 2 * 4 * 15


def test_late_epoch_is_about_to_end_and_a_late_first_epoch_is_longer_than_others():
    assert seconds_left(snapshot([*WHOLE, ObservedTrial(2, "running", 30.0, [4, 4, 4], elapsed=60.0)])) == 3
    assert seconds_left(snapshot([*WHOLE, ObservedTrial(2, "running", None, [], elapsed=100.0)])) == pytest.approx(
        4 * 130 - 100
    )


COSTS = [
    # Mult-adds and seconds per epoch of measured trials, mult-adds of one that has just begun, and its real seconds.
    ("50 times slower", [(5e6, 2.0), (10e6, 2.5), (8e6, 2.3)], 1100e6, 110.0),
    ("slower, after a single one", [(20e6, 4.0)], 400e6, 60.0),
    ("faster", [(1100e6, 90.0), (880e6, 75.0)], 100e6, 10.0),
    ("between", [(5e6, 2.0), (1100e6, 110.0)], 500e6, 50.0),
]


@pytest.mark.parametrize(("measured", "cost", "seconds"), [case[1:] for case in COSTS], ids=[case[0] for case in COSTS])
def test_pace_of_a_trial_without_an_epoch_is_expected_from_its_mult_adds(measured, cost, seconds):
    known = [
        ObservedTrial(number, "complete", pace, [4, 3, 2, 1], cost=cost) for number, (cost, pace) in enumerate(measured)
    ]
    begun = ObservedTrial(9, "running", None, [], cost=cost)
    guessed = seconds_left(snapshot([*known, begun]))
    assert 1 / 2 < guessed / (4 * seconds) < 5
    unknown = [replace(trial, cost=0.0) for trial in (*known, begun)]
    blind = seconds_left(snapshot(unknown))
    assert abs(guessed - 4 * seconds) < abs(blind - 4 * seconds)


def test_trials_to_come_are_expected_to_be_as_slow_as_those_that_have_begun():
    known = [ObservedTrial(number, "complete", 2.0, [4, 3, 2, 1], cost=5e6) for number in range(3)]
    slow = ObservedTrial(3, "running", None, [], cost=500e6)
    alone, with_two = (seconds_left(snapshot([*known, slow], number, num_workers=1)) for number in (0, 2))
    assert with_two - alone == pytest.approx(2 * (3 * 4 * 2.0 + alone) / 4)


def test_costs_that_say_nothing_leave_the_mean_pace():
    odd = [ObservedTrial(0, "complete", 30.0, [1], cost=5e6), ObservedTrial(1, "complete", 10.0, [1], cost=50e6)]
    assert seconds_left(snapshot([*odd, ObservedTrial(2, "running", None, [], cost=900e6)])) == 4 * 20.0
    huge = [ObservedTrial(number, "complete", 100.0 + number, [1], cost=(1 + number) * 1e9) for number in range(3)]
    assert seconds_left(snapshot([*huge, ObservedTrial(3, "running", None, [], cost=1.0)])) >= 4 * 10.0


def test_baseline_outside_of_the_space_says_nothing_of_the_trials_to_come():
    baseline = ended(0, 300.0, [9, 9], "pruned")
    others = [ended(number, 10.0, [4, 3, 2, 1]) for number in (1, 2)]
    assert seconds_left(snapshot([baseline, *others], 2, baseline=True)) == 40
    assert seconds_left(snapshot([baseline, *others], 2)) > 200
    assert seconds_left(snapshot([baseline], 2, baseline=True)) == 4 * 300  # until there are others


def test_trials_are_stopped_as_those_before_were():
    stopped = [ended(number, 10.0, [9, 9], "pruned") for number in range(2, 400)]
    assert seconds_left(snapshot([*stopped, *WHOLE], 2)) == pytest.approx(20, abs=1)
    bad, good = ObservedTrial(400, "running", 10.0, [9.5]), ObservedTrial(400, "running", 10.0, [3])
    assert seconds_left(snapshot([*stopped, *WHOLE, bad])) == pytest.approx(10)
    assert seconds_left(snapshot([*stopped, *WHOLE, good])) == pytest.approx(30)


def test_best_trials_take_again_what_they_took_on_whichever_worker_is_free():
    trials = [*WHOLE, ended(2, 99.0, [9, 9, 9, 9]), ObservedTrial(3, "running", 50.0, [9, 9])]
    two = {"confirm": 2, "repeats": 2}
    # One worker makes runs of 40, 40 and 80 seconds; the other, 100 seconds later, is free first for the last of 80.
    assert seconds_left(snapshot(trials, **two)) == 100 + 80
    done = ObservedTrial(1, "complete", 10.0, [1] * 4, confirms=0)
    begun = [ObservedTrial(0, "running", 10.0, [1, 1], confirms=0), done]
    assert seconds_left(snapshot(trials[:3], runs=begun, **two)) == 20 + 80
    displaced = ObservedTrial(0, "running", 99.0, [9], confirms=2)  # others are better: it is stopped after this epoch
    assert seconds_left(snapshot(trials[:3], runs=[displaced, done], num_workers=1, **two)) == 99 + 40 + 2 * 80


def test_epochs_to_come_cost_more_than_those_that_a_growing_trial_has_done():
    assert [full_epochs(GROWING, epochs) for epochs in (0, 1, 2.5, 4, 5)] == [0, 0.25, 1.25, 2.75, 3.75]
    assert [full_epochs((), epochs) for epochs in (0, 2.5, 4)] == [0, 2.5, 4]
    running = ObservedTrial(2, "running", 40.0, [4], elapsed=5.0, shares=GROWING)  # its first epoch took 10 seconds
    assert seconds_left(snapshot([running], shares=GROWING)) == 20 + 40 + 40 - 5
    # Each worker takes one of both that wait, of 2.75 epochs of full size; this one begins later.
    assert seconds_left(snapshot([running], 2, shares=GROWING)) == 95 + 110
    assert seconds_left(snapshot([replace(running, elapsed=200.0)], shares=GROWING)) == 2  # a tenth of this epoch
    first = ObservedTrial(3, "running", None, [], elapsed=5.0, shares=GROWING)
    assert seconds_left(snapshot([running, first], shares=GROWING)) == 110 - 5
    late = replace(first, elapsed=100.0)
    assert seconds_left(snapshot([running, late], shares=GROWING)) == pytest.approx(2.75 * 130 / 0.25 - 100)


def test_growing_trials_are_stopped_and_trained_again_at_the_cost_of_those_epochs():
    whole = [ObservedTrial(number, "complete", 40.0, [4, 3, 2, 1], shares=GROWING) for number in (0, 1)]
    stopped = [ObservedTrial(number, "pruned", 40.0, [9, 9], shares=GROWING) for number in range(2, 400)]
    assert seconds_left(snapshot([*stopped, *whole], 2, shares=GROWING)) == pytest.approx(0.75 * 40, abs=1)
    bad, good = (ObservedTrial(400, "running", 40.0, [value], shares=GROWING) for value in (9.5, 3))
    assert seconds_left(snapshot([*stopped, *whole, bad], shares=GROWING)) == pytest.approx(0.5 * 40)
    assert seconds_left(snapshot([*stopped, *whole, good], shares=GROWING)) == pytest.approx(2.5 * 40)
    one = {"num_workers": 1, "confirm": 2, "repeats": 1, "shares": GROWING}
    baseline = replace(whole[0], pace=10.0, shares=())
    assert seconds_left(snapshot([baseline, whole[1]], **one)) == 4 * 10 + 110
    run = ObservedTrial(0, "running", 40.0, [1], confirms=1, shares=GROWING)
    assert seconds_left(snapshot([baseline, whole[1]], runs=[run], **one)) == 100 + 40


def test_nothing_is_left_at_the_end():
    runs = [ObservedTrial(number, "complete", 10.0, [1] * 4, confirms=0) for number in range(2)]
    assert seconds_left(snapshot(WHOLE, runs=runs, confirm=1, repeats=2)) == 0


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_time_left_of_recorded_sweeps_is_close_from_the_third_trial_on(path):
    sweep = json.loads(path.read_text())
    errors = errors_of(sweep)
    assert median(errors) <= CLOSE, errors
    for trial in sweep["trials"]:
        trial["cost"] = 0.0
    assert fmean(errors) <= fmean(errors_of(sweep))


def test_large_networks_are_in_the_time_left_of_a_recorded_sweep_before_their_first_epoch_has_ended():
    sweep = json.loads((ROOT / "tests/servers/recorded/search-of-mixed-sizes.json").read_text())
    last = max(run["end"] for run in sweep["runs"])
    moments = (20, 70, 100, 150, 200)  # a small network has ended its first epoch, or all; two large ones have not
    known = [seconds_left(as_it_was(sweep, now)) / (last - now) for now in moments]
    for trial in sweep["trials"]:
        trial["cost"] = 0.0
    blind = [seconds_left(as_it_was(sweep, now)) / (last - now) for now in moments]
    assert max(known) < 2
    assert max(blind[:3]) < 0.5 < min(known)


def errors_of(sweep):
    """Return the relative errors from the end of the third trial on."""
    jobs = [*sweep["trials"], *sweep["runs"]]
    third, last = sorted(job["end"] for job in sweep["trials"])[2], max(job["end"] for job in jobs)
    moments = sorted(moment for job in jobs for moment in (job["start"], *ends_of(job)) if third <= moment < last)
    return [abs(seconds_left(as_it_was(sweep, now)) / (last - now) - 1) for now in moments]


def ends_of(job):
    """Return when each epoch ended; what else a trial took, it took before its first."""
    before = max(0.0, job["end"] - job["start"] - sum(job["seconds"]))
    return [job["start"] + before + seconds for seconds in accumulate(job["seconds"])]


def as_it_was(sweep, now):
    """Return what was known at that moment."""
    seen = {part: [seen_at(now, job) for job in sweep[part] if job["start"] <= now] for part in ("trials", "runs")}
    settings = {name: sweep[name] for name in ("epochs", "confirm", "repeats", "baseline")}
    return Snapshot(
        trials=seen["trials"],
        runs=[run for run in seen["runs"] if run.state != "pruned"],
        num_waiting=len(sweep["trials"]) - len(seen["trials"]),
        num_workers=sweep["workers"],
        **settings,
    )


def seen_at(now, job):
    ends = [end for end in ends_of(job) if end <= now]
    latest = ends[-1] if ends else job["start"]
    pace = (latest - job["start"]) / len(ends) if ends else None
    state, elapsed = (job["state"], 0.0) if job["end"] <= now else ("running", now - latest)
    values, cost = job["values"][: len(ends)], job.get("cost", 0.0)
    return ObservedTrial(job["number"], state, pace, values, elapsed, job["confirms"], cost=cost)
