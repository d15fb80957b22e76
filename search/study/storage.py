"""The storage of a study: a SQLite file in the run's folder, or a PostgreSQL server that many machines reach."""

import json
import re
import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing, nullcontext, suppress
from pathlib import Path
from typing import Any

import sqlalchemy
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import RDBStorage
from sqlalchemy.exc import InterfaceError, OperationalError, SQLAlchemyError

from search.durable import write_text

StorageError = StorageInternalError

NOTE = "storage.txt"  # in a run's folder: the server's address, for later readers
BUSY_SECONDS = 60.0  # how long SQLite waits for another process's transaction
PASSING = ("database is locked", "readonly database")  # in SQLite's messages about faults that may pass
BROKEN = ("file is not a database", "disk image is malformed")  # and about damage
FITTING: set[Path] = set()  # files of a compatible Optuna; the check takes 0.1 s
NOTE_DOWN = """INSERT INTO trial_user_attributes (trial_id, key, value_json)
    SELECT trial_id, :key, :value FROM trials WHERE trial_id = :trial AND state IN ('RUNNING', 'WAITING')
    ON CONFLICT (trial_id, key) DO UPDATE SET value_json = excluded.value_json"""
# A value that changes with every commit. SQLite's ignores commits over the same connection.
VERSION = {"sqlite": "PRAGMA data_version", "postgresql": "SELECT CAST(txid_current_snapshot() AS text)"}
MAKING_TABLES = 1_668_244_581  # key of an advisory lock
LOCK_SECONDS = 30  # limit of a wait for a lock; a process that holds "claim" for longer counts as frozen
# The server drops a silent machine after 20 + 3 * 10 seconds.
KEEPALIVE = {"keepalives_idle": 20, "keepalives_interval": 10, "keepalives_count": 3}
USER_TIMEOUT = 50_000  # milliseconds, likewise for unacknowledged data


def validated_storage(url: str) -> str:
    """Return the address in SQLAlchemy's form. Raises ValueError unless it is a PostgreSQL server's."""
    if not url:
        return ""
    parsed = None
    with suppress(sqlalchemy.exc.ArgumentError, ValueError):
        parsed = sqlalchemy.make_url(url)
    if parsed is None or parsed.get_backend_name() != "postgresql":
        raise ValueError("--storage takes postgresql://USER@HOST/DATABASE; leave it out for a file in the run's folder")
    try:
        import psycopg  # noqa: F401, PLC0415 - an extra
    except ImportError as error:
        raise ValueError("--storage needs psycopg; pip install 'psycopg[binary]' (extra postgres)") from error
    return parsed.set(drivername="postgresql+psycopg").render_as_string(hide_password=False)


def without_password(url: str) -> str:
    return re.sub(r"(?<=password=)[^&]*", "***", re.sub(r"(?<=://)([^:/@]*):[^@]*(?=@)", r"\1:***", url))


def note_storage(folder: Path, url: str) -> None:
    """Store the server's address in `folder`, readable by its owner alone."""
    if noted_storage(folder) != url:
        write_text(folder / NOTE, url, mode=0o600, concurrent=True)


def noted_storage(folder: Path) -> str:
    """Return the noted address of a server; empty if the study is a file."""
    path = folder / NOTE
    return path.read_text(encoding="utf-8").strip() if path.exists() else ""


def open_storage(folder: Path, url: str = "", *, locking: bool = False) -> RDBStorage:
    """Open the storage of a sweep: `url`, or the one stored in `folder`.

    With `locking`, a process has a single connection, because a server releases locks with their connection. Raises
    OSError if the storage cannot be opened, ValueError if it is damaged.
    """
    url = url or noted_storage(folder)
    path = folder / "study.db"
    try:
        return _open_server(url, locking=locking) if url else _open_file(path)
    except (sqlite3.Error, SQLAlchemyError, StorageInternalError) as error:
        where = without_password(url) if url else path
        if any(words in str(error) for words in BROKEN):
            what = f"the study {where} is damaged ({first_line(error)})"
            raise ValueError(f"{what}; put back a copy, or give another --name") from error
        raise OSError(f"the study {where} cannot be opened ({first_line(error)})") from error


