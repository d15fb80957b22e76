"""Mistakes as people make them, each answered with one sentence that says what to do.

python -m tests.test_mistakes    prints the table of mistakes and answers
"""

import importlib
import json
import os
import shlex
import shutil
import signal
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from PIL import Image

from catdog.data.synthetic import synthetic

SWEEP = "--data photos --image-size 64 --epochs 1 --no-baseline --confirm 0 --tracking off --workers 1"
FIRST = f"run_sweep.py good.json {SWEEP} --name first"
SPACE = {
    "algorithm": "bayes",
    "parameters": {
        "stem_width": [4],
        "body_width": {"type": "integer", "min": 4, "max": 8},
        "body_repeats": [1],
        "learning_rate": {"type": "float", "min": 0.001, "max": 0.01, "scalingType": "loguniform"},
    },
    "spec": {"maxCombo": 2, "metric": "best_val_loss", "objective": "minimize"},
}
TEXT = json.dumps(SPACE, indent=1)
RATE = '{"type": "float", "min": 0.001, "max": 0.01, "scalingType": "loguniform"}'
ONE_LINE = json.dumps(SPACE)
CONFIGS = {
    "good": TEXT,
    "empty": "",
    "no-comma": TEXT.replace('"bayes",', '"bayes"'),
    "no-brace": TEXT[:-2],
    "name": ONE_LINE.replace("learning_rate", "learning_rat"),
    "foreign": ONE_LINE.replace("learning_rate", "momentum"),
    "key": ONE_LINE.replace('"min": 0.001', '"minimum": 0.001'),
    "bounds": ONE_LINE.replace("0.001", "0.1"),
    "log-zero": ONE_LINE.replace("0.001", "0"),
    "text-bound": ONE_LINE.replace("0.001", '"small"'),
    "no-max": ONE_LINE.replace('"max": 0.01, ', ""),
    "algorithm": ONE_LINE.replace("bayes", "tpe"),
    "metric": ONE_LINE.replace("best_val_loss", "accuracy"),
    "objective": ONE_LINE.replace("minimize", "maximize"),
    "no-budget": ONE_LINE.replace('"maxCombo": 2', '"maxCombo": 0'),
    "no-values": ONE_LINE.replace("[4]", "[]"),
    "no-parameters": json.dumps({**SPACE, "parameters": {}}),
    "no-spec": json.dumps({key: value for key, value in SPACE.items() if key != "spec"}),
    "no-combo": ONE_LINE.replace('"maxCombo": 2, ', ""),
    "type": ONE_LINE.replace('"integer"', '"int"'),
    "repeats": json.dumps({**SPACE, "trials": 3}),
    "dropout": ONE_LINE.replace(RATE, "[0.1]").replace("learning_rate", "dropout").replace("[0.1]", "[1.5]"),
    "epochs": ONE_LINE.replace('"learning_rate"', '"epochs": [2, 3], "learning_rate"'),
    "deep": ONE_LINE.replace('"body_repeats": [1]', '"body_repeats": [9]'),
    "list": "[1, 2]",
    "yaml": "algorithm: bayes\nparameters:\n  dropout: [0.1]\n",
}
REFUSED = ["study postgresql://me@127.0.0.1:1/x cannot be opened (connection refused)", "correct --storage\n"]
SPEC = 'spec is missing; add "spec": {"maxCombo": 12, "metric": "best_val_loss", "objective": "minimize"}'
# what somebody did, the command, words of the answer
MISTAKES = [
    ("mistyped an option", "run_sweep.py --trails 10", ["--trials"]),
    ("mistyped a choice", "run_sweep.py --pruner hyperbnd", ["hyperband"]),
    ("mistyped an engine", "run_sweep.py --engine optna", ["optuna"]),
    ("wrote a number as a word", "run_sweep.py --trials ten", ["--trials", "'ten'", "whole number"]),
    ("asked for no trials", "run_sweep.py --trials 0", ["--trials", "at least 1"]),
    ("gave a negative number", "run_sweep.py --epochs -1", ["--epochs", "at least 1"]),
    ("gave a seed that is no whole number", "run_sweep.py --seed 1.5", ["--seed", "whole number"]),
    ("gave a time that is none", "run_sweep.py --timeout soon", ["--timeout", "seconds"]),
    ("gave an option without its value", "run_sweep.py --trials", ["--trials"]),
    ("gave two files", "run_sweep.py good.json epochs.json", ["leave out epochs.json"]),
    ("asked for tiny images", "run_sweep.py --image-size 16", ["give --image-size 64 or more"]),
    ("asked for huge images", "run_sweep.py --image-size 50000", ["image_size"]),
    ("named a GPU that is not there", "run_sweep.py --devices cuda:7", ["cuda:7", "this machine has"]),
    ("named a device that does not exist", "run_sweep.py --devices gpu", ["'gpu'"]),
    ("asked for no workers", "run_sweep.py --workers 0", ["--workers", "at least 1"]),
    ("shared a CPU like a GPU", "run_sweep.py --devices cpu --workers-per-device 2", ["--workers"]),
    ("gave the number of workers twice", "run_sweep.py --workers 2 --workers-per-device auto", ["leave out --workers"]),
    ("keeps fewer weights than it confirms", "run_sweep.py --keep 1", ["--keep 3 or more, or --confirm 1"]),
    ("named a sweep like a path", "run_sweep.py --name ../other", ["--name", "letters"]),
    ("gave a sweep's name with a space", "run_sweep.py --name 'my sweep'", ["--name", "letters"]),
    ("gave a sweep's folder", "run_sweep.py --name runs/y", ["give --name y\n"]),
    ("wants another database", "run_sweep.py --storage mysql://me@host/sweeps", ["postgresql://"]),
    ("names a database that does not answer", "run_sweep.py --storage postgresql://me@127.0.0.1:1/x", REFUSED),
    ("gave Ray's address without Ray", "run_sweep.py --ray-address head", ["--backend ray"]),
    ("starts from a sweep that is not there", "run_sweep.py good.json --warm-start frist", ["frist"]),
    ("starts a sweep from itself", "run_sweep.py good.json --name a --warm-start a", ["another one"]),
    ("has no API key for the engine", "run_sweep.py --engine comet", ["COMET_API_KEY", "--engine optuna"]),
    ("has no API key for tracking", "run_sweep.py --tracking online", ["COMET_API_KEY", "--tracking offline"]),
    ("mistyped the file", "run_sweep.py goood.json", ["goood.json", "good.json"]),
    ("gave a folder as the file", "run_sweep.py photos", ["photos"]),
    ("left out a comma", "run_sweep.py no-comma.json", ["no-comma.json", "line 2", "comma"]),
    ("left out a brace", "run_sweep.py no-brace.json", ["no-brace.json"]),
    ("saved an empty file", "run_sweep.py empty.json", ["empty.json", "empty"]),
    ("wrote a list", "run_sweep.py list.json", ["list.json"]),
    ("wrote YAML", "run_sweep.py yaml.json", ["yaml.json", "{"]),
    ("mistyped a parameter", "run_sweep.py name.json", ["'learning_rat'", "learning_rate"]),
    ("searches what does not exist", "run_sweep.py foreign.json", ["'momentum'"]),
    ("mistyped a key", "run_sweep.py key.json", ["minimum", "min"]),
    ("swapped the bounds", "run_sweep.py bounds.json", ["learning_rate", "0.1", "0.01"]),
    ("takes the logarithm of zero", "run_sweep.py log-zero.json", ["learning_rate", "above 0"]),
    ("wrote a bound as text", "run_sweep.py text-bound.json", ["learning_rate", "'small'", "number"]),
    ("left out a bound", "run_sweep.py no-max.json", ["learning_rate.max"]),
    ("named Optuna's algorithm", "run_sweep.py algorithm.json", ["'tpe'", "bayes"]),
    ("named a metric that is not logged", "run_sweep.py metric.json", ["'accuracy'", "val_accuracy"]),
    ("maximises a loss", "run_sweep.py objective.json", ["spec.objective", "'minimize'"]),
    ("gave no budget", "run_sweep.py no-budget.json", ["spec.maxCombo is 0", "--trials"]),
    ("gave a parameter no values", "run_sweep.py no-values.json", ["stem_width"]),
    ("searches nothing", "run_sweep.py no-parameters.json", ["parameters"]),
    ("left out the goal", "run_sweep.py no-spec.json", [SPEC]),
    (
        "left out the budget",
        "run_sweep.py no-combo.json",
        ['spec.maxCombo is missing; add "maxCombo": 12, or give --trials'],
    ),
    ("named a type of Python", "run_sweep.py type.json", ["'int'", "integer"]),
    ("repeats every trial", "run_sweep.py repeats.json", ["trials is 3", "spec.maxCombo"]),
    ("drops out everything", "run_sweep.py dropout.json", ["dropout", "1.5"]),
    ("gave epochs twice", "run_sweep.py epochs.json --no-baseline --epochs 3", ["--epochs"]),
    (
        "wants a deeper network than the images allow",
        "run_sweep.py deep.json",
        ["and not 224; set body_repeats to at most 5"],
    ),
    ("mistyped the folder of images", "run_sweep.py good.json --data photo", ["photo", "photos"]),
    ("gave one image as the data", "run_sweep.py good.json --data photos/cats/0.jpg", ["not a folder"]),
    ("gave an empty folder", "run_sweep.py good.json --data nothing", ["nothing", "cats"]),
    ("has cats alone", "run_sweep.py good.json --data one-class", ["dog"]),
    ("saved web pages as images", f"run_sweep.py good.json {SWEEP} --data pages", ["pages"]),
    ("has four images", f"run_sweep.py good.json {SWEEP} --data few", ["few"]),
    ("has images inside and outside train/", "run_sweep.py good.json --data both", ["train"]),
    ("resumes with another seed", f"{FIRST} --seed 9", ["seed", "--name"]),
    ("resumes with other images", f"{FIRST} --data others", ["images", "--name"]),
    ("resumes with more epochs", f"{FIRST} --epochs 3", ["epochs", "--name"]),
    ("mistyped a sweep's name", "search.report frist", ["frist", "first"]),
    ("forgot the sweep's name", "search.report", ["name"]),
    ("promotes a sweep that is not there", "search.promote secnd", ["secnd"]),
    ("promotes a trial that is not there", "search.promote first --trial 99", ["99", "0 to 1"]),
    ("names a trial by a word", "search.promote first --trial best", ["--trial", "'best'"]),
    ("rolls back the first champion", "search.promote --rollback", ["best_model"]),
    ("rolls back a sweep", "search.promote first --rollback", ["--rollback"]),
    ("asks a model that is not there", "catdog.predict --model none.safetensors notes.txt", ["none.safetensors"]),
    ("asks a damaged model", "catdog.predict --model damaged.safetensors photos/cats/0.jpg", ["damaged.safetensors"]),
    ("gave a port that does not exist", "catdog.app --port 99999", ["99999", "65535"]),
    ("gave a file of passwords that is not there", "catdog.app --auth none.txt", ["make it, with one line"]),
    ("gave a file of passwords without any", "catdog.app --auth notes.txt", ["notes.txt", "user:password"]),
    (
        "asks about an image that is not there",
        "catdog.predict photos/cats/none.jpg",
        ["no such file; correct the path"],
    ),
    ("asks about a folder", "catdog.predict photos/cats", ["this is a folder; give the images in it, photos/cats/*"]),
    ("asks about a text", "catdog.predict notes.txt", ["notes.txt"]),
    ("trains for a time that is none", "catdog.train --epochs 0", ["epochs"]),
    ("saves into a folder that is not there", "catdog.train --data photos --output no/m.safetensors", ["--output"]),
    ("pushes a panel without an API key", "search.panels push", ["COMET_API_KEY"]),
    ("pulls a panel", "search.panels pull", ["push"]),
]


