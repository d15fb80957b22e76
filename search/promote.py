"""Promote a trial if it is better than the champion, or roll back to the previous champion.

python -m search.promote NAME [--trial N] [--data FOLDER]    a sweep's winner, or any of its trials
python -m search.promote --rollback | --undo-rollback
"""

from argparse import ArgumentTypeError
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType

from search.study.storage import StorageError, first_line
from search.study.sweep import TASK, find_sweep, load_study
from shell.command_line import CommandLine
from shell.environment import describe

DEFAULT_TASK = "pipeline.promotion"  # for --rollback, and for studies that name no task


def main() -> None:
    parser = CommandLine("python -m search.promote", "Promote a trial, or roll back.")
    parser.add_argument("name", nargs="?", default="", help="a sweep in runs/ of the current directory, or its path")
    parser.add_argument("--trial", type=_number, help="its number (default: the sweep's winner)")
    text = "always: promote without a comparison (default: if-better)"
    parser.add_argument("--promote", choices=("if-better", "always"), default="if-better", help=text)
    parser.add_argument("--data", default="", help="the folder of its images (default: the one it was trained on)")
    parser.add_argument("--rollback", action="store_true", help="restore the previous champion")
    text = "take the champion back that the last rollback withdrew"
    parser.add_argument("--undo-rollback", action="store_true", help=text)
    options = parser.parse()
    goes_back = options.rollback or options.undo_rollback
    if options.rollback and options.undo_rollback:
        parser.error("--undo-rollback takes a rollback back; leave out --rollback")
    if goes_back and (options.name or options.trial is not None):
        one = "--rollback" if options.rollback else "--undo-rollback"
        parser.error(f"{one} takes no sweep and no trial; leave out {options.name or '--trial'!r}")
    try:
        if goes_back:
            task = import_module(DEFAULT_TASK)
            print(task.restore(task.BEST_MODEL, undo=options.undo_rollback))
        else:
            folder, always, say = find_sweep(options.name), options.promote == "always", partial(print, flush=True)
            print("\n".join(_task_of(folder).promote_trial(folder, options.trial, always, options.data, say)))
    except (ValueError, StorageError) as error:
        parser.exit(2, first_line(error))
    except (OSError, RuntimeError) as error:
        parser.exit(1, describe(error))


def _number(text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise ArgumentTypeError(f"{text!r} is not the number of a trial; leave --trial out for the winner") from error


def _task_of(folder: Path) -> ModuleType:
    """Import the module that promotes trials of the sweep in `folder`. Raises ValueError if that fails."""
    name = load_study(folder).user_attrs.get(TASK, DEFAULT_TASK)
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise ValueError(f"{folder}: the study's task is {name!r}, which cannot be imported ({error})") from error


if __name__ == "__main__":
    main()
