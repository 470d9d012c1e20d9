"""Does the value depend on each hyperparameter at all, judged on the traced program."""

import jax
import jax.numpy as jnp
from jax.extend.core import JaxprEqn

from .._checks import path_name
from .._types import Hyper, Objective
from .dataflow import Facts, propagate

_FLAT = frozenset({"stop_gradient", "sign", "floor", "ceil", "round", "is_finite"})
"""Primitives whose derivative is 0 wherever it exists, by definition."""


def independent_leaves(
    objective: Objective, hyper: Hyper, *, smooth: bool = True
) -> list[str]:
    """Paths of the leaves of `hyper` that no differentiable path joins to the value.

    Structural: decided on the traced program, not on the value of a derivative, so a
    derivative that happens to be 0 does not count. Paths through integers, booleans and
    `stop_gradient` carry no derivative. A leaf is judged as a whole. A path that exists
    in the program but always multiplies by 0 is not seen through.

    Args:
        objective: a traceable function of hyper.
        hyper: the point; only shapes and dtypes matter.
        smooth: False for engines that take no derivative: then any path counts.

    Returns:
        Paths such as `hyper['momentum']`; empty where every leaf matters.
    """
    shapes = jax.tree.map(lambda h: jax.ShapeDtypeStruct(h.shape, h.dtype), hyper)
    jaxpr = jax.make_jaxpr(objective)(shapes).jaxpr
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(hyper)]
    inputs = [frozenset({index}) for index in range(len(paths))]
    rule = differentiable if smooth else lambda _, facts: facts
    reached = frozenset[object]().union(*propagate(jaxpr, inputs, rule))
    return [path_name("hyper", p) for i, p in enumerate(paths) if i not in reached]


def check_dependence(
    objective: Objective, hyper: Hyper, *, smooth: bool = True
) -> None:
    """Refuse a hyperparameter whose derivative would be a silent 0.

    Raises:
        ValueError: if the value does not depend on a leaf, naming its path.
    """
    missing = independent_leaves(objective, hyper, smooth=smooth)
    if missing:
        kind = "differentiable " if smooth else ""
        msg = (
            f"the objective does not depend on {', '.join(missing)}: no {kind}path "
            "in the traced program leads from there to the value, so the "
            "derivative would be a silent 0. Does it reach the optimizer or the loss "
            "(and is steps > 0)? Otherwise take it out of hyper; jax.grad gives the 0"
        )
        raise ValueError(msg)


def differentiable(eqn: JaxprEqn, facts: Facts) -> Facts:
    """The rule for `propagate`: facts pass where a derivative does."""
    dtypes = [getattr(out.aval, "dtype", jnp.int32) for out in eqn.outvars]
    smooth = any(jnp.issubdtype(dtype, jnp.inexact) for dtype in dtypes)
    return facts if smooth and eqn.primitive.name not in _FLAT else frozenset()
