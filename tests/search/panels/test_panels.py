import json
import os
import random
import subprocess
import sys
import zipfile
from io import BytesIO

import pytest

from tests.conftest import ROOT
from tests.servers.comet_server import CometServer, Experiment

PANEL = ROOT / "search/panels/ranking.py"


@pytest.fixture
def server():
    with CometServer() as server:
        yield server


def add_runs(server, count, sweep="drawn"):
    """Make the experiments that a sweep of `count` trials leaves: 0 is the baseline, 7 promoted, 5 failed, 6 pruned."""
    random.seed(1)
    for number in range(count):
        rate, schedule = 10 ** random.uniform(-4, -2), random.choice(["cosine", "one_cycle"])
        score = 0.3 + abs(rate - 2e-3) * 20 + random.uniform(0, 0.02)
        parameters = {"learning_rate": rate, "schedule": schedule, "stem_width": random.choice([16, 32, 64])}
        parameters["optimizer"] = "muon" if number else "adam"
        experiment = Experiment(f"{number:032x}", "catdog", parameters=parameters)
        state = {5: "failed", 6: "pruned"}.get(number, "complete")
        experiment.others = {
            "Name": f"{sweep} {number:04}",
            "sweep": sweep,
            "trial": number,
            "baseline": number == 0,
            "state": state,
            "reason": "diverged in epoch 2" if state == "failed" else "",
            "optimizer_metric": "best_val_loss",
            "optimizer_objective": "minimum",
            "optimizer_parameters": json.dumps(parameters),
            **({"optimizer_metric_value": score} if state == "complete" else {}),
            **({"promoted": "2026-01-01T00:00:00Z"} if number == 7 else {}),
        }
        for epoch in range(1, 9):
            point = {"metricName": "val_loss", "metricValue": score + 0.4 / epoch - 0.05, "step": epoch, "epoch": epoch}
            experiment.metrics.append(point)
        server.experiments[experiment.key] = experiment
    return server


@pytest.fixture
def panel(server, monkeypatch, tmp_path):
    """Run the panel over what the server has, as Comet would."""
    for name, value in server.environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("COMET_WORKSPACE", "somebody")
    monkeypatch.setenv("COMET_PROJECT_NAME", "catdog")
    from search.comet.client import quiet_client

    quiet_client()
    import plotly.graph_objects  # noqa: F401 - counted in nobody's three seconds
    import streamlit as st
    from streamlit.testing.v1 import AppTest

    st.cache_data.clear()
    return lambda: AppTest.from_file(str(PANEL), default_timeout=600).run()


def test_panel_ranks_fifty_runs(server, panel):
    add_runs(server, 50)
    shown = panel()
    assert not shown.exception
    table = shown.dataframe[0].value
    scores = {e.others["trial"]: e.others.get("optimizer_metric_value") for e in server.experiments.values()}
    complete = sorted((score, number) for number, score in scores.items() if score is not None)
    assert list(table["trial"]) == [number for _, number in complete] + [6, 5]
    assert list(table["rank"]) == list(range(1, 51))
    assert table["best_val_loss"].iloc[0] == complete[0][0]
    assert list(table[table["mark"] != ""]["trial"].sort_values()) == [0, 7]
    assert table.set_index("trial")["mark"][0] == "baseline"
    assert table.set_index("trial")["mark"][7] == "champion"
    assert table.set_index("trial")["reason"][5] == "diverged in epoch 2"
    assert [heading.value for heading in shown.subheader] == [
        "drawn: 50 runs, 48 complete",
        "Parameters of the complete runs",
        "Learning curves",
    ]
    assert len(shown.get("plotly_chart")) == 3
    axes = json.loads(shown.get("plotly_chart")[0].proto.spec)["data"][0]["dimensions"]
    assert [axis["label"] for axis in axes] == ["learning_rate", "schedule", "stem_width", "best_val_loss"]


def test_panel_without_runs_says_how_to_make_some(server, panel):
    assert "run_sweep.py --tracking online" in panel().info[0].value


def test_panel_offers_the_sweeps_that_there_are(server, panel):
    add_runs(server, 4, "one")
    for key, experiment in list(server.experiments.items()):
        server.experiments["f" + key[1:]] = Experiment(
            "f" + key[1:], "catdog", others={**experiment.others, "sweep": "two"}
        )
    shown = panel()
    assert shown.selectbox[0].options == ["one", "two"]
    assert shown.selectbox[0].select("two").run().subheader[0].value == "two: 4 runs, 4 complete"


def test_panel_is_written_for_the_python_that_comet_runs():
    import ast

    ast.parse(PANEL.read_text(), feature_version=(3, 9))


def push(server, tmp_path, *arguments, **changes):
    command = [sys.executable, "-m", "search.panels", "push", *arguments]
    environment = {**os.environ, **server.environment(tmp_path), **changes}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_push_installs_panel_and_view_and_again_replaces_them(server, tmp_path):
    add_runs(server, 1)
    for _ in (1, 2):
        done = push(server, tmp_path)
        assert done.returncode == 0, done.stderr
        assert "somebody/catdog" in done.stdout
        ((name, panel),) = server.panels.items()
        assert panel["teamName"] == "somebody"
        archive = zipfile.ZipFile(BytesIO(panel["file"]))
        template = json.loads(archive.read("tempVisualizationTemplate.json"))
        assert template["templateName"] == "Sweep"
        assert template["code"]["type"] == "py"
        assert template["code"]["pyCode"] == PANEL.read_text()
        (view,) = server.views
        assert view["projectId"] == "catdog"
        assert view["templateName"] == "Sweep"
        assert json.loads(view["reactGridTableState"])["columnSorting"] == [
            {"columnName": "best_val_loss", "direction": "asc"}
        ]
        panels = [panel for section in view["v3"]["sections"] for panel in section["panels"]]
        assert [panel["chartType"] for panel in panels] == ["code", "parallel", "line", "line", "line"]
        assert panels[0]["templateId"] == name
        places = [place["i"] for section in view["v3"]["sections"] for place in section["layout"]]
        assert places == [panel["chartId"] for panel in panels]
    writes = [path.rpartition("/v2/")[2] for method, path, _ in server.requests if method == "POST"]
    assert writes == ["write/template/upload", "write/views/upsert"] * 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "changes", "status", "sentence"),
    [
        (None, {"COMET_API_KEY": ""}, 2, "no API key; set COMET_API_KEY"),
        (("/template/upload", 500), {}, 1, "Comet does not answer (HTTP 500); try again later"),
        (("/v2/project", 404), {}, 2, "has no project catdog"),
    ],
)
def test_push_that_fails_says_why(server, tmp_path, fault, changes, status, sentence):
    add_runs(server, 1)
    if fault:
        server.break_down(*fault)
    done = push(server, tmp_path, **changes)
    assert done.returncode == status, done.stderr
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
