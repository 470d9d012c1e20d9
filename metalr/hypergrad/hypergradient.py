"""The one entry point of all engines."""

import warnings
from typing import Any, TypeVar, overload

import jax
import jax.numpy as jnp

from .._checks import float_leaves, path_name
from .._programs.compiled import compiled
from .._programs.dependence import check_dependence
from .._types import Hyper, Objective
from ..runs.run import Run, at_rest, is_run, started, whole
from ._engine import Engine, HyperGradient, run_of
from .reverse import Reverse

_REVERSE = Reverse()
_Result = TypeVar("_Result")


class PrecisionWarning(UserWarning):
    """A derivative is carried through the run in less than float32."""


@overload
def hypergradient(objective: Objective, hyper: Hyper) -> HyperGradient: ...
@overload
def hypergradient(
    objective: Objective, hyper: Hyper, engine: Engine[_Result]
) -> _Result: ...
def hypergradient(objective: Objective, hyper: Hyper, engine: Engine = _REVERSE) -> Any:
    r"""Value and gradient of an objective: $L_T(\eta)$ and $\nabla_\eta L_T(\eta)$.

    The engine decides memory and time, not the answer (where an engine is biased, its
    docstring says by how much). Compiled once for each form of objective, engine and
    `hyper`: see `Unrolled` for what compiles anew. Composes with `jit`, `vmap`, and
    with differentiation where the engine says so.

    Args:
        objective: an `Unrolled` or a `Rollout`; `Reverse()` and `Forward()` take any
            traceable scalar function.
        hyper: pytree of floats, the point of evaluation.
        engine: how to differentiate: `Reverse()`, `Forward()`, …, or one of your own
            (`hypergrad.Engine`).

    Returns:
        `HyperGradient(value, grad)`, with `grad` in the structure and dtypes of
        `hyper`. Engines that measure themselves return a NamedTuple that begins so and
        goes on, such as `ImplicitHyperGradient`.

    Raises:
        ValueError: if a leaf of `hyper` is not a float, or if the value does not depend
            on it at all (decided on the traced program: a rate that never reached
            the optimizer is a mistake, not a derivative of 0); if the engine pushes
            tangents forward and the loss has a `custom_vjp`, which has no such rule.

    Warns:
        PrecisionWarning: once for each leaf of the run's state that carries a
            derivative in less than float32 (params do not: see `Unrolled`).

    Example:
        >>> import optax, metalr
        >>> loss = lambda params, hyper, batch: 0.5 * params**2
        >>> L = metalr.Unrolled(loss, optax.sgd, 1.0, steps=2)
        >>> value, grad = metalr.hypergradient(L, 0.5, metalr.Forward())
        >>> print(value, grad)
        0.03125 -0.25
    """
    _check_engine(engine)
    _check_objective(objective)
    hyper = float_leaves(hyper, "hyper")
    # Forward mode meets a custom_vjp where the program is lowered, not traced.
    result = _named(engine, lambda: _compiled(objective, hyper, engine))
    verify(engine, result)
    return result


def hypergradient_and_run(
    objective: Objective, hyper: Hyper, engine: Engine = _REVERSE
) -> tuple[Any, Run]:
    """The hypergradient, and the very run that was differentiated.

    For warm starts, curves and metrics beside a derivative, without a second run:
    `result, run = …`, with `run.state` for `objective.continued` and `run.records` as
    in `objective.run`. `Reverse(checkpoints=n)`, `Mixed(checkpoints=n)` and
    `Reversible()` run their steps in pieces: with them `records` is None. Reversible,
    Implicit and an engine of your own without `with_run` make one further run of it.

    Args:
        objective: an `Unrolled` or a `Rollout`.
        hyper: as in `hypergradient`.
        engine: as in `hypergradient`.

    Returns:
        The engine's result, and `Run(value, state, records)`.

    Raises:
        ValueError: as `hypergradient`, and for an objective that is not a run.

    Example:
        >>> import optax, metalr
        >>> loss = lambda params, hyper, batch: 0.5 * params**2
        >>> L = metalr.Unrolled(loss, optax.sgd, 1.0, steps=2)
        >>> result, run = metalr.hypergradient_and_run(L, 0.5)
        >>> print(result.grad, run.state.params, run.records.loss)
        -0.25 0.25 [0.5   0.125]
    """
    _check_engine(engine)
    run_of(objective, engine)
    hyper = float_leaves(hyper, "hyper")
    result, run = _named(engine, lambda: _compiled_with_run(objective, hyper, engine))
    verify(engine, result)
    return result, run


