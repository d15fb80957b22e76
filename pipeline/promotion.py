"""Promotion: a challenger against the champion on the held-out test set. The better model is installed."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from catdog.checkpoint import load_model, save_model
from catdog.data.dataset import load_data, load_test
from catdog.device import find_devices
from catdog.serving.model_card import write_card
from catdog.serving.reference import make_reference
from pipeline.registry import (
    CHAMPION,
    WORK,
    count_looks,
    explain_damage,
    install,
    is_whole,
    noting,
    provenance_of,
    replaceable,
    rollback,
    undo_rollback,
)
from pipeline.verdict import (
    SAME,
    Contestant,
    Outcome,
    decide,
    describe_outcome,
    measure,
    model_name,
    reason_against_test,
)
from search.analysis.confirmation import Candidate
from search.study.shared_study import SharedStudy
from search.study.storage import StorageError, first_line
from search.study.sweep import CANDIDATES, PROMOTION, RUNS, load_study
from search.study.trials import state_of
from search.workers.tracking import Model, read_note
from shell.environment import module_command

BEST_MODEL = Path("best_model")
REGISTERED = "catdog"  # the champions' name in Comet's Model Registry
WEIGHTS = "model.safetensors"  # in a trial's folder
GONE = "is not there (deleted, or not kept: --keep)"
PARTS = ("trials", "confirmation")  # folders of a run
IDENTITY = ("sweep", "trial", "confirmation", "time")  # entries of a provenance that tell models apart


def promote_trial(
    folder: Path, number: int | None, always: bool, source: str = "", say: Callable[[str], None] = lambda _: None
) -> list[str]:
    """Promote a trial of the sweep in `folder`, its winner by default, if it is better; return sentences about it.

    A confirmed trial is promoted with the weights of its best run. `source` has the images, by default the source of
    the training. `say` is told what is about to be tested. Raises ValueError, one sentence.
    """
    study = load_study(folder)
    candidates = [Candidate(**entry) for entry in study.user_attrs.get(CANDIDATES, [])]
    trial = _finished_trial(folder, study, candidates, number)
    weights = _weights_of(folder, trial, candidates, say)
    promotions = study.user_attrs.get(PROMOTION, {})
    before = promotions.get(record_key(weights), {})
    if not always and is_settled(before, by_hand=True):
        kept = f"kept the champion, as on {before['time']}: {before['reason']}"
        return [kept, before.get("advice") or _anyway(weights, trial.number)]
    provenance = load_model(weights)[1]["provenance"]
    if "trial" not in provenance:
        raise ValueError(f"{weights} was not trained by a sweep; promote a file that was")
    if trial.state != TrialState.COMPLETE:
        of = f" of {provenance['training']['epochs']}" if "training" in provenance else ""
        say(f"note: the training of trial {trial.number} ended after epoch {trial.last_step}{of}: {state_of(trial)}")
    source = source or _source_of(provenance)
    outcome = promote_weights(weights, BEST_MODEL, source, find_devices("auto")[0], always=always, say=say)
    try:
        study.set_user_attr(PROMOTION, {**promotions, record_key(weights): record_of(outcome, before)})
    except StorageError as error:  # the champion is in place
        lost = f"the study of {folder} could not be written ({first_line(error)}); its report lacks this promotion"
        outcome = replace(outcome, notes=(*outcome.notes, lost))
    return describe_outcome(outcome)


def promote_weights(
    weights: Path,
    best_model: Path,
    source: str,
    device: str,
    *,
    always: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Outcome:
    """Make the model file `weights` the champion of `best_model`, if it is better, or tied and cheaper.

    Both are tested on the held-out images of `source`. `say` is told before, and the champion's header counts it. With
    `always` nothing is compared. Raises ValueError, one sentence, and changes nothing, for unusable files or images.
    """
    challenger = _challenger(weights)
    anyway = _anyway(weights, challenger.header["provenance"].get("trial"))
    notes: list[str] = []
    with replaceable(best_model, noting(partial(write_card, say=say), notes)) as new:
        champion = _open_champion(best_model, always=always)
        if reason := reason_against_test(challenger, champion, always=always):
            return Outcome(promoted=False, reason=reason, advice="" if reason.endswith(SAME) else anyway)
        data = load_data(source, challenger.model.config.image_size)
        if data.fingerprint != challenger.trained_on()[0]:
            raise ValueError(f"{challenger.name} was not trained on the images of {source}; give its training images")
        test = load_test(source, challenger.model.config.image_size)
        looks = 1 + count_looks(best_model, test.fingerprint)
        say(f"testing {challenger.name} on {len(test.subset)} held-out images: use {looks} of this test set")
        tested = measure(challenger, test, source, device)
        opponent = measure(champion, test, source, device) if champion and not always else None
        outcome = decide(tested, opponent, is_first=not (best_model / CHAMPION).exists(), anyway=anyway)
        winner = tested if outcome.promoted or opponent is None else opponent
        about = {"fingerprint": test.fingerprint, "left_out": test.num_left_out, "looks": looks}
        model, header = winner.contestant.model, _tested_header(winner.contestant.header, {**winner.figures, **about})
        if outcome.promoted:
            header["reference"] = make_reference(model, data, device)
        save_model(model, new, header)
        kept = install(best_model, new, keep=outcome.promoted)
    notes = [*test.notes, *notes, *([f"the champion before it is kept as {kept}"] if kept else [])]
    return replace(outcome, notes=tuple(notes), test={**about, "pictures": len(test.subset)})


def restore(best_model: Path, *, undo: bool = False) -> str:
    """Make the champion's predecessor the champion again; return lines about it. `undo` takes that back."""
    notes: list[str] = []
    describe = noting(partial(_count_and_describe, say=notes.append), notes)
    before, after = (undo_rollback if undo else rollback)(best_model, load_model, describe)
    name = model_name(provenance_of(best_model))
    kept = f"; the champion until then is kept as {after}" if after else ""
    can_return = not undo and after and is_whole(after, load_model)
    back = f"; {module_command('search.promote')} --undo-rollback takes it back" if can_return else ""
    done = f"{best_model / CHAMPION} is {name} again (it was {before}){kept}{back}"
    return "\n".join([*(f"note: {note}" for note in notes), done])


