"""Stand-ins and small real things that several tests use."""

import json
import os
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from catdog.checkpoint import load_model, save_model
from catdog.data import dataset as data
from catdog.data.cache import build_once
from catdog.data.dataset import ImageSubset, load_data
from catdog.data.preprocess import preprocessing
from catdog.data.synthetic import draw, synthetic
from catdog.kernels.precision import bfloat16_fault
from catdog.model import ModelConfig, build_model
from catdog.serving.reference import make_reference
from catdog.train import TrainConfig, train
from tests.servers.processes import all_ended, guard

ROOT = Path(__file__).parents[1]

DRAWN = {"training": 200, "test": 300}  # images for training and testing the network `good`
GOOD = ModelConfig(stem_width=8, body_width=16, body_repeats=2, image_size=32)

SMALL_SPACE = {
    "algorithm": "bayes",
    "trials": 1,
    "parameters": {
        "stem_width": {"type": "discrete", "values": [2, 4]},
        "body_width": {"type": "discrete", "values": [4, 8]},
        "learning_rate": {"type": "float", "min": 0.001, "max": 0.01, "scalingType": "loguniform"},
    },
    "spec": {"maxCombo": 3, "metric": "best_val_loss", "objective": "minimize", "seed": 1},
}


def pytest_configure():
    guard()


@pytest.fixture(autouse=True)
def _nothing_runs_on():
    with all_ended():
        yield


