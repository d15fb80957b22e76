import re
import resource
import shutil
import sqlite3
import sys
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from random import Random

import optuna
import pytest
import torch
from optuna.trial import TrialState

from catdog.checkpoint import load_model, read_header, save_model
from catdog.data import dataset as data
from catdog.data.dataset import load_data
from catdog.data.preprocess import preprocessing
from catdog.model import ModelConfig, build_model
from catdog.predict import Classifier
from catdog.serving.reference import known_answers
from pipeline.promotion import champion_of, describe_outcome, promote_trial, promote_weights, record_of, restore
from pipeline.registry import CHAMPION, provenance_of
from pipeline.verdict import model_name
from search.analysis.confirmation import Candidate
from search.promote import main
from search.study.create import create_study
from search.study.queue import acquire
from search.study.sweep import CANDIDATES, PROMOTION, load_study
from shell.environment import module_command
from tests.conftest import DRAWN, GOOD
from tests.servers.counting_sweep import make_sweep

LARGER = ModelConfig(stem_width=8, body_width=24, body_repeats=2, image_size=32)


@pytest.fixture
def bench(good, tmp_path, monkeypatch):
    """A slot to promote in: `bench(model, trial, **provenance)` saves a model file and tries to promote it."""
    monkeypatch.setenv("CATDOG_CACHE", str(good[1]))
    monkeypatch.setattr(data, "NUM_DRAWN", DRAWN)
    monkeypatch.chdir(tmp_path)
    fingerprint = load_data("synthetic", 32).fingerprint

    def attempt(model, trial=0, *, always=False, classes=("cat", "dog"), data=fingerprint, run="one"):
        header = {
            "classes": classes,
            "preprocessing": preprocessing(model.config.image_size),
            "metrics": {"validation": {"accuracy": 0.9, "accuracy_interval": (0.8, 0.95), "loss": 0.2, "pictures": 30}},
            "provenance": {"run": run, "trial": trial, "data": {"source": "synthetic", "fingerprint": data}},
        }
        path = tmp_path / f"runs/{run}/trials/{trial:04}/model.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_model(model, path, header)
        return promote_weights(path, tmp_path / "best_model", "synthetic", "cpu", always=always)

    attempt.champion = tmp_path / "best_model" / CHAMPION
    return attempt


def test_first_champion_is_tested_once_and_has_a_card(bench, good):
    outcome = bench(good[0], 3)
    assert outcome.promoted
    assert "there was none before" in outcome.reason
    test = read_header(bench.champion)["metrics"]["test"]
    assert (test["pictures"], test["looks"], test["left_out"]) == (300, 1, 0)
    assert test["accuracy"] > 0.7
    assert sum(map(sum, test["confusion"])) == 300
    card = (bench.champion.parent / "README.md").read_text()
    assert f"{test['accuracy']:.1%}" in card
    assert "Trial 3 of the sweep `one`" in card
    assert "evaluated once" in card
    reference = read_header(bench.champion)["reference"]
    assert reference["pictures"] == 30
    classifier = Classifier(bench.champion)
    files, answers, _ = known_answers(reference)
    assert classifier(files) == pytest.approx(answers, abs=1e-3)


def test_champion_names_its_experiment_in_comet(bench, good):
    note = bench.champion.parents[1] / "runs/one/trials/0003/comet.json"
    note.parent.mkdir(parents=True)
    note.write_text('{"url": "https://comet.example/catdog/abc"}')
    bench(good[0], 3)
    assert read_header(bench.champion)["provenance"]["experiment"] == "https://comet.example/catdog/abc"
    assert "<https://comet.example/catdog/abc>" in (bench.champion.parent / "README.md").read_text()


def test_better_challenger_wins_and_worse_one_is_kept_out(bench, good):
    bench(build_model(GOOD), 0)
    outcome = bench(good[0], 1)
    assert outcome.promoted
    assert outcome.comparison["verdict"] == "better"
    assert "trial 1 of one is better than the champion, trial 0 of one: accuracy +" in outcome.reason
    assert "kept as" in outcome.notes[-1]
    before = load_model(bench.champion)[0]
    outcome = bench(build_model(GOOD, seed=5), 2)
    assert not outcome.promoted
    assert "is worse than the champion" in outcome.reason
    model, header = load_model(bench.champion)
    assert torch.equal(model.head[2].weight, before.head[2].weight)
    assert header["provenance"]["trial"] == 1
    assert header["metrics"]["test"]["looks"] == 3  # one for each attempt, whoever won
    said = "\n".join(describe_outcome(outcome))
    assert re.search(
        r"challenger: trial 2 of one, test accuracy \d.*\nchampion: trial 1 of one, test accuracy \d", said
    )
    assert "test set" not in said  # its use is told before the test
    assert len(list((bench.champion.parent / "history").iterdir())) == 1


