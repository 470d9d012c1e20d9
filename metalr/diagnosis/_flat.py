"""The float leaves of a pytree as one vector, whatever their dtypes."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from .._types import PyTree, Scalar
from ..runs.run import floats_of


class Flat(NamedTuple):
    """A pytree's floats, and the pytree with others in their place."""

    vector: Float[Array, " n"]  # float32 or wider
    put: Callable[[Array], PyTree]  # each leaf in its own dtype; ints and keys as is


def flat(tree: PyTree) -> Flat:
    """Ravel the float leaves; at least one must be there."""
    floats, rebuild = floats_of(tree)
    dtype = wide_dtype(floats)
    vector = jnp.concatenate([leaf.ravel().astype(dtype) for leaf in floats])

    def put(vector: Array) -> PyTree:
        parts, at = [], 0
        for leaf in floats:
            part = vector[at : at + leaf.size].reshape(leaf.shape)
            parts.append(part.astype(leaf.dtype))
            at += leaf.size
        return rebuild(parts)

    return Flat(vector, put)


def wide_dtype(leaves: Sequence[Any]) -> jnp.dtype:
    """The widest of their dtypes, at least float32."""
    return jnp.result_type(jnp.float32, *[leaf.dtype for leaf in leaves])


def norm(leaves: list[Array]) -> Scalar:
    """Of all entries; their squares may be beyond the largest float."""
    dtype = wide_dtype(leaves)
    wide = [x.astype(dtype) for x in leaves if x.size]
    largest = jnp.stack([jnp.max(jnp.abs(x)) for x in wide]).max()
    safe = jnp.where(largest > 0.0, largest, 1.0)
    return safe * jnp.sqrt(sum(jnp.sum((x / safe) ** 2) for x in wide))


def divided(leaves: list[Array], by: Scalar) -> list[Array]:
    """Each leaf in its own dtype."""
    return [(x / by.astype(x.dtype)).astype(x.dtype) for x in leaves]


def all_finite(leaves: list[Array]) -> Array:
    """Every entry is."""
    return jnp.stack([jnp.all(jnp.isfinite(x)) for x in leaves]).all()
