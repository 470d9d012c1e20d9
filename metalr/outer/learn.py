"""The outer loop: hyperparameters learned by their hypergradient."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, PyTree

from .._checks import float_leaves, path_name
from .._programs.compiled import compiled
from .._types import Hyper, Objective, Scalar, ScalarLike
from ..hypergrad import Engine, Reverse
from ..hypergrad.hypergradient import as_pytree, hypergradient
from . import rules as outer
from .rules import Newton, Point, Rule

_REVERSE = Reverse()


class History(NamedTuple):
    """One row for the start and for each outer step; nan after the loop stopped."""

    hyper: Hyper  # each leaf with a leading axis of length steps + 1
    value: Float[Array, "*batch rows"]
    grad_norm: Float[Array, "*batch rows"]  # in the outer variables (log η if log)


class _Problem(NamedTuple):
    objective: Any
    engine: Any


class _Method(NamedTuple):
    outer_optimizer: optax.GradientTransformation | Newton
    logs: tuple[bool, ...]  # one for each leaf of hyper


class LearnState(NamedTuple):
    """Where the outer loop stands: pass it to `learn` to continue from there."""

    point: Point
    rule: PyTree  # the outer optimizer's own state


class Learned(NamedTuple):
    """What the outer loop found."""

    hyper: Hyper
    value: Scalar
    history: History
    converged: Bool[Array, "*batch"]  # the tolerance was met
    steps: Int[Array, "*batch"]  # outer steps made
    state: LearnState


def learn(
    objective: Objective,
    hyper: Hyper,
    *,
    outer_optimizer: optax.GradientTransformation | Newton,
    steps: int,
    engine: Engine = _REVERSE,
    log: PyTree[bool] = False,
    rtol: float = 1e-8,
    atol: float = 0.0,
    state: LearnState | None = None,
) -> Learned:
    r"""Minimize an objective over its hyperparameters, by hypergradients.

    Each outer step evaluates value and gradient at the point that `outer_optimizer`
    proposes. It stops when $\|\nabla\| \le \text{atol} + \text{rtol}\,|L|$, with
    $\nabla$ the gradient in the outer variables z: $z = \eta$, or $z = \log\eta$ where
    `log` is set, so that $\nabla = \eta L'(\eta)$ and η stays positive. A point
    whose value or gradient is not finite (the inner run diverged) is never accepted,
    nor, by an optax optimizer, one whose |value| is 1/eps times that before:
    the loop stays where it is and proposes a quarter of the step (`Newton`: half).
    Such a step counts; its row repeats the one before.

    What it can find is what the run resolves: where $L_T - L_\infty$ at the optimum is
    below rounding (a single eigenvalue and many steps), a range of rates is equal.

    Runs as a compiled loop; composes with `jit` and `vmap` (over starts or over
    tasks). Not to be differentiated. Memory: that of the engine, and one row of
    history an outer step.

    A loop can be continued: k steps, m times over, are the k m steps at once, bit for
    bit (row 0 of each further history repeats the last of the one before).

    Args:
        objective: an `Unrolled`, or any traceable scalar function.
        hyper: where to start.
        outer_optimizer: any optax optimizer (those that need `value_fn`, such as
            `optax.lbfgs()`, get it); or `Newton()` for a single scalar.
        steps: the most outer steps to make.
        engine: how the hypergradient is computed.
        log: learn the logarithm. A bool for all of `hyper`, or a pytree of bools that
            is a prefix of it.
        rtol: tolerance on the gradient's norm, relative to |value|.
        atol: absolute tolerance on the gradient's norm.
        state: `learned.state` of an earlier call that differs in `steps` alone: make up
            to `steps` further steps from there. Pass `hyper=learned.hyper` with it.

    Returns:
        `Learned(hyper, value, history, converged, steps, state)`. A start that has
        diverged is returned as it is, with `converged` False.

    Raises:
        ValueError: for hyper that is not floating (or not positive where `log` is
            set), a negative `steps` or tolerance, `Newton` on more than one scalar,
            a hyperparameter that the objective does not depend on, or a `state`
            that this outer optimizer does not make of this hyper.

    Example:
        >>> import jax.numpy as jnp, optax, metalr
        >>> loss = metalr.problems.least_squares(jnp.ones((1, 2)), jnp.array([3.0]))
        >>> L = metalr.Unrolled(loss, optax.sgd, jnp.zeros(2), steps=1)
        >>> learned = metalr.learn(
        ...     L, 0.01, outer_optimizer=metalr.Newton(), steps=50, log=True
        ... )
        >>> print(f"{learned.hyper:.5f}")
        0.25000

    References:
        Maclaurin, Duvenaud, Adams (2015), Gradient-based hyperparameter optimization
        through reversible learning.
    """
    hyper = float_leaves(hyper, "hyper")
    for name, value in (("steps", steps), ("rtol", rtol), ("atol", atol)):
        if value < 0:
            msg = f"{name} = {value!r} must be ≥ 0"
            raise ValueError(msg)
    logs = _log_flags(log, hyper)
    if isinstance(outer_optimizer, Newton):
        leaves = jax.tree.leaves(hyper)
        if len(leaves) != 1 or leaves[0].shape != ():
            msg = (
                f"Newton learns one scalar, but hyper has shapes "
                f"{[leaf.shape for leaf in leaves]}: use an optax optimizer"
            )
            raise ValueError(msg)
    problem = _Problem(as_pytree(objective), as_pytree(engine))
    method = _Method(outer_optimizer, logs)
    if state is None:
        state = _begin(problem, hyper, method=method)
    else:
        begin = functools.partial(_begin, method=method)
        _check_state(state, jax.eval_shape(begin, problem, hyper))
    return _loop(problem, hyper, state, rtol, atol, method=method, steps=steps)


@compiled
def _begin(problem: _Problem, hyper: Hyper, *, method: _Method) -> LearnState:
    """Where the loop starts; a program of its own, so that the loop is one as well."""
    rule = _rule(problem, method)
    point = rule.evaluate(_map_logs(jnp.log, method.logs, hyper))
    state = LearnState(point, rule.init(point))
    # Not weakly typed: what a file gives back is not, and it is the same program then.
    return jax.tree.map(
        lambda leaf: jnp.asarray(leaf).astype(jnp.result_type(leaf)), state
    )


@compiled
def _loop(
    problem: _Problem,
    hyper: Hyper,
    state: LearnState,
    rtol: ScalarLike,
    atol: ScalarLike,
    *,
    method: _Method,
    steps: int,
) -> Learned:
    rule = _rule(problem, method)

    def to_hyper(point: Point) -> Hyper:
        return _map_logs(jnp.exp, method.logs, point.z)

    def small(point: Point) -> Array:
        return optax.tree.norm(point.grad) <= atol + rtol * jnp.abs(point.value)

    def row(point: Point) -> History:
        return History(to_hyper(point), point.value, optax.tree.norm(point.grad))

    history = jax.tree.map(
        lambda x: jnp.full((steps + 1, *x.shape), jnp.nan, x.dtype).at[0].set(x),
        row(state.point),
    )

    def going(carry: tuple) -> Array:
        step, (point, inner), _ = carry
        stopped = small(point) | rule.exhausted(point, inner) | ~outer.finite(point)
        return (step < steps) & ~stopped

    def outer_step(carry: tuple) -> tuple:
        step, state, history = carry
        point, inner = rule.step(*state)
        history = jax.tree.map(
            lambda rows, x: rows.at[step + 1].set(x), history, row(point)
        )
        return step + 1, LearnState(point, inner), history

    count, state, history = jax.lax.while_loop(
        going, outer_step, (jnp.zeros((), jnp.int32), state, history)
    )
    point = state.point
    converged = (small(point) | rule.exhausted(*state)) & outer.finite(point)
    # The start is returned as given, not through exp(log(·)).
    final = jax.tree.map(
        lambda h, z: jnp.where(count == 0, h, z), hyper, to_hyper(point)
    )
    return Learned(final, point.value, history, converged, count, state)


def _rule(problem: _Problem, method: _Method) -> Rule:
    """The outer method, on the objective as a function of z."""

    def to_hyper(z: PyTree) -> Hyper:
        return _map_logs(jnp.exp, method.logs, z)

    def value(z: PyTree) -> Scalar:
        return problem.objective(to_hyper(z))

    def value_and_grad(z: PyTree) -> tuple[Scalar, PyTree]:
        point = to_hyper(z)
        value, grad, *_ = hypergradient(problem.objective, point, problem.engine)
        chained = [
            g * h if flag else g
            for g, h, flag in zip(
                jax.tree.leaves(grad), jax.tree.leaves(point), method.logs, strict=True
            )
        ]
        return value, jax.tree.unflatten(jax.tree.structure(z), chained)

    if isinstance(method.outer_optimizer, Newton):
        return outer.newton(method.outer_optimizer, value_and_grad)
    return outer.gradient(method.outer_optimizer, value_and_grad, value)


def _check_state(state: LearnState, expected: LearnState) -> None:
    """Refuse the state of another loop."""
    given, made = (
        jax.tree.map(lambda leaf: f"{leaf.dtype}{list(leaf.shape)}", tree)
        for tree in (state, expected)
    )
    if jax.tree.structure(given) != jax.tree.structure(made) or given != made:
        msg = (
            f"state is {given}, but this outer_optimizer makes {made} of this hyper: "
            "pass learned.state of a call with the same outer_optimizer, and its hyper"
        )
        raise ValueError(msg)


def _map_logs(function: Any, logs: Sequence[bool], tree: PyTree) -> PyTree:
    leaves, structure = jax.tree.flatten(tree)
    mapped = [
        function(leaf) if flag else leaf
        for leaf, flag in zip(leaves, logs, strict=True)
    ]
    return jax.tree.unflatten(structure, mapped)


def _log_flags(log: PyTree[bool], hyper: Hyper) -> tuple[bool, ...]:
    """One flag for each leaf; a flagged leaf must be positive."""
    try:
        flags = jax.tree.map(
            lambda flag, sub: [flag] * len(jax.tree.leaves(sub)), log, hyper
        )
    except (ValueError, TypeError) as error:
        msg = f"log = {log!r} is not a prefix of hyper: {error}"
        raise ValueError(msg) from error
    logs = tuple(jax.tree.leaves(flags))
    for flag, (path, leaf) in zip(
        logs, jax.tree_util.tree_leaves_with_path(hyper), strict=True
    ):
        if not isinstance(flag, bool):
            msg = f"log has the entry {flag!r}: each must be True or False"
            raise ValueError(msg)
        concrete = not isinstance(leaf, Tracer)
        if flag and concrete and not bool(jnp.all(leaf > 0.0)):
            msg = (
                f"{path_name('hyper', path)} = {leaf} must be positive to be learned "
                "through its logarithm: start at a positive value, or set log=False"
            )
            raise ValueError(msg)
    return logs
