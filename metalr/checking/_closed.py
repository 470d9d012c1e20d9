"""The hypergradient in closed form, where the traced problem is recognized."""

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from .._types import Hyper, Objective
from ..convexity._exact import Exact, NotRationalError
from ..convexity._interpret import interpret
from ..convexity._run import NotCoveredError, OverBudgetError, Run
from ..convexity._spectral import Spectral, recognize
from ..runs.unrolled import Unrolled
from ..theory import Quadratic

_WORK = 5e7
"""64-bit multiplications for each exact derivative: about a second."""

_MOST_STEPS = 50
"""Followed in exact arithmetic: about a millisecond an equation and step."""

_MOST_NUMBERS = 6


class Closed(NamedTuple):
    """A gradient that no automatic differentiation of the run was needed for."""

    grad: Hyper
    how: str


def closed_form(objective: Objective, hyper: Hyper) -> Closed | None:
    """The derivative of what the traced program names, or None if not recognized.

    For up to 50 steps of a program of sums, products and exact quotients: the first
    Taylor coefficient in exact rational arithmetic. For gradient descent on a convex
    quadratic, any number of steps: `metalr.theory.Quadratic`.
    """
    steps = objective.steps if isinstance(objective, Unrolled) else 0
    count = sum(leaf.size for leaf in jax.tree.leaves(hyper))
    if count <= _MOST_NUMBERS and steps <= _MOST_STEPS:
        exact = _exact(objective, hyper)
        if exact is not None:
            return Closed(exact, "exact rational arithmetic on the traced program")
    if isinstance(objective, Unrolled) and jax.tree.structure(hyper).num_leaves == 1:
        spectral = _spectral(objective, hyper)
        if spectral is not None:
            return Closed(spectral, "theory.Quadratic: gradient descent on a quadratic")
    return None


def _exact(objective: Objective, hyper: Hyper) -> Hyper | None:
    leaves, structure = jax.tree.flatten(hyper)
    slopes = []
    for place, leaf in enumerate(leaves):
        for unit in np.eye(leaf.size):
            only = jnp.asarray(unit.reshape(leaf.shape), leaf.dtype)
            rest = leaf * (1.0 - only)

            def along(
                x: jax.Array, p: int = place, o: Any = only, r: Any = rest
            ) -> Any:
                parts = list(leaves)
                parts[p] = r + x * o if o.shape else x
                return objective(jax.tree.unflatten(structure, parts))

            slope = _exact_slope(along, float(jnp.sum(leaf * only)), leaf.dtype)
            if slope is None:
                return None
            slopes.append(slope)
    return _restored(np.array(slopes), hyper)


def _exact_slope(along: Any, point: float, dtype: Any) -> float | None:
    """The first Taylor coefficient of a traced function of one number, exactly."""
    program = jax.make_jaxpr(along)(jax.ShapeDtypeStruct((), dtype))
    run = Run(Exact.lift, 1, exact=True, work=_WORK)
    variable = [Exact.lift(np.asarray(point)), Exact.lift(np.ones(()))]
    try:
        series = run.series(interpret(program, [variable], run)[0])
        return float(series[1].fractions()[0]) if len(series) > 1 else 0.0
    except (NotCoveredError, NotRationalError, OverBudgetError, OverflowError):
        return None


def _spectral(objective: Unrolled, hyper: Hyper) -> Hyper | None:
    (leaf,) = jax.tree.leaves(hyper)
    bare = jax.tree.structure(hyper) == jax.tree.structure(0.0)
    start = objective.params
    if (
        not bare
        or leaf.shape != ()
        or (callable(start) and not hasattr(start, "dtype"))
    ):
        return None
    if not isinstance(recognize(objective, leaf, _WORK), Spectral):
        return None
    flat, unravel = ravel_pytree(start)
    inner = lambda w: objective.inner_loss(leaf, 0)(unravel(w))
    values, vectors = np.linalg.eigh(np.asarray(jax.hessian(inner)(flat), np.float64))
    along = vectors.T @ np.asarray(jax.grad(inner)(flat), np.float64)
    flat_part = values <= 1e-12 * max(values[-1], 0.0)
    if np.linalg.norm(along[flat_part]) > 1e-9 * np.linalg.norm(along):
        return None  # no minimum: the loss falls without end along this direction
    curved = ~flat_part
    rate = _rate(objective, hyper)
    weights = 0.5 * along[curved] ** 2 / values[curved]
    quadratic = Quadratic(
        eigenvalues=jnp.asarray(values[curved]), weights=jnp.asarray(weights)
    )
    slope = rate * quadratic.slope(rate * float(leaf), objective.steps)
    return jax.tree.unflatten(jax.tree.structure(hyper), [np.asarray(slope)])


def _rate(objective: Unrolled, hyper: Hyper) -> float:
    """C of the update −c·η·g, known to be of that form."""
    one = jax.tree.map(jnp.ones_like, objective.prepare(hyper))
    state = objective.init(one)
    unit = jax.tree.map(jnp.ones_like, state.params)
    value = jnp.zeros((), jax.tree.leaves(unit)[0].dtype)
    still = jax.tree.map(jnp.zeros_like, state.params)
    resting = state._replace(params=still)
    moved = objective.update(one, resting, value, unit, 0).params
    return -float(jax.tree.leaves(moved)[0].ravel()[0])


def _restored(flat: np.ndarray, like: Hyper) -> Any:
    """Float64 leaves of the shapes of `like`, whatever JAX's precision is."""
    leaves, structure = jax.tree.flatten(like)
    cuts = list(itertools.accumulate(leaf.size for leaf in leaves))[:-1]
    parts = np.split(flat, cuts)
    return jax.tree.unflatten(
        structure,
        [p.reshape(leaf.shape) for p, leaf in zip(parts, leaves, strict=True)],
    )
