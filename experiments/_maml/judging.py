"""How good what was learned is: errors after some steps, on tasks not seen."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments._maml.methods import Inner, Method, mean
from experiments._maml.sinusoids import Family

_DIVERGED = 100.0
"""An error that counts as diverged: no sinusoid's mean square exceeds 25."""


class Error(NamedTuple):
    """The error on tasks not seen, after some steps."""

    mean: float
    half: float  # of its 95 % interval
    lost: int  # tasks that diverged, left out of both


def judged(
    method: Method,
    theta: Any,
    key: jax.Array,
    *,
    family: Family,
    tasks: int,
    after: Sequence[int],
    inner: Inner,
) -> dict[int, Error]:
    """Errors on so many tasks of a family, by the number of steps."""

    @jax.jit
    def errors(theta: Any) -> list[jax.Array]:
        each = [mean(method, family, steps, inner, tasks, key) for steps in after]
        return [one.values(theta) for one in each]

    found = map(np.asarray, errors(theta))
    return {steps: _error(values) for steps, values in zip(after, found, strict=True)}


def _error(values: np.ndarray) -> Error:
    kept = values[values < _DIVERGED]  # nan is not
    half = 1.96 * np.std(kept) / np.sqrt(max(len(kept), 1))
    average = np.mean(kept) if len(kept) else np.nan
    return Error(float(average), float(half), len(values) - len(kept))
