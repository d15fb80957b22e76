"""The folder best_model/: one champion, replaced by an atomic rename, and its predecessors in history/."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

from catdog.checkpoint import read_header
from search.durable import what_blocks
from shell.environment import module_command, remedy_of

CHAMPION, CARD, HISTORY, WORK = "model.safetensors", "README.md", "history", ".work"
WITHDRAWN = "-withdrawn"  # marks a champion of history/ that a rollback took out of service
NUM_KEPT = 10  # champions in history/

Callback = Callable[[Path], object]  # takes the path of a champion


@contextmanager
def replaceable(best_model: Path, describe: Callback) -> Iterator[Path]:
    """Lock the folder; yield the path to write a new champion to, for `install`.

    After the block, `describe(champion)` runs under the same lock. If the block raises, the champion is untouched
    unless `install` returned. Readers of the champion always see a whole file, the old or the new one. Raises
    ValueError if the folder cannot be written, and OSError if that shows in the block.
    """
    with _locked(best_model):
        try:
            yield best_model / WORK / CHAMPION
        except OSError as error:
            if not error.filename or best_model not in Path(error.filename).parents:
                raise
            raise OSError(error.errno, _unwritable(best_model, error)) from error
        if (best_model / CHAMPION).exists():
            describe(best_model / CHAMPION)
        with suppress(OSError):  # the next promotion removes them
            for path in _history(best_model)[:-NUM_KEPT]:
                path.unlink()


def noting(describe: Callback, notes: list[str]) -> Callback:
    """Return `describe`, with a note in place of its OSError: the champion that it describes is in place by then."""

    def attempt(champion: Path) -> None:
        try:
            describe(champion)
        except OSError as error:
            card = f"{champion.with_name(CARD)} could not be written ({error.strerror})"
            notes.append(f"{card}; it does not describe this champion until the next promotion or rollback")

    return attempt


def install(best_model: Path, new: Path, *, keep: bool) -> Path | None:
    """Make the file `new` the champion; return its predecessor's path in history/, if that is kept.

    Without `keep`, the file is the same model with another header. Call it within `replaceable`.
    """
    kept = _keep(best_model, "") if keep and (best_model / CHAMPION).exists() else None
    _replace(best_model / CHAMPION, new)
    return kept


def rollback(best_model: Path, verify: Callback, describe: Callback) -> tuple[Path, Path | None]:
    """Make the champion's predecessor the champion again; return its former path, and the path of its successor.

    history/ keeps the successor, marked as withdrawn, so that the next rollback goes further back. Predecessors that
    `verify` refuses with ValueError, because they are damaged, are skipped. Raises ValueError if none is left.
    """
    return _exchange(best_model, verify, describe, undo=False)


def undo_rollback(best_model: Path, verify: Callback, describe: Callback) -> tuple[Path, Path | None]:
    """Make the champion that a rollback withdrew last the champion again. Return and raise as `rollback` does."""
    return _exchange(best_model, verify, describe, undo=True)


def _exchange(best_model: Path, verify: Callback, describe: Callback, *, undo: bool) -> tuple[Path, Path | None]:
    if not any(_is_withdrawn(path) == undo for path in _history(best_model)):
        why = _nothing_to_go_back_to(best_model, verify, undo=undo)
        raise ValueError(why)  # before folders are made in a wrong place
    with replaceable(best_model, describe):
        past = [path for path in _history(best_model) if _is_withdrawn(path) == undo]
        before = next((path for path in reversed(past) if is_whole(path, verify)), None)
        if before is None:
            damaged = f"{best_model / HISTORY} holds no champion to go back to: {len(past)} are damaged"
            raise ValueError(f"{damaged}; {_anyway()}")
        after = _keep(best_model, "" if undo else WITHDRAWN) if (best_model / CHAMPION).exists() else None
        _replace(best_model / CHAMPION, before)
    return before, after


def _nothing_to_go_back_to(best_model: Path, verify: Callback, *, undo: bool) -> str:
    if undo:
        return f"{best_model.absolute() / HISTORY} holds no champion that a rollback withdrew, so there is none to undo"
    why = "nothing was promoted here yet"
    if (best_model / CHAMPION).exists():
        why = "no champion came before the present one, which stays"
        if not is_whole(best_model / CHAMPION, verify):
            why = f"no champion came before the present one, which is damaged; {_anyway()}"
    if _history(best_model):
        back = f"{module_command('search.promote')} --undo-rollback takes the last one back"
        why = f"rollbacks withdrew all earlier ones; {back}"
    return f"{best_model.absolute() / HISTORY} holds no champion to go back to: {why}"


def _anyway() -> str:
    return f"promote a trial with {module_command('search.promote')} NAME --promote always"


def require_writable(best_model: Path) -> None:
    """Raise ValueError, one sentence, if no champion could be written to `best_model`."""
    with _locked(best_model):
        pass


def provenance_of(best_model: Path) -> dict[str, Any]:
    """Return the champion's provenance, empty if there is no champion. Raises ValueError if it is damaged."""
    champion = best_model / CHAMPION
    try:
        return dict(read_header(champion)["provenance"]) if champion.exists() else {}
    except ValueError as error:
        raise ValueError(explain_damage(best_model, error)) from error


