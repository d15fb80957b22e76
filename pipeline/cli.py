"""Launch or resume a sweep, rank its trials, promote the winner. `python run_sweep.py --help` lists the options."""

import os
import platform
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import datetime
from functools import partial
from typing import Any

from optuna.trial import TrialState
from rich.console import Console
from rich.table import Table

from catdog.data.dataset import Data, describe_source, load_data, locate
from catdog.device import describe_device
from catdog.kernels.precision import bfloat16_fault
from catdog.model import count_mult_adds, count_parameters
from pipeline.forecast import describe_forecast, forecast
from pipeline.plan import Plan, command, exit_with_error, make_plan, parse, settings
from pipeline.profiling import deal, network_of
from pipeline.promotion import (
    BEST_MODEL,
    champion_of,
    holder_of,
    name_of,
    name_of_model,
    promote_weights,
    record_of,
    sentences_of,
)
from pipeline.registry import CHAMPION, require_writable
from pipeline.task import TrainTrial, configure, environment_info
from search.analysis.confirmation import Candidate, candidates_of, print_candidates
from search.analysis.ranking import WIDE, Ranked, print_ranking, rank, winner_of, write_ranking
from search.comet.client import wait_for_comet
from search.comet.optimizer import create_search
from search.formatting import count, short
from search.report.live_table import WholeSweep, live_view
from search.report.page import kept_up_to_date, write_page
from search.space.space import Parameters
from search.study.confirmation import choose, create_confirmation
from search.study.create import create_study, load_begun_study, require_settings
from search.study.shared_study import SharedStudy
from search.study.storage import StorageError, first_line
from search.study.sweep import load_confirmation
from search.study.trials import CONFIRMS
from search.study.warm_start import first_proposals
from search.workers.artifacts import Artifacts, weights_to_remove
from search.workers.signals import stop_by_signals
from search.workers.supervisor import TimeUpError, WorkerPool, sole_owner, worker_pool
from search.workers.tracking import Model, Tracking, how_to_upload, notify, settle

REGISTERED = "catdog"  # the champions' name in Comet's Model Registry
NUM_SHOWN = 10  # trials in a dry run
SIZES = ("stem_width", "body_width", "body_repeats", "image_size")  # what decides over the cost of a network
NUM_TRIED = 4  # networks on which a device's workers are tried

console = Console(width=None if sys.stdout.isatty() else WIDE)


def main(arguments: list[str] | None = None) -> int:
    """Return the exit status: 0 done, 1 failed, 2 the user's input, 130 interrupted."""
    stop_by_signals()
    options = parse(arguments)
    if os.environ.get("COMET_OPTIMIZER_PROCESS_ID", "0") != "0":  # comet optimize -j starts us once per job
        say("the first process of this comet optimize runs the workers of all")
        return 0
    again = f"nothing is lost, the same command goes on: {command(options)}"
    try:
        plan = make_plan(options, say)
        if options.dry_run:
            show_begun(plan)
            plan = deal_workers(plan)
            show_plan(plan)
            show_forecast(plan)
            return 0
        plan = replace(plan, source=locate(plan.source))
        data = load_data(plan.source, plan.fixed["image_size"])
        with sole_owner(plan.sweep.folder, shared=bool(plan.sweep.storage)):
            check_best_model(plan)
            note = lambda text: say(f"note: {text}")  # noqa: E731
            study = create_study(plan.sweep, settings(plan, data), note, plan.earlier)
            if plan.engine == "comet":
                study = join_search(plan, study)
            return carry_out(deal_workers(plan), data, study)
    except ValueError as error:
        return exit_with_error(2, str(error))
    except MemoryError as error:
        return exit_with_error(1, f"not enough memory ({error}); take a smaller --image-size or fewer --workers")
    except (OSError, RuntimeError, StorageError) as error:
        what = f"the study fails ({first_line(error)})" if isinstance(error, StorageError) else str(error)
        return exit_with_error(1, f"{what}; {again}")
    except TimeUpError:
        return exit_with_error(130, f"--timeout {options.timeout:g} s is over; {again}")
    except KeyboardInterrupt:
        return exit_with_error(130, f"interrupted; {again}")


