"""The file of a store: made, locked, checked and opened.

SQLite checks its structure (`integrity_check`), not what is in it: a changed bit of a
number passes. So each row has a seal, the hash of all its values, since schema 2;
stores of schema 1 are read without, and get seals where they are written to.
"""

import hashlib
import json
import sqlite3
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from experiments._command.config import ConfigError
from experiments._store.locks import Busy, locked

APPLICATION_ID = 0x6D65746C
"""SQLite's application_id of a store: "metl"."""

SCHEMA_VERSION = 2

_SCHEMA = f"""
PRAGMA journal_mode = WAL;
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
CREATE TABLE points (
  key TEXT PRIMARY KEY,
  experiment TEXT NOT NULL,
  config TEXT NOT NULL,
  status TEXT NOT NULL CHECK (status IN ('finished', 'failed', 'timed_out')),
  error TEXT,
  records TEXT NOT NULL,
  provenance TEXT NOT NULL,
  seconds REAL NOT NULL,
  attempts INTEGER NOT NULL,
  finished_at TEXT NOT NULL,
  seal TEXT NOT NULL
);
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL, seal TEXT NOT NULL);
"""


class StoreError(ConfigError):
    """The store cannot be read or written; what is in it is as it was."""


def seal(values: Sequence[Any]) -> str:
    """The hash of a row's values, as they are in the file."""
    return hashlib.sha256(json.dumps(values, default=repr).encode()).hexdigest()[:32]


def rows_of(
    database: sqlite3.Connection, table: str, names: Sequence[str]
) -> list[tuple[Any, ...]]:
    """All rows of a table, in the order in which they were made.

    Raises:
        sqlite3.DatabaseError: if one is not what was written.
    """
    sealed = version(database) > 1
    columns = ", ".join([*names, "seal"] if sealed else names)
    found = database.execute(f"SELECT {columns} FROM {table} ORDER BY rowid").fetchall()
    if not sealed:
        return found
    for number, (*values, expected) in enumerate(found, start=1):
        if seal(values) != expected:
            msg = f"row {number} of {len(found)} {table} is not what was written"
            raise sqlite3.DatabaseError(msg)
    return [values[:-1] for values in found]


def version(database: sqlite3.Connection) -> int:
    """The schema of an open store."""
    return database.execute("PRAGMA user_version").fetchone()[0]


@contextmanager
def only_writer(path: Path) -> Iterator[None]:
    """Hold `<path>.lock`.

    Raises:
        StoreError: if another driver does, or the folder cannot be written.
    """
    lock = path.with_name(path.name + ".lock")
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(lock))
        except OSError as error:
            msg = f"cannot write next to the store {path}: {error.strerror} ({lock})"
            raise StoreError(msg) from error
        except Busy as error:
            msg = (
                f"another sweep is writing to {path} (process {error}): "
                "wait for it, or give this one its own --store"
            )
            raise StoreError(msg) from error
        yield


def create(path: Path) -> None:
    """A new store appears under its name complete, or not at all."""
    draft, orphan = (path.with_name(path.name + end) for end in (".new", "-wal"))
    if orphan.exists():  # SQLite would replay it into the new file
        msg = f"{orphan} has lost its store {path.name}: bring it back, or move both"
        raise StoreError(msg)
    with explained(path):
        for suffix in ("", "-wal", "-shm", "-journal"):
            draft.with_name(draft.name + suffix).unlink(missing_ok=True)
        with closing(sqlite3.connect(draft)) as database:
            database.executescript(_SCHEMA)
        draft.rename(path)


def upgrade(database: sqlite3.Connection, tables: dict[str, Sequence[str]]) -> None:
    """Seals for the rows of a store of schema 1, in one transaction."""
    if version(database) == SCHEMA_VERSION:
        return
    with database:
        database.execute("BEGIN IMMEDIATE")
        for table, names in tables.items():
            found = rows_of(database, table, names)
            column = "ADD COLUMN seal TEXT NOT NULL DEFAULT ''"
            database.execute(f"ALTER TABLE {table} {column}")
            database.executemany(
                f"UPDATE {table} SET seal = ? WHERE key = ?",
                [(seal(values), values[0]) for values in found],
            )
        database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def reader(path: Path) -> sqlite3.Connection:
    """A read-only connection to what has been checked to be a sound store.

    Raises:
        StoreError: if it is none.
    """
    _check_file(path)
    database = _connect(path)
    try:
        with explained(path):
            _check(path, database)
    except BaseException:
        database.close()
        raise
    return database


