"""Ctrl-C and SIGTERM: the first asks, the second leaves at once.

The first signal raises in the main thread, so that what is open is closed. It waits
where one XLA program runs for minutes, since Python's handlers run between bytecodes;
a second one, seen by a thread of its own, then leaves. Either way what was printed is
flushed and the process ends by `os._exit`: the interpreter's own end, under XLA's
threads, was a segmentation fault one time in five.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

_GRACE = 10.0
"""Seconds after SIGTERM in which what is open may be closed."""

_FLUSH = 1.0
"""Seconds for flushing from beside a main thread that may be writing itself."""

_SIGNALED = (128 + signal.SIGINT, 128 + signal.SIGTERM)

_asked: list[int] = []

_heard: list[bool] = []  # not empty while a command line listens


class Terminated(BaseException):
    """SIGTERM, raised in the main thread as KeyboardInterrupt is."""


def wanted(error: BaseException) -> bool:
    """Whether this process was asked to end, so that the error is no failure.

    Where no command line listens for signals, KeyboardInterrupt is taken for Ctrl-C.
    """
    return bool(_asked) or (isinstance(error, KeyboardInterrupt) and not _heard)


def entry(main: Callable[[], int]) -> NoReturn:
    """Run a command line as the whole of this process, and leave with its code.

    `python -m experiments` is `entry(main)`. Codes after a signal: 130 and 143.
    """
    with _listening():
        try:
            code = main()
        except BaseException:
            if not _asked:
                raise
            code = 0  # that of the signal
        if _asked or code in _SIGNALED:
            _end_children()
            leave(128 + _asked[0] if _asked else code)
    raise SystemExit(code)


def leave(code: int) -> NoReturn:
    """Flush what was printed and end this process, without the interpreter's end."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(code)


@contextmanager
def _listening() -> Iterator[None]:
    """Handlers, and the thread that sees signals while the main thread cannot."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    handlers = {
        number: signal.signal(number, _raise)
        for number in (signal.SIGINT, signal.SIGTERM)
        if signal.getsignal(number) is not signal.SIG_IGN  # as under nohup
    }
    threading.Thread(target=_watch, args=(reading,), daemon=True).start()
    _heard.append(True)
    try:
        yield
    finally:
        _heard.clear()
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(before)
        os.close(writing)


def _raise(number: int, frame: Any) -> None:
    del frame
    _asked.append(number)
    raise KeyboardInterrupt if number == signal.SIGINT else Terminated


def _watch(reading: int) -> None:
    """Each byte is a signal; the end of the pipe is the end of the command line."""
    first = None
    with os.fdopen(reading, "rb", buffering=0) as pipe:
        while number := pipe.read(1)[:1]:
            if number[0] not in (signal.SIGINT, signal.SIGTERM):
                continue
            if first is not None:
                _leave_now(128 + first)
            first = number[0]
            if first == signal.SIGTERM:
                timer = threading.Timer(_GRACE, _leave_now, (128 + first,))
                timer.daemon = True
                timer.start()


def _leave_now(code: int) -> NoReturn:
    _end_children()
    flushing = threading.Thread(target=leave, args=(code,), daemon=True)
    flushing.start()
    flushing.join(_FLUSH)
    os._exit(code)


def _end_children() -> None:
    """What this process has started, and what that has: nothing outlives it."""
    try:
        import psutil

        children = psutil.Process().children(recursive=True)
    except Exception:  # noqa: BLE001 (no psutil, no /proc: they see their pipe close)
        return
    for child in children:
        with contextlib.suppress(psutil.Error):
            child.kill()
