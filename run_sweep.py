"""Launch or resume a sweep, rank its trials, promote the winner. `python run_sweep.py --help` lists the options."""

import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)  # until main: Ctrl-C while torch is imported ends without a traceback

import os
import platform
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from catdog.data import Data, describe_source, load_data, locate
from catdog.device import describe_device
from catdog.model import count_mult_adds, count_parameters, read_header
from objective import TrainTrial, configure, judge_model, origin
from plan import Plan, command, complain, make_plan, parse, settings
from search.comet import create_search, patiently
from search.ledger import Ledger, LedgerError, create_ledger
from search.live import live_view
from search.promote import CHAMPION, promote
from search.report import WIDE, Ranked, print_ranking, rank, winner_of, write_ranking
from search.space import first_proposals
from search.sweep import run_sweep as search
from search.sweep import sole_owner
from search.tracking import Model, Tracking, notify, settle

BEST_MODEL = Path("best_model")
REGISTERED = "catdog"  # the champions' name in Comet's Model Registry
NUM_SHOWN = 10  # trials in a dry run

console = Console(width=None if sys.stdout.isatty() else WIDE)


def main(arguments: list[str] | None = None) -> int:
    """Return the exit status: 0 done, 1 failed, 2 the user's input, 130 interrupted."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    options = parse(arguments)
    if os.environ.get("COMET_OPTIMIZER_PROCESS_ID", "0") != "0":  # comet optimize -j starts us once per job
        say("the first process of this comet optimize runs the workers of all")
        return 0
    again = f"nothing is lost, the same command goes on: {command(options)}"
    try:
        plan = make_plan(options, say)
        if options.dry_run:
            show_plan(plan)
            return 0
        plan = replace(plan, source=locate(plan.source))
        data = load_data(plan.source, plan.fixed["image_size"])
        with sole_owner(plan.sweep.folder):
            ledger = create_ledger(plan.sweep, settings(plan, data))
            if plan.engine == "comet":
                ledger = join_search(plan, ledger)
            return carry_out(plan, data, ledger)
    except ValueError as error:
        return complain(2, str(error))
    except MemoryError as error:
        return complain(1, f"not enough memory ({error}); take a smaller --image-size or fewer --workers")
    except (OSError, RuntimeError, LedgerError) as error:
        return complain(1, f"{error}; {again}")
    except KeyboardInterrupt:
        return complain(130, f"interrupted; {again}")


def carry_out(plan: Plan, data: Data, ledger: Ledger) -> int:
    """Search until the budget is spent, rank, promote, tell Comet."""
    announce(plan, data, ledger)
    code = origin()
    objective = TrainTrial(ledger.sweep, plan.source, plan.fixed, data.fingerprint, code)
    tracking = make_tracking(plan, ledger, code)
    with news_of(ledger, tracking):
        try:
            with live_view(ledger, console) as show:
                search(ledger, objective, plan.where, show, tracking)
        finally:
            ranking = show_ranking(ledger)
        winner = winner_of(ranking)
        if winner:
            promote_winner(plan, ledger, winner.trial)
        tell_comet(ledger, tracking)
    if winner:
        return 0
    return complain(1, "no trial completed, so nothing is promoted; the ranking says why each one ended")


def announce(plan: Plan, data: Data, ledger: Ledger) -> None:
    """Say what is going to happen."""
    say(f"data: {describe_source(plan.source)}; {len(data.training)} to train, {len(data.validation)} to validate")
    for note in data.notes:
        say(f"note: {note}")
    if plan.source == "synthetic":
        say("note: these pictures are drawn; for photographs give --data kaggle or --data FOLDER")
    if plan.notify and plan.tracking != "online":
        say("note: Comet can only notify with --tracking online")
    if ledger.num_unfinished() <= 0:
        say(f"nothing left to do: all {len(ledger.trials())} trials of {ledger.sweep.name} have ended")


def show_ranking(ledger: Ledger) -> list[Ranked]:
    """Print the ranking and write ranking.csv."""
    goal, path = ledger.sweep.space.goal, ledger.sweep.folder / "ranking.csv"
    ranking = rank(ledger.trials(), goal)
    write_ranking(path, ranking, goal)
    print_ranking(console, ranking, goal, path)
    return ranking


@contextmanager
def news_of(ledger: Ledger, tracking: Tracking | None) -> Iterator[None]:
    """Have Comet tell the user, where that is wanted, that the sweep has ended, or why it stopped."""
    anything_left = ledger.num_unfinished() > 0
    news = f"sweep {ledger.sweep.name} has ended"
    try:
        yield
    except BaseException as error:
        reason = "interrupted" if isinstance(error, KeyboardInterrupt) else str(error)
        news = f"sweep {ledger.sweep.name} stopped: {reason}"
        raise
    finally:
        if tracking and anything_left:
            notify(tracking, ledger.trials(), news)


def tell_comet(ledger: Ledger, tracking: Tracking | None) -> None:
    """Send what Comet has not got yet: results to its Optimizer, experiments, the promoted model."""
    if ledger.budget() < ledger.sweep.num_trials:
        say(f"Comet's search was over after {ledger.budget()} trials; it has nothing more to try")
    if num_left := ledger.report_left():
        say(f"Comet's Optimizer has not taken {num_left} results yet; the same command sends them")
    if tracking:
        outcome = settle(tracking, ledger.trials(), registration(ledger), lambda text: say(f"Comet: {text}"))
        say(f"Comet: {outcome}")


def join_search(plan: Plan, ledger: Ledger) -> Ledger:
    """Open the ledger so that Comet proposes: in the search noted there, else in the one to join, else a new one."""
    sweep = plan.sweep
    search_id = ledger.search_id()
    if sweep.search_id and search_id not in ("", sweep.search_id):
        raise ValueError(f"{sweep.folder} belongs to Comet's search {search_id}; give another --name")
    if not search_id:
        # Twice the budget: a proposal whose answer is lost on its way counts at Comet, and a sweep may be extended.
        max_combo = 0 if sweep.space.algorithm == "grid" else 2 * sweep.num_trials
        content = {**sweep.space.content, "name": sweep.name}
        search_id = sweep.search_id or patiently(lambda: create_search(content, max_combo), sweep.patience, say)
        ledger.note_search(search_id)
    say(f"search at Comet: {search_id}")
    return Ledger(replace(sweep, search_id=search_id))


def make_tracking(plan: Plan, ledger: Ledger, code: Mapping[str, Any]) -> Tracking | None:
    """Say where experiments go; None where there are none."""
    if plan.tracking == "off":
        return None
    facts = {
        "host": platform.node(),
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "devices": ", ".join(dict.fromkeys(describe_device(place.device) for place in plan.where)),
        "commit": code["commit"],
        **code["versions"],
    }
    return Tracking(plan.tracking, ledger.sweep, ledger.uid(), facts, plan.notify)


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

    kept = promote(plan.sweep.trial_folder(number) / "model.safetensors", BEST_MODEL, judge)
    ledger.note_promotion(number)
    before = f"; trial {holder[1]} of {holder[0]}, which was there, is kept as {kept}" if holder and kept else ""
    return say(f"promoted: {champion}{before}")


def registration(ledger: Ledger) -> Model | None:
    """Say what Comet's Model Registry is to hold of this sweep: its promoted trial, while that is the champion."""
    champion, number = BEST_MODEL / CHAMPION, ledger.promoted()
    if number is None or holder_of(champion) != (ledger.sweep.name, number):
        return None
    time = datetime.fromisoformat(read_header(champion)["provenance"]["time"])
    version = f"{time.year}.{time.month * 100 + time.day}.{time.hour * 10000 + time.minute * 100 + time.second}"
    return Model(number, champion, REGISTERED, version)


