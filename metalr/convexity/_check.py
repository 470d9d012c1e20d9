"""`check`: is the objective convex in its hyperparameters, and how is that known?"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from .._checks import path_name
from .._types import Hyper
from ._report import Report
from ._scalar import check_scalar
from ._vector import check_vector


def check(
    objective: Callable[[Any], jax.Array],
    low: Hyper,
    high: Hyper,
    *,
    budget: int = 2048,
    work: float = 5e7,
) -> Report:
    r"""Is `objective` convex in its hyperparameter between `low` and `high`?

    Three verdicts. "certified": there is a proof of $L'' \ge 0$ on the whole interval.
    "refuted": there is a proof of $L'' < 0$ at the witness. "undecided": neither, and
    the report says how far it got. Values on a grid, however many, never certify.

    The proofs, in the order in which they are tried:

    - *spectral*: an `Unrolled` whose traced loss is a convex quadratic and whose traced
      update is a multiple of hyper times the gradient. Holds for every T at once.
    - *polynomial*: the traced program is a polynomial in hyper (momentum, weight decay,
      a quadratic validation loss). Its coefficients are computed in exact rational
      arithmetic, the sign of L'' is decided by Bernstein coefficients or Sturm's
      theorem. Always decides, if `work` suffices.
    - *interval*: a search for negative curvature, each find proved by interval
      arithmetic; then branch and bound with outward rounded Taylor enclosures of the
      traced program. Cannot certify where L'' touches 0, nor across a kink (relu at 0);
      a concave kink is refuted by a chord.

    What is judged is the exact real function that the traced program names, with its
    constants as the floats that they are; rounding in its own evaluation is not part of
    it. For several hyperparameters (arrays, e.g. `per_step` rates, or any pytree) the
    question is whether the Hessian is positive semidefinite in the box; `low == high`
    asks at a point. Then only strictly positive eigenvalues can be certified.

    Runs on the host in float64, whatever JAX's precision; nothing is compiled but the
    search. Cost: one interpretation of the unrolled program (T steps) for each 32
    boxes; about a millisecond for each equation, so 1000 steps take some ten seconds.
    The enclosures widen with T (momentum most), and long runs that no exact proof
    reaches end "undecided". Not to be differentiated or traced.

    Args:
        objective: an `Unrolled`, or any traceable function of `low`'s structure to a
            real scalar.
        low: lower end; a float, an array or a pytree of floats.
        high: upper end, of the same structure.
        budget: boxes to evaluate before giving up.
        work: 64-bit multiplications to spend on exact arithmetic (some tens of
            nanoseconds each).

    Returns:
        `Report(verdict, witness, reason, ...)`.

    Raises:
        ValueError: if the ends are not finite, do not have one structure, low is not
            below high (scalar) or is above it (box), the objective is not a real
            scalar, or `budget` or `work` is not positive.

    Example:
        >>> import jax.numpy as jnp, optax, metalr
        >>> loss = metalr.problems.least_squares(jnp.ones((1, 2)), jnp.array([3.0]))
        >>> L = metalr.Unrolled(loss, optax.sgd, jnp.zeros(2), steps=1000)
        >>> print(metalr.convexity.check(L, 0.0, 0.3).verdict)
        certified
        >>> bump = lambda x: x**2 - jnp.exp(-((10 * x) ** 2))
        >>> report = metalr.convexity.check(bump, 0.0, 1.0)
        >>> print(report.verdict, report.curvature < 0)
        refuted True

    References:
        Moore (1966), Interval Analysis. Farouki, Rajan (1987), On the numerical
        condition of polynomials in Bernstein form. Rump (2010), Verification methods:
        rigorous results using floating-point arithmetic.
    """
    ends = _ends(low, high)
    if budget < 1 or not work > 0:
        msg = f"budget = {budget} and work = {work} must be positive"
        raise ValueError(msg)
    if jax.tree.structure(low) == jax.tree.structure(0.0) and ends[0].ndim == 0:
        left, right = (float(end) for end in ends)
        if not left < right:
            msg = f"low = {left} must be below high = {right}"
            raise ValueError(msg)
        return check_scalar(objective, left, right, budget=budget, work=work)

    def of_flat(flat: jax.Array) -> jax.Array:
        return objective(_unraveled(flat, low))

    report = check_vector(of_flat, *ends, budget=budget)
    restore = {
        name: _restored(getattr(report, name), low) for name in ("witness", "direction")
    }
    return report._replace(**restore)


def _ends(low: Hyper, high: Hyper) -> tuple[np.ndarray, np.ndarray]:
    """Both ends as float64, flat unless a single scalar."""
    if jax.tree.structure(low) != jax.tree.structure(high):
        msg = f"low = {low!r} and high = {high!r} must have one structure"
        raise ValueError(msg)
    flat = []
    for name, tree in (("low", low), ("high", high)):
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        if not leaves:
            msg = f"{name} = {tree!r} has no numbers"
            raise ValueError(msg)
        arrays = []
        for path, leaf in leaves:
            array = np.asarray(leaf)
            if array.dtype.kind not in "fi" or not np.all(np.isfinite(array)):
                msg = f"{path_name(name, path)} = {leaf!r} must be finite real numbers"
                raise ValueError(msg)
            arrays.append(array.astype(np.float64))
        flat.append(arrays)
    for a, b in zip(*flat, strict=True):
        if a.shape != b.shape or (a.ndim > 0 and np.any(a > b)):
            msg = f"low = {low!r} and high = {high!r} must have one shape, low ≤ high"
            raise ValueError(msg)
    if len(flat[0]) == 1 and flat[0][0].ndim == 0 and not _is_container(low):
        return flat[0][0], flat[1][0]
    first, second = (np.concatenate([x.ravel() for x in arrays]) for arrays in flat)
    return first, second


def _is_container(tree: PyTree) -> bool:
    return not jax.tree_util.all_leaves([tree])


def _unraveled(flat: jax.Array, like: PyTree) -> PyTree:
    leaves, structure = jax.tree.flatten(like)
    parts, start = [], 0
    for leaf in leaves:
        shape = np.shape(leaf)
        size = math.prod(shape)
        part = jax.lax.slice_in_dim(flat, start, start + size)
        parts.append(jnp.reshape(part, shape))
        start += size
    return jax.tree.unflatten(structure, parts)


def _restored(flat: np.ndarray | None, like: PyTree) -> PyTree:
    if flat is None:
        return None
    leaves, structure = jax.tree.flatten(like)
    cuts = np.cumsum([math.prod(np.shape(leaf)) for leaf in leaves])[:-1]
    parts = [
        part.reshape(np.shape(leaf))
        for part, leaf in zip(np.split(flat, cuts), leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, parts)
