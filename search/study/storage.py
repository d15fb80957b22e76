"""The storage of a study: a SQLite file in the run's folder, or a PostgreSQL server that many machines reach."""

import json
import os
import re
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import sqlalchemy
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import RDBStorage
from sqlalchemy.exc import InterfaceError, OperationalError, SQLAlchemyError

from search.durable import write_text
from shell.redact import keep_secret, redact, without_password

StorageError = StorageInternalError

NOTE = "storage.txt"  # in a run's folder: the server's address, for later readers
STUDY = "study.json"  # beside it: name and uid of the study on the server; another folder may have that name later
BUSY_SECONDS = 60.0  # how long SQLite waits for another process's transaction
PASSING = ("database is locked", "readonly database")  # in SQLite's messages about faults that may pass
BROKEN = ("file is not a database", "disk image is malformed")  # and about damage
FITTING: set[Path] = set()  # files of a compatible Optuna; the check takes 0.1 s
NOTE_DOWN = """INSERT INTO trial_user_attributes (trial_id, key, value_json)
    SELECT trial_id, :key, :value FROM trials WHERE trial_id = :trial AND state IN ('RUNNING', 'WAITING')
    ON CONFLICT (trial_id, key) DO UPDATE SET value_json = excluded.value_json"""
STUDIES = """SELECT study_name,
    EXISTS (SELECT 1 FROM study_user_attributes AS a WHERE a.study_id = s.study_id AND a.key = 'settings'),
    EXISTS (SELECT 1 FROM trials AS t WHERE t.study_id = s.study_id) FROM studies AS s ORDER BY study_id"""
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
    if "@" in f"{parsed.host}{parsed.database}":
        raise ValueError("--storage has an '@' too many; write one in a password as %40")
    try:
        import psycopg  # noqa: F401, PLC0415 - an extra
    except ImportError as error:
        raise ValueError("--storage needs psycopg; pip install 'psycopg[binary]' (extra postgres)") from error
    return parsed.set(drivername="postgresql+psycopg").render_as_string(hide_password=False)


def note_storage(folder: Path, url: str) -> None:
    """Store the server's address in `folder`, readable by its owner alone."""
    if noted_storage(folder) != url:
        write_text(folder / NOTE, url, mode=0o600, concurrent=True)


def noted_storage(folder: Path) -> str:
    """Return the noted address of a server; empty if the study is a file."""
    path = folder / NOTE
    return path.read_text(encoding="utf-8").strip() if path.exists() else ""


def note_study(folder: Path, name: str, uid: str) -> None:
    """Store which study on the server is that of `folder`."""
    if noted_study(folder) != (name, uid):
        write_text(folder / STUDY, json.dumps({"name": name, "uid": uid}), concurrent=True)


def noted_study(folder: Path) -> tuple[str, str]:
    """Return name and uid of the study on the server; without a note, the folder's name and an empty uid."""
    path = folder / STUDY
    note = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return note.get("name", folder.name), note.get("uid", "")


def twin_of(folder: Path) -> Path | None:
    """Return another folder beside a copied or renamed one, with the same study on the same server."""
    name, url = noted_study(folder)[0], noted_storage(folder)
    if not url or name == folder.name:
        return None
    others = (other for other in sorted(folder.parent.iterdir()) if other.name != folder.name)
    return next((other for other in others if (noted_study(other)[0], noted_storage(other)) == (name, url)), None)


def study_name_of(folder: Path, url: str = "") -> str:
    """Return the name of the search's study in the storage of `folder`, or the folder's if it is still to be created.

    The folder of a study in a file may have been renamed or copied since. Raises ValueError, and writes nothing, if
    study.db holds something else.
    """
    if url or noted_storage(folder):
        return noted_study(folder)[0]
    path = folder / "study.db"
    studies = studies_in(path)
    sweeps = [name for name, (is_sweep, _) in studies.items() if is_sweep]
    if len(sweeps) == 1:
        return sweeps[0]
    _, has_trials = studies.get(folder.name, (False, bool(studies)))
    if folder.name in sweeps or not (sweeps or has_trials):  # a command may have been killed before it began the sweep
        return folder.name
    what = "several sweeps" if sweeps else "the studies of another program"
    names = ", ".join(sweeps or studies)
    raise ValueError(f"{path} holds {what} ({names}); move it away, or use another name for the sweep")


def open_storage(folder: Path, url: str = "", *, locking: bool = False) -> RDBStorage:
    """Open the storage of a sweep: `url`, or the one stored in `folder`.

    With `locking`, a process keeps a single connection, because a server releases locks with their connection. Raises
    OSError if the storage cannot be opened, ValueError if it is damaged.
    """
    url = validated_storage(url or noted_storage(folder))
    path = folder / "study.db"
    with _explained(without_password(url).replace("+psycopg", "") or path):
        return _open_server(url, locking=locking) if url else _open_file(path, locking=locking)


