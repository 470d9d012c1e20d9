"""Results of sweeps: one SQLite file, one writer, read by anybody.

A row is a point. Its key is the hash of the validated config and of the sources that
compute it (`experiments._command.sources`), so that the same question is answered
once. The file is in WAL mode, which is unsafe on network file systems: keep it on a
local disk. The log is emptied into the file as rows come, so that a copy of the file
alone lacks the last half second at most.
"""

import contextlib
import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from experiments._store.file import (
    SCHEMA_VERSION,
    StoreError,
    create,
    explained,
    only_writer,
    reader,
    rows_of,
    seal,
    upgrade,
)
from experiments._store.rows import Row, as_columns, latest

__all__ = ["Row", "StoreError", "columns", "latest", "read", "read_meta", "writing"]

_JSON = {"config", "records", "provenance"}

_META = ("key", "value")

_EMPTIED = 0.5
"""Seconds after a row until the log is emptied into the file."""


def read(path: str | Path) -> list[Row]:
    """All rows, in the order in which they were first written.

    A driver may be writing at the same time. The file is opened read-only.

    Raises:
        StoreError: if the file is missing, truncated, changed since it was written, or
            no store that this version can read.
    """
    with closing(reader(Path(path))) as database, explained(Path(path)):
        return [_decode(row) for row in rows_of(database, "points", Row._fields)]


def columns(source: str | Path | Iterable[Row]) -> dict[str, np.ndarray]:
    """A store for NumPy, and for `pandas.DataFrame(columns(…))`.

    See `as_columns` and `entries` of `experiments._store.rows` for the columns.

    Args:
        source: a store's path, or rows (`columns(latest(read(path)))`).
    """
    return as_columns(read(source) if isinstance(source, str | Path) else source)


def read_meta(path: str | Path) -> dict[str, Any]:
    """What the last sweep noted about itself: schema_version, sweep (its config)."""
    with closing(reader(Path(path))) as database, explained(Path(path)):
        found = dict(rows_of(database, "meta", _META))
        return {key: json.loads(value) for key, value in found.items()}


class Writer:
    """The one writer of a store; `writing` makes it."""

    def __init__(self, path: Path, database: sqlite3.Connection) -> None:
        self.path, self._database = path, database
        self._file, self._size = self._seen()
        self.written = threading.Event()

    def statuses(self) -> dict[str, tuple[str, int]]:
        """For each key: status and attempts."""
        with explained(self.path):
            found = self._database.execute("SELECT key, status, attempts FROM points")
            return {key: (status, attempts) for key, status, attempts in found}

    def write(self, row: Row) -> None:
        """Put a row in, durably; a finished row is never replaced.

        Raises:
            StoreError: if the disk is full or read-only, or the file has been moved,
                deleted or cut short since it was opened.
        """
        names = (*Row._fields, "seal")
        kept = ", ".join(f"{name} = excluded.{name}" for name in names[1:])
        self._put(
            f"INSERT INTO points ({', '.join(names)}) "
            f"VALUES ({', '.join('?' * len(names))}) "
            f"ON CONFLICT (key) DO UPDATE SET {kept} WHERE status <> 'finished'",
            _encode(row),
        )

    def note(self, key: str, value: Any) -> None:
        """Put an entry into `meta`."""
        entry = [key, json.dumps(value)]
        self._put("INSERT OR REPLACE INTO meta VALUES (?, ?, ?)", entry)

    def check(self) -> None:
        """That the file under the store's name is still the one that is written to.

        Raises:
            StoreError: if it is not.
        """
        with explained(self.path):
            try:
                file, size = self._seen()
            except FileNotFoundError:
                file, size = None, 0
        if file != self._file:
            msg = (
                f"the store {self.path} was moved or deleted while it was written to: "
                "put it back and give the same command again; what it lacks is computed"
            )
            raise StoreError(msg)
        if size < self._size:
            msg = (
                f"the store {self.path} was cut short while it was written to "
                f"({size} of {self._size} bytes): restore it, or use another --store"
            )
            raise StoreError(msg)
        self._size = size

    def _put(self, statement: str, values: Sequence[Any]) -> None:
        self.check()
        with explained(self.path), self._database:
            self._database.execute(statement, [*values, seal(values)])
        self.written.set()
        self.check()

    def _seen(self) -> tuple[tuple[int, int], int]:
        status = self.path.stat()
        return (status.st_dev, status.st_ino), status.st_size


@contextmanager
def writing(path: Path) -> Iterator[Writer]:
    """Open a store for writing, making it where there is none.

    A lock on `<path>.lock`, held for as long as this process lives, keeps other drivers
    out; the operating system drops it however the process dies.

    Raises:
        StoreError: if another driver writes, the file is not a store that this version
            can write, or the folder cannot be written; at the end, if the file is not
            under its name any more.
    """
    path = path.resolve()  # one file, one lock, whatever link it is reached by
    with only_writer(path):
        if path.exists():
            read(path)  # refuses a foreign or damaged file, untouched
        else:
            create(path)
        with explained(path):
            database = sqlite3.connect(path)
        with closing(database):
            with explained(path):
                database.execute("PRAGMA synchronous = FULL")
                upgrade(database, {"points": Row._fields, "meta": _META})
            writer = Writer(path, database)
            writer.note("schema_version", SCHEMA_VERSION)
            with _emptied(path, writer.written):
                yield writer
            writer.check()
        reader(path).close()  # it is whole, for all that SQLite can see


@contextmanager
def _emptied(path: Path, written: threading.Event) -> Iterator[None]:
    """Rows go from the log into the file soon after they came, beside the writer.

    A checkpoint after each row would take three times as long as the row.
    """
    end = threading.Event()

    def work() -> None:
        # What cannot be moved yet (a full disk, a reader) stays in the log.
        with contextlib.suppress(sqlite3.Error), closing(sqlite3.connect(path)) as log:
            while written.wait() and not end.wait(_EMPTIED):
                written.clear()
                with contextlib.suppress(sqlite3.Error):
                    log.execute("PRAGMA wal_checkpoint(PASSIVE)")

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        end.set()
        written.set()
        thread.join()


def _encode(row: Row) -> list[Any]:
    pairs = row._asdict().items()
    values = [json.dumps(value) if name in _JSON else value for name, value in pairs]
    # A lone surrogate is no text for SQLite.
    return [_text(value) if isinstance(value, str) else value for value in values]


def _text(value: str) -> str:
    return value.encode("utf-8", "backslashreplace").decode()


def _decode(values: Sequence[Any]) -> Row:
    pairs = zip(Row._fields, values, strict=True)
    decoded = (json.loads(value) if name in _JSON else value for name, value in pairs)
    return Row(*decoded)