def carry_out(plan: Plan, data: Data, study: SharedStudy) -> int:
    """Search until the budget is spent, rank, confirm, promote, report, tell Comet."""
    announce(plan, data, study)
    code = {**environment_info(), "sweep": study.uid()}
    task = TrainTrial(study.sweep, plan.source, plan.fixed, data.fingerprint, code)
    runs = begin_runs(plan, study)
    parts = [(part, make_tracking(plan, part, code)) for part in (study, runs) if part]
    with news_of(*parts[0]):
        with (
            kept_up_to_date(study.sweep.folder),
            worker_pool(parts, task, plan.slots, plan.limits, plan.backend) as pool,
        ):
            try:
                with live_view(study, console, whole(plan, study, runs)) as show:
                    pool.complete(study, show)
            finally:
                ranking = show_ranking(study)
            bring_files(study)
            candidates = confirm(plan, study, runs, pool) if winner_of(ranking) else []
        fault = ""
        try:
            if candidates:
                promote_winner(plan, study, candidates[0])
            champion = champion_of(study.optuna, BEST_MODEL) if plan.promote != "never" else None
        except ValueError as error:  # the winner stays where it is; what was found is reported all the same
            fault, champion = str(error), None
        say(f"report: {write_page(study.sweep.folder, champion)}")
        for part, shown in parts:
            if part.trials():
                tell_comet(part, shown, None if fault else registration(part, study.uid()))
        if plan.tracking == "offline" and (archives := how_to_upload(study.sweep)):
            say(f"Comet: {archives}")
    if fault:
        return exit_with_error(2, fault)
    if candidates:
        return 0
    what = "no configuration could be confirmed" if winner_of(ranking) else "no trial completed"
    return exit_with_error(1, f"{what}, so nothing is promoted; the report says why each one ended")


def announce(plan: Plan, data: Data, study: SharedStudy) -> None:
    """Say what is going to happen."""
    say(f"data: {describe_source(plan.source)}; {len(data.training)} to train, {len(data.validation)} to validate")
    for note in data.notes:
        say(f"note: {note}")
    if any(slot.device == "cpu" for slot in plan.slots) and (fault := bfloat16_fault()):
        say(f"note: {fault}")
    if plan.source == "synthetic":
        say("note: these pictures are drawn; for photographs give --data kaggle or --data FOLDER")
    if plan.notify and plan.tracking != "online":
        say("note: Comet can only notify with --tracking online")
    if plan.sweep.space.baseline is None:
        say(describe_lack_of_baseline(plan))
    for sentence in describe_start(study):
        say(sentence)
    for sentence in describe_rest(study):
        say(sentence)


def describe_lack_of_baseline(plan: Plan) -> str:
    """Say that the README network does not take part, and beside what it would be costly."""
    what = "note: the README network is no trial of this sweep (--no-baseline)"
    space = plan.sweep.space
    widest = {name: max(space.values_of(name)) for name in SIZES if space.values_of(name)}
    try:
        cost, largest = (count_mult_adds(configure(sizes, plan.fixed)[0]) for sizes in ({}, widest))
    except ValueError:  # the pictures are too small for it
        return what
    return f"{what}: it takes {short(cost)} mult-adds an image, the largest of this space {short(largest)}"


def describe_rest(study: SharedStudy) -> Iterator[str]:
    """Say what there is of a sweep that was begun before."""
    trials, num_asked, name = study.trials(), study.sweep.num_trials, study.sweep.name
    ended = [trial for trial in trials if trial.state.is_finished()]
    if len(trials) > num_asked:
        more = f"more than the {num_asked} asked for; those that ended count"
        yield f"note: {name} has {len(trials)} trials already, {more}"
    if num_lost := len(weights_to_remove(study.sweep, ended)):
        yield f"note: --keep {study.sweep.keep} removes the weights of {count(num_lost, 'trial')}"
    if study.num_unfinished() <= 0:
        yield f"nothing left to search: all {len(trials)} trials of {name} have ended"
    elif trials:
        yield f"going on with {name}: {len(ended)} of {count(num_asked, 'trial')} ended before"


