"""The real client against Comet's services on loopback, in real sweeps."""

import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from search.comet.optimizer import TICKET, _fitted
from search.study.sweep import load_confirmation, load_study
from search.study.trials import state_of
from search.workers.tracking import read_note
from tests.conftest import ROOT
from tests.search.workers.test_supervisor import assert_exact, epochs_in, workers_of
from tests.servers import processes
from tests.servers.comet_server import API_KEY, CometServer
from tests.servers.processes import wait_until

WRONG_KEY = "another-key-of-the-tests"
PROGRAM = [sys.executable, str(ROOT / "tests/servers/counting_sweep.py")]
COMET = [str(Path(sys.executable).with_name("comet"))]


@pytest.fixture
def server():
    with CometServer() as server:
        yield server


@pytest.fixture
def environment(server, tmp_path):
    (tmp_path / "home").mkdir()
    return {**os.environ, **server.environment(tmp_path / "home")}


def start(folder, *arguments, environment):
    return processes.start(
        [*PROGRAM, folder, *arguments],
        env=environment,
        cwd=folder.parents[1],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(folder, *arguments, environment):
    process = start(folder, *arguments, environment=environment)
    said = process.communicate()[0]
    assert process.returncode == 0, said
    return said


def experiments_of(server, folder):
    """The experiments of a sweep by trial, after checking that each trial has exactly one."""
    by_trial = {experiment.others["trial"]: experiment for experiment in server.experiments.values()}
    assert len(by_trial) == len(server.experiments)
    assert sorted(by_trial) == [trial.number for trial in load_study(folder).get_trials()]
    return by_trial


def history(folder, number):
    path = folder / f"trials/{number:04}/history.csv"
    lines = path.read_text().split() if path.exists() else ["epoch,loss"]
    names = lines[0].split(",")
    rows = [dict(zip(names, map(float, line.split(",")), strict=True)) for line in lines[1:]]
    return {int(row["epoch"]): row["loss"] for row in rows}


def assert_complete(experiment, trial, folder):
    """All that a user of Comet looks for is there, once."""
    state = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}[trial.state]
    assert experiment.values("loss") == pytest.approx(history(folder, trial.number))
    complete = trial.state == TrialState.COMPLETE
    assert list(experiment.values("best_loss").values()) == ([pytest.approx(trial.value)] if complete else [])
    others = experiment.others
    assert others["state"] == state
    assert others["reason"] == trial.user_attrs["reason"]
    assert {state, f"sweep:{folder.name}"} <= experiment.tags
    assert not {"complete", "pruned", "failed"} - {state} & experiment.tags
    assert float(experiment.parameters["x"]) == pytest.approx(trial.user_attrs.get("parameters", trial.params)["x"])
    assert others["optimizer_metric"] == "best_loss"
    assert others["optimizer_objective"] == "minimum"
    assert ("optimizer_metric_value" in others) == complete
    assert json.loads(others["optimizer_parameters"])["x"] == float(experiment.parameters["x"])
    assert others["commit"] == "0123456789abcdef"
    assert experiment.graph == "a table of layers"
    matrices = [json.loads(a["content"]) for a in experiment.assets if a["type"] == "confusion-matrix"]
    assert [matrix["matrix"] for matrix in matrices] == [[[9, 1], [2, 8]]]
    assert any(metric["metricName"].startswith("sys.cpu") for metric in experiment.metrics)
    assert not experiment.alive


@pytest.mark.parametrize("algorithm", ["bayes", *(pytest.param(a, marks=pytest.mark.slow) for a in ("random", "grid"))])
def test_comet_proposes_and_shows_every_trial(tmp_path, server, environment, algorithm):
    folder = tmp_path / "runs/shown"
    options = ("--engine", "comet", "--algorithm", algorithm, "--tracking", "online", "--failing", 2, "--diverging", 3)
    said = run(folder, 9, 2, *options, "--promoted", 0, environment=environment)
    assert "9 trials in Comet" in said
    trials = load_study(folder).get_trials()
    assert [trial.number for trial in trials] == list(range(9))
    assert trials[2].user_attrs["reason"] == "RuntimeError: it does not work"
    assert trials[3].user_attrs["reason"].startswith("diverged in epoch 2")
    assert TrialState.PRUNED in [trial.state for trial in trials]
    (search,) = server.searches.values()
    assignments = {a["pid"]: a for a in search.assignments}
    assert len(assignments) == len(search.assignments) == 8  # distinct, and not one more than was used
    assert TICKET not in trials[0].user_attrs
    for number, experiment in experiments_of(server, folder).items():
        trial = trials[number]
        assert_complete(experiment, trial, folder)
        assert experiment.others["optimizer_id"] == search.id
        if number == 0:
            assert "baseline" in experiment.tags
            continue
        assignment = assignments[experiment.others["optimizer_pid"]]
        assert assignment["parameters"] == pytest.approx(trial.params)
        complete = trial.state == TrialState.COMPLETE
        assert assignment["status"] == ("completed" if complete else "aborted")
        assert assignment["score"] == (pytest.approx(trial.value) if complete else None)
    assert [(m["version"], m["status"], m["tags"]) for m in server.models] == [("2026.1123.144512", "QA", ["champion"])]
    num_requests = len(server.requests)
    run(folder, 9, 2, *options, "--promoted", 0, environment=environment)  # nothing left, nothing said twice
    assert len(server.requests) == num_requests


