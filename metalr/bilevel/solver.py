"""What every bilevel solver is made of: its state, its options, its loops."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from .._checks import float_leaves, random_key
from .._types import Hyper, Params
from ..optimizers.update import is_transformation
from .oracle import Oracle


class State(NamedTuple):
    """What one update hands to the next."""

    params: Params  # z, on its way to the inner minimum
    hyper: Hyper  # x
    adjoint: Params  # v → H⁻¹∇_z f; of F2SA the penalized parameters y
    optimizers: Any  # the three optimizers' states
    memory: Any  # of SABA its tables
    key: Array  # what the next minibatches are drawn by
    updates: Int[Array, "*batch"]  # made so far
    calls: Int[Array, "*batch"]  # minibatch gradients and products so far


class Solver(NamedTuple):
    """A pair of pure functions, as in optax: see `SOBA`."""

    init: Callable[..., State]  # (params, hyper, key=0) -> state
    update: Callable[[State], State]


class Moves(NamedTuple):
    """How each of the three variables moves."""

    params: optax.GradientTransformation
    adjoint: optax.GradientTransformation
    hyper: optax.GradientTransformation
    project: Callable[[Hyper], Hyper] | None


def moves(
    inner: Any,
    outer: Any,
    inner_optimizer: Any,
    outer_optimizer: Any,
    linear_optimizer: Any = None,
    project: Any = None,
) -> Moves:
    """The options that all solvers share, checked.

    Raises:
        ValueError: naming the one that is not what it must be.
    """
    for name, value in (("inner", inner), ("outer", outer)):
        if not isinstance(value, Oracle):
            msg = f"{name} = {value!r} must be a bilevel.Oracle: bilevel.oracle(loss)"
            raise ValueError(msg)
    linear = inner_optimizer if linear_optimizer is None else linear_optimizer
    named = {
        "inner_optimizer": inner_optimizer,
        "linear_optimizer": linear,
        "outer_optimizer": outer_optimizer,
    }
    for name, value in named.items():
        if not is_transformation(value):
            msg = f"{name} = {value!r} must be an optax optimizer: optax.sgd(0.1)"
            raise ValueError(msg)
    if project is not None and not callable(project):
        msg = f"project = {project!r} must be a function of hyper, or None"
        raise ValueError(msg)
    return Moves(inner_optimizer, linear, outer_optimizer, project)


def begin(by: Moves, params: Params, hyper: Hyper, key: Any, calls: int = 0) -> State:
    """The state before the first update; the adjoint is 0.

    Raises:
        ValueError: for params or hyper that are not real floats, or what is no key.
    """
    params, hyper = float_leaves(params, "params"), float_leaves(hyper, "hyper")
    hyper = hyper if by.project is None else by.project(hyper)
    zeros = jax.tree.map(jnp.zeros_like, params)
    optimizers = by.params.init(params), by.adjoint.init(zeros), by.hyper.init(hyper)
    zero = jnp.zeros((), jnp.int32)
    return State(
        params, hyper, zeros, optimizers, None, random_key(key), zero, zero + calls
    )


def draw(oracle: Oracle, key: Array, shape: tuple[int, ...] = ()) -> Array:
    """Minibatches, each drawn uniformly and independently."""
    return jax.random.randint(key, shape, 0, oracle.minibatches)


def moved(
    optimizer: optax.GradientTransformation, direction: Any, state: Any, point: Any
) -> tuple[Any, Any]:
    """The point after one step against `direction`, and the optimizer's state."""
    updates, state = optimizer.update(direction, state, point)
    return optax.apply_updates(point, updates), state


def descended(
    optimizer: optax.GradientTransformation,
    direction: Callable[[Any, Any], Any],
    state: Any,
    point: Any,
    draws: Any,
) -> tuple[Any, Any]:
    """One step for each of the draws: against `direction(point, draw)`."""

    def step(carry: tuple[Any, Any], drawn: Any) -> tuple[tuple[Any, Any], None]:
        point, state = carry
        return moved(optimizer, direction(point, drawn), state, point), None

    return jax.lax.scan(step, (point, state), draws)[0]


def outer_step(
    by: Moves, direction: Hyper, state: Any, hyper: Hyper
) -> tuple[Hyper, Any]:
    """Hyper after one step, projected."""
    hyper, state = moved(by.hyper, direction, state, hyper)
    return hyper if by.project is None else by.project(hyper), state