def _count_and_describe(path: Path, say: Callable[[str], object]) -> None:
    """Count the uses of the test set since a restored champion's own, then write its card."""
    champion = Contestant(*load_model(path))
    test = champion.header["metrics"].get("test", {})
    looks = count_looks(path.parent, test.get("fingerprint", ""))
    if looks > test.get("looks", 0):  # later champions were tested since
        new = path.parent / WORK / CHAMPION
        save_model(champion.model, new, _tested_header(champion.header, {**test, "looks": looks}))
        install(path.parent, new, keep=False)
    write_card(path, say)


def champion_of(study: optuna.Study, best_model: Path) -> dict[str, Any] | None:
    """Return the champion's header, if the sweep's winner was tested against it. Raises ValueError if it is damaged."""
    champion = best_model / CHAMPION
    return load_model(champion)[1] if PROMOTION in study.user_attrs and champion.exists() else None


def registered_model(study: SharedStudy, uid: str) -> Model | None:
    """Return the champion's entry in Comet's Model Registry, if it comes from this part of the sweep `uid`."""
    champion = provenance_of(BEST_MODEL)
    is_search = study.sweep.part == "search"
    number = champion.get("trial" if is_search else "confirmation")
    if champion.get("sweep") != uid or number is None or ("confirmation" in champion) == is_search:
        return None
    time = datetime.fromisoformat(champion["time"])
    version = f"{time.year}.{time.month * 100 + time.day}.{time.hour * 10000 + time.minute * 100 + time.second}"
    return Model(number, BEST_MODEL / CHAMPION, REGISTERED, version)


def is_settled(before: Mapping[str, Any], *, by_hand: bool = False) -> bool:
    """Say whether the record `before` of some weights makes another test unnecessary.

    A sweep tests its winner once, if there is a champion. By hand it is tested again unless it lost to this champion.
    """
    if not by_hand:
        return bool(before and provenance_of(BEST_MODEL))
    lost_to = {} if before.get("promoted") else before.get("champion", {})
    if not lost_to:
        return False
    champion = provenance_of(BEST_MODEL)
    return all(lost_to.get(name) == champion.get(name) for name in IDENTITY)


def describe_settled(before: Mapping[str, Any], name: str) -> list[str]:
    """Describe the earlier test of a sweep's winner, which is not repeated, and the champion by now."""
    verdict = "promoted" if before["promoted"] else "not promoted"
    return [
        f"{verdict} on {before['time']}: {before['reason']}",
        f"the champion in {BEST_MODEL}/ now: {model_name(provenance_of(BEST_MODEL))}",
        f"to test it again: {module_command('search.promote')} {name}",
    ]


def record_of(outcome: Outcome, before: Mapping[str, Any]) -> dict[str, Any]:
    """Return the study's record of some weights: the record `before` if only that has a test."""
    if not outcome.test and before.get("test"):
        return dict(before)
    return {**vars(outcome), "time": datetime.now(UTC).isoformat(timespec="seconds")}