@pytest.mark.slow
def test_comet_proposes_every_trial_where_there_is_no_baseline(tmp_path, server, environment):
    folder = tmp_path / "runs/all"
    options = ("--engine", "comet", "--no-baseline", "--tracking", "online")
    run(folder, 4, 2, *options, environment=environment)
    trials = assert_exact(folder, 4)
    (search,) = server.searches.values()
    assert sorted(a["pid"] for a in search.assignments) == sorted(t.user_attrs[TICKET]["pid"] for t in trials)
    assert all(0 <= trial.params["x"] <= 1 for trial in trials)
    for experiment in experiments_of(server, folder).values():
        assert "baseline" not in experiment.tags
        assert experiment.others["Name"] == f"all {experiment.others['trial']:04}"
        assert not experiment.others["baseline"]


@pytest.mark.slow
@pytest.mark.parametrize(("options", "number"), [((), 9), (("--no-baseline",), 8)])
def test_search_that_ends_before_the_budget_ends_the_sweep(tmp_path, server, environment, options, number):
    folder = tmp_path / "runs/short"
    for _ in (1, 2):
        run(folder, 12, 2, "--engine", "comet", "--algorithm", "grid", *options, environment=environment)  # of 8 points
        assert_exact(folder, number)


def kill_a_worker_then_its_parent(process, folder):
    """Kill a worker of a sweep whose trials are held, and when its trial goes on the parent; let the trials go."""
    num_epochs = len(epochs_in(folder))
    os.kill(workers_of(process.pid)[0], signal.SIGKILL)
    wait_until(lambda: len(epochs_in(folder)) > num_epochs, process)
    process.kill()
    process.communicate()
    (folder / "go").touch()


@pytest.mark.slow
def test_killed_worker_and_killed_parent_double_nothing_in_comet(tmp_path, server, environment):
    folder = tmp_path / "runs/killed"
    options = ("--engine", "comet", "--tracking", "online", "--pruner", "none", "--held", "0,3")
    process = start(folder, 5, 2, *options, environment=environment)
    wait_until(lambda: any(experiment.metrics for experiment in list(server.experiments.values())), process)
    kill_a_worker_then_its_parent(process, folder)  # metrics are sent every other second: some are there, some are not
    said = run(folder, 5, 2, *options, environment=environment)
    assert "5 trials in Comet" in said
    trials = assert_exact(folder, 5)
    repeats = sum(count - 1 for count in Counter(epochs_in(folder)).values())
    assert repeats <= 1 + 2  # an epoch per killed worker
    for number, experiment in experiments_of(server, folder).items():
        assert_complete(experiment, trials[number], folder)
    (search,) = server.searches.values()
    used = [a for a in search.assignments if a["status"] == "completed"]
    assert sorted(a["pid"] for a in used) == sorted(t.user_attrs[TICKET]["pid"] for t in trials[1:])


@pytest.mark.slow
def test_archives_of_a_killed_and_resumed_sweep_are_delivered_whole(tmp_path, server, environment):
    folder = tmp_path / "runs/offline"
    options = ("--tracking", "offline", "--failing", 2, "--promoted", 0, "--held", "3,1")
    process = start(folder, 6, 2, *options, environment=environment)
    wait_until(lambda: list(folder.glob("comet/*.zip")), process)
    kill_a_worker_then_its_parent(process, folder)
    said = run(folder, 6, 2, *options, environment=environment)
    archives = sorted(folder.glob("comet/*.zip"))
    assert [path.name for path in archives] == [f"trial-{number:04}.zip" for number in range(6)]
    assert f"with a valid COMET_API_KEY set, this sends them: comet upload {folder}/comet/*.zip" in said
    assert not (folder / "comet/.unfinished").exists()
    assert not server.requests
    uploaded = subprocess.run(
        [*COMET, "upload", *archives], env=environment, capture_output=True, text=True, check=False
    )
    assert uploaded.returncode == 0, uploaded.stdout + uploaded.stderr
    trials = load_study(folder).get_trials()
    for number, experiment in experiments_of(server, folder).items():
        assert_complete(experiment, trials[number], folder)
    assert [model["version"] for model in server.models] == ["2026.1123.144512"]


