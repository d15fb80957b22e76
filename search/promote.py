"""The winner of a sweep -> best_model/, by one atomic rename; the champions before it are kept, and can be had back.

python -m search.promote NAME [--trial N]    a sweep's winner, or any of its trials, if it is better
python -m search.promote --rollback          the champion before
"""

import argparse
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

__all__ = ["CHAMPION", "HISTORY", "promote", "require_writable", "rollback"]

CHAMPION, HISTORY = "model.safetensors", "history"
NUM_KEPT = 10  # champions in history/


def promote(best_model: Path, judge: Callable[[Path | None, Path], bool]) -> Path | None:
    """Let `judge(champion, target)` decide what the folder `best_model` is to hold.

    It is given the champion, None where there is none, and writes to `target` the file that is to take its place:
    True where that is another model, and the champion goes to history/; False where it is the same with more in its
    header, or nothing was written. Returns where the champion went, if it did. Whoever reads the champion meets the
    old or the new file, whole, at every moment. Raises whatever `judge` raises, ValueError where the folder cannot
    be written; the champion is then untouched.
    """
    champion, target = best_model / CHAMPION, best_model / ".challenger.safetensors"
    with _locked(best_model):
        try:
            before = champion if champion.exists() else None
            kept = _keep(best_model, "") if judge(before, target) and before else None
            if target.exists():
                _replace(champion, target)
        finally:
            target.unlink(missing_ok=True)
        _forget(best_model)
    return kept


def rollback(best_model: Path, verify: Callable[[Path], object]) -> tuple[Path, Path | None]:
    """Make the champion before the present one the champion again; return where both were and are in history/.

    The present one is kept there too, marked as withdrawn, so that the next rollback goes further back. Raises
    ValueError where there is none before, or where `verify` does.
    """
    with _locked(best_model):
        before = [path for path in _history(best_model) if not path.stem.endswith("withdrawn")]
        if before and (best_model / CHAMPION).exists() and before[-1].samefile(best_model / CHAMPION):
            before.pop().unlink()  # a promotion was killed before its rename
        if not before:
            raise ValueError(f"{best_model / HISTORY} holds no champion to go back to")
        verify(before[-1])
        withdrawn = _keep(best_model, "-withdrawn") if (best_model / CHAMPION).exists() else None
        _replace(best_model / CHAMPION, before[-1])
        _forget(best_model)
    return before[-1], withdrawn


def require_writable(best_model: Path) -> None:
    """Raise ValueError, one sentence, where no champion could be written to `best_model`."""
    with _locked(best_model):
        pass


@contextmanager
def _locked(best_model: Path) -> Iterator[None]:
    try:
        (best_model / HISTORY).mkdir(parents=True, exist_ok=True)
        lock = FileLock(best_model / ".lock")
        lock.acquire()
        for folder in (best_model, best_model / HISTORY):
            probe = folder / ".probe"
            probe.touch()
            probe.unlink()
    except OSError as error:
        raise ValueError(f"{best_model}/ cannot be written ({error.strerror}); the champion stays as it is") from error
    try:
        yield
    finally:
        lock.release()


def _history(best_model: Path) -> list[Path]:
    """Return the champions that were, oldest first."""
    return sorted((best_model / HISTORY).glob("[0-9][0-9][0-9][0-9]*.safetensors"))


def _keep(best_model: Path, mark: str) -> Path:
    """Give the champion a second name in history/, under the next number."""
    champion, before = best_model / CHAMPION, _history(best_model)
    if before and before[-1].samefile(champion):
        return before[-1]  # as a promotion that was killed before its rename left it
    number = 1 + int(before[-1].stem[:4]) if before else 1
    kept = best_model / HISTORY / f"{number:04}{mark}.safetensors"
    try:
        os.link(champion, kept)
    except OSError:  # a file system without second names
        partial = kept.with_suffix(".partial")
        shutil.copyfile(champion, partial)
        partial.replace(kept)
    _sync(kept)
    _sync(best_model / HISTORY)
    return kept


def _replace(champion: Path, path: Path) -> None:
    path.replace(champion)
    _sync(path.parent)
    _sync(champion.parent)


def _forget(best_model: Path) -> None:
    for path in _history(best_model)[:-NUM_KEPT]:
        path.unlink()


def _sync(path: Path) -> None:
    """Make a file, or the renames in a folder, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m search.promote", description="Promote a trial, or roll back.")
    parser.add_argument("name", nargs="?", help="the sweep's folder below runs/")
    parser.add_argument("--trial", type=int, help="its number (default: the sweep's winner)")
    text = "always: without a comparison (default: if-better)"
    parser.add_argument("--promote", choices=("if-better", "always"), default="if-better", help=text)
    parser.add_argument("--rollback", action="store_true", help="make the champion before the present one it again")
    options = parser.parse_args()
    if options.rollback == bool(options.name):
        parser.error("give either the name of a sweep or --rollback")
    # The command that knows both packages: the champion is verified, and compared, with what made it.
    from judge import BEST_MODEL, judge_trial, restore  # noqa: PLC0415
    from search.study import LedgerError  # noqa: PLC0415

    try:
        if options.rollback:
            print(restore(BEST_MODEL))
        else:
            sentences = judge_trial(Path("runs") / Path(options.name).name, options.trial, options.promote == "always")
            print("\n".join(sentences))
    except (ValueError, LedgerError) as error:
        parser.exit(2, f"{error}\n")
    except OSError as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
