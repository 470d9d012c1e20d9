"""How far a sweep is: a bar on a terminal, elsewhere a plain line now and then."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

Tell: TypeAlias = Callable[[str], None]

_EVERY = 10.0
"""Seconds between plain lines."""


@contextmanager
def sweep_progress(
    name: str, *, total: int, skipped: int, console: Console, every: float = _EVERY
) -> Iterator[Tell]:
    """The progress of a whole sweep.

    Args:
        name: what is shown in front.
        total: points of the sweep, the skipped ones included.
        skipped: points that were finished before.
        console: a terminal gets a bar; a file or pipe gets lines without control codes.
        every: seconds between such lines.

    Yields:
        A function to call with the status of each point that is done.
    """
    counts: Counter[str] = Counter()
    start = time.monotonic()

    def text() -> str:
        return describe(counts, total - skipped, skipped, time.monotonic() - start)

    if console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(
            *columns, TextColumn("{task.fields[text]}"), console=console
        ) as bar:
            task = bar.add_task(name, total=total, completed=skipped, text=text())

            def advance(status: str) -> None:
                counts[status] += 1
                bar.update(task, advance=1, text=text())

            yield advance
        return
    last = start

    def line(status: str) -> None:
        nonlocal last
        counts[status] += 1
        if time.monotonic() - last >= every:
            last = time.monotonic()
            _plain(console, f"{name}: {text()}")

    yield line
    _plain(console, f"{name}: {text()}")


def describe(counts: Counter[str], todo: int, skipped: int, seconds: float) -> str:
    """`12 of 300 done, 1 failed, 30 skipped, 4.2 points/s, 1:10 remaining`."""
    tried = counts.total()
    parts = [f"{counts['finished']} of {todo} done"]
    parts += [
        f"{counts[status]} {status.replace('_', ' ')}"
        for status in _TROUBLES
        if counts[status]
    ]
    parts += [f"{skipped} skipped"] if skipped else []
    if tried and seconds > 0:
        rate = tried / seconds
        minutes, rest = divmod(round((todo - tried) / rate), 60)
        parts += [f"{rate:.3g} points/s", f"{minutes}:{rest:02d} remaining"]
    return ", ".join(parts)


_TROUBLES = ("failed", "timed_out")


def _plain(console: Console, text: str) -> None:
    console.file.write(text + "\n")
    console.file.flush()