def widened(model):
    """A larger network that answers all but exactly the same."""
    wide = build_model(LARGER)
    wide.load_state_dict({name: torch.zeros_like(tensor) for name, tensor in wide.state_dict().items()})
    for name, tensor in wide.state_dict().items():
        small = model.state_dict()[name]
        if name.endswith("head.2.weight"):
            tensor.view(2, 24, 2, 2)[:, :16] = small.view(2, 16, 2, 2)
        elif tensor.dim():
            tensor[tuple(slice(size) for size in small.shape)] = small
    return wide


@pytest.mark.parametrize("cheaper_is_challenger", [True, False])
def test_tied_challenger_wins_where_it_is_cheaper(bench, good, cheaper_is_challenger):
    small, large = good[0], widened(good[0])
    first, second = (large, small) if cheaper_is_challenger else (small, large)
    bench(first, 0)
    outcome = bench(second, 1)
    assert outcome.comparison["verdict"] == "tied"
    assert outcome.promoted is cheaper_is_challenger
    cost = "cheaper" if cheaper_is_challenger else "no cheaper"
    assert f"trial 1 of one is tied with trial 0 of one, the champion, and {cost} (" in outcome.reason
    assert outcome.advice.endswith("--trial 1 --promote always replaces it anyway") is not cheaper_is_challenger


def test_the_same_weights_again_are_no_challenger_and_cost_no_look(bench, good):
    bench(good[0], 3)
    before = bench.champion.read_bytes()
    outcome = bench(good[0], 3)
    assert not outcome.promoted
    assert outcome.reason == "trial 3 of one is already the champion (identical weights)"
    assert bench.champion.read_bytes() == before


def test_champion_of_other_data_or_classes_is_no_opponent(bench, good):
    bench(good[0], 0)
    model, header = load_model(bench.champion)
    header["provenance"]["data"]["fingerprint"] = "of other images"
    header["provenance"]["data"]["source"] = "photographs"
    save_model(model, bench.champion, header)
    before = bench.champion.read_bytes()
    outcome = bench(build_model(GOOD), 1)
    assert not outcome.promoted
    assert "was trained on other data or classes and cannot be compared (photographs, not synthetic)" in outcome.reason
    assert bench.champion.read_bytes() == before
    outcome = bench(build_model(GOOD), 1, always=True)
    assert outcome.promoted
    assert "without a comparison, because of --promote always" in outcome.reason


def test_model_of_other_images_is_not_tested_on_these(bench, good):
    with pytest.raises(ValueError, match="trial 0 of one was not trained on the images of synthetic; give its"):
        bench(good[0], 0, data="of other images")
    assert not bench.champion.exists()


def test_altered_champion_is_refused_and_replaced_only_on_demand(bench, good):
    bench(good[0], 0)
    content = bytearray(bench.champion.read_bytes())
    content[-100] ^= 1
    bench.champion.write_bytes(content)
    helps = "match; put back a copy of it, or give --promote always to replace it$"
    with pytest.raises(ValueError, match=rf"model\.safetensors was altered: its sha256 does not {helps}"):
        bench(build_model(GOOD), 1)
    with pytest.raises(ValueError, match=f"not {helps}"):
        provenance_of(bench.champion.parent)
    why = "no champion came before the present one, which is damaged; promote a trial with PYTHONPATH="
    with pytest.raises(ValueError, match=why):
        restore(bench.champion.parent)
    assert bench.champion.read_bytes() == content
    outcome = bench(build_model(GOOD), 1, always=True)
    assert outcome.promoted
    assert "without a comparison, because of --promote always" in outcome.reason


