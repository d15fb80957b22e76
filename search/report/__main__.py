"""python -m search.report NAME: write report.html and ranking.csv of a sweep, and print its ranking."""

import argparse
import sys
from pathlib import Path

from rich.console import Console

from search.analysis.confirmation import print_candidates
from search.analysis.ranking import WIDE, print_ranking, write_ranking
from search.report.page import write_page
from search.report.sections import read, sentences
from search.study.storage import StorageError
from search.study.sweep import load_study


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m search.report.page", description="Rank the trials of a sweep.")
    parser.add_argument("name", help="the sweep's folder below runs/")
    folder = Path("runs") / Path(parser.parse_args().name).name
    # What the command says of the champion, it verifies with what made it; the rest of this file needs no torch.
    from pipeline.promotion import BEST_MODEL, champion_of  # noqa: PLC0415

    try:
        study = load_study(folder)
        page = write_page(folder, champion_of(study, BEST_MODEL))
        record = read(folder)
        write_ranking(folder / "ranking.csv", record.ranking, record.goal)
    except (ValueError, OSError, StorageError) as error:
        parser.exit(2, f"{error}\n")
    console = Console(width=None if sys.stdout.isatty() else WIDE)
    print_ranking(console, record.ranking, record.goal, folder / "ranking.csv", record.baseline)
    print_candidates(console, record.candidates, record.goal)
    for sentence in sentences(record, None):
        console.print(sentence, highlight=False, soft_wrap=True, markup=False)
    console.print(f"report: {page}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
