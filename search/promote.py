"""The winner of a sweep -> best_model/, by one atomic rename; the champion before it is kept."""

import os
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

__all__ = ["CHAMPION", "promote"]

CHAMPION = "model.safetensors"


def promote(challenger: Path, best_model: Path, judge: Callable[[Path, Path], None]) -> Path | None:
    """Make the model file `challenger` the champion of the folder `best_model`.

    `judge(challenger, target)` tests the challenger and writes it, with its test figures, to `target`. The champion
    before it goes to history/ under the next number; that path is returned, None where there was no champion.
    Whoever reads the champion meets the old or the new file, whole, at every moment. Raises whatever `judge` raises,
    and OSError; the champion is then untouched.
    """
    history = best_model / "history"
    history.mkdir(parents=True, exist_ok=True)
    with FileLock(best_model / ".lock"):
        kept = None
        champion, judged = best_model / CHAMPION, best_model / ".challenger.safetensors"
        try:
            judge(challenger, judged)
            if champion.exists():
                kept = history / f"{_next_number(history):04}.safetensors"
                os.link(champion, kept)
            judged.replace(champion)
            _sync_folder(best_model)
        finally:
            judged.unlink(missing_ok=True)
        return kept


def _next_number(history: Path) -> int:
    return 1 + max((int(path.stem) for path in history.glob("[0-9][0-9][0-9][0-9].safetensors")), default=0)


def _sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
