"""Progress from inside one long run: the inner step that it has reached."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

import metalr
from metalr.runs.unrolled import State

Tell: TypeAlias = Callable[[Any], None]

_EVERY = 10.0
"""Seconds between plain lines."""


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Watched(metalr.Unrolled):
    """The same objective, which tells the index of every so-manieth step that it runs.

    By `jax.debug.callback` under a `cond` on the index, so that all other steps cost
    one comparison. Values and derivatives are untouched. Steps that an engine runs
    again (checkpointing, the backward pass of rematerialization) tell their index
    again. Under `vmap` over hyperparameters or tasks the index is shared: one call
    for all of them.
    """

    every: int = dataclasses.field(kw_only=True, default=1)
    tell: Tell = dataclasses.field(kw_only=True, default=print)

    def step(self, hyper: Any, state: State, index: Any) -> tuple[State, Any]:
        """One update, told about if its index is a multiple of `every`."""
        jax.lax.cond(
            index % self.every == 0,
            lambda: jax.debug.callback(self.tell, index),
            lambda: None,
        )
        return super().step(hyper, state, index)


def watched(objective: metalr.Unrolled, tell: Tell, *, calls: int = 100) -> Watched:
    """`objective`, telling about `calls` of its steps in one pass."""
    fields = dataclasses.fields(metalr.Unrolled)
    options = {field.name: getattr(objective, field.name) for field in fields}
    every = max(1, objective.steps // calls)
    return Watched(**options, every=every, tell=tell)


@contextmanager
def scan_progress(
    name: str,
    *,
    total: int,
    counts: str = "inner step",
    console: Console | None = None,
    every: float = _EVERY,
) -> Iterator[Tell]:
    """Show the step that a watched objective is at.

    Args:
        name: what is shown in front.
        total: steps T of the run; it is passed several times where an engine runs steps
            again, or `learn` makes several outer steps.
        counts: what is counted.
        console: a terminal gets a bar; a file or pipe gets lines without control codes.
            By default that of standard error.
        every: seconds between such lines.

    Yields:
        The function to pass to `watched`.
    """
    console = console or Console(stderr=True)
    if console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task(f"{name}: {counts}", total=total)
            yield lambda index: bar.update(task, completed=int(index))
            jax.effects_barrier()
        return
    last = time.monotonic()

    def line(index: Any) -> None:
        nonlocal last
        if time.monotonic() - last >= every:
            last = time.monotonic()
            console.file.write(f"{name}: {counts} {int(index)} of {total}\n")
            console.file.flush()

    yield line
    jax.effects_barrier()
