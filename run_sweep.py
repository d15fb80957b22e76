"""Launch or resume a sweep, rank its trials, promote the winner. `python run_sweep.py --help` lists the options."""

import argparse
import os
import re
import shlex
import signal
import sys
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console
from rich.table import Table

from catdog.data import Data, describe_source, load_data, locate
from catdog.device import find_devices
from catdog.model import count_mult_adds, count_parameters, read_header
from objective import DEFAULTS, METRICS, SEARCHABLE, TrainTrial, cast, configure, judge_model, origin
from search.ledger import Ledger, LedgerError, Sweep, create_ledger
from search.live import live_view
from search.promote import CHAMPION, promote
from search.report import rank, ranking_table, winner_of, write_ranking
from search.space import Parameters, first_proposals, load_space
from search.sweep import places, sole_owner
from search.sweep import run_sweep as search
from search.worker import Place

RUNS, BEST_MODEL = Path("runs"), Path("best_model")
NUM_SHOWN = 10  # trials in a dry run

console = Console(width=None if sys.stdout.isatty() else 260)  # a log file has no edge


@dataclass(frozen=True)
class Plan:
    """Everything the command line and the search space decide."""

    sweep: Sweep
    source: str  # of pictures
    fixed: Parameters  # of every trial: epochs, image_size
    where: list[Place]


