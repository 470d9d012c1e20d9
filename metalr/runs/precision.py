"""Parameters narrower than float32: they move as they are, their derivatives do not.

A sum of updates of 1 stalls at 256 in bfloat16, and so would the sum of their
derivatives. So a loop carries such a leaf in float32, at a value that bfloat16 has:
values are those of the narrow run to the last bit, tangents and cotangents are float32.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._types import Hyper, Params, PyTree
from .run import at_least_float32, is_float


@jax.custom_jvp
def _added(wide: Array, update: Array, new: Array) -> Array:
    """The new parameter, in the wide dtype: its derivative is that of the sum."""
    del update
    return new.astype(wide.dtype)


@_added.defjvp
def _added_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    wide, update, _ = tangents
    return _added(*primals), wide + update.astype(wide.dtype)


def moved(wide: Array, update: Array, new: Array) -> Array:
    """The parameter `new` = narrow + update as the loop carries it."""
    return new if new.dtype == wide.dtype else _added(wide, update, new)


def wide(leaf: Any) -> Any:
    """A leaf as the loop carries it."""
    return at_least_float32(leaf) if is_float(leaf) else leaf


def cast(hyper: Hyper, dtype: Any) -> Hyper:
    """All leaves in one dtype."""
    return jax.tree.map(lambda leaf: leaf.astype(dtype), hyper)


def like(tree: PyTree, shapes: PyTree) -> PyTree:
    """`tree` in the dtypes of `shapes`, where these are floats."""
    return jax.tree.map(
        lambda x, s: x.astype(s.dtype) if is_float(s) else x, tree, shapes
    )


def widest(params: Params) -> Any:
    """The dtype that the float leaves have in common."""
    return jnp.result_type(*[x.dtype for x in jax.tree.leaves(params) if is_float(x)])