@pytest.fixture(scope="session")
def bfloat16_verdict(made_once):
    """What this machine's bfloat16 is worth, found out once: the content of a cache folder."""

    def make(folder):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("CATDOG_CACHE", str(folder))
            bfloat16_fault()

    return made_once("verdict", make)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch, bfloat16_verdict):
    """Keep decoded images out of the user's cache."""
    monkeypatch.setenv("CATDOG_CACHE", str(tmp_path / "cache"))
    shutil.copytree(bfloat16_verdict, tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture(autouse=True)
def no_api_key(monkeypatch):
    """Keep the tests away from Comet, whatever the user has configured."""
    for name in [name for name in os.environ if name.startswith("COMET_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("COMET_API_KEY", "")


@pytest.fixture
def write_space(tmp_path):
    """Write optimizer.json with changes: `write_space(spec={...})` replaces entries, None removes a key."""

    def write(content=None, **changes):
        whole = {**SMALL_SPACE, **changes} if content is None else content
        path = tmp_path / "optimizer.json"
        path.write_text(json.dumps({key: value for key, value in whole.items() if value is not None}))
        return path

    return write


@pytest.fixture(scope="session")
def drawn_files():
    """Contents of drawn image files, cats and dogs in turn: {0: [jpeg, ...], 1: [...]}."""
    from io import BytesIO

    def jpeg(label, seed):
        buffer = BytesIO()
        draw(label, 64, seed).save(buffer, "JPEG")
        return buffer.getvalue()

    return {label: [jpeg(label, 100 * label + seed) for seed in range(24)] for label in (0, 1)}


@pytest.fixture
def photographs(tmp_path, drawn_files):
    """A folder laid out like Kaggle's: 20 + 20 images to train, 4 + 4 to test."""
    root = tmp_path / "photographs"
    for label, name in enumerate(("cats", "dogs")):
        for index, content in enumerate(drawn_files[label]):
            part = "training_set" if index < 20 else "test_set"
            path = root / part / part / name / f"{name[:-1]}.{index}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return root


@pytest.fixture(scope="session")
def subset():
    """120 drawn images of 32 px in memory."""
    images, labels = synthetic(120, 32, seed=0)
    return ImageSubset(torch.from_numpy(images), torch.from_numpy(labels).long(), torch.arange(120))


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """Make a folder for all workers of pytest-xdist: `made_once(name, make)`; whoever comes first makes it."""
    own = tmp_path_factory.getbasetemp()
    return lambda name, make: build_once((own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / name, make)


def train_once(made_once, name, drawn, config, recipe):
    """Train a network on drawn images; return the folder that holds it and the cache of the images."""

    def make(folder):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("CATDOG_CACHE", str(folder / "cache"))
            patch.setattr(data, "NUM_DRAWN", drawn)
            loaded, model = load_data("synthetic", 32), build_model(config)
            list(train(model, recipe, loaded.training, loaded.validation))
            header = {
                "classes": ["cat", "dog"],
                "preprocessing": preprocessing(32),
                "metrics": {"test": {"accuracy": 0.9, "accuracy_interval": (0.85, 0.94), "loss": 0.3, "pictures": 300}},
                "provenance": {"run": "one", "trial": 0, "data": {"source": "synthetic", "fingerprint": "f"}},
                "reference": make_reference(model, loaded, "cpu"),
            }
            save_model(model, folder / "model.safetensors", header)

    return made_once(name, make)


@pytest.fixture(scope="session")
def good(made_once):
    """A small network that knows drawn cats and dogs, and the cache of the images."""
    folder = train_once(made_once, "good", DRAWN, GOOD, TrainConfig(1e-2, epochs=16, schedule="one_cycle"))
    return load_model(folder / "model.safetensors")[0], folder / "cache"


@pytest.fixture(scope="session")
def champion(made_once, tmp_path_factory):
    """A promoted model file that is good enough to watch; `champion(2)` is another one with the same answers."""
    recipe = TrainConfig(1e-2, epochs=5, schedule="one_cycle", augmentation="flip")
    shape, drawn = ModelConfig(16, 32, 2, image_size=32), {"training": 1500, "test": 20}
    model, header = load_model(train_once(made_once, "champion", drawn, shape, recipe) / "model.safetensors")
    folder = tmp_path_factory.mktemp("champion")

    def save(trial=0):
        path = folder / f"{trial}.safetensors"
        if not path.exists():
            save_model(model, path, {**header, "provenance": {**header["provenance"], "trial": trial}})
        return path

    return save


@pytest.fixture(scope="session")
def server(tmp_path_factory, champion):
    """A server of the champion, for tests that leave both as they are."""
    from tests.servers.app_server import AppServer

    folder = tmp_path_factory.mktemp("served")
    (folder / "best_model").mkdir()
    shutil.copy(champion(), folder / "best_model/model.safetensors")
    environment = {**os.environ, "CATDOG_CACHE": str(folder / "cache"), "COMET_API_KEY": ""}
    with AppServer(folder, environment=environment) as server:
        yield server


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Leave the other cores to the tests beside this one, and to the programs that they start."""
    torch.set_num_threads(1)


def lack(what):
    """Skip a test for want of something; where nothing may be skipped (.ci/run), fail."""
    (pytest.fail if os.environ.get("SKIP_NOTHING") else pytest.skip)(f"needs {what}")


@pytest.fixture(scope="session")
def locales(made_once):
    """Locales that are not UTF-8, by encoding, and the folder to name in LOCPATH."""
    names = {"ISO-8859-1": "en_US.ISO-8859-1", "EUC-JP": "ja_JP.EUC-JP"}

    def make(folder):
        for encoding, name in names.items():
            command = ["localedef", "-c", "-i", name.split(".")[0], "-f", encoding, str(folder / name)]
            subprocess.run(command, capture_output=True, check=False)
            if not (folder / name).exists():
                lack("localedef with its charmaps (Debian: apt-get install locales)")

    if not shutil.which("localedef"):
        lack("localedef with its charmaps (Debian: apt-get install locales)")
    return {**names, "folder": str(made_once("locales", make))}


@pytest.fixture
def postgres():
    """A PostgreSQL server of this test's own."""
    from tests.servers.postgres import is_installed, postgres_server

    if not is_installed():
        lack("PostgreSQL (Debian: apt-get install postgresql)")
    if not find_spec("psycopg"):
        lack("psycopg (extra postgres)")
    with postgres_server() as server:
        yield server


@pytest.fixture(scope="session")
def browser():
    """A headless Chromium: Debian's package `chromium`, or Chrome."""
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if not path:
        lack("Chromium (Debian: apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    from tests.servers.app_server import HANG

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"], timeout=1000 * HANG)
        yield browser
        browser.close()
