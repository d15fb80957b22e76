"""What a sweep did and when, so that its time left can be guessed again: from its study and its histories.

python -m tests.servers.record_run runs/NAME tests/servers/recorded/NAME.json
"""

import csv
import json
import platform
import sys
from pathlib import Path

from catdog.model import count_mult_adds
from pipeline.task import configure
from search.study.sweep import load_confirmation, load_study, settings_of
from search.study.trials import CONFIRMS, parameters_of, state_of


def record(folder, is_search=False):
    """Return a JSON-able record; times are seconds from the first trial's start on, less of a value is better."""
    study, confirmation = load_study(folder), None if is_search else load_confirmation(folder)
    parts = {"trials": study.trials, "runs": confirmation.trials if confirmation else []}
    zero = min(trial.datetime_start for trial in study.trials)
    settings = settings_of(study)
    sign = 1 if settings["goal"]["direction"] == "minimize" else -1
    fixed = {name: settings[name] for name in ("image_size", "epochs")}
    again = [run.user_attrs[CONFIRMS] for run in parts["runs"] if state_of(run) != "pruned"]
    return {
        "machine": platform.processor() or platform.machine(),
        "epochs": max(trial.last_step or 0 for part in parts.values() for trial in part),
        "workers": len({trial.user_attrs["worker"]["slot"] for trial in study.trials}),
        "confirm": len(set(again)),
        "repeats": max(map(again.count, again), default=0),
        "baseline": not study.trials[0].params,
        **{
            part: [
                {
                    **entry(trial, sign, zero, folder / name / f"{trial.number:04}"),
                    "cost": count_mult_adds(configure(parameters_of(trial), fixed)[0]),
                }
                for trial in trials
            ]
            for (part, trials), name in zip(parts.items(), ("trials", "confirmation"), strict=True)
        },
    }


def entry(trial, sign, zero, folder):
    values = [sign * trial.intermediate_values[epoch] for epoch in sorted(trial.intermediate_values)]
    with (folder / "history.csv").open() as file:
        seconds = [float(row["seconds"]) for row in csv.DictReader(file)]
    return {
        "number": trial.number,
        "confirms": trial.user_attrs.get(CONFIRMS),
        "state": state_of(trial),
        "start": round((trial.datetime_start - zero).total_seconds(), 2),
        "seconds": [round(each, 2) for each in seconds],  # of each epoch
        "end": round((trial.datetime_complete - zero).total_seconds(), 2),
        "values": [round(value, 5) for value in values],
    }


def main():
    folder, path, *search = sys.argv[1:]
    Path(path).write_text(
        json.dumps(record(Path(folder), search == ["--search"])).replace('{"number', '\n{"number') + "\n"
    )


if __name__ == "__main__":
    main()
