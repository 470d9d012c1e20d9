"""One process at a time; the lock goes with its holder, however that ends."""

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


class Busy(Exception):
    """Another process holds the lock; the argument says which, if that is known."""


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Hold the lock, which says in its file whose it is.

    Raises:
        Busy: if another holds it.
        OSError: if the file cannot be made.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(file, thread_local=False)
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise Busy(_holder(file)) from error
    try:
        with contextlib.suppress(OSError):  # a full disk: it holds, and does not say so
            file.write_text(str(os.getpid()), encoding="utf-8")
        yield
    finally:
        lock.release()


def _holder(file: Path) -> str:
    with contextlib.suppress(OSError):
        return file.read_text(encoding="utf-8", errors="replace")[:100] or "unknown"
    return "unknown"