def describe_start(study: SharedStudy) -> Iterator[str]:
    """Say what the search knows of an earlier sweep."""
    if not (earlier := study.prior):
        return
    first = study.sweep.space.first_proposed
    again = f"its winner is to be tried again, as trial {first}" if earlier.winner else "its winner was the baseline"
    yield f"warm start: the search knows {len(earlier.trials)} trials of {earlier.name}; {again}"
    if others := earlier.differences(study.optuna.user_attrs["settings"]):
        what = "what configurations that both try differ by is added to its results"
        yield f"note: {earlier.name} had other settings ({', '.join(others)}); {what}"


def show_ranking(study: SharedStudy) -> list[Ranked]:
    """Print the ranking and write ranking.csv."""
    goal, path = study.sweep.space.goal, study.sweep.folder / "ranking.csv"
    ranking = rank(study.trials(), goal)
    write_ranking(path, ranking, goal)
    print_ranking(console, ranking, goal, path, baseline=study.sweep.space.baseline is not None)
    return ranking


@contextmanager
def news_of(study: SharedStudy, tracking: Tracking | None) -> Iterator[None]:
    """Have Comet tell the user, where that is wanted, that the sweep has ended, or why it stopped."""
    before = num_ended(study)
    news = f"sweep {study.sweep.name} has ended"
    try:
        yield
    except BaseException as error:
        reason = "interrupted" if isinstance(error, KeyboardInterrupt) else str(error)
        news = f"sweep {study.sweep.name} stopped: {reason}"
        raise
    finally:
        if tracking and num_ended(study) > before:
            notify(tracking, study.trials(), news)


def bring_files(study: SharedStudy) -> None:
    """Have here what other machines left behind of this part of the sweep, where there is a store for that."""
    if study.sweep.artifacts:
        Artifacts(study.sweep.artifacts).fetch_all(study)


def num_ended(study: SharedStudy) -> int:
    """Count what has ended of both parts of a sweep."""
    runs = load_confirmation(study.sweep.folder)
    trials = [*study.trials(), *(runs.get_trials(deepcopy=False) if runs else [])]
    return sum(trial.state.is_finished() for trial in trials)


def begin_runs(plan: Plan, study: SharedStudy) -> SharedStudy | None:
    """Open the study's part for confirming, where anything is to be confirmed, or was: that counts."""
    if not (plan.confirm or load_confirmation(study.sweep.folder)):
        return None
    return create_confirmation(study, plan.confirm, plan.confirm_seeds)


def whole(plan: Plan, study: SharedStudy, runs: SharedStudy | None) -> WholeSweep:
    """Return both parts of a sweep, for the time that is left of it."""
    return WholeSweep(study.trials, runs.trials if runs else list, plan.confirm, plan.confirm_seeds, len(plan.slots))


def tell_comet(study: SharedStudy, tracking: Tracking | None, model: Model | None) -> None:
    """Send what Comet has not got yet: results to its Optimizer, experiments, the promoted model."""
    if study.sweep.search_id and study.budget() < study.sweep.num_trials:
        say(f"Comet's search was over after {study.budget()} trials; it has nothing more to try")
    if num_left := study.report_left():
        say(f"Comet's Optimizer has not taken {num_left} results yet; the same command sends them")
    if tracking:
        trials = [trial for trial in study.trials() if not study.sweep.storage or study.ran_here(trial)]
        outcome = settle(tracking, trials, model, lambda text: say(f"Comet: {text}"))
        say(f"Comet: {study.sweep.title}: {outcome}")


