"""What each step contributes to the hypergradient, in one bounded reverse sweep."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._types import Batch, Hyper, Params, Scalar
from ..hypergrad import Mixed
from ..optimizers.per_step import PerStep
from ..runs.unrolled import State, Unrolled


def contributions(
    objective: Unrolled, hyper: Hyper, direction: Hyper, checkpoints: int
) -> Float[Array, " steps"]:
    r"""What each step s adds to the derivative along the direction.

    $$g_T^\top\frac{\partial w_T}{\partial w_{s+1}}\frac{\partial u_s}{\partial\eta}$$

    The gradient of a run that uses $\eta + \epsilon_s\,\text{direction}$ in step s,
    with respect to the T numbers ε at 0; `hyper` is prepared.
    """
    free = _one_copy_a_step(objective, hyper, direction)
    dtype = jax.tree.leaves(hyper)[0].dtype
    engine = Mixed(checkpoints=checkpoints)
    return engine(free, jnp.zeros(objective.steps, dtype)).grad


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


def _one_copy_a_step(objective: Unrolled, hyper: Hyper, direction: Hyper) -> Unrolled:
    """The same run as a function of one number a step."""

    def moved(epsilon: Scalar) -> Hyper:
        return jax.tree.map(lambda h, d: h + epsilon * d, hyper, direction)

    def loss(params: Params, epsilon: Any, batch: Batch) -> Scalar:
        batch, index = batch
        return objective.loss(params, moved(epsilon[index]), batch)

    def outer_loss(params: Params, _: Any) -> Scalar:
        return objective.outer(hyper, State(params, None))

    def optimizer(epsilon: Scalar) -> Any:
        return objective.optimizer(moved(epsilon))

    steps = jnp.arange(objective.steps)
    return dataclasses.replace(
        objective,
        loss=loss,
        optimizer=PerStep(optimizer),
        params=objective.init(hyper).params,
        batches=(objective.batches, steps),
        outer_loss=outer_loss,
        checkpoints=None,
        microbatch=None,
    )