GUARD = """
import os, sys
def guard(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto", "socket.gethostbyname"):
        if event == "socket.connect" and isinstance(arguments[1], str):
            return  # a socket of this machine
        with open(os.environ["CONNECTIONS"], "a") as log:
            log.write(f"{event} {arguments[1:]} {sys.argv}\\n")
        raise OSError("no network here")
sys.addaudithook(guard)
"""


@pytest.mark.slow
def test_runs_of_the_confirmation_are_experiments_of_their_own(tmp_path, server, environment):
    folder = tmp_path / "runs/confirmed"
    run(folder, 2, 2, "--tracking", "online", "--pruner", "none", "--confirm", 1, environment=environment)
    tags = Counter(tag for experiment in server.experiments.values() for tag in experiment.tags)
    runs = load_confirmation(folder).trials  # one may have been begun before the better trial ended
    assert (tags["sweep:confirmed"], tags["sweep:confirmed confirmation"], tags["baseline"]) == (2, len(runs), 1)
    again = [e.others for e in server.experiments.values() if e.others["sweep"] == "confirmed confirmation"]
    best = load_study(folder).best_trial.number
    told = sorted((others["trial"], others["confirms"], others["state"], others["reason"]) for others in again)
    assert told == [(n, r.user_attrs["confirms"], state_of(r), r.user_attrs["reason"]) for n, r in enumerate(runs)]
    assert [state for _, trial, state, _ in told if trial == best] == ["complete"] * 2
    assert len({others["optimizer_id"] for others in again}) == 1


@pytest.mark.slow
@pytest.mark.parametrize("tracking", ["offline", "off"])
def test_offline_means_no_connection(tmp_path, tracking, write_space, sweep_options):
    (tmp_path / "guard").mkdir()
    (tmp_path / "guard/sitecustomize.py").write_text(GUARD)
    log = tmp_path / "connections.log"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "guard"), "CONNECTIONS": str(log)}
    environment["COMET_API_KEY"] = API_KEY  # one that could be used
    command = [sys.executable, ROOT / "run_sweep.py", write_space(), *sweep_options, "--tracking", tracking, "--notify"]
    command += ["--name", "quiet", "--workers", "2"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "best_model/model.safetensors").exists()
    assert not log.exists(), log.read_text()
    assert len(list(tmp_path.glob("runs/quiet/comet/*.zip"))) == (3 if tracking == "offline" else 0)
    note, *archives = [line for line in done.stdout.splitlines() if "comet" in line.lower()]
    assert note == "note: --notify has no effect: Comet is not used online in this run"
    assert len(archives) == (tracking == "offline")
    try_one = "import socket; socket.create_connection(('127.0.0.1', 9))"
    subprocess.run([sys.executable, "-c", try_one], env=environment, capture_output=True, check=False)
    assert log.exists(), "the guard does not guard"


@pytest.mark.slow
def test_key_is_written_nowhere(tmp_path, server, environment):
    server.break_down("/experiment/metric", 500)
    server.break_down("/next", 500, times=1)
    options = ("--engine", "comet", "--finish", 3, "--tracking")
    said = run(tmp_path / "runs/secret", 2, 1, *options, "online", environment=environment)
    server.repair()
    said += run(tmp_path / "runs/secret", 2, 1, *options, "offline", environment=environment)
    wrong = {**environment, "COMET_API_KEY": WRONG_KEY}
    said += run(tmp_path / "runs/refused", 1, 1, "--tracking", "online", environment=wrong)
    assert "Comet refuses the API key" in said
    assert API_KEY not in said
    assert WRONG_KEY not in said
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 10
    for key in (API_KEY, WRONG_KEY):
        assert [path for path in written if key.encode() in path.read_bytes()] == []


@pytest.mark.slow
def test_proposals_outside_the_space_and_odd_answers_cost_no_trial(tmp_path, server, environment):
    folder = tmp_path / "runs/odd"
    process = start(folder, 3, 1, "--engine", "comet", "--pruner", "none", environment=environment)
    (search,) = wait_until(lambda: list(server.searches.values()), process)
    draw, answers = search._draw, iter([99.0, None, "x"])
    search._draw = lambda parameter: next(answers, None) or draw(parameter)
    process.communicate()
    assert process.returncode == 0
    trials = assert_exact(folder, 3)
    assert all(0 <= trial.params["x"] <= 1 for trial in trials[1:])
    assert Counter(a["status"] for a in search.assignments) == {"completed": 2, "aborted": 2}


