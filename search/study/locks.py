"""Who holds which trial. A lock is dropped when its holder dies, however it dies: by the kernel, or by the server.

Where the study is a file, locks are the kernel's, on files in the run's folder. Where it is a PostgreSQL server, they
are the server's advisory locks. There a machine can be cut off and come back: the server has dropped its locks, and
others go on with its trials. So a process has one connection for everything, which holds its locks and carries its
writes, and a new one is made only when it gets the same locks again and the trial still bears the same claim. Nobody
can write to a trial that is not his any more, because there is no connection to do it with.
"""

import json
import math
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, Protocol

import optuna
import sqlalchemy
from filelock import FileLock, Timeout
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial
from sqlalchemy import event
from sqlalchemy.exc import SQLAlchemyError

from search.study.storage import StorageError

__all__ = ["WORKER", "FileLocks", "Locks", "SectionLostError", "ServerLocks", "TrialLostError"]

Section = Literal["claim", "propose"]

WORKER = "worker"  # user attribute of a trial: who holds it, and by which claim
SECTIONS: dict[Section, int] = {"claim": 0x0CA7D060, "propose": 0x0CA7D061}  # advisory locks' keys
TRIAL = 0x0CA7D063
HELD = """FROM pg_locks WHERE locktype = 'advisory' AND classid = :key AND granted
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"""
SILENT = """SELECT pid FROM pg_stat_activity
    WHERE state_change < now() - CAST(current_setting('lock_timeout') AS interval)"""
OWNER = """SELECT state, value_json FROM trials JOIN trial_user_attributes USING (trial_id)
    WHERE key = %s AND trial_id = %s"""
SECONDS_TO_RETURN = 15  # that holders have to come back to a server that was started again
PING_SECONDS = 2.0
CLAIM_POLL_SECONDS = 0.002  # filelock's own 0.05 are longer than it takes to make a trial


class TrialLostError(Exception):
    """A trial belongs to somebody else by now."""


class SectionLostError(StorageError):
    """The server was away while this process was in a part of the program where one process is at a time."""