def holder_of(champion: Path) -> tuple[str, int] | None:
    """Return run and trial of the model in best_model/, None where there is none that is whole."""
    try:
        provenance = read_header(champion)["provenance"]
    except ValueError:
        return None
    return provenance.get("run"), provenance.get("trial")


def show_plan(plan: Plan) -> None:
    """Print what a sweep would do, and the size of its first trials."""
    sweep = plan.sweep
    proposer = f"{sweep.space.algorithm} by {'the Comet Optimizer' if plan.engine == 'comet' else 'Optuna'}"
    say(f"sweep {sweep.name}: {sweep.num_trials} trials of at most {sweep.epochs} epochs, {proposer}")
    say(f"goal: {sweep.space.goal.direction} {sweep.space.goal.metric}; pruner: {sweep.pruner}")
    say(f"data: {describe_source(plan.source)}; tracking: {plan.tracking}")
    say(f"workers: {', '.join(f'{place.device} ({place.threads} threads)' for place in plan.where)}")
    table = Table(title="first trials", title_justify="left")
    for title in ("trial", "parameters", "weights", "mult-adds"):
        table.add_column(title, justify="left" if title == "parameters" else "right")
    num_shown = 1 if plan.engine == "comet" else min(NUM_SHOWN, sweep.num_trials)  # Comet tells when it is asked
    for number, parameters in enumerate(first_proposals(sweep.space, num_shown)):
        shape, _ = configure(parameters, plan.fixed)
        values = " ".join(
            f"{key}={value:.3g}" if isinstance(value, float) else f"{key}={value}" for key, value in parameters.items()
        )
        table.add_row(str(number), values, f"{count_parameters(shape):,}", f"{count_mult_adds(shape) / 1e9:.2f} G")
    console.print(table)


def say(text: str) -> None:
    console.print(text, highlight=False, soft_wrap=True, markup=False)


if __name__ == "__main__":
    sys.exit(main())
