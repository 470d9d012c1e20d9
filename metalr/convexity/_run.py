"""What a traced program is run on: values, settings, and how it can fail."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np

from . import _series
from ._interval import whole_line
from ._series import Series


class NotCoveredError(Exception):
    """The program has something that the interpreter has no rule for."""


class OverBudgetError(Exception):
    """Exact numbers grew too long, or a loop too many."""


class Truth(NamedTuple):
    """A comparison on every box: surely true, possibly true."""

    must: np.ndarray
    may: np.ndarray


Value: TypeAlias = np.ndarray | jax.Array | Truth | Series
"""An exactly known array, random keys, a comparison, or a series."""


@dataclasses.dataclass(eq=False)
class Run:
    """How a program is run, and what was met on the way."""

    lift: Callable[[np.ndarray], Any]  # exact floats to numbers
    order: int | None  # of truncation
    radius: np.ndarray | None = None  # of the boxes, where there are any
    exact: bool = False  # over the rationals
    work: float = np.inf  # what is left to spend, in multiplications of 64 bits
    kinks: set[str] = dataclasses.field(default_factory=set)

    def series(self, value: Value) -> Series:
        """As a series; exact arrays become constants."""
        if isinstance(value, Truth):
            self.kinks.add("a comparison used as a number")
            return self.unknown(value.must.shape)
        if isinstance(value, np.ndarray):
            if value.dtype.kind == "i" and np.any(np.abs(value) > 2**53):
                msg = "an integer beyond 2⁵³ used as a number"
                raise NotCoveredError(msg)
            return [self.lift(value.astype(np.float64))]
        if isinstance(value, jax.Array):
            msg = "random keys used as numbers"
            raise NotCoveredError(msg)
        return value

    def unknown(self, shape: tuple[int, ...]) -> Series:
        """The whole line, and so are all derivatives."""
        if self.exact or self.order is None:
            msg = "a choice that depends on the hyperparameter"
            raise NotCoveredError(msg)
        return [whole_line(shape) for _ in range(self.order + 1)]

    def narrowed(self, a: Series) -> Series:
        """After a nonlinear operation."""
        return a if self.radius is None else _series.tighten(a, self.radius)

    def spend(self, work: float) -> None:
        """Count the work of exact arithmetic, whose cost grows with the numbers."""
        self.work -= work
        if self.work < 0.0:
            msg = "the exact numbers grew too long"
            raise OverBudgetError(msg)


def is_known(value: Value) -> bool:
    """An array that does not depend on the hyperparameter, or a random key."""
    return not isinstance(value, Truth | list)


def aligned(run: Run, *operands: Value) -> list[Series]:
    """As series of one rank: JAX lets a scalar meet an array."""
    series = [run.series(value) for value in operands]
    rank = max(len(a[0].shape) for a in series)

    def pad(x: np.ndarray) -> np.ndarray:
        return x.reshape(x.shape[0], *[1] * (rank - x.ndim), *x.shape[1:])

    return [_series.moved(a, pad) for a in series]


def shape_of(atom: Any) -> tuple[int, ...]:
    """Shape of a variable of the program (its type is left open by JAX)."""
    return tuple(atom.aval.shape)


Rule: TypeAlias = Callable[[Any, list[Any], Run], Value]
"""`rule(equation, operands, run)`: the output of a primitive."""