def test_damaged_champion_with_one_before_it_may_be_rolled_back(bench, good, tmp_path):
    bench(build_model(GOOD), 0)
    bench(good[0], 1)
    bench.champion.write_text("junk")
    helps = f"put back a copy of it, or take the one before it: {module_command('search.promote')} --rollback"
    with pytest.raises(ValueError, match=f"not a whole model file of this project; {helps}$"):
        provenance_of(bench.champion.parent)
    (before,) = (bench.champion.parent / "history").iterdir()
    before.rename(tmp_path / "before")
    before.write_text("junk")
    with pytest.raises(ValueError, match=r"put back a copy of it, or give --promote always to replace it$"):
        provenance_of(bench.champion.parent)
    (tmp_path / "before").rename(before)
    assert "is trial 0 of one again" in restore(bench.champion.parent)


def test_readme_that_no_promotion_wrote_is_kept_and_told(bench, good, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    readme, told = bench.champion.parent / "README.md", []
    bench(build_model(GOOD), 0)
    for text in ("# Ours", "# Again ours"):
        readme.write_text(text)
        weights = tmp_path / "runs/one/trials/0000/model.safetensors"
        promote_weights(weights, bench.champion.parent, "synthetic", "cpu", say=told.append)
        bench(build_model(GOOD), 0)
    kept = [bench.champion.parent / f"history/README-{number}.md" for number in (1, 2)]
    assert [path.read_text() for path in kept] == ["# Ours", "# Again ours"]
    what = f"{readme} is the model card now; the one before it, which no promotion wrote, is kept as"
    assert told == [f"{what} {path}" for path in kept]
    bench(good[0], 1)
    readme.write_text("# Ours")
    assert restore(bench.champion.parent).startswith(f"note: {what} {kept[0].with_name('README-3.md')}\n")
    assert "Trial 0 of the sweep `one`" in readme.read_text()


def test_rollback_restores_the_champion_before(bench, good):
    bench(build_model(GOOD), 0)
    bench(good[0], 1)
    assert "is trial 0 of one again" in restore(bench.champion.parent)
    assert provenance_of(bench.champion.parent)["trial"] == 0
    assert "Trial 0 of the sweep `one`" in (bench.champion.parent / "README.md").read_text()
    with pytest.raises(ValueError, match="holds no champion to go back to: rollbacks withdrew all earlier ones"):
        restore(bench.champion.parent)
    assert "is trial 1 of one again" in restore(bench.champion.parent, undo=True)
    assert provenance_of(bench.champion.parent)["trial"] == 1
    with pytest.raises(ValueError, match="holds no champion that a rollback withdrew, so there is none to undo"):
        restore(bench.champion.parent, undo=True)
    assert "is trial 0 of one again" in restore(bench.champion.parent)


def test_looks_are_counted_across_rollbacks_and_champions_of_other_data(bench, good):
    bench(build_model(GOOD), 0)
    bench(good[0], 1)
    restore(bench.champion.parent)
    assert read_header(bench.champion)["metrics"]["test"]["looks"] == 2
    assert "evaluated 2 times" in (bench.champion.parent / "README.md").read_text()
    bench(build_model(GOOD, seed=5), 2)
    assert read_header(bench.champion)["metrics"]["test"]["looks"] == 3


def test_record_of_a_test_outlives_an_attempt_that_tested_nothing(bench, good):
    first = record_of(bench(good[0], 3), {})
    assert record_of(bench(good[0], 3), first) == first
    assert record_of(bench(build_model(GOOD), 3), first)["promoted"] is False


def test_missing_weights_are_one_sentence(bench, good, tmp_path):
    bench(good[0], 0)
    weights = tmp_path / "runs/one/trials/0009/model.safetensors"
    with pytest.raises(ValueError, match=r"trials/0009/model\.safetensors does not exist"):
        promote_weights(weights, tmp_path / "best_model", "synthetic", "cpu")


def test_every_one_of_500_flipped_bits_is_refused_by_predict_and_report(bench, good):
    bench(good[0], 0)
    study = optuna.create_study()
    study.set_user_attr(PROMOTION, {})
    content, random = bytearray(bench.champion.read_bytes()), Random(7)
    in_header = 8 + int.from_bytes(content[:8], "little")
    assert in_header > 1000
    for flip in range(500):
        bit = random.randrange(8 * (in_header if flip % 2 else len(content)))
        content[bit // 8] ^= 1 << bit % 8
        bench.champion.write_bytes(content)
        for read in (Classifier, lambda champion: champion_of(study, champion.parent)):
            with pytest.raises(
                ValueError, match=r"model\.safetensors (was altered|is not a whole|lacks|does not hold)"
            ):
                read(bench.champion)
        content[bit // 8] ^= 1 << bit % 8
    bench.champion.write_bytes(content)
    assert champion_of(study, bench.champion.parent)["provenance"]["run"] == "one"


def promote_command(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["promote", *arguments])
    main()


@pytest.fixture
def withdrawn(bench, good, tmp_path):
    """Trial 0 of one, which a rollback to trial 0 of another sweep withdrew."""
    ended(create_study(make_sweep(tmp_path / "runs/one", 1), {}), TrialState.COMPLETE)
    bench(build_model(GOOD), 0, run="other")
    bench(good[0], 0)
    restore(bench.champion.parent)
    return bench


def test_command_needs_a_sweep_or_rollback(monkeypatch, capsys):
    for arguments, answer in (
        ([], "no sweep is named"),
        (["one", "--rollback"], "leave out 'one'"),
        (["--undo-rollback", "--trial", "3"], "leave out '--trial'"),
        (["--rollback", "--undo-rollback"], "leave out --rollback"),
    ):
        with pytest.raises(SystemExit, match="2"):
            promote_command(monkeypatch, *arguments)
        assert answer in capsys.readouterr().err


def ended(study, *states):
    for state in states:
        claim = acquire(study, 0, "cpu")
        if state != TrialState.FAIL:
            study.report(claim.trial, 1, 0.5)
        study.tell(claim.trial, state, 0.5 if state == TrialState.COMPLETE else None)
        claim.release()


BAD = {
    "unknown run": ((), ["none"], "runs/none holds no sweep; name one of runs/"),
    "mistyped run": ((), ["tow"], "runs/tow holds no sweep; name one of runs/"),
    "empty run": ((), ["two"], "runs/two has no winner: none of its 0 trials completed"),
    "failed run": ((TrialState.FAIL,), ["two"], "runs/two has no winner: none of its 1 trials completed"),
    "run that goes on": ((TrialState.COMPLETE,), ["two"], "runs/two has no winner yet; let its sweep end, or give"),
    "unknown trial": ((TrialState.COMPLETE,), ["two", "--trial", "7"], "has no trial 7; its only trial is 0"),
    "no trials": ((), ["two", "--trial", "0"], "runs/two has no trial 0; it has none yet; start its sweep"),
    "missing weights": (
        (TrialState.COMPLETE,),
        ["two", "--trial", "0"],
        "0000/model.safetensors is not there (deleted, or",
    ),
    "trial that failed at once": (
        (TrialState.FAIL,),
        ["two", "--trial", "0"],
        "of runs/two ended before its first epoch",
    ),
    "nothing before": ((), ["--rollback"], "holds no champion to go back to: no champion came before the present one"),
    "nothing to undo": ((), ["--undo-rollback"], "holds no champion that a rollback withdrew"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence_and_leaves_the_champion(bench, good, tmp_path, monkeypatch, capsys, case):
    states, arguments, message = BAD[case]
    bench(good[0], 0)
    ended(create_study(make_sweep(tmp_path / "runs/two", 2), {}), *states)
    before = bench.champion.read_bytes()
    with pytest.raises(SystemExit, match="2"):
        promote_command(monkeypatch, *arguments)
    complained = capsys.readouterr().err
    assert message in complained
    assert complained.count("\n") == 1
    assert bench.champion.read_bytes() == before


def test_best_model_that_cannot_be_written_is_one_sentence(bench, good, tmp_path, monkeypatch, capsys):
    ended(create_study(make_sweep(tmp_path / "runs/one", 1), {}), TrialState.COMPLETE)
    bench(good[0], 0)
    shutil.rmtree(bench.champion.parent)
    bench.champion.parent.write_text("a file")
    with pytest.raises(SystemExit, match="2"):
        promote_command(monkeypatch, "one", "--trial", "0")
    assert "best_model is not a folder; move it away" in capsys.readouterr().err


@contextmanager
def full_disk():
    """Let this process write no byte to any file; it may still rename, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_readme_that_no_promotion_wrote_stays_on_a_full_disk(withdrawn, monkeypatch, capsys):
    readme = withdrawn.champion.parent / "README.md"
    readme.write_text("# Ours")
    with full_disk():
        promote_command(monkeypatch, "--undo-rollback")
    assert "note: best_model/README.md could not be written" in capsys.readouterr().out
    assert readme.read_text() == "# Ours"
    assert not list(readme.parent.glob("history/*.md"))


def test_rollbacks_succeed_on_a_full_disk_and_say_what_is_not_written(withdrawn, monkeypatch, capsys):
    for option, trial in (("--undo-rollback", "0 of one"), ("--rollback", "0 of other")):
        card = (withdrawn.champion.parent / "README.md").read_text()
        with full_disk():
            promote_command(monkeypatch, option)
        note, done = capsys.readouterr().out.splitlines()
        assert note.startswith("note: best_model/README.md could not be written (File too large); it does not describe")
        assert f"is trial {trial} again" in done
        assert (withdrawn.champion.parent / "README.md").read_text() == card
        assert f"trial {trial}" == model_name(provenance_of(withdrawn.champion.parent))


def test_promotion_on_a_full_disk_leaves_the_champion(withdrawn, monkeypatch, capsys):
    before = {path: path.read_bytes() for path in withdrawn.champion.parent.rglob("*.*")}
    with full_disk(), pytest.raises(SystemExit, match="1"):
        promote_command(monkeypatch, "one", "--trial", "0")
    said = "best_model/ cannot be written (File too large); the champion stays as it is; raise the size of files"
    assert said in capsys.readouterr().err
    assert {path: path.read_bytes() for path in withdrawn.champion.parent.rglob("*.*")} == before


def test_promotion_succeeds_where_its_card_or_record_cannot_be_written(withdrawn, tmp_path):
    (withdrawn.champion.parent / "README.md").unlink()
    (withdrawn.champion.parent / "README.md").mkdir()

    def damage(_):
        with closing(sqlite3.connect(tmp_path / "runs/one/study.db")) as study:
            study.execute("DROP TABLE study_user_attributes")

    said = "\n".join(promote_trial(Path("runs/one"), 0, always=False, say=damage))
    assert "note: best_model/README.md could not be written (Is a directory); it does not describe" in said
    assert (
        "note: the study of runs/one could not be written (no such table: study_user_attributes); its report lacks"
        in said
    )
    assert "promoted: trial 0 of one is better" in said
    assert provenance_of(withdrawn.champion.parent)["run"] == "one"


def test_trial_is_promoted_by_hand_and_told(withdrawn, good, tmp_path, monkeypatch, capsys):
    promote_command(monkeypatch, "one", "--trial", "0")
    said = capsys.readouterr().out
    assert "challenger: trial 0 of one, test accuracy" in said
    assert "promoted: trial 0 of one is better than the champion, trial 0 of other" in said
    assert load_study(tmp_path / "runs/one").user_attrs[PROMOTION]["trials/0000"]["promoted"]
    withdrawn(good[0], 0, run="third", always=True)
    promote_command(monkeypatch, "one", "--trial", "0")
    assert "is already the champion (identical weights)" in capsys.readouterr().out
    promote_command(monkeypatch, "--rollback")
    assert "is trial 0 of other again" in capsys.readouterr().out


def test_images_that_have_moved_can_be_named(withdrawn, monkeypatch, capsys):
    before = withdrawn.champion.read_bytes()
    with pytest.raises(SystemExit, match="2"):
        promote_command(monkeypatch, "one", "--trial", "0", "--data", "nowhere")
    assert "data folder nowhere does not exist" in capsys.readouterr().err
    assert withdrawn.champion.read_bytes() == before


def test_withdrawn_champion_can_be_promoted_again(withdrawn, monkeypatch, capsys):
    promote_command(monkeypatch, "one", "--trial", "0")
    promote_command(monkeypatch, "--rollback")
    before = withdrawn.champion.parent / "history/0004-withdrawn.safetensors"
    assert f"is kept as best_model/history/{before.name}; PYTHONPATH=" in capsys.readouterr().out
    promote_command(monkeypatch, "--undo-rollback")
    assert provenance_of(withdrawn.champion.parent)["run"] == "one"
    promote_command(monkeypatch, "--rollback")
    promote_command(monkeypatch, "one", "--trial", "0")
    assert provenance_of(withdrawn.champion.parent)["run"] == "one"
    assert "promoted: trial 0 of one is better" in capsys.readouterr().out


def test_loser_is_not_tested_again_beside_the_same_champion(bench, good, tmp_path, monkeypatch, capsys):
    ended(create_study(make_sweep(tmp_path / "runs/one", 1), {}), TrialState.COMPLETE)
    bench(build_model(GOOD), 0)
    bench(good[0], 0, run="other")
    for said in ("kept the champion: trial 0 of one is worse", "--promote always replaces it"):
        promote_command(monkeypatch, "one", "--trial", "0")
        assert said in capsys.readouterr().out
        assert read_header(bench.champion)["metrics"]["test"]["looks"] == 3


def test_use_of_the_test_set_is_told_before_it_is_made(bench, good, tmp_path):
    bench(build_model(GOOD), 0)
    weights, looks = tmp_path / "runs/one/trials/0001/model.safetensors", []

    def say(text):
        looks.append((text, read_header(bench.champion)["metrics"]["test"]["looks"]))

    shutil.copytree(weights.parents[1] / "0000", weights.parent)
    save_model(good[0], weights, read_header(weights))
    promote_weights(weights, bench.champion.parent, "synthetic", "cpu", say=say)
    assert looks == [("testing trial 0 of one on 300 held-out images: use 2 of this test set", 1)]


def test_trial_that_was_pruned_is_promoted_with_a_note(bench, good, tmp_path, monkeypatch, capsys):
    ended(create_study(make_sweep(tmp_path / "runs/one", 1), {}), TrialState.PRUNED)
    bench(good[0], 0)
    bench.champion.unlink()
    path = tmp_path / "runs/one/trials/0000/model.safetensors"
    model, header = load_model(path)
    save_model(model, path, {**header, "provenance": {**header["provenance"], "training": {"epochs": 4}}})
    promote_command(monkeypatch, "one", "--trial", "0")
    said = capsys.readouterr().out
    assert said.startswith("note: the training of trial 0 ended after epoch 1 of 4: pruned\ntesting trial 0 of one on")
    assert "promoted: trial 0 of one is the champion" in said


@pytest.mark.parametrize("fault", ["is not there (deleted, or not kept: --keep)", "is damaged"])
def test_trial_stands_in_for_the_lost_weights_of_its_confirmation(withdrawn, tmp_path, monkeypatch, capsys, fault):
    winner = Candidate(0, (0,), (0.5,), 0.5, None, 1.0, "best mean", 0)
    load_study(tmp_path / "runs/one").set_user_attr(CANDIDATES, [asdict(winner)])
    weights = Path("runs/one/confirmation/0000/model.safetensors")
    weights.parent.mkdir(parents=True)
    if fault == "is damaged":
        weights.write_bytes(Path("runs/one/trials/0000/model.safetensors").read_bytes()[:-7])
    promote_command(monkeypatch, "one")
    said = capsys.readouterr().out
    assert said.startswith(
        f"note: {weights} {fault}; the weights of trial 0 itself are tested instead\ntesting trial 0"
    )
    assert "promoted: trial 0 of one is better" in said


def test_advice_to_take_the_challenger_anyway_works(bench, good, tmp_path, monkeypatch, capsys):
    ended(create_study(make_sweep(tmp_path / "runs/one", 1), {}), TrialState.COMPLETE)
    bench(good[0], 0, run="other")
    bench(widened(good[0]), 0)  # tied, and costlier
    promote_command(monkeypatch, "one", "--trial", "0")
    said = capsys.readouterr().out
    advice = said.splitlines()[-1].partition("python -m search.promote ")[2].removesuffix(" replaces it anyway")
    assert advice == "one --trial 0 --promote always"
    promote_command(monkeypatch, *advice.split())
    assert "without a comparison, because of --promote always" in capsys.readouterr().out


def test_missing_folder_of_the_winner_names_what_can_be_promoted(bench, good, tmp_path, monkeypatch, capsys):
    ended(create_study(make_sweep(tmp_path / "runs/two", 2), {}), TrialState.COMPLETE, TrialState.COMPLETE)
    bench(good[0], 1, run="two")
    shutil.rmtree(tmp_path / "runs/two/trials/0000")
    with pytest.raises(SystemExit, match="2"):
        promote_command(monkeypatch, "two", "--trial", "0")
    said = "runs/two/trials/0000 is gone, with the weights of trial 0; put it back, or promote another trial: --trial 1"
    assert said in capsys.readouterr().err
    promote_command(monkeypatch, "two", "--trial", "1")
    assert "trial 1 of two is already the champion" in capsys.readouterr().out