@pytest.mark.slow
def test_answer_without_parameters_ends_the_search_only_where_it_is_over(tmp_path, server, environment):
    folder = tmp_path / "runs/busy"
    server.over = 500
    process = start(
        folder,
        12,
        1,
        "--engine",
        "comet",
        "--algorithm",
        "grid",
        "--patience",
        2,
        "--seconds",
        0,
        environment=environment,
    )
    said = process.communicate()[0]
    assert process.returncode == 1
    assert "no parameters, code 500" in said
    assert len(load_study(folder).get_trials()) == 9
    next(iter(server.searches.values())).completed = True
    run(folder, 12, 1, "--engine", "comet", "--algorithm", "grid", environment=environment)
    assert_exact(folder, 9)


@pytest.mark.slow
def test_promoted_model_is_registered_once_and_only_when_it_is_there(tmp_path, server, environment):
    folder = tmp_path / "runs/once"
    options = ("--tracking", "online", "--notify", "--promoted", 0)
    server.break_down("/asset/upload", 500)
    said = run(folder, 1, 1, *options, environment=environment)
    assert "1 of 1 trials are not in Comet yet" in said
    server.repair()
    for _ in (1, 2):
        said = run(folder, 1, 1, *options, environment=environment)
        assert "1 trial in Comet" in said
    assert [model["version"] for model in server.models] == ["2026.1123.144512"]
    (experiment,) = server.experiments.values()
    assert [a["content"] for a in experiment.assets if a["type"] == "model-element"] == [b"weights"]


@pytest.mark.slow
def test_notifications(tmp_path, server, environment):
    folder = tmp_path / "runs/told"
    run(folder, 4, 1, "--tracking", "online", "--notify", "--pruner", "none", environment=environment)
    titles = [n["title"] for e in server.experiments.values() for n in e.notifications]
    best = [title for title in titles if "is the best so far" in title]
    assert best[0] == "sweep told: trial 0 is the best so far"
    values = [trial.value for trial in load_study(folder).get_trials()]
    assert len(best) == sum(value == min(values[: i + 1]) for i, value in enumerate(values))


def test_sweep_without_its_folder_for_archives_loses_no_trial(tmp_path, server, environment):
    folder = tmp_path / "runs/full"
    run(folder, 1, 1, environment=environment)  # a folder that holds something else is refused
    (folder / "comet").write_text("not a folder")
    process = start(folder, 3, 1, "--tracking", "offline", environment=environment)
    said = process.communicate()[0]
    assert process.returncode == 0, said
    assert_exact(folder, 3)


@pytest.mark.parametrize(
    ("value", "distribution", "expected"),
    [
        ("32", CategoricalDistribution(["16", "32"]), "32"),
        (32.0, CategoricalDistribution([16, 32.5, 32]), 32),
        (31.999, IntDistribution(16, 64, step=16), 32),
        (0.1 + 0.2, FloatDistribution(0.0, 0.3), 0.3),
    ],
)
def test_values_from_comet_fit_the_space(value, distribution, expected):
    fitted = _fitted("x", value, distribution)
    assert fitted == expected
    assert type(fitted) is type(expected)


@pytest.mark.parametrize(
    ("value", "distribution"),
    [("x", CategoricalDistribution(["y"])), (99, IntDistribution(1, 8)), (1.01, FloatDistribution(0.0, 1.0))],
)
def test_values_outside_the_space_are_refused(value, distribution):
    with pytest.raises(ValueError, match="for x, which is outside its range"):
        _fitted("x", value, distribution)


def test_note_on_a_trial_that_was_never_tracked_is_empty(tmp_path):
    assert read_note(tmp_path / "runs/none/trials/0000") == {}


@pytest.fixture
def sweep_options(photographs):
    """Options of a sweep of a few seconds that really trains."""
    small = ["--image-size", "64", "--epochs", "1", "--pruner", "none", "--confirm", "0"]
    return ["--data", str(photographs), *small, "--no-baseline"]


