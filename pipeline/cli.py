"""Command-line options and exit statuses of run_sweep.py."""

import argparse
import math
import os
import shlex
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from pipeline.console import exit_with_error, say
from pipeline.forecast import dry_run
from pipeline.placement import AUTO
from pipeline.plan import Plan, make_plan
from pipeline.space import DEFAULT_CONFIG
from pipeline.stages import launch
from pipeline.task import DEFAULTS
from search.study.storage import StorageError, first_line, is_read_only
from search.study.sweep import find_study, holds_study
from search.workers.history import HISTORY
from search.workers.signals import stop_by_signals
from search.workers.supervisor import TimeUpError
from shell.command_line import CommandLine
from shell.environment import describe
from shell.redact import redact, without_password


def main(arguments: list[str] | None = None) -> int:
    """Return the exit status: 0 done, 1 failed, 2 the user's input, 130 interrupted."""
    stop_by_signals()
    options = parse(arguments)
    if os.environ.get("COMET_OPTIMIZER_PROCESS_ID", "0") != "0":  # comet optimize -j starts us once per job
        say("the first process of this comet optimize runs all workers")
        return 0
    began, plan = time.time(), None
    try:
        plan = make_plan(options, say)
        return dry_run(plan) if options.dry_run else launch(plan)
    except ValueError as error:
        return exit_with_error(2, redact(error))
    except MemoryError as error:
        return exit_with_error(1, f"{describe(error)}; a smaller --image-size or fewer --workers need less")
    except StorageError as error:
        what = f"the study's storage failed: {describe(StorageError(first_line(error)))}"
        return exit_with_error(1, what + _hint(options, plan))
    except (OSError, RuntimeError) as error:
        return exit_with_error(1, f"{describe(error)}{_hint(options, plan)}")
    except TimeUpError:
        outcome = _too_short(options, plan, began) or _hint(options, plan)
        return exit_with_error(130, f"--timeout {options.timeout:g} s is over{outcome}")
    except KeyboardInterrupt:
        return exit_with_error(130, f"interrupted{_hint(options, plan)}")


def _hint(options: argparse.Namespace, plan: Plan | None) -> str:
    """Say how to resume, if there is something to resume, as the end of a message."""
    if options.dry_run:
        return ". Nothing is kept"
    is_begun = plan and holds_study(plan.sweep.folder) and not is_read_only(plan.sweep.folder)
    return f". Progress is saved. Resume with: {resume_command(options)}" if is_begun else ""


def _too_short(options: argparse.Namespace, plan: Plan | None, began: float) -> str:
    """Say that the time limit leaves no time for an epoch, if none has ended: the same command would do no better."""
    if plan and plan.sweep.storage:  # other machines' trials may have gone on
        return ""
    epochs = plan.sweep.folder.glob(f"*/*/{HISTORY}") if plan else ()
    if any(path.stat().st_mtime > began for path in epochs):
        return ""
    study = find_study(plan.sweep) if plan else None
    starts = [trial.datetime_start.timestamp() for trial in (study.trials if study else ()) if trial.datetime_start]
    seconds = min([start - began for start in starts if start > began], default=options.timeout)
    return f" before an epoch has ended: the start alone took about {seconds:.0f} s; give a longer --timeout"


