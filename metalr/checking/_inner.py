"""The inner gradient along the run, against differences of the inner loss."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .._programs.compiled import compiled
from .._types import Hyper, PyTree, Scalar
from ..runs.gradient import trained
from ..runs.unrolled import State, Unrolled
from ._differences import Slope, shifts, slopes
from ._precision import Precise

MOST_STEPS = 256
"""Steps that are looked at; of a longer run, its ends and random ones between."""

_AGAIN = 16
"""Further directions, where the first one looks wrong."""


class InnerSlopes(NamedTuple):
    """At each step that was looked at: along a direction, and by differences."""

    steps: np.ndarray
    products: np.ndarray
    losses: np.ndarray
    slopes: Slope  # of arrays


def chosen_steps(steps: int, key: Array) -> np.ndarray:
    """All steps, or the first, the last, and random ones between."""
    if steps <= MOST_STEPS:
        return np.arange(steps)
    random = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
    between = 1 + random.choice(steps - 2, MOST_STEPS - 2, replace=False)
    return np.array([0, *np.sort(between), steps - 1])


def inner_slopes(precise: Precise, key: Array) -> InnerSlopes:
    """What the optimizer is given, along a random direction in each step.

    A wrong derivative rule in the loss changes the run itself, and all engines agree on
    it: only the loss can tell. Costs 9 runs (float64), and 27 numbers a step.
    """
    return _at(precise, key, chosen_steps(_unrolled(precise).steps, key))


def seen_again(precise: Precise, key: Array, step: int) -> InnerSlopes:
    """One step along further directions: what looks wrong by chance does not again."""
    keys = [jax.random.fold_in(key, i) for i in range(1, 1 + _AGAIN)]
    each = [_at(precise, key, np.array([step])) for key in keys]
    return jax.tree.map(lambda *parts: np.concatenate(parts), *each)


def _at(precise: Precise, key: Array, steps: np.ndarray) -> InnerSlopes:
    objective, dtype = _unrolled(precise), precise.dtype
    wanted = np.isin(np.arange(objective.steps), steps)
    hyper = objective.prepare(precise.hyper)
    products, values = _along(objective, hyper, key, wanted, shifts(dtype))
    products, values = np.asarray(products)[steps], np.asarray(values)[steps]
    return InnerSlopes(steps, products, values[:, 0], slopes(values.T, dtype))


def _unrolled(precise: Precise) -> Unrolled:
    assert isinstance(precise.objective, Unrolled)
    return precise.objective


@compiled
def _along(
    objective: Unrolled, hyper: Hyper, key: Array, wanted: Array, shifts: Array
) -> tuple[Array, Array]:
    """(T,) products and (T, shifts) losses; zeros at the steps that are not wanted."""

    def body(state: State, x: tuple[Array, Array]) -> tuple[State, Any]:
        index, look = x
        loss = objective.inner_loss(hyper, index, state)
        weights = trained(objective.public(hyper, state).params)
        here = jax.random.fold_in(key, index)
        seen = lambda: _seen(loss, weights, here, shifts)
        nothing = lambda: jax.tree.map(jnp.zeros_like, jax.eval_shape(seen))
        return objective.step(hyper, state, index)[0], jax.lax.cond(look, seen, nothing)

    indices = jnp.arange(objective.steps)
    return jax.lax.scan(body, objective.init(hyper), (indices, wanted))[1]


def _seen(
    loss: Callable[[PyTree], Scalar], weights: PyTree, key: Array, shifts: Array
) -> tuple[Scalar, Array]:
    """The gradient along a direction, and the loss at the shifts along it."""
    leaves, structure = jax.tree.flatten(weights)
    grads = jax.tree.leaves(jax.grad(loss)(weights))
    tangents = [_tangent(jax.random.fold_in(key, i), w) for i, w in enumerate(leaves)]

    def moved(shift: Scalar) -> Scalar:
        pairs = zip(leaves, tangents, strict=True)
        return loss(
            structure.unflatten([w + shift.astype(w.dtype) * t for w, t in pairs])
        )

    wide = shifts.dtype
    pairs = zip(grads, tangents, strict=True)
    products = [jnp.sum(g.astype(wide) * t.astype(wide)) for g, t in pairs]
    return jnp.stack(products).sum(), jax.lax.map(moved, shifts)


def _tangent(key: Array, weights: Array) -> Array:
    """Entries of the size of the weights', so that no sign is changed."""
    size = jnp.sqrt(jnp.mean(weights**2))
    size = jnp.where(size == 0.0, jnp.ones_like(size), size)
    ratio = jax.random.uniform(key, weights.shape, weights.dtype, -1.0, 1.0)
    return jnp.where(weights != 0.0, jnp.abs(weights), size) * ratio