@contextmanager
def _explained(where: str | Path) -> Iterator[None]:
    """Raise ValueError for a damaged storage or one of another version, and OSError if it cannot be opened."""
    try:
        yield
    except (sqlite3.Error, SQLAlchemyError, StorageInternalError) as error:
        if any(words in str(error) for words in BROKEN):
            what = f"the study {where} is damaged ({first_line(error)})"
            raise ValueError(f"{what}; put back a copy, or give another --name") from error
        reason, remedy = _why_closed(where) or first_line(error), ""
        if isinstance(where, str):
            # psycopg repeats the address, and names its functions.
            reason = re.sub(r".* failed: (FATAL: +)?|^failed to |fe_sendauth: |\[Errno .*?\] ", "", reason)
            reason, remedy = reason[:1].lower() + reason[1:], "; start the server, or correct --storage"
            if "password" in reason:
                remedy = "; write the right one into PGPASSWORD, ~/.pgpass or --storage"
        raise OSError(f"the study {where} cannot be opened ({reason}){remedy}") from error
    except RuntimeError as error:  # Optuna's, about the version of the tables
        raise ValueError(f"the study {where} cannot be read by this version of Optuna ({first_line(error)})") from error


def _why_closed(where: str | Path) -> str:
    """Return why no file beside `where` can be opened, which SQLite does not say; empty if one can."""
    try:
        if isinstance(where, Path):
            os.close(os.open(where.parent, os.O_RDONLY))
    except OSError as error:
        return str(error.strerror)
    return ""


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


def studies_in(path: Path) -> dict[str, tuple[bool, bool]]:
    """Return the studies in a SQLite file by name: whether each is a sweep's, and has trials. Writes nothing."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder; move it away, or use another name for the sweep")
    if not path.exists() or not path.stat().st_size:
        return {}
    with _explained(path), closing(_reading(path)) as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        if tables and "study_user_attributes" not in tables:
            raise ValueError(
                f"{path} is a database of another program; move it away, or use another name for the sweep"
            )
        return {name: (bool(a), bool(b)) for name, a, b in connection.execute(STUDIES)} if tables else {}


def _reading(path: Path) -> sqlite3.Connection:
    """Connect to a SQLite file for reading.

    An ordinary connection would create missing files and tables, and one to read only would leave the files of the
    write-ahead log behind. So a file that nobody has open is read as if it could not change.
    """
    leftovers = {"-wal": "mode=ro", "-journal": "mode=rw"}  # of a process that writes, or died; a journal is undone
    modes = [mode for suffix, mode in leftovers.items() if path.with_name(path.name + suffix).exists()]
    address = f"file:{quote(os.fsencode(path))}?{(*modes, 'immutable=1')[0]}"
    return sqlite3.connect(address, uri=True, timeout=BUSY_SECONDS)


def is_read_only(folder: Path) -> bool:
    """Return whether the study of a sweep is a file that cannot be written."""
    path = folder / "study.db"
    return path.exists() and not (os.access(path, os.W_OK) and os.access(folder, os.W_OK))


def _open_file(path: Path, *, locking: bool) -> RDBStorage:
    """Open the tables in a file. A reader leaves the file as it is, and neither connections nor files beside it."""
    settings: dict[str, Any] = {"connect_args": {"timeout": BUSY_SECONDS}}
    if not locking:
        settings["poolclass"] = sqlalchemy.NullPool
        settings |= {"creator": lambda: _reading(path)} if is_read_only(path.parent) else {}
    else:
        # PRAGMA synchronous stays FULL, though NORMAL commits far faster: after a power cut the study could lack a
        # trial whose checkpoint exists, and the next trial of that number would resume it.
        with closing(sqlite3.connect(path, timeout=BUSY_SECONDS)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")  # kept in the file: readers and the writer do not block
    known = path.absolute() in FITTING
    storage = RDBStorage(f"sqlite:///{path}", engine_kwargs=settings, skip_compatibility_check=known)
    FITTING.add(path.absolute())
    return storage


def _open_server(url: str, *, locking: bool) -> RDBStorage:
    """Open the tables on a server. One process at a time creates missing ones."""
    address = sqlalchemy.make_url(url)
    keep_secret(address.password)
    keep_secret(str(address.query.get("password", "")))
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


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or of the storage's own message."""
    is_storages = isinstance(error, StorageError) and isinstance(error.__cause__, SQLAlchemyError | sqlite3.Error)
    source = error.__cause__ if is_storages else error
    own = getattr(source, "orig", None) or source  # SQLAlchemy repeats the statement
    return redact(own).strip().split("\n", 1)[0]
