"""The hypergradient in closed form, where the traced problem is recognized."""

import itertools
import math
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._types import Hyper, Objective
from ..convexity import GradientDescent, exact_slope, recognize
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

            at = float(jnp.sum(leaf * only))
            slope = exact_slope(along, at, dtype=leaf.dtype, work=_WORK)
            if slope is None:
                return None
            slopes.append(_rounded(slope))
    return _restored(np.array(slopes), hyper)


def _rounded(value: Fraction) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.copysign(math.inf, value)


def _spectral(objective: Unrolled, hyper: Hyper) -> Hyper | None:
    (leaf,) = jax.tree.leaves(hyper)
    if leaf.shape != () or jax.tree.structure(hyper) != jax.tree.structure(0.0):
        return None
    found = recognize(objective, leaf, work=_WORK)
    if not isinstance(found, GradientDescent):
        return None
    values, vectors = np.linalg.eigh(np.array(found.hessian, np.float64))
    along = vectors.T @ np.array(found.gradient, np.float64)
    flat = values <= 1e-12 * max(values[-1], 0.0)
    if np.linalg.norm(along[flat]) > 1e-9 * np.linalg.norm(along):
        return None  # no minimum: the loss falls without end along this direction
    quadratic = Quadratic(
        eigenvalues=jnp.asarray(values[~flat]),
        weights=jnp.asarray(0.5 * along[~flat] ** 2 / values[~flat]),
    )
    rate = -float(found.factor)
    return np.asarray(rate * quadratic.slope(rate * float(leaf), objective.steps))


def _restored(flat: np.ndarray, like: Hyper) -> Any:
    """Float64 leaves of the shapes of `like`, whatever JAX's precision is."""
    leaves, structure = jax.tree.flatten(like)
    cuts = list(itertools.accumulate(leaf.size for leaf in leaves))[:-1]
    parts = np.split(flat, cuts)
    return jax.tree.unflatten(
        structure,
        [p.reshape(leaf.shape) for p, leaf in zip(parts, leaves, strict=True)],
    )
