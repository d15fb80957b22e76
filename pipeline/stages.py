"""The stages of a sweep: search, confirm, promote, report."""

import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from catdog.data.dataset import Data, load_data_and_count_test, locate, note_images
from catdog.device import describe_device
from pipeline import promotion
from pipeline.console import announce, console, exit_with_error, progress, say, say_note
from pipeline.placement import measure_workers
from pipeline.plan import IMAGES, Plan, describing_changed_images, settings
from pipeline.profiling import network_of
from pipeline.promotion import BEST_MODEL, WEIGHTS
from pipeline.registry import provenance_of, require_writable
from pipeline.task import TrainTrial, environment_info, training_areas
from pipeline.verdict import describe_outcome
from search.analysis.confirmation import (
    Candidate,
    candidates_of,
    explain_shortfall,
    explain_winner,
    print_candidates,
)
from search.analysis.ranking import Ranked, print_ranking, rank, winner_of, write_ranking
from search.comet.client import wait_for_comet
from search.comet.optimizer import create_search
from search.report.live_table import WholeSweep, live_view
from search.report.page import kept_up_to_date, write_last_page, write_page
from search.study.confirmation import choose, create_confirmation
from search.study.create import create_study, load_begun_study
from search.study.shared_study import SharedStudy
from search.study.storage import first_line
from search.study.sweep import load_confirmation
from search.study.trials import CONFIRMS
from search.workers.artifacts import Artifacts
from search.workers.supervisor import TimeUpError, WorkerPool, sole_owner, worker_pool
from search.workers.tracking import Tracking, how_to_upload, notify, settle

NUM_MEASURED = 4  # networks with which the number of workers per device is measured
NUM_AVERAGED = 16  # trials whose growing images the time left is estimated with

Parts = Sequence[tuple[SharedStudy, Tracking | None]]
"""The search and, if any, its confirmation."""


def launch(plan: Plan) -> int:
    """Start a sweep, or resume it where an earlier command stopped. Return the exit status."""
    plan = replace(plan, source=locate(plan.source))
    data = load_data_and_count_test(plan.source, plan.fixed["image_size"])
    load_begun_study(plan.sweep)  # raises if the folder holds something else, before a lock is written there
    with sole_owner(plan.sweep.folder, shared=bool(plan.sweep.storage)):
        if plan.promote != "never":
            require_writable(BEST_MODEL)
        if plan.promote == "if-better":
            provenance_of(BEST_MODEL)  # raises for a champion that no winner could be compared with
        study = _open_study(plan, data)
        return carry_out(with_measured_workers(plan, data), data, study)


def carry_out(plan: Plan, data: Data, study: SharedStudy) -> int:
    """Search, confirm, promote, report. Return the exit status. Raises a promotion's ValueError after the report."""
    announce(plan, data, study)
    code = {**environment_info(), "sweep": study.uid()}
    task = TrainTrial(study.sweep, plan.source, plan.fixed, data.fingerprint, code)
    runs = _open_confirmation(plan, study)
    parts = [(part, _tracking(plan, part, code)) for part in (study, runs) if part]
    later = runs.trials if runs else list
    shares = epoch_shares(plan)
    whole = WholeSweep(study.trials, later, plan.confirm, plan.confirm_seeds, len(plan.slots), shares, task.cost)
    workers = worker_pool(parts, task, plan.slots, plan.limits, plan.backend)
    fault: ValueError | None = None
    with _notified(*parts[0]), _reported_if_interrupted(study.sweep.folder):
        with kept_up_to_date(study.sweep.folder), workers as pool:
            ranking = search(study, pool, whole)
            candidates = confirm(study, runs, pool, whole, task) if winner_of(ranking) else []
        try:
            champion = promote(plan, study, candidates)
        except ValueError as error:
            fault, champion = error, None
        report(plan, parts, champion, with_model=not fault)
    if fault:
        raise fault
    if candidates:
        return 0
    reason = "no configuration could be confirmed" if winner_of(ranking) else "no trial completed"
    return exit_with_error(1, f"{reason}, so nothing is promoted; the report says why each one ended")


