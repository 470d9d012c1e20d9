"""A function that is a mean over minibatches, and its derivatives on one of them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._checks import int_at_least
from .._types import Batch, Hyper, Loss, Params


class Oracle(NamedTuple):
    """The function `mean over i < minibatches of loss(params, hyper, batches(i))`."""

    loss: Loss  # loss(params, hyper, batch) -> scalar
    batches: Callable[[Any], Batch]  # index -> batch; traced
    minibatches: int


def oracle(loss: Any, data: Any = None, *, size: int | Any | None = None) -> Oracle:
    """The mean of a loss over minibatches of data.

    For sampling of another kind make an `Oracle` by hand: `batches` is any traceable
    function `index -> batch`, with `index` from 0 to `minibatches` - 1 (data augmented
    by a key that is folded with the index, say).

    Args:
        loss: `loss(params, hyper, batch) -> scalar`, a mean over the rows of the batch.
        data: a pytree of arrays, one example a row; None for a loss without data.
        size: rows of a minibatch: consecutive ones, so shuffle rows that are sorted.
            None: all rows at once (`minibatches` = 1), a deterministic oracle.

    Raises:
        ValueError: if the loss is no function, leaves differ in their number of rows,
            or `size` does not divide it.

    Example:
        >>> import jax.numpy as jnp
        >>> from metalr import bilevel
        >>> loss = lambda params, hyper, batch: jnp.mean((params - batch) ** 2)
        >>> inner = bilevel.oracle(loss, jnp.arange(6.0), size=2)
        >>> print(inner.minibatches, inner.batches(1))
        3 [2. 3.]
    """
    function: Loss = loss
    if not callable(function):
        msg = f"loss = {loss!r} must be a function loss(params, hyper, batch)"
        raise ValueError(msg)
    if data is None:
        if size is not None:
            msg = f"size = {size!r} without data: there is nothing to split"
            raise ValueError(msg)
        return Oracle(function, lambda _: None, 1)
    rows = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(data)}
    if len(rows) != 1 or () in rows:
        msg = (
            f"the leaves of data have the leading axes {sorted(rows)}: all must have "
            "one and the same number of rows"
        )
        raise ValueError(msg)
    ((n,),) = rows
    if size is None:
        return Oracle(function, lambda _: data, 1)
    size = int_at_least(size, "size", 1, note=", or None")
    if n % size:
        msg = f"size = {size} does not divide the {n} rows: drop {n % size} of them"
        raise ValueError(msg)
    split = lambda x: jnp.reshape(x, (n // size, size, *jnp.shape(x)[1:]))
    blocks = jax.tree.map(split, data)
    return Oracle(function, lambda i: jax.tree.map(lambda x: x[i], blocks), n // size)


class InnerProducts(NamedTuple):
    """What a direction needs of one minibatch of the inner function."""

    gradient: Params  # ∇_z g
    hessian: Params  # ∇²_zz g v
    cross: Hyper  # ∇²_xz g v


class OuterGradients(NamedTuple):
    """The two gradients of one minibatch of the outer function."""

    by_params: Params
    by_hyper: Hyper


def gradient(inner: Oracle, params: Params, hyper: Hyper, index: Array) -> Params:
    """∇_z of one minibatch."""
    return jax.grad(inner.loss)(params, hyper, inner.batches(index))


def products(
    inner: Oracle, params: Params, hyper: Hyper, v: Params, index: Array
) -> InnerProducts:
    """Gradient, Hessian product and cross product, by one vjp of the gradient.

    The Hessian is symmetric, so that the transposed product is the product.
    """
    batch = inner.batches(index)
    along = lambda z, x: jax.grad(inner.loss)(z, x, batch)
    value, pull_back = jax.vjp(along, params, hyper)
    return InnerProducts(value, *pull_back(v))


def hessian_product(
    inner: Oracle, params: Params, hyper: Hyper, v: Params, index: Array
) -> Params:
    """∇²_zz g v, by a jvp of the gradient."""
    along = lambda z: gradient(inner, z, hyper, index)
    return jax.jvp(along, (params,), (v,))[1]


def cross_product(
    inner: Oracle, params: Params, hyper: Hyper, v: Params, index: Array
) -> Hyper:
    """∇²_xz g v, by a vjp of the gradient."""
    along = lambda x: gradient(inner, params, x, index)
    return jax.vjp(along, hyper)[1](v)[0]


def outer_gradients(
    outer: Oracle, params: Params, hyper: Hyper, index: Array
) -> OuterGradients:
    """Both gradients of one minibatch, in one backward pass."""
    by = jax.grad(outer.loss, argnums=(0, 1))
    return OuterGradients(*by(params, hyper, outer.batches(index)))