def main(arguments: list[str] | None = None) -> int:
    """Return the exit status: 0 done, 1 failed, 2 the user's input, 130 interrupted."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # end as cleanly as on Ctrl-C
    options = parse(arguments)
    try:
        plan = make_plan(options)
        if options.dry_run:
            show_plan(plan)
            return 0
        plan = replace(plan, source=locate(plan.source))
        data = load_data(plan.source, plan.fixed["image_size"])
        with sole_owner(plan.sweep.folder):
            ledger = create_ledger(plan.sweep, settings(plan, data))
            return carry_out(plan, data, ledger)
    except ValueError as error:
        return complain(2, str(error))
    except (OSError, RuntimeError, LedgerError) as error:
        return complain(1, f"{error}; nothing is lost, the same command goes on: {command()}")
    except KeyboardInterrupt:
        return complain(130, f"interrupted; nothing is lost, the same command goes on: {command()}")


def carry_out(plan: Plan, data: Data, ledger: Ledger) -> int:
    """Search until the budget is spent, rank, promote."""
    say(f"data: {describe_source(plan.source)}; {len(data.training)} to train, {len(data.validation)} to validate")
    for note in data.notes:
        say(f"note: {note}")
    if plan.source == "synthetic":
        say("note: these pictures are drawn; for photographs give --data kaggle or --data FOLDER")
    if ledger.num_unfinished() <= 0:
        say(f"nothing left to do: all {plan.sweep.num_trials} trials of {plan.sweep.name} have ended")
    objective = TrainTrial(plan.sweep, plan.source, plan.fixed, data.fingerprint, origin())
    try:
        with live_view(ledger, console) as show:
            search(ledger, objective, plan.where, show)
    finally:
        ranking = rank(ledger.trials(), plan.sweep.space.goal)
        write_ranking(plan.sweep.folder / "ranking.csv", ranking, plan.sweep.space.goal)
        console.print(ranking_table(ranking, plan.sweep.space.goal, console.width))
    winner = winner_of(ranking)
    if winner is None:
        return complain(1, "no trial completed, so nothing is promoted; the ranking says why each one ended")
    promote_winner(plan, ledger, winner.trial)
    return 0


def make_plan(options: argparse.Namespace) -> Plan:
    """Validate everything the user wrote, before anything is created. Raises ValueError, one sentence."""
    given = {name: getattr(options, name) for name in ("epochs", "image_size")}
    fixed = {name: DEFAULTS[name] if value is None else value for name, value in given.items()}
    configure({}, fixed)
    space = load_space(options.config, SEARCHABLE, METRICS, lambda parameters: configure(parameters, fixed))
    for name, value in given.items():
        if name in space.parameters and value is not None:
            raise ValueError(f"{options.config}: {name} is searched; leave out --{name.replace('_', '-')}")
    sizes = space.values_of("image_size") or [fixed["image_size"]]
    for depth in space.values_of("body_repeats"):
        configure({"image_size": min(sizes), "body_repeats": depth}, fixed)
    if options.seed is not None:
        space = replace(space, seed=options.seed)
    num_trials = space.num_trials if options.trials is None else options.trials
    if num_trials < 1:
        raise ValueError(f"{options.config}: spec.maxCombo is 0; set it, or give --trials with 1 or more")
    devices = find_devices(options.devices)
    num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    num_workers = options.workers or (num_cores if devices == ["cpu"] else len(devices))
    epochs = max(cast("epochs", n) for n in [fixed["epochs"], *space.values_of("epochs")])
    name = options.name or space.name
    if not re.fullmatch(r"[\w][\w.-]*", name):
        raise ValueError(f"--name is {name!r}; use letters, digits, '.', '_' and '-'")
    sweep = Sweep(RUNS / name, space, epochs, num_trials, options.pruner)
    return Plan(sweep, options.data, fixed, places(devices, num_workers, num_cores))


def settings(plan: Plan, data: Data) -> dict[str, Any]:
    """Say what must be the same when a sweep is resumed; the budget, devices and workers may change."""
    space = plan.sweep.space
    return {
        "data": data.fingerprint,
        **plan.fixed,
        "seed": space.seed,
        "pruner": plan.sweep.pruner,
        "goal": asdict(space.goal),
        "algorithm": space.algorithm,
        "parameters": space.content["parameters"],
    }


def show_plan(plan: Plan) -> None:
    """Print what a sweep would do, and the size of its first trials."""
    sweep = plan.sweep
    say(f"sweep {sweep.name}: {sweep.num_trials} trials of at most {sweep.epochs} epochs, {sweep.space.algorithm}")
    say(f"goal: {sweep.space.goal.direction} {sweep.space.goal.metric}; pruner: {sweep.pruner}")
    say(f"data: {describe_source(plan.source)}")
    say(f"workers: {', '.join(f'{place.device} ({place.threads} threads)' for place in plan.where)}")
    table = Table(title="first trials", title_justify="left")
    for title in ("trial", "parameters", "weights", "mult-adds"):
        table.add_column(title, justify="left" if title == "parameters" else "right")
    for number, parameters in enumerate(first_proposals(sweep.space, min(NUM_SHOWN, sweep.num_trials))):
        shape, _ = configure(parameters, plan.fixed)
        values = " ".join(
            f"{key}={value:.3g}" if isinstance(value, float) else f"{key}={value}" for key, value in parameters.items()
        )
        table.add_row(str(number), values, f"{count_parameters(shape):,}", f"{count_mult_adds(shape) / 1e9:.2f} G")
    console.print(table)


def promote_winner(plan: Plan, ledger: Ledger, number: int) -> None:
    """Test the winner once on the sealed pictures and make it the champion, unless that was done."""
    champion = BEST_MODEL / CHAMPION
    holder = holder_of(champion)
    if holder == (plan.sweep.name, number):
        ledger.note_promotion(number)
        return say(f"winner: trial {number}, in {champion} already")
    if holder and ledger.promoted() == number:
        return say(f"winner: trial {number}, promoted before; {champion} now holds trial {holder[1]} of {holder[0]}")

    def judge(challenger: Path, target: Path) -> None:
        for sentence in judge_model(challenger, target, plan.source, plan.where[0].device):
            say(sentence)

    promote(plan.sweep.trial_folder(number) / "model.safetensors", BEST_MODEL, judge)
    ledger.note_promotion(number)
    return say(f"promoted: {champion}")


def holder_of(champion: Path) -> tuple[str, int] | None:
    """Return run and trial of the model in best_model/, None where there is none that is whole."""
    try:
        provenance = read_header(champion)["provenance"]
    except ValueError:
        return None
    return provenance.get("run"), provenance.get("trial")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    whole = partial(number_from, 0)
    positive = partial(number_from, 1)
    add = parser.add_argument
    add("config", nargs="?", type=Path, default=Path("configs/optimizer.json"), help="search space, goal and budget")
    add("--data", default="synthetic", help="synthetic, kaggle or a folder of photographs")
    add("--name", help="the run's folder below runs/; an existing one is resumed (default: the config's name)")
    add("--trials", type=positive, help="budget, the baseline included (default: spec.maxCombo)")
    add("--epochs", type=positive, help=f"at most, for each trial (default: {DEFAULTS['epochs']})")
    add("--image-size", type=positive, help=f"pixels (default: {DEFAULTS['image_size']})")
    add("--seed", type=whole, help="of proposals, weights and order (default: spec.seed)")
    add("--devices", default="auto", help="auto, cpu or cuda:0,cuda:1,...")
    add("--workers", type=positive, help="processes (default: one per GPU, else one per core)")
    add("--pruner", choices=("hyperband", "median", "none"), default="hyperband", help="what stops poor trials early")
    add("--dry-run", action="store_true", help="print the plan and train nothing")
    return parser.parse_args(arguments)


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        sys.exit(complain(2, f"{message}; --help lists the options"))


def number_from(least: int, text: str) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {least} on")
    return int(text)


def say(text: str) -> None:
    console.print(text, highlight=False, soft_wrap=True, markup=False)


def complain(status: int, message: str) -> int:
    print(f"run_sweep.py: {' '.join(message.split())}", file=sys.stderr)
    return status


def command() -> str:
    return shlex.join(["python", *sys.argv])


if __name__ == "__main__":
    sys.exit(main())
