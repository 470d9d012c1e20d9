r"""The binomial schedule: how to reverse T steps with few stored states.

Reversing needs the states in reverse order. With $s$ places for states the best order
(Griewank & Walther's Revolve) reaches back $\beta(s, r) = \binom{s+r}{s}$ steps when
no step is run more than r times.
"""

import math
from typing import NamedTuple

import numpy as np


class Schedule(NamedTuple):
    """The sweep as arrays; entry i is about step T − 1 − i, the i-th to be reversed.

    To get its state: take that of `source[i]` (−1 is the start), which is at step
    `position[i]`; for each j in `range(first[i], first[i + 1])` run `advance[j]` steps
    and store the state in `slot[j]`; then run `rest[i]` steps.
    """

    source: np.ndarray
    position: np.ndarray
    first: np.ndarray
    advance: np.ndarray
    slot: np.ndarray
    rest: np.ndarray


def forward_steps(steps: int, checkpoints: int) -> int:
    r"""Steps that the sweep runs forward, all told; the least possible.

    $$t(T, s) = rT - \beta(s + 1, r - 1), \qquad
      \beta(s, r-1) < T \le \beta(s, r),\quad \beta(s, r) = \binom{s + r}{s}$$

    with $s$ = `checkpoints` + 1, since the start can always be made again. `steps − 1`
    of them are the run itself; the others are recomputed. Beyond these, each step is
    linearized once where it is reversed, and one step gives the final state.

    Args:
        steps: T ≥ 1.
        checkpoints: stored states n ≥ 0.

    Example:
        >>> forward_steps(1000, 1000), forward_steps(1000, 62), forward_steps(1000, 10)
        (999, 1935, 3545)

    References:
        Griewank, Walther (2000), Algorithm 799: Revolve.
    """
    places = checkpoints + 1
    repeats = _repeats(steps, places)
    return repeats * steps - _reach(places + 1, repeats - 1)


def schedule(steps: int, checkpoints: int) -> Schedule:
    """The order of storing, advancing and reversing for T steps and n stored states."""
    source, position, first, rest = [], [], [0], []
    advance: list[int] = []
    slot: list[int] = []

    # Stretches still to be reversed: (start, length, slot of its start, free slots).
    # The last one is on top; what is advanced on the way down is stored.
    todo = [(0, steps, -1, checkpoints)]
    while todo:
        start, length, base, free = todo.pop()
        source.append(base)
        position.append(start)
        while length > 1 and free > 0:
            ahead = _split(length, free + 1)
            todo.append((start, ahead, base, free))
            base = checkpoints - free
            advance.append(ahead)
            slot.append(base)
            start, length, free = start + ahead, length - ahead, free - 1
        rest.append(length - 1)
        first.append(len(advance))
        if length > 1:
            todo.append((start, length - 1, base, 0))
    if not advance:  # nothing is stored; the arrays are never read, but not empty
        advance, slot = [0], [0]
    columns = (source, position, first, advance, slot, rest)
    return Schedule(*(np.asarray(column, np.int32) for column in columns))


def _reach(places: int, repeats: int) -> int:
    return math.comb(places + repeats, places) if repeats >= 0 else 0


def _repeats(length: int, places: int) -> int:
    repeats = 0
    while _reach(places, repeats) < length:
        repeats += 1
    return repeats


def _split(length: int, places: int) -> int:
    """Where the next state is stored: the left part is reversed with all places."""
    repeats = _repeats(length, places)
    ahead = max(_reach(places, repeats - 2), length - _reach(places - 1, repeats))
    return min(max(ahead, 1), length - 1)