def make_home(home):
    """Write the files that the commands name, a finished sweep and a champion; no command of MISTAKES changes them."""
    (home / "configs").mkdir(parents=True)
    for name, text in {**CONFIGS, "configs/optimizer": TEXT}.items():
        (home / f"{name}.json").write_text(text)
    images, labels = synthetic(60, 64, 7)
    for number, (image, label) in enumerate(zip(np.asarray(images), labels, strict=True)):
        folders = ["photos"] if number < 48 else ["others", "both/train"]
        folders += ["few", "both"] if number < 4 else []
        folders += ["one-class"] if not label else []
        for folder in folders:
            path = home / folder / ("cats", "dogs")[label] / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    for name in ("cats", "dogs"):
        (home / "pages" / name).mkdir(parents=True)
        for number in range(8):
            (home / "pages" / name / f"{number}.jpg").write_text("<!DOCTYPE html><html></html>")
    (home / "nothing").mkdir()
    (home / "notes.txt").write_text("just a note")
    assert run(home, FIRST) == 0
    whole = (home / "best_model/model.safetensors").read_bytes()
    (home / "damaged.safetensors").write_bytes(whole[:-9])


def run(home, command):
    """Run a command of ours in this process, from the folder `home`; return its exit status."""
    program, *arguments = shlex.split(command)
    before = Path.cwd(), sys.argv, signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    os.chdir(home)
    sys.argv = [program, *arguments]
    name = {"run_sweep.py": "pipeline.cli", "search.report": "search.report.__main__"}.get(program, program)
    name = "search.panels.__main__" if program == "search.panels" else name
    try:
        return importlib.import_module(name).main() or 0
    except SystemExit as error:
        return error.code
    finally:
        os.chdir(before[0])
        sys.argv = before[1]
        signal.signal(signal.SIGINT, before[2])
        signal.signal(signal.SIGTERM, before[3])


