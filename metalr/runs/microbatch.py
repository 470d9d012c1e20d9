"""The gradient of a mean over a batch, a few examples at a time."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._types import Batch, Hyper, Params, PyTree

Gradient: TypeAlias = Callable[[Params, Hyper, Batch], PyTree]
"""Anything that is a mean over the leading axis of its batch."""


def in_microbatches(function: Gradient, size: int) -> Gradient:
    """The same mean, from parts of `size` examples and one part with the remainder.

    Each part is rematerialized, so that derivatives of the result keep the activations
    of one part as well.

    Args:
        function: `function(params, hyper, batch)`, a pytree of means over the batch.
        size: examples a part.

    Raises:
        ValueError: if the leaves of the batch have no common leading axis.
    """
    function = jax.checkpoint(function)

    def mean(params: Params, hyper: Hyper, batch: Batch) -> PyTree:
        examples = _examples(batch)
        if size >= examples:
            return function(params, hyper, batch)
        count, remainder = divmod(examples, size)

        def weighted(part: Batch, weight: int) -> PyTree:
            out = function(params, hyper, part)
            return jax.tree.map(lambda x: x * (weight / examples), out)

        def add(total: PyTree, index: Array) -> tuple[PyTree, None]:
            part = jax.tree.map(
                lambda x: jax.lax.dynamic_slice_in_dim(x, index * size, size), batch
            )
            return jax.tree.map(jnp.add, total, weighted(part, size)), None

        last = jax.tree.map(lambda x: x[count * size :], batch)
        shapes = jax.eval_shape(lambda: function(params, hyper, batch))
        total = (
            weighted(last, remainder)
            if remainder
            else jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        )
        return jax.lax.scan(add, total, jnp.arange(count))[0]

    return mean


def _examples(batch: Any) -> int:
    sizes = {x.shape[0] if x.ndim else 0 for x in jax.tree.leaves(batch)}
    if len(sizes) != 1 or 0 in sizes:
        msg = (
            "microbatch needs batches whose leaves are (steps, examples, …) with one "
            f"number of examples, but a step sees {sorted(sizes)}"
        )
        raise ValueError(msg)
    return sizes.pop()
