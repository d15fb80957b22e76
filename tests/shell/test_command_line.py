import shlex

import pytest

import catdog.app
import catdog.model
import catdog.predict
import catdog.train
import pipeline.cli
import search.panels.__main__
import search.promote
import search.report.__main__
from shell.command_line import did_you_mean, printable

COMMANDS = {
    "run_sweep.py": pipeline.cli.main,
    "python -m search.report": search.report.__main__.main,
    "python -m search.promote": search.promote.main,
    "python -m search.panels": search.panels.__main__.main,
    "python -m catdog.app": catdog.app.main,
    "python -m catdog.predict": catdog.predict.main,
    "python -m catdog.train": catdog.train.main,
    "python -m catdog.model": catdog.model.main,
}


@pytest.fixture
def refused(monkeypatch, capsys, home):
    """Run a command that refuses its arguments; return what it says, without its name."""

    def run(command, *arguments):
        monkeypatch.setattr("sys.argv", [command, *arguments])
        with pytest.raises(SystemExit) as exit_:
            COMMANDS[command]()
        said = capsys.readouterr()
        assert (exit_.value.code, said.out, said.err.count("\n")) == (2, "", 1)
        assert said.err.startswith(f"{command}: ")
        return said.err.removeprefix(f"{command}: ").rstrip("\n")

    return run


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("command", COMMANDS)
def test_unknown_option_of_any_command_is_one_sentence(refused, command):
    said = refused(command, "--qqq=\x1b[31m7", *(["some"] if command != "python -m search.panels" else ["push"]))
    assert said.startswith("unrecognized arguments: --qqq=\\x1b[31m7")
    assert said.endswith("; --help lists the options")


MISTYPED = [
    ("run_sweep.py --trails 3", "unrecognized arguments: --trails; did you mean --trials?"),
    ("run_sweep.py --Seed=3", "unrecognized arguments: --Seed=3; did you mean --seed?"),
    ("run_sweep.py --image_size 64", "unrecognized arguments: --image_size; did you mean --image-size?"),
    ("run_sweep.py -epochs 3", "unrecognized arguments: -epochs; did you mean --epochs?"),
    ("run_sweep.py space.json dry-run", "unrecognized arguments: dry-run; did you mean --dry-run?"),
    ("run_sweep.py \u2013trials 3", "\u2013trials begins with another dash than '-'; did you mean --trials?"),
    ("run_sweep.py --pruner hyperbnd", "argument --pruner: 'hyperbnd' is not hyperband, median or none; did you mean"),
    ("run_sweep.py --engine OPTNA", "argument --engine: 'OPTNA' is not optuna or comet; did you mean optuna?"),
    ("run_sweep.py --promote better", "or never; did you mean if-better?"),
    ("run_sweep.py --trial 3", "ambiguous option: --trial could match --trials, --trial-timeout; --help"),
    ("python -m search.promote one --rolback", "unrecognized arguments: --rolback; did you mean --rollback?"),
    (
        "python -m search.promote one --trial best",
        "'best' is not the number of a trial; leave --trial out for the winner",
    ),
    ("python -m search.panels psh", "argument command: 'psh' is unknown; write push"),
    ("python -m catdog.app --prot 80", "unrecognized arguments: --prot 80; did you mean --port?"),
    ("python -m catdog.app --port http", "argument --port: 'http' is not a whole number; --help"),
    ("python -m catdog.predict", "an argument is missing; write python -m catdog.predict IMAGE"),
    ("python -m search.panels", "an argument is missing; write python -m search.panels push"),
    ("python -m catdog.predict a.jpg --modle m", "unrecognized arguments: --modle m; did you mean --model?"),
    ("python -m catdog.train --learning-rate fast", "argument --learning-rate: 'fast' is not a number; --help"),
    ("python -m catdog.train --output .", "argument --output: . is a folder; give the file in it"),
    ("python -m catdog.train --output ..", "argument --output: .. is a folder; give the file in it"),
    ("python -m catdog.predict image --model .", "argument --model: . is a folder; give the file in it"),
    ("python -m catdog.train --share-body=maybe", "argument --share-body: 'maybe' is not true or false; --help"),
    ("python -m catdog.train --keep val_los", "train_accuracy or last; did you mean val_loss?"),
    ("python -m catdog.model --stem_widht 8", "unrecognized arguments: --stem_widht 8; did you mean --stem-width?"),
]


@pytest.mark.parametrize(("line", "sentence"), MISTYPED)
def test_mistyped_word_is_answered_with_the_closest_one(refused, line, sentence):
    command = next(command for command in COMMANDS if line.startswith(command))
    assert sentence in refused(command, *shlex.split(line.removeprefix(command)))


EMPTY = [
    ("run_sweep.py", ["--name", ""], "--name is empty; give a value, or leave it out"),
    ("run_sweep.py", ["--data="], "--data is empty; give a value, or leave it out"),
    ("run_sweep.py", ["s.json", "--storage", ""], "--storage is empty; give a value, or leave it out"),
    ("run_sweep.py", ["--trials", ""], "--trials is empty; give a value, or leave it out"),
    ("run_sweep.py", [""], "config is empty; give a value"),
    ("python -m search.report", [""], "name is empty; give a value"),
    ("python -m search.promote", ["", "--rollback"], "name is empty; give a value"),
    ("python -m catdog.train", ["--output", ""], "--output is empty; give a value, or leave it out"),
    ("python -m catdog.predict", ["a.jpg", ""], "IMAGE is empty; give a value"),
    ("python -m catdog.app", ["--auth", ""], "--auth is empty; give a value, or leave it out"),
]


@pytest.mark.parametrize(("command", "arguments", "sentence"), EMPTY)
def test_empty_value_is_refused(refused, command, arguments, sentence):
    assert refused(command, *arguments) == sentence


def test_nothing_is_proposed_that_is_not_like_the_word():
    assert did_you_mean("gpu", ["--trials", "--epochs"]) == ""
    assert did_you_mean("", ["--trials"]) == ""


def test_only_what_a_terminal_would_obey_is_escaped():
    names = ["Käthe und Bärbel.jpg", "猫.png", "\x1b]0;title\x07.jpg", "two\nlines", "\udcff.jpg", "\u202egpj.exe"]
    assert [printable(name) for name in names] == [
        *names[:2],
        "\\x1b]0;title\\x07.jpg",
        "two\\nlines",
        "\\udcff.jpg",
        "\\u202egpj.exe",
    ]
