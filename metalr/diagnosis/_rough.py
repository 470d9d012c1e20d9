r"""Kinks and roughness: how the answer moves when the run is moved a little.

A perturbation of the start that does not grow may still change the derivative: the run
is linear between kinks (ReLU, max pooling), and its derivative jumps at each of them.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._programs.compiled import compiled
from .._types import Hyper, Scalar
from ..runs.run import State, advance, is_float
from ._flat import flat

RADII = (1e-6, 1e-4, 1e-2)
"""Of the moves of the start, as parts of each leaf's root mean square."""

_STEP = 0.05
"""Of the three runs of `metasmoothness`, as a part of each hyperparameter."""


def moved_starts(
    objective: Any, hyper: Hyper, direction: Hyper, key: Array
) -> Float[np.ndarray, " radii"]:
    """The derivative along the direction where the start is moved; `hyper` prepared.

    Forward mode, one run after the other: about three runs' time each.
    """
    return np.asarray(_moved_starts(objective, hyper, direction, key))


@compiled
def _moved_starts(objective: Any, hyper: Hyper, direction: Hyper, key: Array) -> Array:
    def slope(radius: Scalar) -> Scalar:
        def value(hyper: Hyper) -> Scalar:
            start = _moved(objective.init(hyper), radius, key)
            last, _ = advance(objective, hyper, start, 0, objective.steps)
            return objective.evaluate(hyper, last)

        return jax.jvp(value, (hyper,), (direction,))[1]

    return jax.lax.map(slope, jnp.array(RADII))


def _moved(state: State, radius: Scalar, key: Array) -> State:
    """The trained weights moved at random (of a general run: all that are floats)."""
    if hasattr(state, "params"):
        return state._replace(params=_moved(state.params, radius, key))
    leaves, structure = jax.tree.flatten(state)

    def move(i: int, leaf: Array) -> Array:
        if not is_float(leaf):
            return leaf
        size = jnp.sqrt(jnp.mean(jax.lax.stop_gradient(leaf) ** 2))
        size = jnp.where(size == 0.0, jnp.ones_like(size), size)
        drawn = jax.random.normal(jax.random.fold_in(key, i), leaf.shape, leaf.dtype)
        return leaf + radius.astype(leaf.dtype) * size * drawn

    return structure.unflatten([move(i, leaf) for i, leaf in enumerate(leaves)])


def random_direction(hyper: Hyper, key: Array) -> Hyper:
    """Normal entries of the size of what they move (of the leaf's, where that is 0)."""
    leaves, structure = jax.tree.flatten(hyper)

    def draw(i: int, leaf: Array) -> Array:
        size = jnp.sqrt(jnp.mean(leaf**2))
        size = jnp.where(leaf != 0.0, jnp.abs(leaf), jnp.where(size == 0.0, 1.0, size))
        return size * jax.random.normal(jax.random.fold_in(key, i), leaf.shape)

    drawn = [draw(i, leaf) for i, leaf in enumerate(leaves)]
    return structure.unflatten(
        [d.astype(leaf.dtype) for d, leaf in zip(drawn, leaves, strict=True)]
    )


def metasmoothness(
    objective: Any, hyper: Hyper, direction: Hyper, *, step: float = _STEP
) -> float:
    r"""Empirical metasmoothness: is what a run ends in smooth in hyper, coarsely seen?

    With $A(z)$ the final weights of a run at hyper z, and
    $\Delta(z) = (A(z + hv) - A(z))/h$,

    $$\hat S = \operatorname{sign}(\Delta(z))^\top
      \operatorname{diag}\Bigl(\frac{d}{\|d\|_1}\Bigr)
      \operatorname{sign}(\Delta(z + hv)), \qquad d = |A(z + 2hv) - A(z)|$$

    between −1 and 1: the share of the movement in which two consecutive differences
    have one sign; 1 where A is linear along v, about 0 where its slopes are noise.
    Three runs, no derivative.

    Args:
        objective: a run, such as an `Unrolled`.
        hyper: the point z.
        direction: v, of the structure of hyper.
        step: h.

    Returns:
        $\hat S$; nan where nothing moves or a run is not finite.

    References:
        Engstrom et al. (2025), Optimizing ML training with metagradient descent,
        definition 2 (arXiv 2503.13751).
    """
    ends = np.asarray(_ends(objective, hyper, direction, jnp.asarray(step)), np.float64)
    movement = np.abs(ends[2] - ends[0])
    if not np.isfinite(ends).all() or not movement.sum() > 0.0:
        return float("nan")
    agree = np.sign(ends[1] - ends[0]) * np.sign(ends[2] - ends[1])
    return float(np.sum(movement * agree) / np.sum(movement))


@compiled
def _ends(objective: Any, hyper: Hyper, direction: Hyper, step: Array) -> Array:
    def end(count: Scalar) -> Array:
        shift = lambda h, v: h + (count * step).astype(h.dtype) * v
        there = objective.prepare(jax.tree.map(shift, hyper, direction))
        start = objective.init(there)
        last, _ = advance(objective, there, start, 0, objective.steps)
        return flat(getattr(last, "params", last)).vector

    return jax.lax.map(end, jnp.arange(3.0))
