"""Branch and bound: a sign for L'' on every part of an interval."""

import dataclasses

import numpy as np
from jax.extend.core import ClosedJaxpr

from ._taylor import enclosed_curvature

ORDER = 5
"""Taylor order of the enclosures: 2 for L'', the rest narrows it."""

_HOPELESS = 7
"""Boxes in a row at whose midpoints not even the sign of L'' comes out."""

_AT_ONCE = 32
"""Boxes in one pass over the program."""


@dataclasses.dataclass
class Cover:
    """How far the subdivision got."""

    proved: float = 0.0  # total width of the boxes with L'' ≥ 0
    least: float = np.inf  # proven lower bound of L'' on those
    boxes: int = 0
    pending: list[tuple[float, float]] = dataclasses.field(default_factory=list)
    witness: float | None = None
    curvature: float = np.nan  # proven upper bound of L'' at the witness
    kinks: set[str] = dataclasses.field(default_factory=set)


def subdivide(
    program: ClosedJaxpr, low: float, high: float, budget: int, scale: float
) -> Cover:
    """Split [low, high] until L'' ≥ 0 is proved everywhere, or < 0 somewhere.

    Gives up early where enclosures are wider than `scale`, a typical |L''|, even at
    single points: then smaller boxes do not help.

    Raises:
        NotCoveredError: naming a primitive without a rule.
    """
    cover = Cover(pending=[(low, high)])
    smallest = 1e-14 * (high - low)
    given_up: list[tuple[float, float]] = []
    blind = 0
    while cover.pending and cover.boxes < budget and blind < _HOPELESS:
        # The widest first, so that what is left is spread over the trouble spots.
        cover.pending.sort(key=lambda box: box[0] - box[1])
        batch = cover.pending[:_AT_ONCE]
        cover.pending = cover.pending[_AT_ONCE:]
        ends = np.array(batch).T
        middle = 0.5 * ends[0] + 0.5 * ends[1]
        second, at_middle, kinks = enclosed_curvature(
            program, ends[0], ends[1], middle, ORDER
        )
        cover.kinks |= kinks
        cover.boxes += len(batch)
        unclear = ~(at_middle.hi - at_middle.lo <= max(scale, 1e-290))
        blind = blind + len(batch) if np.all(unclear) else 0
        for i, (left, right) in enumerate(batch):
            if second.lo[i] >= 0.0:
                cover.proved += right - left
                cover.least = min(cover.least, float(second.lo[i]))
            elif at_middle.hi[i] < 0.0:
                cover.witness = float(middle[i])
                cover.curvature = float(at_middle.hi[i])
                cover.pending += batch[i:]
                return cover
            elif right - left < smallest or not left < middle[i] < right:
                given_up.append((left, right))
            else:
                cut = float(middle[i])
                cover.pending += [(left, cut), (cut, right)]
    cover.pending += given_up
    return cover
