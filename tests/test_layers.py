"""The arrows between the packages, read from the imports themselves."""

import ast
import subprocess
import sys

import pytest

from tests.conftest import ROOT

TOP = ["forecast.py", "judge.py", "objective.py", "plan.py", "run_sweep.py"]  # know both packages
OURS = sorted([*ROOT.glob("catdog/*.py"), *ROOT.glob("search/**/*.py")])
KNOW_COMET = {
    "catdog/teller.py",
    "search/comet.py",
    "search/scribe.py",
    "search/panels/__main__.py",
    "search/panels/ranking.py",
}
KNOW_LOKY, KNOW_RAY = {"search/backends.py"}, {"search/cluster.py"}
KNOW_GRADIO = {"catdog/app.py", "catdog/components.py", "catdog/page.py"}


def imported_by(path):
    """Top-level names of everything a file imports, at its top or inside a function."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").split(".")[0])
    return names


@pytest.mark.parametrize("path", [str(path.relative_to(ROOT)) for path in OURS])
def test_each_package_keeps_to_its_own(path):
    forbidden = {"catdog": {"search", "optuna", "joblib"}, "search": {"catdog", "torch", "torchvision", "PIL"}}
    assert not imported_by(ROOT / path) & forbidden[path.split("/")[0]]
    assert ("comet_ml" in imported_by(ROOT / path)) == (path in KNOW_COMET)
    assert ("joblib" in imported_by(ROOT / path)) == (path in KNOW_LOKY)
    assert ("ray" in imported_by(ROOT / path)) == (path in KNOW_RAY)
    assert ("gradio" in imported_by(ROOT / path)) == (path in KNOW_GRADIO)


def test_what_knows_both_packages_imports_neither_torch_nor_a_tracker():
    for name in TOP:
        assert not imported_by(ROOT / name) & {"torch", "comet_ml", "joblib", "ray", "gradio"}, name


def test_only_two_commands_of_search_know_what_judges():
    knowing = [str(path.relative_to(ROOT)) for path in OURS if imported_by(path) & {name[:-3] for name in TOP}]
    assert knowing == ["search/promote.py", "search/report.py"]


def test_catdog_trains_with_six_packages_alone():
    """Import everything of catdog/ where nothing but its own six packages (and what torch needs) can be found."""
    code = """
import sys
refused = {"optuna", "joblib", "pydantic", "rich", "torchinfo", "kagglehub", "sqlalchemy", "comet_ml",
    "gradio", "fastapi",    "uvicorn", "prometheus_client", "plotly"}
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in refused:
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
import catdog.train, catdog.predict, catdog.reference, catdog.card, torch
from catdog.data import Pictures, load_data
from catdog.model import ModelConfig, build_model
from catdog import data
data.NUM_DRAWN = {"training": 40, "test": 10}
loaded = load_data("synthetic", 32)
config = ModelConfig(2, 4, 2, image_size=32)
epochs = catdog.train.train(build_model(config), catdog.train.TrainConfig(epochs=1), loaded.training, loaded.validation)
print(len(list(epochs)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.stdout.strip() == "1", done.stderr


def test_search_runs_without_torch_and_comet_is_imported_where_it_is_wanted():
    code = "import sys; sys.modules['torch'] = sys.modules['comet_ml'] = sys.modules['ray'] = None\n"
    code += "import search.sweep, search.report, search.live, search.champion, search.tracking\n"
    code += "import search.panels.__main__"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_nothing_slow_is_imported_before_training_that_training_does_not_need():
    code = """
import sys
import run_sweep, torch
from catdog.data import Pictures
from catdog.model import ModelConfig, build_model, layer_table
from catdog.train import TrainConfig, train
config = ModelConfig(2, 4, 2, image_size=32)
assert "Conv2d" in layer_table(config)
pictures = Pictures(torch.zeros(2, 32, 32, 3, dtype=torch.uint8), torch.tensor([0, 1]), torch.arange(2))
assert len(list(train(build_model(config), TrainConfig(epochs=1), pictures, pictures))) == 1
slow = {"alembic", "comet_ml", "gradio", "jinja2", "pandas", "plotly", "ray", "sympy", "torchvision", "triton"}
assert not slow & {*sys.modules}, slow & {*sys.modules}
assert torch.compile(torch.nn.Linear(2, 1), backend="eager")(torch.zeros(1, 2)).shape == (1, 1)  # still to be had
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, cwd=ROOT)
