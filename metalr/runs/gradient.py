r"""The inner field, and how cotangents go back through it.

The pullback of $g = \nabla_w\ell$ is $v \mapsto (\partial g/\partial w)^\top v$. Where
g is the gradient of what the loss computes, $\partial g/\partial w$ is its Hessian,
symmetric, and the pullback is a forward-mode product: nothing that the gradient
computes is kept. With a `stop_gradient` or a derivative rule of someone's own in the
loss it need not be, and the pullback is `jax.vjp` of the gradient itself.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from .._programs.symmetry import own_derivatives
from .._types import Hyper, Params, PyTree, Scalar
from .run import is_float

Field: TypeAlias = Callable[[Params, Hyper], Any]
"""`(train, hyper) -> (value, gradients)`, by `jax.value_and_grad`."""


class Gradients(NamedTuple):
    """The inner loss and its gradients."""

    value: Scalar
    grads: Params
    by_hyper: Hyper


def linearized(both: Field, train: Params, hyper: Hyper) -> tuple[Gradients, Any]:
    """Gradients, and their pullback by symmetric products: one forward sweep.

    Args:
        both: `(value, (grads, by_hyper))` of a loss without rules of its own.
        train: the point.
        hyper: the loss's second argument.

    Returns:
        `Gradients`, and `pull(value_bar, grads_bar) -> (train_bar, hyper_bar)`.
    """

    def gradient(train: Params) -> Gradients:
        value, grads = both(train, hyper)
        return Gradients(value, *grads)

    made, along = jax.linearize(gradient, train)

    def pull(value_bar: Scalar, grads_bar: Params) -> tuple[Params, Hyper]:
        # H · ḡ, and the mixed derivative in hyper, in one forward-over-reverse product.
        moved = along(grads_bar)

        def add(product: Any, slope: Any) -> Any:
            through = jnp.where(value_bar == 0.0, 0.0, value_bar * slope)
            return product + through.astype(product.dtype)

        return (
            jax.tree.map(add, moved.grads, made.grads),
            jax.tree.map(add, moved.by_hyper, made.by_hyper),
        )

    return made, pull


def transposed(alone: Field, train: Params, hyper: Hyper) -> tuple[Scalar, Params, Any]:
    """Value and gradient in params, and their pullback by `jax.vjp`: for every field.

    Args:
        alone: `(value, grads)`, differentiated in params only, so that a rule for hyper
            in the loss is still there to be used.
        train: the point.
        hyper: the loss's second argument.
    """
    (value, grads), transpose = jax.vjp(alone, train, hyper)
    return value, grads, lambda value_bar, grads_bar: transpose((value_bar, grads_bar))


def rules_within(loss: Any, train: Params, hyper: Hyper) -> tuple[str, ...]:
    """What may keep the field from being a gradient, by name; empty where it is one."""
    return own_derivatives(jax.make_jaxpr(loss)(train, hyper))


def trained(params: Params) -> Params:
    """The float leaves; None for the others."""
    return jax.tree.map(lambda x: x if is_float(x) else None, params)


def combined(train: Params, params: PyTree) -> Params:
    """`params` with other float leaves."""
    return jax.tree.map(
        lambda t, p: p if t is None else t, train, params, is_leaf=lambda x: x is None
    )
