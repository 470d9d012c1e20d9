"""One optax update, whatever the transformation asks for and holds in its state."""

import inspect
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .._checks import path_name
from .._types import Hyper, Params, Scalar


class Standard(optax.GradientTransformationExtraArgs):
    """What `standard` makes of a transformation; made again, it stays as it is."""


def is_transformation(value: Any) -> bool:
    """An optax transformation, or an object with its two methods (`MultiSteps`)."""
    methods = (getattr(value, "init", None), getattr(value, "update", None))
    return not isinstance(value, type) and all(callable(method) for method in methods)


def made(optimizer: Callable[[Hyper], Any], hyper: Hyper) -> Any:
    """`optimizer(hyper)`, with an error that says how a learned schedule is written.

    Some of optax's schedules compare their numbers in Python, and so cannot be given
    one that is traced: the peak of `warmup_cosine_decay_schedule` and
    `sgdr_schedule`, the decay rate of `exponential_decay`, the factors of
    `piecewise_constant_schedule`.

    Raises:
        ValueError: if one of these is a hyperparameter, or if its number is asked for.
    """
    try:
        return optimizer(hyper)
    except jax.errors.TracerBoolConversionError as error:
        msg = (
            "making the optimizer asks in Python whether a hyperparameter is 0 or "
            "positive, which is not known while it is traced. Some schedules of optax "
            "do. Learn a factor of a schedule of unit height instead, "
            "`lambda count: h * optax.warmup_cosine_decay_schedule(0.0, 1.0, 10, "
            "100)(count)`, or write the formula, `lambda count: 0.1 * h ** (count / "
            "10)` for exponential_decay; in a function of your own, use jnp.where"
        )
        raise ValueError(msg) from error
    except (
        jax.errors.ConcretizationTypeError,
        jax.errors.TracerArrayConversionError,
    ) as error:
        msg = (
            "making the optimizer asks for the number in a hyperparameter (float(h), "
            "np.asarray(h)), which is not known while it is traced: use h as it is, "
            "with jnp in place of np"
        )
        raise ValueError(msg) from error


def standard(optimizer: Any) -> optax.GradientTransformationExtraArgs:
    """The same transformation in one form, which every loop can carry.

    Its `update` takes every keyword argument and passes on those that the signature of
    `optimizer.update` accepts. The leaves of its state are arrays: Python numbers and
    weakly typed arrays get a dtype of their own in `init` (floats that of params), and
    every update gives each leaf back in the dtype in which it came. An array with a
    dtype stays as it is, so that the run is the same to the last bit.

    Args:
        optimizer: an `optax.GradientTransformation`, or any object with `init` and
            `update`, such as `optax.MultiSteps`.

    Raises:
        ValueError: if it has no `init` and `update`; in `update`, naming the leaf, if
            a leaf of the state changes its shape or its kind of number.
    """
    if isinstance(optimizer, Standard):
        return optimizer
    if not is_transformation(optimizer):
        msg = (
            f"optimizer = {optimizer!r} must be an optax.GradientTransformation, such "
            "as optax.adam(0.1)"
        )
        raise ValueError(msg)

    def init(params: optax.Params) -> optax.OptState:
        return as_arrays(optimizer.init(params), params)

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        accepted = _accepted(optimizer.update, extra_args)
        call = lambda extra: optimizer.update(updates, state, params, **extra)
        updates, new_state = _without_what_is_refused(call, accepted)
        return updates, _in_the_dtypes_of(state, new_state)

    return Standard(init, update)


def update(
    optimizer: Any,
    grads: Params,
    state: optax.OptState,
    params: Params,
    *,
    value: Scalar,
    value_fn: Callable[[Params], Scalar],
    grad_fn: Callable[[Params], Params] | None = None,
) -> tuple[Params, optax.OptState]:
    """The updates of one step and the new state: `optimizer.update` with all it needs.

    Passed on are `value`, `grad` and `value_fn` (line searches, `polyak_sgd`,
    `reduce_on_plateau`), `grad_fn` (`optax.contrib.sam` in opaque mode) and `obj_fn`
    (`optax.contrib.sophia`). `optax.lookahead` gets the gradient in the fast
    parameters, as its documentation has it: the run starts at
    `optax.LookaheadParams.init_synced(params)`, its loss is one of `params.fast`.

    Args:
        optimizer: a transformation (see `standard`), guarded or not.
        grads: the gradient at `params`, of the same structure.
        state: the optimizer's state, made by `standard(optimizer).init`.
        params: where the gradient was taken.
        value: the loss there.
        value_fn: the loss of this step as a function of params alone.
        grad_fn: its gradient; by default `jax.grad(value_fn)`.

    Raises:
        ValueError: if the optimizer is `optax.lookahead` and params are not
            `LookaheadParams`; see `standard`.
    """
    gradient = grad_fn or jax.grad(value_fn)

    def loss(params: Params, *, grad_fn: Any = None, obj_fn: Any = None) -> Scalar:
        # optax's line searches hand on to the loss what they do not know themselves.
        del grad_fn, obj_fn
        return value_fn(params)

    if _holds_lookahead(state):
        if not isinstance(params, optax.LookaheadParams):
            msg = (
                "optax.lookahead needs params = optax.LookaheadParams.init_synced(w), "
                "a loss of params.fast and an outer loss of params.slow, not params "
                f"of type {type(params).__name__}"
            )
            raise ValueError(msg)
        grads = grads.fast if isinstance(grads, optax.LookaheadParams) else grads
    return standard(optimizer).update(
        grads,
        state,
        params,
        value=value,
        grad=grads,
        value_fn=loss,
        grad_fn=lambda params, _=0: gradient(params),
        obj_fn=value_fn,
    )