@compiled
def _compiled(objective: Any, hyper: Hyper, engine: Any) -> Any:
    pulled_back = getattr(objective, "pulled_back", None)  # see `reparametrized`
    if pulled_back is not None and not is_derivative_free(engine):
        check_dependence(objective, hyper)
        return pulled_back(hyper, lambda inner, at: _compiled(inner, at, engine))
    _look_ahead(objective, hyper, engine)
    return _named(engine, lambda: engine(objective, hyper))


@compiled
def _compiled_with_run(objective: Any, hyper: Hyper, engine: Any) -> tuple[Any, Run]:
    _look_ahead(objective, hyper, engine)
    with_run = getattr(getattr(engine, "func", engine), "with_run", None)
    if with_run is None:
        result = _named(engine, lambda: engine(objective, hyper))
        run = whole(objective, hyper)
    else:
        result, run = _named(engine, lambda: with_run(objective, hyper))
    state = objective.public(objective.prepare(hyper), run.state)
    return result, run._replace(state=state)


def _look_ahead(objective: Any, hyper: Hyper, engine: Any) -> None:
    """Refuse what the engine cannot do or would give a silent 0 for; warn of dtypes."""
    smooth = not is_derivative_free(engine)
    itself = getattr(engine, "func", engine)
    refuse = getattr(itself, "refuse", None)
    if refuse is None:
        check_dependence(objective, hyper, smooth=smooth)
    else:
        refuse(objective, hyper)
    if smooth and is_run(objective):
        _warn_of_narrow_leaves(objective, hyper)


def is_derivative_free(engine: Any) -> bool:
    """Whether an engine, or one wrapped as a static pytree, takes no derivative."""
    each = (engine, getattr(engine, "func", engine))
    return any(getattr(one, "derivative_free", False) for one in each)


def _warn_of_narrow_leaves(objective: Any, hyper: Hyper) -> None:
    hyper = jax.tree.map(jnp.asarray, hyper)
    state = jax.eval_shape(lambda h: started(objective, h), hyper)
    paths = jax.tree_util.tree_leaves_with_path(state)
    narrow = [
        (path, x)
        for path, x in paths
        if jnp.issubdtype(x.dtype, jnp.floating) and jnp.finfo(x.dtype).bits < 32
    ]
    if not narrow:
        return
    moved = at_rest(objective, objective.prepare(hyper))
    for (path, leaf), bar in zip(paths, moved, strict=True):
        if bar is not None and jnp.finfo(leaf.dtype).bits < 32:
            warnings.warn(
                f"{path_name('state', path)} is {leaf.dtype}: its derivative is carried"
                " from step to step in that dtype, to 2 or 3 digits; keep it in float32"
                " (optax: mu_dtype, accumulator_dtype) where that matters",
                PrecisionWarning,
                stacklevel=2,
            )


def _named(engine: Any, call: Any) -> Any:
    """`call()`, with JAX's errors on what has one mode only explained.

    Raises:
        ValueError: instead of JAX's error, naming engine and remedy.
    """
    try:
        return call()
    except (TypeError, ValueError) as error:
        shown, text = getattr(engine, "func", engine), str(error)
        if isinstance(error, TypeError) and "custom_vjp" in text:
            msg = (
                f"{shown} pushes tangents forward, and something in the run has a "
                "jax.custom_vjp, which says only how cotangents go back: take "
                "metalr.Reverse() or metalr.Reverse(checkpoints=n), or give the "
                "function a jax.custom_jvp"
            )
        elif "Reverse-mode differentiation does not work for lax.while_loop" in text:
            msg = (
                f"{shown} goes back through the run, and something in it is a "
                "lax.while_loop (a line search, an iterative solver), which JAX "
                "differentiates forward only: take metalr.Forward()"
            )
        else:
            raise
        raise ValueError(msg) from error


def _check_engine(engine: Any) -> None:
    if not callable(engine) or isinstance(engine, type):
        msg = f"engine = {engine!r} must be an engine such as metalr.Reverse()"
        raise ValueError(msg)


def _check_objective(objective: Any) -> None:
    if not callable(objective):
        msg = (
            f"objective = {objective!r} must be a metalr.Unrolled or another function "
            "of hyper: it comes first, hypergradient(objective, hyper, engine)"
        )
        raise ValueError(msg)


def verify(engine: Any, result: Any) -> None:
    """Raise where the engine sees in a concrete result that it is wrong."""
    check = getattr(engine, "verify", None)
    if check is not None:
        check(result)


def as_pytree(function: Any) -> Any:
    """A plain function becomes a pytree without leaves: a static argument of jit."""
    if jax.tree_util.all_leaves([function]):
        return jax.tree_util.Partial(function)
    return function