def print_table():
    """Print each mistake, its command and the answer."""
    with TemporaryDirectory() as work, pytest.MonkeyPatch.context() as patch:
        patch.setenv("CATDOG_CACHE", f"{work}/cache")
        patch.setenv("COMET_API_KEY", "")
        with redirect_stdout(StringIO()):
            make_home(Path(work))
        for number, (did, command, _) in enumerate(MISTAKES, 1):
            with redirect_stdout(StringIO()), redirect_stderr(StringIO()) as answer:
                status = run(Path(work), command)
            print(f"{number:2} {did}: {command}\n   status {status}: {answer.getvalue().strip()}")


@pytest.fixture(scope="module")
def home(made_once, tmp_path_factory):
    """Return a folder of this process's own, in which a person works."""
    home = tmp_path_factory.mktemp("work") / "home"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CATDOG_CACHE", str(home.parent / "cache"))
        patch.setenv("COMET_API_KEY", "")
        shutil.copytree(made_once("home", make_home), home)
    return home


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("did", "command", "words"), MISTAKES, ids=[did for did, *_ in MISTAKES])
def test_mistake_is_answered_with_one_sentence(home, capfd, did, command, words):
    files = sorted(home.rglob("*"))
    assert run(home, command) in (1, 2), did
    answer = capfd.readouterr().err
    print(answer)
    assert answer.strip().count("\n") == 0
    assert [word for word in (*words, " ") if word not in answer] == []
    assert [word for word in ("Traceback", "usage:", "Error(", "\x1b") if word in answer] == []
    assert [path for path in sorted(home.rglob("*")) if path not in files and "runs" not in path.parts] == []


if __name__ == "__main__":
    print_table()
