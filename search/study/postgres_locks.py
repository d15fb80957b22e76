"""Advisory locks of a PostgreSQL server, for a study that many machines share.

A machine can be cut off and come back after the server released its locks and others resumed its trials. So a process
has one connection, which holds its locks and carries its writes. A new connection is accepted only if it gets the same
locks again and the trial still has the same claim. So a process that lost a trial has no connection to write to it.
"""

import json
import math
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import optuna
import sqlalchemy
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial
from sqlalchemy import event
from sqlalchemy.exc import SQLAlchemyError

from search.study.locks import WORKER, Section, SectionLostError, TrialLostError
from search.study.storage import StorageError
from search.study.trials import id_of

SECTIONS: dict[Section, int] = {"claim": 0x0CA7D060, "propose": 0x0CA7D061}  # keys of advisory locks
TRIAL = 0x0CA7D063
HELD = """FROM pg_locks WHERE locktype = 'advisory' AND classid = :key AND granted
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"""
SILENT = """SELECT pid FROM pg_stat_activity
    WHERE state_change < now() - CAST(current_setting('lock_timeout') AS interval)"""
OWNER = """SELECT state, value_json FROM trials JOIN trial_user_attributes USING (trial_id)
    WHERE key = %s AND trial_id = %s"""
SECONDS_TO_RETURN = 15  # for holders to reconnect to a restarted server
PING_SECONDS = 2.0


class PostgresLocks:
    """Advisory locks for the study of this number."""

    def __init__(self, storage: RDBStorage, study: int) -> None:
        self.engine, self.study = storage.engine, study
        self.held: dict[int, str] = {}  # claims by the ids of trials
        self.depth = 0  # of critical sections that this process is in
        self.pinging: threading.Thread | None = None
        self.cut_off = -math.inf  # time.monotonic() of the latest lost connection
        event.listen(self.engine, "connect", self._connected)

    @contextmanager
    def exclusively(self, section: Section) -> Iterator[None]:
        key = SECTIONS[section]
        while not self._lock_in_time(key):
            if section == "claim":
                self._end_frozen_holder(key)
        self.depth += 1
        try:
            yield
        finally:
            self.depth -= 1
            with suppress(StorageError):  # gone with its connection
                self._ask("SELECT pg_advisory_unlock(:key, :study)", key=key, study=self.study)

    def try_lock(self, trial: FrozenTrial | optuna.Trial) -> bool:
        locked = bool(self._ask("SELECT pg_try_advisory_lock(:key, :trial)", key=TRIAL, trial=id_of(trial)))
        if locked:
            self.held[id_of(trial)] = ""
            if not self.pinging:
                self.pinging = threading.Thread(target=self._ping, daemon=True)
                self.pinging.start()
        return locked

    def acquired(self, trial: FrozenTrial, claim: str) -> None:
        self.held[id_of(trial)] = claim

    def release(self, trial: FrozenTrial | optuna.Trial) -> None:
        if self.held.pop(id_of(trial), None) is not None:
            with suppress(StorageError):  # gone with its connection
                self._ask("SELECT pg_advisory_unlock(:key, :trial)", key=TRIAL, trial=id_of(trial))

    def free(self, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        held = self._ask(f"SELECT array_agg(CAST(objid AS bigint)) {HELD}", key=TRIAL) or []
        return [trial for trial in trials if id_of(trial) not in held]

    def check(self) -> None:
        self._ask("SELECT 1")

    def are_settled(self) -> bool:
        up = float(self._ask("SELECT extract(epoch FROM now() - pg_postmaster_start_time())"))
        # If one of its processes is killed, the server ends all sessions without a restart.
        return min(up, time.monotonic() - self.cut_off) > SECONDS_TO_RETURN

    def _connected(self, connection: Any, _: Any) -> None:
        """Accept a new connection if it gets the locks of the one that broke."""
        self.cut_off = time.monotonic()
        try:
            with connection.cursor() as cursor:
                for trial, claim in list(self.held.items()):
                    cursor.execute("SELECT pg_try_advisory_lock(%s, %s)", (TRIAL, trial))
                    (locked,) = cursor.fetchone()
                    cursor.execute(OWNER, (WORKER, trial))
                    state, worker = cursor.fetchone() or ("", "{}")
                    ours = json.loads(worker).get("claim") == claim
                    # A trial of ours that has ended needs no lock: only the server's last answer was lost.
                    if not ours or (state == "RUNNING" and not locked):
                        raise TrialLostError("the server was away for too long; another process has the trial")  # noqa: TRY301
            connection.commit()
            if self.depth:
                raise SectionLostError("the server was away")  # noqa: TRY301
        except BaseException:
            connection.close()
            raise

    def _ping(self) -> None:
        """Ping the server, so that a broken connection is noticed before another process acquires the trial."""
        while True:
            time.sleep(PING_SECONDS)
            if self.held:
                with suppress(StorageError, TrialLostError):  # the next write raises it too
                    self.check()

    def _lock_in_time(self, key: int) -> bool:
        """Wait for a critical section, up to the server's lock_timeout. Return whether this process is in it."""
        try:
            self._ask("SELECT pg_advisory_lock(:key, :study)", key=key, study=self.study)
        except StorageError as error:
            if type(getattr(error.__cause__, "orig", None)).__name__ == "LockNotAvailable":
                return False
            raise
        return True

    def _end_frozen_holder(self, key: int) -> None:
        """End the session of a process that froze in a critical section. If it wakes, its locks are gone.

        This process may have waited for many quick ones. Only a frozen one sent the server nothing in all that time.
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