def join_search(plan: Plan, study: SharedStudy) -> SharedStudy:
    """Open the study so that Comet proposes: in the search noted there, else in the one to join, else a new one."""
    sweep = plan.sweep
    search_id = study.search_id()
    if sweep.search_id and search_id not in ("", sweep.search_id):
        raise ValueError(f"{sweep.folder} belongs to Comet's search {search_id}; give another --name")
    if not search_id:
        # Twice the budget: a proposal whose answer is lost on its way counts at Comet, and a sweep may be extended.
        max_combo = 0 if sweep.space.algorithm == "grid" else 2 * sweep.num_trials
        content = {**sweep.space.content, "name": sweep.name}
        search_id = sweep.search_id or wait_for_comet(lambda: create_search(content, max_combo), sweep.patience, say)
        study.note_search(search_id)
    say(f"search at Comet: {search_id}")
    return SharedStudy(replace(sweep, search_id=search_id))


def make_tracking(plan: Plan, study: SharedStudy, code: Mapping[str, Any]) -> Tracking | None:
    """Say where experiments go; None where there are none."""
    if plan.tracking == "off":
        return None
    facts = {
        "host": platform.node(),
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "devices": ", ".join(dict.fromkeys(describe_device(slot.device) for slot in plan.slots)),
        "commit": code["commit"],
        **code["versions"],
    }
    return Tracking(plan.tracking, study.sweep, study.uid(), facts, plan.notify)


def confirm(plan: Plan, study: SharedStudy, runs: SharedStudy | None, pool: WorkerPool) -> list[Candidate]:
    """Have the best few configurations trained again with fresh seeds; return who may win, the winner first."""
    if runs:
        choose(runs)
        counted = runs.counted(runs.trials())
        if left := sum(not run.state.is_finished() for run in counted):
            say(f"confirming the best configurations with fresh seeds: {left} of {len(counted)} runs left")
        with live_view(runs, console, whole(plan, study, runs)) as show:
            pool.complete(runs, show)
        bring_files(runs)
        for run in runs.counted(runs.trials()):
            if run.state == TrialState.FAIL:
                reason, trial = run.user_attrs.get("reason"), run.user_attrs[CONFIRMS]
                say(f"{runs.sweep.label(run)} failed: {reason}; trial {trial} is no candidate")
    found = runs.counted(runs.trials()) if runs else []
    candidates = candidates_of(study, found, partial(mult_adds, plan))
    study.note_candidates([asdict(candidate) for candidate in candidates])
    print_candidates(console, candidates, study.sweep.space.goal)
    return candidates


def check_best_model(plan: Plan) -> None:
    """Raise ValueError where the end of the sweep could not promote, rather than find out after the night."""
    if plan.promote != "never":
        require_writable(BEST_MODEL)
    if plan.promote == "if-better":
        holder_of(BEST_MODEL)


def promote_winner(plan: Plan, study: SharedStudy, winner: Candidate) -> None:
    """Compare the winner with the champion on the sealed pictures, once, and promote it if it is better."""
    weights = winner.folder(plan.sweep.folder) / "model.safetensors"
    if plan.promote == "never":
        return say(f"winner: trial {winner.trial}, not promoted as --promote never asks; {weights}")
    if not weights.exists():
        what = "; promote it where it was trained, or give --artifacts" if plan.sweep.storage else ""
        return say(f"winner: trial {winner.trial}, not promoted: its weights are not here ({weights}){what}")
    before, always = study.promotion(name_of(weights)), plan.promote == "always"
    if not always and before and (holder := holder_of(BEST_MODEL)):
        now = f"{BEST_MODEL / CHAMPION} holds {name_of_model(holder)}"
        say(f"winner: trial {winner.trial}, judged on {before['time']}: {before['reason']}; now {now}")
        return say(f"to judge it again: python -m search.promote {study.sweep.name}")
    say(f"winner: trial {winner.trial}")
    outcome = promote_weights(weights, BEST_MODEL, plan.source, plan.device, always=always)
    study.note_promotion(name_of(weights), record_of(outcome, before))
    for sentence in sentences_of(outcome):
        say(sentence)
    return None


def registration(study: SharedStudy, uid: str) -> Model | None:
    """Say what Comet's Model Registry is to hold of this part of the sweep `uid`, while that is the champion."""
    holder = holder_of(BEST_MODEL)
    number = holder.get("trial" if study.sweep.part == "search" else "confirmation")
    if holder.get("sweep") != uid or number is None or ("confirmation" in holder) != (study.sweep.part != "search"):
        return None
    time = datetime.fromisoformat(holder["time"])
    version = f"{time.year}.{time.month * 100 + time.day}.{time.hour * 10000 + time.minute * 100 + time.second}"
    return Model(number, BEST_MODEL / CHAMPION, REGISTERED, version)