def note_down(storage: RDBStorage, trial_id: int, entries: Mapping[str, Any]) -> None:
    """Write user attributes of an unfinished trial in one transaction; Optuna uses one for each.

    Raises UpdateFinishedTrialError, and StorageError if the storage is unreachable.
    """
    try:
        with storage.engine.begin() as connection:
            for key, value in entries.items():
                values = {"trial": trial_id, "key": key, "value": json.dumps(value)}
                if not connection.execute(sqlalchemy.text(NOTE_DOWN), values).rowcount:
                    raise UpdateFinishedTrialError(f"trial {trial_id} has ended; {key} cannot be written")
    except SQLAlchemyError as error:
        raise StorageError(str(error)) from error


def version_of(storage: RDBStorage) -> Callable[[], object]:
    """Return a function that reads the storage's version, which changes with every commit."""
    question = VERSION[storage.engine.dialect.name]
    engine = storage.engine.execution_options(isolation_level="AUTOCOMMIT")
    own = engine.connect() if engine.dialect.name == "sqlite" else None  # a connection without commits

    def ask() -> object:
        try:
            with nullcontext(own) if own else engine.connect() as connection:
                return connection.exec_driver_sql(question).scalar()
        except SQLAlchemyError as error:
            raise StorageError(str(error)) from error

    return ask


def is_passing(error: Exception) -> bool:
    """Return whether a fault may pass by itself: an unreachable server, a locked file."""
    cause = error.__cause__ if isinstance(error, StorageInternalError) else error
    if isinstance(cause, sqlite3.Error):
        return any(words in str(cause) for words in PASSING)
    if isinstance(cause, InterfaceError | OperationalError):
        return not isinstance(cause.orig, sqlite3.Error) or is_passing(cause.orig)
    # Optuna continues in the transaction of a connection that broke while it read trials.
    return isinstance(cause, sqlalchemy.exc.TimeoutError | sqlalchemy.exc.PendingRollbackError)


def _open_file(path: Path) -> RDBStorage:
    # PRAGMA synchronous stays FULL, though NORMAL commits far faster: after a power cut the study could lack a trial
    # whose checkpoint exists, and the next trial of that number would resume it.
    with closing(sqlite3.connect(path, timeout=BUSY_SECONDS)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")  # kept in the file: readers and the writer do not block
    patience = {"connect_args": {"timeout": BUSY_SECONDS}}
    known = path.absolute() in FITTING
    storage = RDBStorage(f"sqlite:///{path}", engine_kwargs=patience, skip_compatibility_check=known)
    FITTING.add(path.absolute())
    return storage


def _open_server(url: str, *, locking: bool) -> RDBStorage:
    """Open the tables on a server. One process at a time creates missing ones."""
    server_side = " ".join(f"-c tcp_{name}={value}" for name, value in KEEPALIVE.items())
    server_side += f" -c tcp_user_timeout={USER_TIMEOUT} -c lock_timeout={LOCK_SECONDS}s"
    arguments = {"connect_timeout": 10, "tcp_user_timeout": USER_TIMEOUT, "options": server_side, **KEEPALIVE}
    alone: dict[str, Any] = {"connect_args": arguments, "poolclass": sqlalchemy.NullPool}
    engine = sqlalchemy.create_engine(url, **alone)
    with engine.connect() as connection:
        if not _has_tables(connection):
            connection.execute(sqlalchemy.text("SELECT pg_advisory_lock(:key)"), {"key": MAKING_TABLES})
            RDBStorage(url, engine_kwargs=alone)
            connection.execute(sqlalchemy.text("SELECT pg_advisory_unlock(:key)"), {"key": MAKING_TABLES})
    if not locking:
        return RDBStorage(url, engine_kwargs=alone, skip_table_creation=True)
    settings = {"connect_args": arguments, "pool_size": 1, "max_overflow": 0}  # the check would need two connections
    return RDBStorage(url, engine_kwargs=settings, skip_compatibility_check=True, skip_table_creation=True)


def _has_tables(connection: sqlalchemy.Connection) -> bool:
    """Return whether Optuna's tables exist; it writes their version last."""
    there = connection.execute(sqlalchemy.text("SELECT to_regclass('alembic_version')")).scalar()
    return bool(there and connection.execute(sqlalchemy.text("SELECT count(*) FROM alembic_version")).scalar())


def first_line(error: Exception) -> str:
    """Return the first line of the storage's own message."""
    source = error.__cause__ if isinstance(error.__cause__, SQLAlchemyError | sqlite3.Error) else error
    return str(source).strip().splitlines()[0]