def search(study: SharedStudy, pool: WorkerPool, whole: WholeSweep) -> list[Ranked]:
    """Train trials until the budget is spent. Print and write the ranking, even if the search is interrupted."""
    goal, path = study.sweep.space.goal, study.sweep.folder / "ranking.csv"
    try:
        with live_view(study, console, whole) as show:
            pool.complete(study, show)
    finally:
        ranking = rank(study.trials(), goal)
        write_ranking(path, ranking, goal)
        print_ranking(console, ranking, goal, path, baseline=study.sweep.space.baseline is not None)
    _fetch_files(study)
    return ranking


def confirm(
    study: SharedStudy, runs: SharedStudy | None, pool: WorkerPool, whole: WholeSweep, task: TrainTrial
) -> list[Candidate]:
    """Train the best configurations again with fresh seeds; return the candidates for promotion, the winner first."""
    confirmed: Sequence[FrozenTrial] = []
    if runs:
        choose(runs)
        chosen = runs.counted(runs.trials())
        if num_left := sum(not run.state.is_finished() for run in chosen):
            say(f"confirming the best configurations with fresh seeds: {num_left} of {len(chosen)} runs left")
        with live_view(runs, console, whole) as show:
            pool.complete(runs, show)
        _fetch_files(runs)
        confirmed = runs.counted(runs.trials())
        for run in confirmed:
            if run.state == TrialState.FAIL:
                reason, trial = run.user_attrs.get("reason"), run.user_attrs[CONFIRMS]
                say(f"{runs.sweep.label(run)} failed: {reason}; trial {trial} is no candidate")
    candidates, goal = candidates_of(study, confirmed, task.cost), study.sweep.space.goal
    shortfall = explain_shortfall(study.trials(), confirmed, runs.sweep.num_confirmed) if runs else ""
    study.note_candidates([asdict(candidate) for candidate in candidates], shortfall)
    print_candidates(console, candidates, goal)
    for sentence in filter(None, (shortfall, explain_winner(candidates, rank(study.trials(), goal)))):
        say(sentence)
    return candidates


def promote(plan: Plan, study: SharedStudy, candidates: Sequence[Candidate]) -> dict[str, Any] | None:
    """Test the winner against the champion, once, and promote it if it is better; return the champion's header."""
    for winner in candidates[:1]:
        weights = winner.folder(plan.sweep.folder) / WEIGHTS
        if plan.promote == "never":
            say(f"winner: trial {winner.trial}, not promoted because of --promote never; {weights}")
        elif not weights.exists():
            elsewhere = "promote it where it was trained, or give --artifacts"
            remedy = elsewhere if plan.sweep.storage else "put them back, or promote another trial by hand"
            say(f"winner: trial {winner.trial}, not promoted: its weights are not here ({weights}); {remedy}")
        else:
            say(f"winner: trial {winner.trial}")
            key, always = promotion.record_key(weights), plan.promote == "always"
            before = study.promotion(key)
            if not always and promotion.is_settled(before):
                sentences = promotion.describe_settled(before, study.sweep.name)
            else:
                outcome = promotion.promote_weights(
                    weights, BEST_MODEL, plan.source, plan.device, always=always, say=say
                )
                study.note_promotion(key, promotion.record_of(outcome, before))
                sentences = describe_outcome(outcome)
            for sentence in sentences:
                say(sentence)
    return None if plan.promote == "never" else promotion.champion_of(study.optuna, BEST_MODEL)


def report(plan: Plan, parts: Parts, champion: dict[str, Any] | None, *, with_model: bool) -> None:
    """Write the report. Send Comet the missing results, experiments and the promoted model."""
    main_study = parts[0][0]
    say(f"report: {write_page(main_study.sweep.folder, champion)}")
    for study, tracking in parts:
        trials = study.trials()
        if not trials:
            continue
        if study.sweep.search_id and study.budget() < study.sweep.num_trials:
            say(f"Comet's search ended after {study.budget()} trials; it has nothing more to propose")
        if num_left := study.report_left():
            say(f"Comet's Optimizer has not taken {num_left} results yet; the same command sends them")
        if tracking:
            model = promotion.registered_model(study, main_study.uid()) if with_model else None
            own = [trial for trial in trials if not study.sweep.storage or study.ran_here(trial)]
            if outcome := settle(tracking, own, model, lambda text: say(f"Comet: {text}")):
                say(f"Comet: {study.sweep.title}: {outcome}")
    if plan.tracking == "offline" and (archives := how_to_upload(main_study.sweep)):
        say(archives)


