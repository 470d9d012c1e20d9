"""What each step contributes to the hypergradient, in one bounded reverse sweep."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._types import Hyper, PyTree, Scalar
from ..hypergrad import Mixed
from ..runs.run import Bar, State, Unroll


class Parts(NamedTuple):
    """A derivative along a direction, by where hyper acts."""

    steps: Float[Array, " steps"]
    start: Scalar  # through a start that depends on hyper
    direct: Scalar  # in the outer loss itself


def contributions(
    objective: Any, hyper: Hyper, direction: Hyper, checkpoints: int
) -> Parts:
    r"""What each step s adds to the derivative along the direction.

    $$g_T^\top\frac{\partial w_T}{\partial w_{s+1}}\frac{\partial u_s}{\partial\eta}$$

    The gradient of a run that uses $\eta + \epsilon_s\,\text{direction}$ in step s,
    with respect to the numbers ε at 0; `hyper` is prepared.
    """
    dtype = jax.tree.leaves(hyper)[0].dtype
    zero = jnp.zeros((), dtype)
    parts = Parts(jnp.zeros(objective.steps, dtype), zero, zero)
    apart = _OneCopyAStep(objective, hyper, direction)
    return Mixed(checkpoints=checkpoints)(apart, parts).grad


def default_checkpoints(steps: int) -> int:
    """About √(2T) states: the run is repeated about once."""
    return max(1, round(math.sqrt(2.0 * steps)))


def horizon(parts: np.ndarray, direct: float, total: float, share: float) -> int | None:
    """Last steps from which on the truncated derivative is within 1 − share of total.

    None where nothing is finite, or the total is 0.
    """
    if not np.isfinite(total) or not np.all(np.isfinite(parts)) or total == 0.0:
        return None
    truncated = direct + np.concatenate([[0.0], np.cumsum(parts[::-1])])
    bad = np.flatnonzero(np.abs(truncated - total) > (1.0 - share) * abs(total))
    first_good = int(bad[-1]) + 1 if bad.size else 0
    return min(first_good, parts.size)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class _OneCopyAStep(Unroll):
    """The same run as a function of one number a step, one in the start, one after."""

    objective: Any
    hyper: Hyper
    direction: Hyper

    @property
    def steps(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.objective.steps

    def init(self, hyper: Parts) -> State:
        return self.objective.init(self._moved(hyper.start))

    def step(
        self, hyper: Parts, state: State, index: int | Array
    ) -> tuple[State, PyTree]:
        return self.objective.step(self._moved(hyper.steps[index]), state, index)

    def pull_back(
        self, hyper: Parts, state: State, index: int | Array, bar: Bar
    ) -> tuple[Bar, Parts]:
        here = self._moved(hyper.steps[index])
        bar, hyper_bar = self.objective.pull_back(here, state, index, bar)
        pairs = zip(
            jax.tree.leaves(hyper_bar), jax.tree.leaves(self.direction), strict=True
        )
        along = sum((jnp.sum(h * d) for h, d in pairs), jnp.zeros(()))
        zeros = jax.tree.map(jnp.zeros_like, hyper)
        added = zeros.steps.at[index].set(along.astype(zeros.steps.dtype))
        return bar, zeros._replace(steps=added)

    def evaluate(self, hyper: Parts, state: State) -> Scalar:
        return self.objective.evaluate(self._moved(hyper.direct), state)

    def _moved(self, epsilon: Scalar) -> Hyper:
        along = lambda h, d: h + epsilon.astype(h.dtype) * d
        return jax.tree.map(along, self.hyper, self.direction)
