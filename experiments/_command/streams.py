"""Standard output and error that cannot decide whether a command succeeds.

A closed pipe, a full device, an ASCII terminal: what was computed is on disk by then,
and the command goes on. What could not be printed is known afterwards (`Stream.lost`).
"""

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from experiments._command.tables import printable


class Stream:
    """A text stream whose writes never raise."""

    def __init__(self, inner: TextIO) -> None:
        self._inner = inner
        self.lost: OSError | None = None

    def write(self, text: str) -> int:
        """Write, or give up for good."""
        self._try(lambda: self._inner.write(text))
        return len(text)

    def flush(self) -> None:
        """Flush, or give up for good."""
        self._try(self._inner.flush)

    @property
    def failed(self) -> bool:
        """Whether something was lost that a reader still waited for."""
        return self.lost is not None and self.lost.errno != errno.EPIPE

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def _try(self, action: Any) -> None:
        if self.lost is not None:
            return
        try:
            action()
        except OSError as error:
            self.lost = error
            self._discard()

    def _discard(self) -> None:
        """What is still buffered goes nowhere, so that the end of Python is quiet."""
        with suppress(OSError, ValueError, AttributeError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._inner.fileno())
            os.close(null)


@contextmanager
def forgiving() -> Iterator[tuple[Stream, Stream]]:
    """Within it `sys.stdout` and `sys.stderr` are streams that never raise."""
    _occupy()
    before = sys.stdout, sys.stderr
    streams = Stream(_usable(before[0])), Stream(_usable(before[1]))
    sys.stdout, sys.stderr = streams
    try:
        yield streams
    finally:
        for stream in streams:
            stream.flush()
        sys.stdout, sys.stderr = before


def say(text: str, *, error: bool = False) -> None:
    """A message, without control characters."""
    stream = sys.stderr if error else sys.stdout
    stream.write(printable(text) + "\n")
    stream.flush()


def _occupy() -> None:
    """Where 0, 1 or 2 is closed, the next file opened would be taken for it."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def _usable(stream: TextIO | None) -> TextIO:
    """The stream, able to print any text; a sink where it is closed."""
    if stream is None or stream.closed:
        return open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
    return stream
