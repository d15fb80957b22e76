"""The shape of the code, read from the code itself: layers, circles, sizes.

python -m tests.test_structure    prints it
"""

import ast
import statistics
import subprocess
import sys
from collections import Counter
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.conftest import ROOT

# Bottom first. A module imports only from its own line and the lines above it.
LAYERS = """
shell
catdog.device
catdog.data
catdog.kernels
catdog.model catdog.checkpoint catdog.evaluate catdog.recipe catdog.train catdog.explain catdog.predict
catdog.serving
catdog.app
search.formatting search.durable search.task
search.space
search.comet
search.study
search.analysis
search.schedule
search.workers
search.report
search.panels
search.promote
pipeline
run_sweep
"""
RANKS = {name: rank for rank, line in enumerate(LAYERS.split("\n")) for name in line.split()}
MAX_ENTRIES, MAX_FUNCTION, MAX_FILE = 13, 40, 300
FOLDERS = ("shell", "catdog", "search", "pipeline", "tests")
KNOW_COMET = {
    "catdog/serving/comet.py",
    "search/comet/client.py",
    "search/panels/__main__.py",
    "search/panels/ranking.py",
}
KNOW_GRADIO = {"catdog/serving/components.py", "catdog/serving/ui.py"}
KNOW_LOKY, KNOW_RAY = {"search/workers/loky_backend.py", "pipeline/placement.py"}, {"search/workers/ray_backend.py"}


def is_stray(path):
    return any(part == "__pycache__" or part.startswith(".") for part in path.relative_to(ROOT).parts)


FILES = sorted(
    path.relative_to(ROOT)
    for path in [ROOT / "run_sweep.py", *(p for top in FOLDERS[:4] for p in ROOT.glob(f"{top}/**/*.py"))]
    if not is_stray(path)
)
TREES = {path: ast.parse((ROOT / path).read_text()) for path in FILES}


def name_of(path):
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path): path for path in FILES}


def imports_of(path):
    """Full names of everything a file imports, at its top or inside a function."""
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in MODULES else node.module for name in inside)


def layer_of(module):
    """The entry of LAYERS that a module of ours belongs to, else None."""
    parts = module.split(".")
    names = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
    return next((name for name in names if name in RANKS), None)


def arrows():
    """(importing, imported, count) between the entries of LAYERS."""
    found = Counter()
    for path in FILES:
        mine = layer_of(name_of(path)) or ""  # "": the __init__.py of a package with several layers
        found.update((mine, layer_of(name)) for name in imports_of(path) if layer_of(name) not in (None, mine))
    return sorted((*pair, count) for pair, count in found.items())


def functions():
    """(file, name, lines) of every function, its docstring included."""
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield path, node.name, node.end_lineno - node.lineno + 1


def lines_of(path):
    return len((ROOT / path).read_text().splitlines())


def packages():
    return sorted({path.parent for path in FILES if path.parent != Path()})


def entries_of(folder):
    return [path for path in folder.iterdir() if not is_stray(path)]


def print_table():
    print(
        f"{'package':<18} {'entries':>7} {'files':>5} {'lines':>6}   functions: {'number':>6} {'median':>6} p90 longest"
    )
    for package in packages():
        files = [path for path in FILES if path.parent == package]
        sizes = sorted(lines for path, _, lines in functions() if path.parent == package) or [0]
        spread = f"{statistics.median(sizes):6.0f} {sizes[int(0.9 * (len(sizes) - 1))]:3} {sizes[-1]:7}"
        counts = f"{len(entries_of(ROOT / package)):7} {len(files):5} {sum(map(lines_of, files)):6}"
        print(f"{package!s:<18} {counts}   {'':10} {len(sizes):6} {spread}")
    sizes = [lines for _, _, lines in functions()]
    print(f"all: {sum(map(lines_of, FILES))} lines, {len(sizes)} functions, median {statistics.median(sizes):g}")
    for mine, other, count in arrows():
        print(f"{mine} -> {other} ({count})")


def test_every_module_has_its_layer_and_no_arrow_points_up():
    print_table()
    assert [str(path) for path in FILES if layer_of(name_of(path)) is None and path.name != "__init__.py"] == []
    assert [(mine, other) for mine, other, _ in arrows() if mine and RANKS[other] > RANKS[mine]] == []


