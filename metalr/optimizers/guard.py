"""The same optimizer with derivatives that stay finite where a square root meets 0."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax

from ._rewrite import guarded
from .per_step import PerStep
from .update import Standard, is_transformation, standard


class Guarded(Standard):
    """What `guard` makes of a transformation; guarded again, it stays as it is."""


def guard(optimizer: Any) -> Any:
    r"""The same run, with derivatives that are finite where a square root meets 0.

    Adam divides by $\sqrt{v}$. A coordinate whose gradient is 0 all along has v = 0,
    and there $\sqrt{v}' \cdot \dot v = \infty \cdot 0$: one such coordinate makes every
    hypergradient nan. `guard` traces the update (and `init`) and puts another
    derivative rule on each primitive whose derivative has a pole: square roots and
    their reciprocals, fractional and negative powers, logarithms, quotients and, with
    them, norms. The rule, for derivatives of every order:

        a partial derivative that is not finite, at operands that are not nan, is 0.

    Elsewhere the derivatives are JAX's. At a pole they are right for what optimizers
    compute there: a root of squares $\sqrt{\sum g^2}$ at g = 0 gets 0, which is the
    derivative where g does not move and the symmetric one, the mean of both sides,
    where it does (a kink). They are a convention where the true derivative is infinite:
    $\sqrt{\eta}$ at η = 0 gets 0.

    The primal of each rule is the primitive itself: values do not change, to the last
    bit. What selects a branch away (`jnp.where(v > 0, m / jnp.sqrt(v), 0)`) is
    differentiated as it is meant. Works through `jit`, `cond`, `scan`, `while_loop`,
    `jax.checkpoint`, and the rules of `custom_jvp` and `custom_vjp` functions. An
    update without such a primitive (`optax.sgd`) is called as it is, untraced.

    `Unrolled` guards its optimizer unless it is made with `guarded=False`. Its losses
    are the user's: a square root in there is not touched. Matrix decompositions (`svd`,
    `eigh`) are not either.

    Args:
        optimizer: an `optax.GradientTransformation`, or a function that makes one
            (`hyper -> optax.GradientTransformation`, such as `optax.adam`, or what
            `per_step` returns); an `optax.MultiSteps` is a transformation. Arguments of
            the update that are not arrays, such as `value_fn`, are passed on; see
            `optimizers.update.standard` for the form of the result.

    Returns:
        The same kind of thing. All derivatives in both modes, `jit`, `vmap`; work at
        trace time only, no memory beyond that of the derivatives.

    Raises:
        ValueError: if `optimizer` is neither.

    Example:
        >>> import jax, jax.numpy as jnp, optax, metalr
        >>> def moved(rate, make):  # one step of which the second coordinate has none
        ...     tx, gradient = make(rate), jnp.array([1.0, 0.0]) * rate
        ...     return tx.update(gradient, tx.init(gradient))[0]
        >>> print(jax.jacfwd(moved)(0.5, optax.adam))
        [-1. nan]
        >>> print(jax.jacfwd(moved)(0.5, metalr.guard(optax.adam)))
        [-1. -0.]
    """
    if isinstance(optimizer, Guarded):
        return optimizer
    if isinstance(optimizer, PerStep):
        return PerStep(guard(optimizer.make))
    if is_transformation(optimizer):
        return _transformation(optimizer)
    if not callable(optimizer):
        msg = (
            f"optimizer = {optimizer!r} must be an optax.GradientTransformation or a "
            "function that makes one, such as optax.adam"
        )
        raise ValueError(msg)

    @functools.wraps(optimizer)
    def make(*args: Any, **kwargs: Any) -> optax.GradientTransformationExtraArgs:
        return guard(optimizer(*args, **kwargs))

    return make


def _transformation(optimizer: Any) -> Guarded:
    inner = standard(optimizer)

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        call = lambda args, extra: inner.update(*args, **extra)
        return _of_arrays(call)((updates, state, params), extra_args)

    return Guarded(_of_arrays(inner.init), update)


def _of_arrays(function: Callable[..., Any]) -> Callable[..., Any]:
    """Guarded in the arrays among the arguments; the rest is passed on."""

    def run(*arguments: Any) -> Any:
        leaves, structure = jax.tree.flatten(arguments)
        places = [i for i, leaf in enumerate(leaves) if _is_array(leaf)]

        def of_arrays(arrays: list[Any]) -> Any:
            full = list(leaves)
            for place, array in zip(places, arrays, strict=True):
                full[place] = array
            return function(*jax.tree.unflatten(structure, full))

        return guarded(of_arrays)([leaves[place] for place in places])

    return run


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray | np.generic)