def _check_file(path: Path) -> None:
    """That it is a store at all, without SQLite seeing its log or making any."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # reading a pipe or device might not end
            msg = f"{path} is not a file: nothing was read"
            raise StoreError(msg)
        path.open("rb").close()
    except OSError as error:
        msg = f"cannot read the store {path}: {error.strerror}"
        raise StoreError(msg) from error
    if status.st_size == 0:
        msg = f"{path} is truncated (0 bytes): restore it or move it away"
        raise StoreError(msg)
    if _log(path):  # the file alone may be half of what was being moved into it
        return
    try:
        address = _address(path) + "&immutable=1"
        with closing(sqlite3.connect(address, uri=True)) as database:
            _check_kind(path, database)
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_NOTADB:
            raise _damaged(path, error) from error
        msg = (
            f"{path} is not a results store (not an SQLite file, or one truncated "
            "within its first 100 bytes): nothing was changed"
        )
        raise StoreError(msg) from error


def _check_kind(path: Path, database: sqlite3.Connection) -> None:
    if database.execute("PRAGMA application_id").fetchone() != (APPLICATION_ID,):
        msg = f"{path} is an SQLite file, but not a results store: nothing was changed"
        raise StoreError(msg)


def _check(path: Path, database: sqlite3.Connection) -> None:
    _check_kind(path, database)
    found = version(database)
    if not 1 <= found <= SCHEMA_VERSION:
        msg = (
            f"{path} has schema version {found}, this metalr reads "
            f"{SCHEMA_VERSION}: use the metalr that wrote it, or another --store"
        )
        raise StoreError(msg)
    # SQLite fills up a last page that is cut short; with a log, the log may have it.
    size, (page,) = path.stat().st_size, database.execute("PRAGMA page_size").fetchone()
    if size % page and not _log(path):
        msg = f"{path} is truncated ({size} bytes): restore it or move it away"
        raise StoreError(msg)
    (verdict,) = database.execute("PRAGMA integrity_check(1)").fetchone()
    if verdict != "ok":
        msg = f"{path} is damaged ({verdict}): restore it, or use another --store"
        raise StoreError(msg)


def _address(path: Path) -> str:
    return f"file:{quote(str(path.absolute()))}?mode=ro"


def _connect(path: Path) -> sqlite3.Connection:
    try:
        database = sqlite3.connect(_address(path), uri=True)
        try:
            database.execute("SELECT 1 FROM sqlite_master")
        except BaseException:
            database.close()
            raise
    except sqlite3.OperationalError as error:
        # A reader of a WAL file needs to make -shm; on a read-only disk it cannot, and
        # with nothing in the WAL it need not.
        if _log(path):
            msg = f"cannot read the store {path}: {error}"
            raise StoreError(msg) from error
        database = sqlite3.connect(_address(path) + "&immutable=1", uri=True)
    except (sqlite3.Error, ValueError) as error:  # its message may be no UTF-8
        raise _damaged(path, error) from error
    database.text_factory = lambda text: text.decode("utf-8", "surrogateescape")
    return database


def _log(path: Path) -> bool:
    """Whether there are rows that are only in the write-ahead log yet."""
    wal = path.with_name(path.name + "-wal")
    return wal.exists() and wal.stat().st_size > 0


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """SQLite's and the system's errors as what they mean for the user."""
    try:
        yield
    except sqlite3.OperationalError as error:
        msg = (
            f"the store {path}: {error}. The rows already in it are "
            "intact; free or mend the disk and give the same command again"
        )
        raise StoreError(msg) from error
    except (sqlite3.DatabaseError, ValueError) as error:
        raise _damaged(path, error) from error
    except OSError as error:
        msg = f"the store {path}: {error.strerror}"
        raise StoreError(msg) from error


def _damaged(path: Path, error: Exception) -> StoreError:
    return StoreError(
        f"{path} is damaged or truncated ({error}): restore it, or use another --store"
    )