def as_arrays(state: optax.OptState, params: optax.Params) -> optax.OptState:
    """The state with array leaves of a dtype of their own, as a loop carries them.

    A Python float, or a weakly typed one, gets the dtype that the float leaves of
    params have in common; ints and bools get JAX's default.

    Raises:
        ValueError: if a leaf is no array and no number, naming it.
    """
    floats = [x for x in map(jnp.result_type, jax.tree.leaves(params)) if _float(x)]
    real = jnp.result_type(*floats) if floats else jnp.result_type(float)

    def convert(path: tuple[Any, ...], leaf: Any) -> jax.Array:
        if isinstance(leaf, jax.Array) and not leaf.aval.weak_type:
            return leaf
        if isinstance(leaf, np.ndarray | np.generic):
            return jnp.asarray(leaf)
        try:
            dtype = jnp.result_type(leaf)
        except TypeError as error:
            msg = (
                f"{path_name('opt_state', path)} = {leaf!r} is {type(leaf).__name__}: "
                "the state of an optimizer must hold arrays, for a loop to carry it"
            )
            raise ValueError(msg) from error
        return _cast(leaf, real if _float(dtype) else dtype)

    return jax.tree_util.tree_map_with_path(convert, state)


def _in_the_dtypes_of(old: optax.OptState, new: optax.OptState) -> optax.OptState:
    """The new state, each leaf in the dtype in which it came."""
    structures = jax.tree.structure(old), jax.tree.structure(new)
    if structures[0] != structures[1]:
        msg = (
            f"the optimizer's state changed from {structures[0]} to {structures[1]}: "
            "it must keep its structure, for a loop to carry it"
        )
        raise ValueError(msg)

    def convert(path: tuple[Any, ...], before: Any, after: Any) -> Any:
        types = [
            (jnp.shape(leaf), jax.dtypes.result_type(leaf)) for leaf in (before, after)
        ]
        (shape, dtype), (new_shape, new_dtype) = types
        if shape != new_shape or not _same_kind(dtype, new_dtype):
            msg = (
                f"{path_name('opt_state', path)} came into the update as "
                f"{dtype}{list(shape)} and left it as {new_dtype}{list(new_shape)}: it "
                "must keep its shape and kind, for a loop to carry it; let init "
                "make it as the update does"
            )
            raise ValueError(msg)
        is_array = isinstance(after, jax.Array)
        if is_array and new_dtype == dtype and not after.aval.weak_type:
            return after
        return _cast(after, dtype)

    return jax.tree_util.tree_map_with_path(convert, old, new)


def _accepted(update: Callable[..., Any], extra: dict[str, Any]) -> dict[str, Any]:
    """Those of the keyword arguments that the update function has a place for."""
    try:
        parameters = list(inspect.signature(update).parameters.values())
    except (TypeError, ValueError):  # not a Python function
        return {}
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return extra
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_POSITIONAL)
    # The first three are updates, state and params, whatever they are called.
    names = {p.name for p in parameters[3:] if p.kind not in positional}
    names |= {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
    return {name: value for name, value in extra.items() if name in names}


def _without_what_is_refused(
    call: Callable[[dict[str, Any]], Any], extra: dict[str, Any]
) -> Any:
    """`call(extra)`, leaving out what a part of the transformation refuses by name.

    `optax.chain` takes every argument and hands them to parts that may not.
    """
    try:
        return call(extra)
    except TypeError as error:
        refused = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if refused is None or refused[1] not in extra:
            raise
        rest = {name: value for name, value in extra.items() if name != refused[1]}
        try:
            return _without_what_is_refused(call, rest)
        except TypeError:
            raise error from None


def _holds_lookahead(state: Any) -> bool:
    is_one = lambda node: isinstance(node, optax.LookaheadState)
    return any(map(is_one, jax.tree.leaves(state, is_leaf=is_one)))


def _cast(leaf: Any, dtype: Any) -> jax.Array:
    """In this dtype, and not weakly typed."""
    return jax.lax.convert_element_type(leaf, dtype)


def _same_kind(one: Any, other: Any) -> bool:
    kinds = (jnp.floating, jnp.complexfloating, jnp.integer, jnp.bool_)
    both = [any(jnp.issubdtype(d, k) for d in (one, other)) for k in kinds]
    return one == other or sum(both) == 1


def _float(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.floating)
