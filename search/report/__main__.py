"""Write report.html and ranking.csv of a sweep, and print its ranking: python -m search.report NAME."""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import optuna
from rich.console import Console
from safetensors import SafetensorError, safe_open

from search.analysis.confirmation import print_candidates
from search.analysis.ranking import WIDE, print_ranking, write_ranking
from search.report.page import write_page
from search.report.record import read_record
from search.report.summary import sentences
from search.study.storage import StorageError, first_line
from search.study.sweep import PROMOTION, find_sweep, load_study
from shell.command_line import CommandLine
from shell.environment import describe, module_command

CHAMPION = Path("best_model/model.safetensors")


def main() -> None:
    parser = CommandLine("python -m search.report", "Rank the trials of a sweep.")
    parser.add_argument("name", nargs="?", default="", help="a sweep in runs/ of the current directory, or its path")
    name = parser.parse().name
    try:
        folder = find_sweep(name)
        champion = _champion_of(load_study(folder))
        record = read_record(folder)
    except (ValueError, OSError, StorageError) as error:
        parser.exit(2, describe(error) if isinstance(error, OSError) else first_line(error))
    console = Console(width=None if sys.stdout.isatty() else WIDE)
    print_ranking(console, record.ranking, record.goal, folder / "ranking.csv", record.baseline)
    print_candidates(console, record.candidates, record.goal)
    for sentence in sentences(record, champion):
        console.print(sentence, highlight=False, soft_wrap=True, markup=False)
    try:
        write_ranking(folder / "ranking.csv", record.ranking, record.goal)
        console.print(f"report: {write_page(folder, champion)}", highlight=False, soft_wrap=True)
    except PermissionError:
        parser.exit(2, f"{folder} cannot be written, so there is no new report; make it writable")
    except OSError as error:
        parser.exit(2, describe(error))


def _champion_of(study: optuna.Study) -> dict[str, Any] | None:
    """Return the champion's header, verified without torch, if a trial of the study was compared with a champion.

    Raises ValueError if it is damaged.
    """
    if PROMOTION not in study.user_attrs or not CHAMPION.exists():
        return None
    try:
        with safe_open(CHAMPION, framework="numpy") as file:
            metadata = dict(file.metadata() or {})
            tensors = [(name, file.get_tensor(name)) for name in sorted(file.keys())]
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{CHAMPION} is not a whole safetensors file; {_remedy()}") from error
    claimed = metadata.pop("sha256", None)
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())  # as catdog/checkpoint.py computes it
    for name, array in tensors:
        digest.update(f"{name} torch.{array.dtype} {array.shape} ".encode() + array.tobytes())
    if claimed != digest.hexdigest():
        raise ValueError(f"{CHAMPION} was altered: its sha256 does not match; {_remedy()}")
    return {name: json.loads(text) for name, text in metadata.items()}


def _remedy() -> str:
    is_before = any(CHAMPION.parent.glob("history/[0-9][0-9][0-9][0-9].safetensors"))  # not withdrawn by a rollback
    other = f"take the one before it: {module_command('search.promote')} --rollback"
    replacing = f"replace it: {module_command('search.promote')} NAME --promote always"
    return f"put back a copy of it, or {other if is_before else replacing}"


if __name__ == "__main__":
    main()
