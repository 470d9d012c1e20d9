"""A run's own `pull_back`, against `jax.vjp` of one step."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .._programs.compiled import compiled
from .._types import Hyper, PyTree, Scalar
from ..runs.run import Bar, State, Unroll, at_rest, is_run
from ._inner import chosen_steps
from ._precision import Precise


class PulledBack(NamedTuple):
    """At each step that was looked at: the largest relative deviation."""

    steps: np.ndarray
    deviations: np.ndarray


def has_own_pull_back(objective: Any) -> bool:
    """Whether it is not `jax.vjp` of one step by definition."""
    own = getattr(type(objective), "pull_back", None)
    return is_run(objective) and objective.steps > 0 and own is not Unroll.pull_back


def pulled_back(precise: Precise, key: Array) -> PulledBack:
    """Cotangents drawn at random, pulled back in both ways at every step looked at."""
    objective: Any
    objective, hyper, _ = precise
    chosen = chosen_steps(objective.steps, key)
    wanted = np.isin(np.arange(objective.steps), chosen)
    deviations = _deviations(objective, objective.prepare(hyper), key, wanted)
    return PulledBack(chosen, np.asarray(deviations, np.float64)[chosen])


@compiled
def _deviations(objective: Any, hyper: Hyper, key: Array, wanted: Array) -> Array:
    rest = at_rest(objective, hyper)

    def body(state: State, x: tuple[Array, Array]) -> tuple[State, Scalar]:
        index, look = x
        bar = _drawn(rest, jax.random.fold_in(key, index))
        both = lambda: _apart(
            objective.pull_back(hyper, state, index, bar),
            Unroll.pull_back(objective, hyper, state, index, bar),
        )
        nothing = lambda: jnp.zeros_like(jax.eval_shape(both))
        return objective.step(hyper, state, index)[0], jax.lax.cond(look, both, nothing)

    indices = jnp.arange(objective.steps)
    return jax.lax.scan(body, objective.init(hyper), (indices, wanted))[1]


def _drawn(bar: Bar, key: Array) -> Bar:
    return [
        None
        if x is None
        else jax.random.normal(jax.random.fold_in(key, i), x.shape, x.dtype)
        for i, x in enumerate(bar)
    ]


def _apart(found: PyTree, right: PyTree) -> Scalar:
    """Largest difference, as a part of the largest entry of all that is right."""
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(right), strict=True)
    errors = [jnp.max(jnp.abs(a - b), initial=0.0).astype(float) for a, b in pairs]
    sizes = [
        jnp.max(jnp.abs(b), initial=0.0).astype(float) for b in jax.tree.leaves(right)
    ]
    size = jnp.stack(sizes).max()
    return jnp.stack(errors).max() / jnp.where(size > 0.0, size, 1.0)