def resume_command(options: argparse.Namespace) -> str:
    """Return the command that resumes this one, with the same interpreter, without passwords.

    The folder of the sweep keeps an address with its password, so that the command need not.
    `comet optimize` passes the id of its search in the environment. The command then names that id.
    """
    search_id = os.environ.get("COMET_OPTIMIZER_ID")
    arguments = [argument for argument in sys.orig_argv if not search_id or argument != str(options.config)]
    if without_password(options.storage) != options.storage:
        for last in [index for index, argument in enumerate(arguments) if argument.endswith(options.storage)][:1]:
            del arguments[last - (arguments[last] == options.storage) : last + 1]
    return shlex.join([*map(without_password, arguments), *([search_id] if search_id else [])])


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Parse the command line. A wrong option ends the process with status 2 and one line."""
    description = "Run or resume a hyperparameter sweep, confirm its best trials and promote the winner."
    description += " runs/ and best_model/ belong to the current directory."
    parser = CommandLine("run_sweep.py", description)
    _add_search_options(parser.add_argument_group("search").add_argument)
    _add_training_options(parser.add_argument_group("training").add_argument)
    _add_placement_options(parser.add_argument_group("placement").add_argument)
    _add_comet_options(parser.add_argument_group("Comet").add_argument)
    _add_promotion_options(parser.add_argument_group("promotion").add_argument)
    parser.add_argument("--dry-run", action="store_true", help="print the plan and its estimated cost; keep nothing")
    return parser.parse(arguments)


def _add_search_options(add: Callable[..., object]) -> None:
    text = "search space, goal and budget, or the id of an existing Comet search (default: %(default)s)"
    add("config", nargs="?", type=Path, default=DEFAULT_CONFIG, help=text)
    add("--name", help="folder of the sweep below runs/; an existing sweep is resumed (default: the config's name)")
    add("--engine", choices=("optuna", "comet"), default="optuna", help="source of proposals (default: %(default)s)")
    add("--trials", type=_positive, help="number of trials, baseline included (default: spec.maxCombo)")
    text = "do not run the baseline network as trial 0"
    add("--no-baseline", dest="baseline", action="store_false", help=text)
    add("--seed", type=_natural, help="seed of proposals, weights and data order (default: spec.seed)")
    text = "earlier sweep of the same space: its results inform the search, its winner is trained again"
    add("--warm-start", metavar="NAME", help=text)
    text = "method that stops poor trials early (default: %(default)s)"
    add("--pruner", choices=("hyperband", "median", "none"), default="hyperband", help=text)
    add("--timeout", type=_seconds, metavar="SECONDS", help="stop after this time; the same command resumes")


def _add_training_options(add: Callable[..., object]) -> None:
    add("--data", default="synthetic", help="synthetic, kaggle or a folder of photographs (default: %(default)s)")
    add("--epochs", type=_positive, help=f"maximum number of epochs of a trial (default: {DEFAULTS['epochs']})")
    add("--image-size", type=_positive, help=f"height and width in pixels (default: {DEFAULTS['image_size']})")
    text = "fail a trial that completes no epoch within this time"
    add("--trial-timeout", type=_seconds, metavar="SECONDS", help=text)
    text = "number of trials whose weights are kept (default: %(default)s)"
    add("--keep", type=_positive, default=10, metavar="K", help=text)


def _add_placement_options(add: Callable[..., object]) -> None:
    add("--devices", default="auto", help="auto, cpu or cuda:0,cuda:1,... (default: every GPU, else the CPU)")
    jobs = os.environ.get("COMET_OPTIMIZER_PROCESS_JOBS")  # comet optimize -j
    text = "number of worker processes (default: one per GPU, else one per core)"
    add("--workers", type=_positive, default=jobs, help=text)
    text = "workers on each GPU (default: 1); auto: measure once which number is fastest, on the CPU too"
    add("--workers-per-device", type=_positive_or_auto, metavar="K", help=text)
    text = "loky: this machine; ray: the machines of a Ray cluster (default: %(default)s)"
    add("--backend", choices=("loky", "ray"), default="loky", help=text)
    text = "head node of the Ray cluster (default: the cluster that Ray finds, else a new one on this machine)"
    add("--ray-address", default="", metavar="HOST[:PORT]", help=text)
    text = "postgresql://USER@HOST/DATABASE, shared by many machines (default: a file in the sweep's folder)"
    add("--storage", default="", metavar="URL", help=text)
    text = "s3://BUCKET or a folder, to exchange checkpoints and weights between machines without a common runs/"
    add("--artifacts", default="", metavar="STORE", help=text)


def _add_comet_options(add: Callable[..., object]) -> None:
    text = "experiments in Comet (default: %(default)s, which is online with an API key, else offline)"
    add("--tracking", choices=("auto", "online", "offline", "off"), default="auto", help=text)
    add("--notify", action="store_true", help="have Comet send a message on a new best trial and at the end")


def _add_promotion_options(add: Callable[..., object]) -> None:
    text = "number of best configurations to train again with fresh seeds; 0: none (default: %(default)s)"
    add("--confirm", type=_natural, default=3, metavar="K", help=text)
    add("--confirm-seeds", type=_positive, default=2, metavar="M", help="runs of each of them (default: %(default)s)")
    text = "if-better: if the winner beats the champion; always: without comparing; never (default: %(default)s)"
    add("--promote", choices=("if-better", "always", "never"), default="if-better", help=text)


def _seconds(text: str) -> float:
    with suppress(ValueError):
        seconds = float(text)
        if 0 < seconds < math.inf:
            return seconds
    raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")


def _at_least(least: int, text: str, other: str = "") -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r} is not {other}a whole number of at least {least}")
    return int(text)


def _positive_or_auto(text: str) -> int | str:
    return text if text == AUTO else _at_least(1, text, "auto or ")


_natural, _positive = partial(_at_least, 0), partial(_at_least, 1)