def test_no_module_imports_itself_through_others():
    graph = {name: {n for n in imports_of(path) if n in MODULES} - {name} for name, path in MODULES.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_functions_files_and_folders_are_small():
    assert [entry for entry in functions() if entry[2] > MAX_FUNCTION] == []
    assert [(str(path), lines_of(path)) for path in FILES if lines_of(path) > MAX_FILE] == []
    folders = [ROOT / top for top in FOLDERS]
    folders += [path for top in folders for path in top.glob("**/") if not is_stray(path)]
    assert [(str(path), len(entries_of(path))) for path in folders if len(entries_of(path)) > MAX_ENTRIES] == []


@pytest.mark.parametrize("path", FILES, ids=str)
def test_no_message_names_a_command_that_works_in_one_folder_alone(path):
    """`module_command` makes it; the name of a command before its own errors is none to copy."""
    told = [node for node in ast.walk(TREES[path]) if isinstance(node, ast.JoinedStr | ast.Constant)]
    names = [node.args[0] for node in ast.walk(TREES[path]) if isinstance(node, ast.Call) and node.args]
    docs = [node.value for node in ast.walk(TREES[path]) if isinstance(node, ast.Expr)]
    lines = [node.lineno for node in told if "python -m" in ast.unparse(node) and node not in names + docs]
    assert not lines or path == Path("shell/environment.py")


@pytest.mark.parametrize("path", FILES, ids=str)
def test_each_package_keeps_to_its_own(path):
    libraries = {name.split(".")[0] for name in imports_of(path)}
    forbidden = {
        "catdog": {"search", "pipeline", "optuna", "joblib"},
        "search": {"catdog", "pipeline", "torch", "torchvision", "PIL"},
    }
    assert not libraries & forbidden.get(path.parts[0], set())
    known = str(path)
    assert ("torch" in libraries) <= (path.parts[0] == "catdog")
    assert ("optuna" in libraries) <= (path.parts[0] in {"search", "pipeline"})
    for library, knowing in (("comet_ml", KNOW_COMET), ("gradio", KNOW_GRADIO), ("ray", KNOW_RAY)):
        assert (library in libraries) == (known in knowing)
    assert ("joblib" in libraries) == (known in KNOW_LOKY)


def test_catdog_trains_with_six_packages_alone():
    """Import everything of catdog/ where nothing but its own six packages (and what torch needs) can be found."""
    code = """
import sys
refused = {"optuna", "joblib", "pydantic", "rich", "torchinfo", "kagglehub", "sqlalchemy", "comet_ml",
    "gradio", "fastapi", "uvicorn", "prometheus_client", "plotly"}
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in refused:
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
import catdog.train, catdog.predict, catdog.serving.reference, catdog.serving.model_card, torch
from catdog.data.dataset import ImageSubset, load_data
from catdog.model import ModelConfig, build_model
from catdog.data import dataset as data
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
    code += "import search.workers.supervisor, search.report.page, search.report.live_table, search.workers.tracking\n"
    code += "import search.panels.__main__"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_nothing_slow_is_imported_before_training_that_training_does_not_need():
    code = """
import sys
import torch
from pipeline import cli
from catdog.data.dataset import ImageSubset
from catdog.model import ModelConfig, build_model, layer_table
from catdog.train import TrainConfig, train
config = ModelConfig(2, 4, 2, image_size=32)
assert "Conv2d" in layer_table(build_model(config))
subset = ImageSubset(torch.zeros(2, 32, 32, 3, dtype=torch.uint8), torch.tensor([0, 1]), torch.arange(2))
assert len(list(train(build_model(config), TrainConfig(epochs=1), subset, subset))) == 1
slow = {"alembic", "comet_ml", "gradio", "jinja2", "pandas", "plotly", "ray", "sympy", "torchvision", "triton"}
assert not slow & {*sys.modules}, slow & {*sys.modules}
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, cwd=ROOT)


if __name__ == "__main__":
    print_table()


def leaves_encoding_to_the_locale(call):
    """Say whether a call opens a file as text without naming its encoding."""
    name, is_method = getattr(call.func, "attr", getattr(call.func, "id", "")), isinstance(call.func, ast.Attribute)
    words = {word.arg for word in call.keywords}
    if name in ("run", "Popen"):
        return "text" in words
    if name not in ("open", "read_text", "write_text")[: 3 if is_method else 1] or "encoding" in words:
        return False
    modes = [value.value for value in call.args[not is_method :] if isinstance(value, ast.Constant)]
    is_other = is_method and call.args and not modes  # as in Image.open(file)
    return not is_other and not any("b" in str(mode) for mode in modes[:1])


def test_every_file_of_text_has_an_explicit_encoding():
    calls = [(path, node) for path, tree in TREES.items() for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert [f"{path}:{call.lineno}" for path, call in calls if leaves_encoding_to_the_locale(call)] == []
