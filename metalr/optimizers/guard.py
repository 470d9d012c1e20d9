"""The same optimizer with derivatives that stay finite where a square root meets 0."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from jax.extend.core import ClosedJaxpr

from ._bounds import ANY, Bounds, bounds, invariant
from ._rewrite import Facts, evaluate, offends
from .per_step import PerStep
from .stopped import warn_of_stops
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
    update without such a primitive (`optax.sgd`), or in which bounds show that no pole
    can be met (Adam with `eps_root`), is called as it is. For the bounds, `state` is
    taken to be one that `init` and updates make.

    An update with a `jax.lax.stop_gradient` on the way to its result (`optax.lbfgs`)
    is warned of: derivatives of the run leave that path out.

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
        >>> print(jnp.isfinite(jax.jacfwd(moved)(0.5, optax.adam)))
        [ True False]
        >>> print(jnp.isfinite(jax.jacfwd(moved)(0.5, metalr.guard(optax.adam))))
        [ True  True]
    """
    if isinstance(optimizer, Guarded):
        return optimizer
    if isinstance(optimizer, PerStep):
        return dataclasses.replace(optimizer, make=guard(optimizer.make))
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
        known = lambda program: _known(inner, program, updates, state, params)
        return _guarded(call, ((updates, state, params), extra_args), known)

    def init(params: optax.Params) -> optax.OptState:
        return _guarded(inner.init, (params,), _nothing_known)

    return Guarded(init, update)


def _guarded(
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    known: Callable[[ClosedJaxpr], list[Bounds]],
) -> Any:
    """`function(*arguments)`, guarded in the arrays; the rest is passed on."""
    run, arrays = _of_arrays(function, arguments)
    program, shape = jax.make_jaxpr(run, return_shape=True)(arrays)
    if known is not _nothing_known:  # an update
        warn_of_stops(program, shape)
    for bounds_of in (_nothing_known, known):  # the cheap question first
        found = bounds_of(program)
        if not offends(program, found):
            return run(arrays)
    out = evaluate(program, arrays, [Facts(bounds=b) for b in found])
    return jax.tree.unflatten(jax.tree.structure(shape), out)


def _of_arrays(
    function: Callable[..., Any], arguments: tuple[Any, ...]
) -> tuple[Callable[[list[Any]], Any], list[Any]]:
    """The call as a function of the arrays among its arguments, and these."""
    leaves, structure = jax.tree.flatten(arguments)
    places = [i for i, leaf in enumerate(leaves) if _is_array(leaf)]

    def run(arrays: list[Any]) -> Any:
        full = list(leaves)
        for place, array in zip(places, arrays, strict=True):
            full[place] = array
        return function(*jax.tree.unflatten(structure, full))

    return run, [leaves[place] for place in places]


def _known(
    inner: Any, update: ClosedJaxpr, updates: Any, state: Any, params: Any
) -> list[Bounds]:
    """Bounds of an update's inputs: of its state, those that hold from `init` on."""
    nothing = _nothing_known(update)
    arrays = [sum(map(_is_array, jax.tree.leaves(x))) for x in (updates, state)]
    count = len(jax.tree.leaves(state))
    if params is None or arrays[1] != count:
        return nothing
    run, of_params = _of_arrays(inner.init, (params,))
    start = jax.make_jaxpr(run)(of_params)
    if len(start.out_avals) != count:  # a state of the user's own
        return nothing
    first, last = arrays[0], arrays[0] + count
    inputs = lambda known: [*nothing[:first], *known, *nothing[last:]]
    step = lambda known: bounds(update, inputs(known))[-count:] if count else []
    return inputs(invariant(bounds(start, _nothing_known(start)), step))


def _nothing_known(program: ClosedJaxpr) -> list[Bounds]:
    return [ANY] * len(program.in_avals)


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray | np.generic)
