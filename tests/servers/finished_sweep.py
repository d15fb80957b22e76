"""A sweep that has ended, with everything its report shows, made up in seconds: no network was trained."""

import json
from dataclasses import asdict
from datetime import datetime, timedelta

import numpy as np
from optuna.trial import TrialState, create_trial

from catdog.data.synthetic import synthetic
from catdog.evaluate import thumbnail
from search.analysis.confirmation import OUTCOMES, candidates_of
from search.space.space import load_space
from search.study.create import create_study
from search.study.queue import acquire
from search.study.sweep import Sweep
from tests.servers.counting_sweep import begin_confirmation

EPOCHS, BEGAN = 8, datetime.now() - timedelta(hours=3)  # noqa: DTZ005 - as Optuna's
SPACE = {
    "algorithm": "bayes",
    "parameters": {
        "body_width": {"type": "discrete", "values": [64, 128, 192, 256]},
        "share_body": {"type": "categorical", "values": ["true", "false"]},
        "dropout": {"type": "float", "min": 0.0, "max": 0.3, "scalingType": "uniform"},
        "learning_rate": {"type": "float", "min": 0.0005, "max": 0.01, "scalingType": "loguniform"},
        "body_repeats": {"type": "integer", "min": 3, "max": 4, "scalingType": "uniform"},
        "ema": {"type": "discrete", "values": [0.9995]},
    },
    "spec": {"maxCombo": 500, "metric": "best_val_loss", "objective": "minimize", "seed": 1},
}
BASELINE = {"body_width": 512, "share_body": True, "dropout": 0.0, "learning_rate": 1e-4, "body_repeats": 4, "ema": 0.0}
REASONS = ["diverged in epoch 2: training loss is nan", "RuntimeError: <b>no memory</b>"]


def make_finished_sweep(folder, num_trials, num_images=600):
    """Write study and files of a sweep with pruned, failed and unfinished trials, confirmed and promoted."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = folder.with_suffix(".json")
    path.write_text(json.dumps(SPACE))
    space = load_space(path, BASELINE, {"val_loss": "minimize"}, lambda _: None)
    study = create_study(
        Sweep(folder, space, EPOCHS, num_trials, "hyperband"),
        {"goal": {"metric": "best_val_loss", "direction": "minimize"}},
    )
    random = np.random.default_rng(3)
    difficulty = random.exponential(0.35, num_images)
    study.optuna.add_trials([_trial(number, space, random) for number in range(num_trials)])
    for trial in study.trials():
        if trial.intermediate_values:
            losses = difficulty + min(trial.intermediate_values.values()) - 0.35 + random.normal(0, 0.1, num_images)
            _write_files(study.sweep.trial_folder(trial.number), losses)
    runs = begin_confirmation(study, 3, 2)
    while claim := acquire(runs, 0, "cpu"):
        losses = difficulty - 0.1 + random.normal(0, 0.1, num_images)
        _write_files(runs.sweep.trial_folder(claim.trial.number), losses)
        runs.report(claim.trial, 1, losses.mean())
        runs.note(claim.trial, seconds=20.0)
        runs.tell(claim.trial, TrialState.COMPLETE, losses.mean())
        claim.release()
    candidates = candidates_of(study, runs.trials(), lambda _: 4e8)
    study.note_candidates([asdict(candidate) for candidate in candidates])
    study.note_promotion(
        f"confirmation/{candidates[0].best_run:04}",
        {
            "promoted": True,
            "reason": "trial 5 is the champion: there was none before",
            "time": "2026-01-01T13:00:00+00:00",
            "challenger": {
                "accuracy": 0.97,
                "accuracy_interval": [0.95, 0.98],
                "pictures": 900,
                "confusion": [[440, 10], [17, 433]],
            },
            "test": {"pictures": 900, "left_out": 2, "looks": 1},
        },
    )
    return study


def _trial(number, space, random):
    state = [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL][random.choice(3, p=[0.55, 0.35, 0.1])]
    state = TrialState.COMPLETE if number == 0 else state
    num_epochs = {TrialState.COMPLETE: EPOCHS, TrialState.PRUNED: 4, TrialState.FAIL: 1}[state]
    values = {
        "body_width": int(random.choice([64, 128, 192, 256])),
        "share_body": str(random.choice(["true", "false"])),
        "dropout": random.uniform(0, 0.3),
        "learning_rate": float(np.exp(random.uniform(np.log(0.0005), np.log(0.01)))),
        "body_repeats": int(random.integers(3, 5)),
        "ema": 0.9995,
    }
    floor = 0.3 + 0.1 * abs(np.log(values["learning_rate"] / 0.002)) + random.normal(0, 0.02)
    curve = {epoch: float(floor + 0.6 / epoch) for epoch in range(1, num_epochs + 1)}
    start = BEGAN + timedelta(seconds=30 * (number // 2))
    trial = create_trial(
        state=state,
        value=curve[num_epochs] if state == TrialState.COMPLETE else None,
        params={} if number == 0 else values,
        distributions={} if number == 0 else space.distributions,
        intermediate_values=curve,
        user_attrs={
            **({"parameters": space.baseline} if number == 0 else {}),
            "worker": {"slot": number % 2, "device": f"cuda:{number % 2}", "host": "here", "pid": 1},
            "seconds": 3.5 * num_epochs,
            "metrics": {"val_accuracy": 0.9},
            "reason": REASONS[number % 2] if state == TrialState.FAIL else "",
        },
    )
    trial.datetime_start, trial.datetime_complete = start, start + timedelta(seconds=3.5 * num_epochs)
    return trial


def _write_files(folder, losses):
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / OUTCOMES, val_loss=losses, val_accuracy=(losses < 0.7).astype(np.float32))
    (folder / "confusion.json").write_text(json.dumps({"labels": ["cat", "dog"], "matrix": [[280, 20], [30, 270]]}))
    (folder / "command.txt").write_text("python -m catdog.train --data synthetic --seed 7\n")
    (folder / "mistakes.json").write_text(json.dumps(MISTAKES))


def _mistakes():
    images, labels = synthetic(6, 64, 1)
    return [
        {"label": ("cat", "dog")[y], "predicted": ("dog", "cat")[y], "probability": 0.9, "picture": thumbnail(image)}
        for image, y in zip(images, labels, strict=True)
    ]


MISTAKES = _mistakes()
