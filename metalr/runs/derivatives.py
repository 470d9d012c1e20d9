"""A curve and its first two derivatives in one scalar, in forward mode."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._types import Hyper


class Derivatives(NamedTuple):
    """The curve $L_0 … L_T$ and its derivatives in a scalar hyperparameter."""

    values: Float[Array, "*batch steps_plus_1"]
    slopes: Float[Array, "*batch steps_plus_1"]
    curvatures: Float[Array, "*batch steps_plus_1"]


def derivatives(curve: Callable[[Hyper], Array], hyper: Hyper) -> Derivatives:
    """Values, slopes and curvatures of `curve` in one pass of nested `jax.jvp`.

    `hyper` has one scalar leaf: see `check_scalar`. The carry of a loop inside `curve`
    becomes four times as large, whatever the loop's length.
    """
    (leaf,), structure = jax.tree.flatten(hyper)
    one = jnp.ones_like(leaf)

    def along(x: Array) -> tuple[Array, Array]:
        return jax.jvp(
            lambda y: curve(jax.tree.unflatten(structure, [y])), (x,), (one,)
        )

    (values, slopes), (_, curvatures) = jax.jvp(along, (leaf,), (one,))
    return Derivatives(values, slopes, curvatures)


def check_scalar(hyper: Hyper, remedy: str) -> None:
    """Check that a pytree is one number.

    Raises:
        ValueError: if it has several leaves, or one that is an array, with `remedy`.
    """
    leaves: list[Any] = jax.tree.leaves(hyper)
    if len(leaves) != 1 or leaves[0].shape != ():
        shapes = ", ".join(str(list(leaf.shape)) for leaf in leaves)
        msg = f"hyper has leaves of shapes {shapes}, but must be one scalar: {remedy}"
        raise ValueError(msg)
