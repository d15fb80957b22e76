"""The folder best_model/: one champion, replaced by an atomic rename; those before it are kept, to be had back."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock

__all__ = ["CHAMPION", "HISTORY", "promote", "require_writable", "rollback"]

CHAMPION, HISTORY, WORK = "model.safetensors", "history", ".work"
WITHDRAWN = "-withdrawn"  # marks a champion of history/ that a rollback took out of service
NUM_KEPT = 10  # champions in history/


def promote(
    best_model: Path, judge: Callable[[Path | None, Path], bool], describe: Callable[[Path], object]
) -> Path | None:
    """Let `judge(champion, target)` decide what the folder `best_model` is to hold.

    It is given the champion, None where there is none, and writes to `target` the file that is to take its place:
    True where that is another model, and the champion goes to history/; False where it is the same with more in its
    header, or nothing was written. `describe(champion)` follows, under the same lock. Returns where the champion
    before went, if it did. Whoever reads the champion meets the old or the new file, whole, at every moment. Raises
    whatever `judge` raises, ValueError where the folder cannot be written; the champion is then untouched.
    """
    champion, target = best_model / CHAMPION, best_model / WORK / CHAMPION
    with _locked(best_model):
        before = champion if champion.exists() else None
        kept = _keep(best_model, "") if judge(before, target) and before else None
        if target.exists():
            _replace(champion, target)
        if champion.exists():
            describe(champion)
        _forget(best_model)
    return kept


def rollback(
    best_model: Path, verify: Callable[[Path], object], describe: Callable[[Path], object]
) -> tuple[Path, Path | None]:
    """Make the champion before the present one the champion again; return where both were and are in history/.

    The present one is kept there too, marked as withdrawn, so that the next rollback goes further back. Champions that
    `verify` refuses with ValueError, because they are damaged, are passed over. Raises ValueError where none is left.
    """
    with _locked(best_model):
        before = next((path for path in reversed(_history(best_model)) if _serves(path, verify)), None)
        if before is None:
            raise ValueError(f"{best_model / HISTORY} holds no whole champion to go back to, withdrawn ones left aside")
        withdrawn = _keep(best_model, WITHDRAWN) if (best_model / CHAMPION).exists() else None
        _replace(best_model / CHAMPION, before)
        describe(best_model / CHAMPION)
        _forget(best_model)
    return before, withdrawn


def require_writable(best_model: Path) -> None:
    """Raise ValueError, one sentence, where no champion could be written to `best_model`."""
    with _locked(best_model):
        pass


@contextmanager
def _locked(best_model: Path) -> Iterator[None]:
    """Hold the folder alone, tidied of what a killed promotion left; its work folder lasts as long."""
    work = best_model / WORK
    with ExitStack() as held:
        try:
            (best_model / HISTORY).mkdir(parents=True, exist_ok=True)
            held.enter_context(FileLock(best_model / ".lock"))
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir()
            (best_model / HISTORY / ".probe").touch()
            (best_model / HISTORY / ".probe").unlink()
        except OSError as error:
            raise ValueError(
                f"{best_model}/ cannot be written ({error.strerror}); the champion stays as it is"
            ) from error
        held.callback(shutil.rmtree, work, ignore_errors=True)
        for path in _history(best_model)[-1:]:
            if (best_model / CHAMPION).exists() and path.samefile(best_model / CHAMPION):
                path.unlink()  # the second name of a champion that then stayed
        yield


def _history(best_model: Path) -> list[Path]:
    """Return the champions that were, oldest first."""
    return sorted((best_model / HISTORY).glob("[0-9][0-9][0-9][0-9]*.safetensors"))


def _serves(path: Path, verify: Callable[[Path], object]) -> bool:
    """Say whether a rollback may go to a champion of before."""
    if path.stem.endswith(WITHDRAWN):
        return False
    try:
        verify(path)
    except ValueError:
        return False
    return True


def _keep(best_model: Path, mark: str) -> Path:
    """Give the champion a second name in history/, under the next number."""
    champion, before = best_model / CHAMPION, _history(best_model)
    number = 1 + int(before[-1].stem[:4]) if before else 1
    kept = best_model / HISTORY / f"{number:04}{mark}.safetensors"
    try:
        os.link(champion, kept)
    except OSError:  # a file system without second names
        copy = best_model / WORK / "copy"
        shutil.copyfile(champion, copy)
        copy.replace(kept)
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