def with_measured_workers(plan: Plan, data: Data) -> Plan:
    """Measure the best number of workers per device, if the user asks for it."""
    if not plan.must_measure:
        return plan
    task = TrainTrial(plan.sweep, locate(plan.source), plan.fixed, data.fingerprint, {})
    networks = dict.fromkeys(map(network_of, plan.proposals(NUM_MEASURED)))
    with progress("measuring the number of workers per device") as show:
        devices = [slot.device for slot in plan.slots]
        slots = measure_workers(task, devices, list(networks), plan.limits, say, show)
    return replace(plan, slots=slots, must_measure=False)


def epoch_shares(plan: Plan) -> list[float]:
    """Return the mean cost of each epoch, relative to one of full size; nothing if the images of no trial grow.

    The area of its training images stands for an epoch's cost. Validation and the optimizer cost the same in every
    epoch, so early epochs cost a little more than this.
    """
    space, epochs = plan.sweep.space, plan.sweep.epochs
    proposals = plan.proposals(NUM_AVERAGED)[space.first_proposed :] if "start_scale" in space.parameters else []
    areas = [training_areas({**parameters, "epochs": epochs}, plan.fixed) for parameters in proposals]
    return [fmean(of_epoch) for of_epoch in zip(*areas, strict=True)]


def _open_study(plan: Plan, data: Data) -> SharedStudy:
    """Open the study. The Comet Optimizer uses the search noted there, else the one to join, else a new one."""
    sweep = plan.sweep
    with describing_changed_images(plan, data):
        study = create_study(sweep, settings(plan, data), say_note, plan.prior)
    note_images(sweep.folder / IMAGES, plan.source, plan.fixed["image_size"], data.fingerprint)
    if plan.engine != "comet":
        return study
    search_id = study.search_id()
    if sweep.search_id and search_id not in ("", sweep.search_id):
        raise ValueError(f"{sweep.folder} belongs to Comet's search {search_id}; give another --name")
    if not search_id:
        # Twice the budget: Comet counts a proposal whose answer is lost on its way, and a sweep may be extended.
        max_combo = 0 if sweep.space.algorithm == "grid" else 2 * sweep.num_trials
        content = {**sweep.space.content, "name": sweep.name}
        search_id = sweep.search_id or wait_for_comet(lambda: create_search(content, max_combo), sweep.patience, say)
        study.note_search(search_id)
    say(f"search at Comet: {search_id}")
    return SharedStudy(replace(study.sweep, search_id=search_id))


def _open_confirmation(plan: Plan, study: SharedStudy) -> SharedStudy | None:
    """Open the confirmation's study, if there is anything to confirm or an earlier run."""
    if not (plan.confirm or load_confirmation(study.sweep.folder)):
        return None
    return create_confirmation(study, plan.confirm, plan.confirm_seeds)


def _tracking(plan: Plan, study: SharedStudy, code: Mapping[str, Any]) -> Tracking | None:
    """Return the destination of experiments, None if they are off."""
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


@contextmanager
def _reported_if_interrupted(folder: Path) -> Iterator[None]:
    """Write the report also after Ctrl-C, SIGTERM or --timeout."""
    try:
        yield
    except (KeyboardInterrupt, TimeUpError):
        if page := write_last_page(folder):
            say(f"report so far: {page}")
        raise


@contextmanager
def _notified(study: SharedStudy, tracking: Tracking | None) -> Iterator[None]:
    """Have Comet notify the user, if wanted, that the sweep has ended, or why it stopped."""
    before = _num_ended(study)
    news = f"sweep {study.sweep.name} has ended"
    try:
        yield
    except BaseException as error:
        reason = "interrupted" if isinstance(error, KeyboardInterrupt) else first_line(error)
        news = f"sweep {study.sweep.name} stopped: {reason}"
        raise
    finally:
        if tracking and _num_ended(study) > before:
            notify(tracking, study.trials(), news)


def _num_ended(study: SharedStudy) -> int:
    """Count the ended trials of search and confirmation."""
    runs = load_confirmation(study.sweep.folder)
    trials = [*study.trials(), *(runs.get_trials(deepcopy=False) if runs else [])]
    return sum(trial.state.is_finished() for trial in trials)


def _fetch_files(study: SharedStudy) -> None:
    """Fetch the files of other machines from the store, if there is one."""
    if study.sweep.artifacts:
        Artifacts(study.sweep.artifacts).fetch_all(study)