def record_key(weights: Path) -> str:
    """Return the key of the record of a trial's weights: confirmation/0003, for example."""
    return "/".join(weights.parts[-3:-1])


def _challenger(weights: Path) -> Contestant:
    """Open a trial's weights. Their run has the present name of its folder, which may have been renamed."""
    challenger = Contestant(*load_model(weights))
    provenance = challenger.header["provenance"]
    if weights.parent.parent.name in PARTS:
        provenance["run"] = weights.absolute().parents[2].name
    if url := read_note(weights.parent).get("url"):
        provenance["experiment"] = url
    return challenger


def _finished_trial(
    folder: Path, study: optuna.Study, candidates: Sequence[Candidate], number: int | None
) -> FrozenTrial:
    """Return a trial that may be promoted, the winner by default."""
    trials = study.get_trials(deepcopy=False)
    if number is None:
        if not any(trial.state == TrialState.COMPLETE for trial in trials):
            raise ValueError(f"{folder} has no winner: none of its {len(trials)} trials completed")
        if not candidates:
            raise ValueError(f"{folder} has no winner yet; let its sweep end, or give --trial")
        number = candidates[0].trial
    if not 0 <= number < len(trials):
        known = {0: "it has none yet; start its sweep", 1: "its only trial is 0"}
        there = known.get(len(trials), f"its trials are 0 to {len(trials) - 1}")
        raise ValueError(f"{folder} has no trial {number}; {there}")
    if not trials[number].state.is_finished():
        raise ValueError(f"trial {number} of {folder} is unfinished; let its sweep end")
    return trials[number]


def _weights_of(folder: Path, trial: FrozenTrial, candidates: Sequence[Candidate], say: Callable[[str], None]) -> Path:
    """Return the weights of a trial's best confirmed run, else, with a note, those of the trial. Raises ValueError."""
    own = folder / "trials" / f"{trial.number:04}" / WEIGHTS
    confirmed = next((candidate for candidate in candidates if candidate.trial == trial.number), None)
    best = confirmed.folder(folder) / WEIGHTS if confirmed else own
    there = [weights for weights in dict.fromkeys((best, own)) if weights.exists()]
    if there:
        weights = next((weights for weights in there if is_whole(weights, load_model)), there[0])
        if weights != best:
            fault = "is damaged" if best.exists() else GONE
            say(f"note: {best} {fault}; the weights of trial {trial.number} itself are tested instead")
        return weights
    others = sorted(int(path.parent.name) for path in folder.glob(f"trials/[0-9]*/{WEIGHTS}"))
    remedy = (
        f"promote another trial: --trial {' or '.join(map(str, others[:9]))}" if others else "no trial has any here"
    )
    if not trial.intermediate_values:
        raise ValueError(f"trial {trial.number} of {folder} ended before its first epoch and has no weights; {remedy}")
    if not best.parent.is_dir():
        raise ValueError(f"{best.parent} is gone, with the weights of trial {trial.number}; put it back, or {remedy}")
    if (best.parent / "command.txt").exists():
        remedy += "; command.txt beside it trains this network again, outside the sweep"
    raise ValueError(f"{best} {GONE}, so it cannot be promoted; {remedy}")


def _anyway(weights: Path, number: int | None) -> str:
    """Return the command that promotes a trial without a comparison, as a sentence."""
    folder = weights.parents[2]
    name = folder.name if folder.parent == RUNS else str(folder)
    promote = f"{module_command('search.promote')} {shlex.quote(name)}"
    return f"{promote} --trial {number} --promote always replaces it anyway"


def _source_of(provenance: Mapping[str, Any]) -> str:
    """Return where a model's training images were. Raises ValueError if they are gone."""
    source = str(provenance["data"]["source"])
    if source not in ("synthetic", "kaggle") and not Path(source).exists():
        raise ValueError(f"{source}, the images of {model_name(provenance)}, does not exist; give --data FOLDER")
    return source


def _open_champion(best_model: Path, *, always: bool) -> Contestant | None:
    try:
        return Contestant(*load_model(best_model / CHAMPION)) if (best_model / CHAMPION).exists() else None
    except ValueError as error:
        if always:
            return None  # it cannot be compared, and history/ keeps it
        raise ValueError(explain_damage(best_model, error)) from error


def _tested_header(header: Mapping[str, Any], test: Mapping[str, Any]) -> dict[str, Any]:
    return {**header, "metrics": {**header["metrics"], "test": dict(test)}}
