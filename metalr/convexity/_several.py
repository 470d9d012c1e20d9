"""Several hyperparameters: a direction of negative curvature, found, then proved."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from .._types import Hyper
from ._question import refuted, traced, undecided
from ._report import Report
from ._run import NotCoveredError, OverBudgetError
from ._taylor import enclosed


def refute(objective: Callable[[Any], jax.Array], low: Hyper, high: Hyper) -> Report:
    """The eigenvector of the smallest eigenvalue, if vᵀHv < 0 can be proved."""
    ends = [np.asarray(ravel_pytree(end)[0], np.float64) for end in (low, high)]
    unravel = ravel_pytree(low)[1]
    restored = lambda flat: jax.tree.map(np.asarray, unravel(jnp.asarray(flat)))
    of_flat = lambda flat: objective(unravel(flat))
    traced(of_flat, ends[0].shape)
    hessian = jax.jit(jax.hessian(of_flat))
    seen, why_not = np.inf, "cannot be certified for several hyperparameters"
    for point in (0.5 * ends[0] + 0.5 * ends[1], *ends):
        found = np.asarray(hessian(jnp.asarray(point)), np.float64)
        if not np.all(np.isfinite(found)):
            continue
        values, vectors = np.linalg.eigh(0.5 * found + 0.5 * found.T)
        seen = min(seen, float(values[0]))
        if values[0] >= 0.0:
            continue
        direction = vectors[:, 0]
        along = lambda s, p=point, v=direction: of_flat(jnp.asarray(p) + s * v)
        try:
            bound = float(enclosed(traced(along), np.zeros(1))[1].hi[0])
        except (NotCoveredError, OverBudgetError) as error:
            why_not = f"not covered: {error}"
            continue
        if bound < 0.0:
            reason = f"vᵀHv ≤ {bound:.6g} < 0 along `direction`, by interval arithmetic"
            report = refuted(restored(point), reason, "interval", bound)
            return report._replace(direction=restored(direction))
    eigenvalue = f"the smallest eigenvalue at three points, unproved, is {seen:.3g}"
    return undecided(f"{why_not}; {eigenvalue}")