def mult_adds(plan: Plan, parameters: Mapping[str, Any]) -> float:
    """Return what one prediction costs with a trial's parameters."""
    return count_mult_adds(configure(parameters, plan.fixed)[0])


def show_plan(plan: Plan) -> None:
    """Print what a sweep would do, and the size of its first trials."""
    sweep = plan.sweep
    proposer = f"{sweep.space.algorithm} by {'the Comet Optimizer' if plan.engine == 'comet' else 'Optuna'}"
    say(f"sweep {sweep.name}: {count(sweep.num_trials, 'trial')} of at most {count(sweep.epochs, 'epoch')}, {proposer}")
    say(f"goal: {sweep.space.goal.direction} {sweep.space.goal.metric}; pruner: {sweep.pruner}")
    again = f"the best {plan.confirm} again, with {plan.confirm_seeds} fresh seeds each" if plan.confirm else "nothing"
    say(f"confirmed: {again}; promote: {plan.promote}")
    say(f"data: {describe_source(plan.source)}; tracking: {plan.tracking}")
    workers = [f"{slot.device} ({count(slot.threads, 'thread')})" for slot in plan.slots]
    say(f"workers: {', '.join(workers)}")
    table = Table(title="first trials", title_justify="left")
    for title in ("trial", "parameters", "weights", "mult-adds"):
        table.add_column(title, justify="left" if title == "parameters" else "right")
    # Comet tells when it is asked.
    num_shown = sweep.space.first_proposed if plan.engine == "comet" else min(NUM_SHOWN, sweep.num_trials)
    proposals = first_proposals(sweep.space, num_shown, plan.earlier)
    for number, parameters in enumerate(proposals):
        shape, _ = configure(parameters, plan.fixed)
        values = " ".join(
            f"{key}={value:.3g}" if isinstance(value, float) else f"{key}={value}" for key, value in parameters.items()
        )
        table.add_row(str(number), values, f"{count_parameters(shape):,}", short(count_mult_adds(shape)))
    if proposals:
        console.print(table)


def show_begun(plan: Plan) -> None:
    """Say how far a sweep of that name is. Raises ValueError where it was made with other settings."""
    if not (study := load_begun_study(plan.sweep)):
        return
    data = load_data(locate(plan.source), plan.fixed["image_size"])
    require_settings(plan.sweep, study, settings(plan, data), plan.earlier)
    ended = [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]
    number = count(len(ended), "trial")
    say(f"note: {plan.sweep.name} was begun before and {number} of it ended; this is about the whole of it")


def show_forecast(plan: Plan) -> None:
    """Print what a sweep would cost."""
    say("training the first networks for a few seconds each, to see what the sweep would cost; nothing of it is kept")
    with console.status("decoding pictures") as status:
        outlook = forecast(plan, drawn_proposals(plan, NUM_SHOWN), status.update)
    for sentence in describe_forecast(outlook, plan):
        say(sentence)


def deal_workers(plan: Plan) -> Plan:
    """Find out how many workers a device is worth, where that is wanted."""
    if plan.is_dealt:
        return plan
    networks = dict.fromkeys(map(network_of, drawn_proposals(plan, NUM_TRIED)))
    with console.status("trying how many workers a device is worth") as status:
        return deal(replace(plan, source=locate(plan.source)), list(networks), say, status.update)


def drawn_proposals(plan: Plan, number: int) -> list[Parameters]:
    """Return a sweep's first trials; where Comet proposes, which tells when it is asked, what it may propose."""
    space = replace(plan.sweep.space, algorithm="random") if plan.engine == "comet" else plan.sweep.space
    return first_proposals(space, min(number, plan.sweep.num_trials), plan.earlier)


def say(text: str) -> None:
    console.print(text, highlight=False, soft_wrap=True, markup=False)
