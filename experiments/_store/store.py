"""Results of sweeps: one SQLite file, one writer, read by anybody.

A row is a point. Its key is the hash of the validated config and of the sources that
compute it (`experiments._command.sources`), so that the same question is answered
once. The file is in WAL mode, which is unsafe on network file systems: keep it on a
local disk.
"""

import fcntl
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from experiments._command.config import ConfigError
from experiments._store.rows import Row, as_columns, latest

__all__ = ["Row", "StoreError", "columns", "latest", "read", "read_meta", "writing"]

APPLICATION_ID = 0x6D65746C
"""SQLite's application_id of a store: "metl"."""

SCHEMA_VERSION = 1

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
  finished_at TEXT NOT NULL
);
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
INSERT INTO meta VALUES ('schema_version', '{SCHEMA_VERSION}');
"""


class StoreError(ConfigError):
    """The store cannot be read or written; what is in it is as it was."""


_JSON = {"config", "records", "provenance"}


def read(path: str | Path) -> list[Row]:
    """All rows, in the order in which they were first written.

    A driver may be writing at the same time. The file is opened read-only.

    Raises:
        StoreError: if the file is missing, truncated, or no store that this version
            can read.
    """
    with closing(_reader(Path(path))) as database, _explained(Path(path)):
        found = database.execute(f"SELECT {', '.join(Row._fields)} FROM points")
        return [_decode(values) for values in found]


def columns(source: str | Path | Iterable[Row]) -> dict[str, np.ndarray]:
    """A store for NumPy, and for `pandas.DataFrame(columns(…))`.

    See `as_columns` and `entries` of `experiments._store.rows` for the columns.

    Args:
        source: a store's path, or rows (`columns(latest(read(path)))`).
    """
    return as_columns(read(source) if isinstance(source, str | Path) else source)


def read_meta(path: str | Path) -> dict[str, Any]:
    """What the last sweep noted about itself: schema_version, sweep (its config)."""
    with closing(_reader(Path(path))) as database, _explained(Path(path)):
        found = dict(database.execute("SELECT key, value FROM meta"))
        return {key: json.loads(value) for key, value in found.items()}


class Writer:
    """The one writer of a store; `writing` makes it."""

    def __init__(self, path: Path, database: sqlite3.Connection) -> None:
        self.path, self._database = path, database

    def statuses(self) -> dict[str, tuple[str, int]]:
        """For each key: status and attempts."""
        with _explained(self.path):
            found = self._database.execute("SELECT key, status, attempts FROM points")
            return {key: (status, attempts) for key, status, attempts in found}

    def write(self, row: Row) -> None:
        """Put a row in, durably; a finished row is never replaced.

        Raises:
            StoreError: if the disk is full or read-only.
        """
        values = _encode(row)
        marks = ", ".join("?" * len(values))
        kept = ", ".join(f"{name} = excluded.{name}" for name in Row._fields[1:])
        with _explained(self.path), self._database:
            self._database.execute(
                f"INSERT INTO points ({', '.join(Row._fields)}) VALUES ({marks}) "
                f"ON CONFLICT (key) DO UPDATE SET {kept} WHERE status <> 'finished'",
                values,
            )

    def note(self, key: str, value: Any) -> None:
        """Put an entry into `meta`."""
        with _explained(self.path), self._database:
            self._database.execute(
                "INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, json.dumps(value))
            )


@contextmanager
def writing(path: Path) -> Iterator[Writer]:
    """Open a store for writing, making it where there is none.

    A lock on `<path>.lock`, held for as long as this process lives, keeps other drivers
    out; the operating system drops it however the process dies.

    Raises:
        StoreError: if another driver writes, the file is not a store that this version
            can write, or the folder cannot be written.
    """
    path = path.resolve()  # one file, one lock, whatever link it is reached by
    with _locked(path):
        if path.exists():
            _reader(path).close()  # refuses a foreign or damaged file, untouched
        else:
            _create(path)
        with _explained(path), closing(sqlite3.connect(path)) as database:
            database.execute("PRAGMA synchronous = FULL")
            yield Writer(path, database)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    lock = path.with_name(path.name + ".lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        msg = f"cannot write next to the store {path}: {error.strerror} ({lock})"
        raise StoreError(msg) from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(handle, 100, 0).decode(errors="replace") or "unknown"
            msg = (
                f"another sweep is writing to {path} (process {holder}): "
                "wait for it, or give this one its own --store"
            )
            raise StoreError(msg) from error
        _sign(handle)
        yield
    finally:
        os.close(handle)


def _sign(handle: int) -> None:
    try:
        os.ftruncate(handle, 0)
        os.pwrite(handle, str(os.getpid()).encode(), 0)
    except OSError:  # a full disk: the lock holds, it only does not say whose it is
        return


def _create(path: Path) -> None:
    """A new store appears under its name complete, or not at all."""
    draft, orphan = (path.with_name(path.name + end) for end in (".new", "-wal"))
    if orphan.exists():  # SQLite would replay it into the new file
        msg = f"{orphan} has lost its store {path.name}: bring it back, or move both"
        raise StoreError(msg)
    with _explained(path):
        for suffix in ("", "-wal", "-shm", "-journal"):
            draft.with_name(draft.name + suffix).unlink(missing_ok=True)
        with closing(sqlite3.connect(draft)) as database:
            database.executescript(_SCHEMA)
        draft.rename(path)


def _reader(path: Path) -> sqlite3.Connection:
    """A read-only connection to what has been checked to be a sound store."""
    _check_header(path)
    database = _connect(path)
    try:
        _check_body(path, database)
    except BaseException:
        database.close()
        raise
    return database


def _connect(path: Path) -> sqlite3.Connection:
    address = f"file:{quote(str(path.absolute()))}?mode=ro"
    try:
        database = sqlite3.connect(address, uri=True)
        try:
            database.execute("SELECT 1 FROM sqlite_master")
        except sqlite3.Error:
            database.close()
            raise
    except sqlite3.OperationalError as error:
        # A reader of a WAL file needs to make -shm; on a read-only disk it cannot, and
        # with nothing in the WAL it need not.
        if _log(path):
            msg = f"cannot read the store {path}: {error}"
            raise StoreError(msg) from error
        return sqlite3.connect(address + "&immutable=1", uri=True)
    except sqlite3.Error as error:
        raise _damaged(path, error) from error
    return database


def _log(path: Path) -> bool:
    """Whether there are rows that are only in the write-ahead log yet."""
    wal = path.with_name(path.name + "-wal")
    return wal.exists() and wal.stat().st_size > 0


def _check_header(path: Path) -> None:
    """SQLite must not see a file that is not a store: it might mend it."""
    try:
        with path.open("rb") as file:
            header = file.read(100)
    except OSError as error:
        msg = f"cannot read the store {path}: {error.strerror}"
        raise StoreError(msg) from error
    if len(header) < 100 and (not header or header.startswith(b"SQLite format")):
        msg = f"{path} is truncated ({len(header)} bytes): restore it or move it away"
        raise StoreError(msg)
    if not header.startswith(b"SQLite format 3\0"):
        msg = f"{path} is not a results store (not an SQLite file): nothing was changed"
        raise StoreError(msg)
    if int.from_bytes(header[68:72], "big") != APPLICATION_ID:
        msg = f"{path} is an SQLite file, but not a results store: nothing was changed"
        raise StoreError(msg)
    # SQLite fills up a last page that is cut short; with a log, the log may have it.
    page, pages = (int.from_bytes(header[a:b], "big") for a, b in ((16, 18), (28, 32)))
    length = (65536 if page == 1 else page) * pages
    if path.stat().st_size < length and not _log(path):
        msg = f"{path} is truncated ({path.stat().st_size} of {length} bytes)"
        raise StoreError(msg + ": restore it or move it away")


def _check_body(path: Path, database: sqlite3.Connection) -> None:
    with _explained(path):
        (version,) = database.execute("PRAGMA user_version").fetchone()
        (verdict,) = database.execute("PRAGMA quick_check(1)").fetchone()
    if version != SCHEMA_VERSION:
        msg = (
            f"{path} has schema version {version}, this metalr reads "
            f"{SCHEMA_VERSION}: use the metalr that wrote it, or another --store"
        )
        raise StoreError(msg)
    if verdict != "ok":
        msg = f"{path} is damaged ({verdict}): restore it, or use another --store"
        raise StoreError(msg)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """SQLite's and the system's errors as what they mean for the user."""
    try:
        yield
    except sqlite3.OperationalError as error:
        msg = (
            f"the store {path}: {error}. The rows already in it are "
            "intact; free or mend the disk and give the same command again"
        )
        raise StoreError(msg) from error
    except sqlite3.DatabaseError as error:
        raise _damaged(path, error) from error
    except OSError as error:
        msg = f"the store {path}: {error.strerror}"
        raise StoreError(msg) from error


def _damaged(path: Path, error: Exception) -> StoreError:
    return StoreError(
        f"{path} is damaged or truncated ({error}): restore it, or use another --store"
    )


def _encode(row: Row) -> list[Any]:
    pairs = row._asdict().items()
    return [json.dumps(value) if name in _JSON else value for name, value in pairs]


def _decode(values: Sequence[Any]) -> Row:
    pairs = zip(Row._fields, values, strict=True)
    decoded = (json.loads(value) if name in _JSON else value for name, value in pairs)
    return Row(*decoded)