def explain_damage(best_model: Path, error: ValueError) -> str:
    """Say what is wrong with a champion that cannot be read, and what helps."""
    other = "give --promote always to replace it"
    if any(is_whole(path, read_header) for path in _history(best_model) if not _is_withdrawn(path)):
        other = f"take the one before it: {module_command('search.promote')} --rollback"
    return f"{str(error).partition(';')[0]}; put back a copy of it, or {other}"


def count_looks(best_model: Path, fingerprint: str) -> int:
    """Return how often this test set was used, by the headers of the champion and its predecessors."""
    looks = 0
    for path in (best_model / CHAMPION, *(best_model / HISTORY).glob("*.safetensors")):
        with suppress(ValueError):  # a damaged file counts nothing
            test = read_header(path)["metrics"].get("test", {})
            looks = max(looks, test.get("looks", 0) if test.get("fingerprint") == fingerprint else 0)
    return looks


@contextmanager
def _locked(best_model: Path) -> Iterator[None]:
    """Lock the folder, remove the leftovers of a killed promotion, and provide its work folder."""
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
            told = f"{_unwritable(best_model, error)}; {remedy_of(error) or 'make it writable'}"
            raise ValueError(what_blocks(best_model / HISTORY) or told) from error
        held.callback(shutil.rmtree, work, ignore_errors=True)
        for path in _history(best_model)[-1:]:
            if (best_model / CHAMPION).exists() and path.samefile(best_model / CHAMPION):
                path.unlink()  # the second name of a champion that was not replaced
        yield


def _unwritable(best_model: Path, error: OSError) -> str:
    return f"{best_model}/ cannot be written ({error.strerror}); the champion stays as it is"


def _history(best_model: Path) -> list[Path]:
    """Return the predecessors of the champion, oldest first."""
    return sorted((best_model / HISTORY).glob("[0-9][0-9][0-9][0-9]*.safetensors"))


def _is_withdrawn(path: Path) -> bool:
    return path.stem.endswith(WITHDRAWN)


def is_whole(path: Path, verify: Callback) -> bool:
    """Say whether `verify` accepts a model file."""
    with suppress(ValueError):
        verify(path)
        return True
    return False


def _keep(best_model: Path, mark: str) -> Path:
    """Give the champion a second name in history/, under the next number."""
    champion, before = best_model / CHAMPION, _history(best_model)
    number = 1 + int(before[-1].stem[:4]) if before else 1
    kept = best_model / HISTORY / f"{number:04}{mark}.safetensors"
    try:
        os.link(champion, kept)
    except OSError:  # a file system without hard links
        copy = best_model / WORK / "copy"
        shutil.copyfile(champion, copy)
        copy.replace(kept)
    _sync(kept)
    _sync(best_model / HISTORY)
    return kept


def _replace(champion: Path, path: Path) -> None:
    path.replace(champion)
    with suppress(OSError):  # the champion is in place
        _sync(path.parent)
        _sync(champion.parent)


def _sync(path: Path) -> None:
    """Make a file, or the renames in a folder, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