@pytest.mark.slow
def test_comet_optimize_runs_all_its_jobs_as_one_sweep(tmp_path, server, environment, write_space, sweep_options):
    command = [
        *COMET,
        "optimize",
        "-j",
        "2",
        ROOT / "run_sweep.py",
        write_space(),
        "--",
        *sweep_options[:-1],
    ]  # and the baseline
    home = tmp_path / "home"
    done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (search,) = server.searches.values()
    assert [a["status"] for a in search.assignments] == ["completed"] * 3
    (folder,) = (home / "runs").iterdir()
    assert folder.name.endswith(search.id[:8])
    trials = load_study(folder).get_trials()
    assert len(trials) == 4  # the baseline is none of Comet's
    assert {trial.user_attrs["worker"]["slot"] for trial in trials} == {0, 1}
    shown = experiments_of(server, folder)
    assert {experiment.others["optimizer_id"] for experiment in shown.values()} == {search.id}
    promoted = [experiment for experiment in shown.values() if "promoted" in experiment.others]
    assert len(promoted) == len(server.models) == 1
    assert "Conv2d" in promoted[0].graph
    (model,) = (a for a in promoted[0].assets if a["type"] == "model-element")
    assert model["content"] == (home / "best_model/model.safetensors").read_bytes()


@pytest.mark.slow
def test_search_that_exists_at_comet_is_joined_by_its_id(tmp_path, server, environment, write_space, sweep_options):
    home = tmp_path / "home"
    created = subprocess.run(
        [*COMET, "optimize", write_space()], cwd=home, env=environment, capture_output=True, text=True, check=True
    )
    command = [sys.executable, ROOT / "run_sweep.py", created.stdout.split()[-1], *sweep_options, "--tracking", "off"]
    for _ in (1, 2):
        done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        (search,) = server.searches.values()
        assert [assignment["status"] for assignment in search.assignments] == ["completed"] * 3
    assert "nothing left to search: all 3 trials" in done.stdout
    assert server.experiments == {}


@pytest.mark.slow
def test_sweep_whose_patience_ends_says_so_and_goes_on_later(tmp_path, server, environment, write_space, sweep_options):
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
    code += "import functools\nfrom pipeline import plan\nplan.Sweep = functools.partial(plan.Sweep, patience=3)\n"
    code += "from pipeline import cli; sys.exit(cli.main())"
    arguments = [str(write_space()), *sweep_options, "--engine", "comet", "--tracking", "off"]
    server.break_down("/optimizer/next", 500, times=10**9)
    options = {"cwd": tmp_path / "home", "env": environment, "capture_output": True, "text": True}
    done = subprocess.run([sys.executable, "-c", code, *arguments], **options, check=False)
    assert done.returncode == 1
    assert re.fullmatch(r"run_sweep.py: Comet did not answer for .* Progress is saved. Resume with: .*\n", done.stderr)
    server.repair()
    done = subprocess.run([sys.executable, ROOT / "run_sweep.py", *arguments], **options, check=False)
    assert done.returncode == 0, done.stderr
    assert len(load_study(tmp_path / "home/runs/optimizer").get_trials()) == 3


@pytest.mark.slow
def test_refused_start_leaves_the_name_free(tmp_path, server, environment, write_space, sweep_options):
    options = {"cwd": tmp_path / "home", "capture_output": True, "text": True}
    command = [sys.executable, ROOT / "run_sweep.py", write_space(), *sweep_options, "--tracking", "off", "--engine"]
    refused = subprocess.run(
        [*command, "comet"], env={**environment, "COMET_API_KEY": WRONG_KEY}, **options, check=False
    )
    assert refused.returncode == 2
    assert "Comet refuses the API key" in refused.stderr
    done = subprocess.run([*command, "optuna"], env=environment, **options, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "changes", "sentence"),
    [
        (["--engine", "comet"], {"COMET_API_KEY": ""}, "needs an API key; set COMET_API_KEY"),
        (["--tracking", "online"], {"COMET_API_KEY": ""}, "needs an API key; set COMET_API_KEY"),
        (["f" * 32], {}, f"Comet knows no search {'f' * 32}"),
        (["f" * 32], {"COMET_API_KEY": "wrong-key-of-a-user"}, "Comet refuses the API key"),
        (["--trials", "3"], {"COMET_OPTIMIZER_PROCESS_JOBS": "2"}, "repeats of parameters are not run"),
    ],
)
def test_mistakes_with_comet_get_one_sentence(tmp_path, server, environment, arguments, changes, sentence):
    command = [sys.executable, ROOT / "run_sweep.py", *arguments]
    if not arguments[0].startswith("f"):
        command.insert(2, ROOT / "configs/optimizer.json")
    done = subprocess.run(
        command, cwd=tmp_path / "home", env={**environment, **changes}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert sentence in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "home/runs").exists()