class Locks(Protocol):
    """What processes that share a study need of each other."""

    def exclusively(self, section: Section) -> Any:
        """Enter a part of the program in which one process is at a time."""

    def try_lock(self, trial: FrozenTrial | optuna.Trial) -> bool:
        """Lock a trial until `release` or death; False where another process holds it."""

    def claimed(self, trial: FrozenTrial, claim: str) -> None:
        """Say by which claim a locked trial is held, as its attribute says from now on."""

    def release(self, trial: FrozenTrial | optuna.Trial) -> None:
        """Let go of a trial."""

    def free(self, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        """Return those of some trials that nobody holds."""

    def check(self) -> None:
        """Raise TrialLostError where a trial that was locked is no longer ours."""

    def are_settled(self) -> bool:
        """Say whether every living process has what it holds; those of a server that was just started may not yet."""


class FileLocks:
    """Locks of the kernel, on files in the folder of a sweep's part."""

    def __init__(self, folder: Path, trials: Path) -> None:
        self.folder, self.trials = folder, trials
        self.held: dict[int, FileLock] = {}

    def exclusively(self, section: Section) -> FileLock:
        return FileLock(self.folder / f"{section}.lock", poll_interval=CLAIM_POLL_SECONDS)

    def try_lock(self, trial: FrozenTrial | optuna.Trial) -> bool:
        if lock := self._lock(trial):
            self.held[trial.number] = lock
        return lock is not None

    def claimed(self, trial: FrozenTrial, claim: str) -> None:
        pass  # the kernel needs no telling

    def release(self, trial: FrozenTrial | optuna.Trial) -> None:
        if lock := self.held.pop(trial.number, None):
            lock.release()

    def free(self, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        return [trial for trial in trials if self._is_free(trial)]

    def check(self) -> None:
        pass

    def are_settled(self) -> bool:
        return True

    def _is_free(self, trial: FrozenTrial) -> bool:
        if lock := self._lock(trial):
            lock.release()
        return lock is not None

    def _lock(self, trial: FrozenTrial | optuna.Trial) -> FileLock | None:
        folder = self.trials / f"{trial.number:04}"
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / "lock")
        try:
            lock.acquire(blocking=False)
        except Timeout:
            return None
        return lock


class ServerLocks:
    """Advisory locks of a PostgreSQL server, for the study of this number."""

    def __init__(self, storage: RDBStorage, study: int) -> None:
        self.engine, self.study = storage.engine, study
        self.held: dict[int, str] = {}  # trials, by their ids, and by which claims
        self.depth = 0  # of sections that this process is in
        self.pinging: threading.Thread | None = None
        self.cut_off = -math.inf  # when a connection was lost last, by time.monotonic()
        event.listen(self.engine, "connect", self._connected)

    @contextmanager
    def exclusively(self, section: Section) -> Iterator[None]:
        key = SECTIONS[section]
        while not self._lock_in_time(key):
            if section == "claim":
                self._end_whoever_holds(key)
        self.depth += 1
        try:
            yield
        finally:
            self.depth -= 1
            with suppress(StorageError):  # gone with its connection
                self._ask("SELECT pg_advisory_unlock(:key, :study)", key=key, study=self.study)

    def try_lock(self, trial: FrozenTrial | optuna.Trial) -> bool:
        locked = bool(self._ask("SELECT pg_try_advisory_lock(:key, :trial)", key=TRIAL, trial=trial._trial_id))
        if locked:
            self.held[trial._trial_id] = ""
            self._keep_in_touch()
        return locked

    def claimed(self, trial: FrozenTrial, claim: str) -> None:
        self.held[trial._trial_id] = claim

    def release(self, trial: FrozenTrial | optuna.Trial) -> None:
        if self.held.pop(trial._trial_id, None) is not None:
            with suppress(StorageError):  # gone with its connection
                self._ask("SELECT pg_advisory_unlock(:key, :trial)", key=TRIAL, trial=trial._trial_id)

    def free(self, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        held = self._ask(f"SELECT array_agg(CAST(objid AS bigint)) {HELD}", key=TRIAL) or []
        return [trial for trial in trials if trial._trial_id not in held]

    def check(self) -> None:
        self._ask("SELECT 1")

    def are_settled(self) -> bool:
        up = float(self._ask("SELECT extract(epoch FROM now() - pg_postmaster_start_time())"))
        # Where one of its processes is killed, the server ends everybody's session without starting anew.
        return min(up, time.monotonic() - self.cut_off) > SECONDS_TO_RETURN

    def _connected(self, connection: Any, _: Any) -> None:
        """Let a new connection take the place of one that broke, if it may."""
        self.cut_off = time.monotonic()
        try:
            with connection.cursor() as cursor:
                for trial, claim in list(self.held.items()):
                    cursor.execute("SELECT pg_try_advisory_lock(%s, %s)", (TRIAL, trial))
                    (locked,) = cursor.fetchone()
                    cursor.execute(OWNER, (WORKER, trial))
                    state, worker = cursor.fetchone() or ("", "{}")
                    ours = json.loads(worker).get("claim") == claim  # and ended, if the server's last answer got lost
                    if not ours or (state == "RUNNING" and not locked):
                        raise TrialLostError("the server was away for too long; the trial is somebody else's by now")  # noqa: TRY301
            connection.commit()
            if self.depth:
                raise SectionLostError("the server was away")  # noqa: TRY301
        except BaseException:
            connection.close()
            raise

    def _keep_in_touch(self) -> None:
        """Notice soon that a connection broke, so that nobody takes the trial in the meantime."""

        def ping() -> None:
            while True:
                time.sleep(PING_SECONDS)
                if self.held:
                    with suppress(StorageError, TrialLostError):  # what the trial's own writes will find too
                        self._ask("SELECT 1")

        if not self.pinging:
            self.pinging = threading.Thread(target=ping, daemon=True)
            self.pinging.start()

    def _lock_in_time(self, key: int) -> bool:
        """Wait for a section as long as the server lets anybody wait for a lock; say whether it is ours."""
        try:
            self._ask("SELECT pg_advisory_lock(:key, :study)", key=key, study=self.study)
        except StorageError as error:
            if type(getattr(error.__cause__, "orig", None)).__name__ == "LockNotAvailable":
                return False
            raise
        return True

    def _end_whoever_holds(self, key: int) -> None:
        """End the session of a process that is frozen where it must not be; if it wakes, it finds its locks gone.

        We may have waited for many, each of them quick: who is frozen has asked the server for nothing in all the time.
        """
        frozen = f"{HELD} AND objid = :study AND pid IN ({SILENT})"
        self._ask(f"SELECT count(pg_terminate_backend(pid)) {frozen}", key=key, study=self.study)

    def _ask(self, question: str, **values: Any) -> Any:
        """Return the one value that answers a question. Raises StorageError where the server cannot be asked."""
        try:
            with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                return connection.execute(sqlalchemy.text(question), values).scalar()
        except SQLAlchemyError as error:
            raise StorageError(str(error)) from error
