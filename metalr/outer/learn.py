"""The outer loop: hyperparameters learned by their hypergradient."""

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

from .._checks import random_key
from .._types import Hyper, Objective, PyTree
from ..hypergrad import Engine, Reverse
from ..hypergrad.hypergradient import as_pytree
from . import _arguments as arguments, loop as _loop
from .loop import Best, History, Learned, LearnState, Limits, Method
from .measures import Problem
from .newton import Newton

__all__ = ["Best", "History", "LearnState", "Learned", "joined", "learn", "padded"]

_REVERSE = Reverse()


def learn(
    objective: Objective | Callable[[Any], Any] | Any,
    hyper: Hyper,
    *,
    outer_optimizer: optax.GradientTransformation | Newton | Any,
    steps: int | Any,
    engine: Engine | Any = _REVERSE,
    key: Any = None,
    log: PyTree = False,
    project: Callable[[Hyper], Hyper] | Any | None = None,
    rtol: float | Any = 1e-8,
    atol: float | Any = 0.0,
    history: Literal["all", "scalars"] | Any = "all",
    keep: Literal["last", "best"] | Any = "last",
    callback: Callable[[Learned], Any] | Any | None = None,
    callback_every: int | Any = 1,
    state: LearnState | None = None,
) -> Learned:
    r"""Minimize an objective over its hyperparameters, by hypergradients.

    Each outer step evaluates value and gradient at the point that `outer_optimizer`
    proposes. It stops when $\|\nabla\| \le \text{atol} + \text{rtol}\,|L|$, with
    $\nabla$ the gradient in the outer variables z: $z = \eta$, or $z = \log\eta$ where
    `log` is set, so that $\nabla = \eta L'(\eta)$ and η stays positive. It stops as
    well where the optimizer itself proposes to stay, with its state unchanged (a
    projection within its chain). A point
    whose value or gradient is not finite (the inner run diverged) is never accepted,
    nor, by an optax optimizer, one whose |value| is 1/eps times that before:
    the loop stays where it is and proposes a quarter of the step (`Newton`: half).
    Such a step counts; its row repeats the one before.

    **A draw for each step.** With `key=`, the first argument is `make`, a traceable
    function `make(key) -> objective`, called inside the compiled loop: outer step i
    works on `make(jax.random.fold_in(key, i))`, with its own tasks, starts, data and
    noise (row 0 of the history is draw 0), and the engine's keys, if it has any, are
    folded with i too. Values of different draws are never compared: there is no
    stopping rule, all `steps` are made, `converged` is False, and a trial is refused
    only where it is not finite (the next step then tries a quarter as far, on the
    next draw).

    **Tasks that are lost.** Where the objective is a `metalr.tasks.Mean`
    (`Reverse()`, `Forward()` or `Each(engine)`), a task whose value or gradient is not
    finite is left out of both means, and counted in `history.lost`. On one and the same
    objective a trial that loses more tasks than the point it comes from is refused.
    With `key=` one that loses more than half of them is.

    **Constraints.** `project` maps hyper into the feasible set C, e.g. `lambda h:
    optax.projections.projection_box(h, 0.0, 1.0)`; the start and every proposal are
    projected. The gradient of the stopping rule and of `grad_norm` is then the
    projected one, $z - P(z - \nabla)$, which is 0 at a bound that holds the minimum.
    The projection is the nearest point, right for steps along the gradient
    (`optax.sgd`, with momentum too); an optimizer that scales each coordinate
    (`optax.adam`) or turns the step (`optax.lbfgs`), and likewise `log`, which projects
    η and steps in log η, end elsewhere unless C is a box.

    What it can find is what the run resolves: where $L_T - L_\infty$ at the optimum is
    below rounding (a single eigenvalue and many steps), a range of rates is equal.

    Runs as a compiled loop; composes with `jit` and `vmap` (over starts or over
    tasks), but for `callback`. Not to be differentiated. Memory: that of the engine,
    and one row of history an outer step. What it compiles goes with the functions it
    was compiled for; optax optimizers made anew of equal numbers compile nothing anew.

    A loop can be continued: k steps, m times over, are the k m steps at once, bit for
    bit (row 0 of each further history repeats the last of the one before).

    Args:
        objective: an `Unrolled`, or any traceable scalar function; with `key`, the
            function `make` that returns it.
        hyper: where to start.
        outer_optimizer: any optax optimizer (those that need `value_fn`, such as
            `optax.lbfgs()`, get it); or `Newton()` for a single scalar of one
            objective.
        steps: the most outer steps to make.
        engine: how the hypergradient is computed.
        key: None, or a random key (or int seed): a draw for each step.
        log: learn the logarithm. A bool for all of `hyper`, or a pytree of bools that
            is a prefix of it.
        project: None, or the projection onto the feasible set.
        rtol: tolerance on the gradient's norm, relative to |value|.
        atol: absolute tolerance on the gradient's norm.
        history: "all", or "scalars": no row of hyper is kept.
        keep: return the "last" point, or the "best": that of the smallest value (of
            those that lost the fewest tasks), the start included. With `key` values of
            different draws say nothing: each point is judged, and the best one's
            `value` is, on one further draw that no step sees,
            `make(jax.random.fold_in(key, 2**32 - 1))`, at a run more an outer step.
        callback: called with the `Learned` of the steps made so far, after every
            `callback_every` outer steps and after the last: for a logger or a progress
            bar. If it returns True, the loop stops there. It changes no bit of the
            result. The loop runs in pieces of so many steps.
        callback_every: outer steps between two calls.
        state: `learned.state` of an earlier call that differs in `steps` and `callback`
            alone: make up to `steps` further steps from there. Pass
            `hyper=learned.hyper` with it.

    Returns:
        `Learned(hyper, value, history, converged, steps, state)`. A start that has
        diverged is returned as it is, with `converged` False.

    Raises:
        ValueError: for hyper that is not floating (or not positive where `log` is
            set), a negative `steps` or tolerance, something that is no optimizer or no
            engine (a class in place of an object), `Newton` on more than one scalar,
            or with a key, a hyperparameter that the objective does not depend on,
            `callback` under `jit` or `vmap`, or a `state`
            that this outer optimizer does not make of this hyper.

    Example:
        >>> import jax, jax.numpy as jnp, optax, metalr
        >>> loss = metalr.problems.least_squares(jnp.ones((1, 2)), jnp.array([3.0]))
        >>> L = metalr.Unrolled(loss, optax.sgd, jnp.zeros(2), steps=1)
        >>> learned = metalr.learn(
        ...     L, 0.01, outer_optimizer=metalr.Newton(), steps=50, log=True
        ... )
        >>> print(f"{learned.hyper:.5f}")
        0.25000

        A fresh start in each outer step:

        >>> def make(key):
        ...     start = jax.random.normal(key, (2,))
        ...     return metalr.Unrolled(loss, optax.sgd, start, steps=1)
        >>> learned = metalr.learn(
        ...     make, 0.01, key=0, outer_optimizer=optax.adam(0.01), steps=200
        ... )
        >>> print(bool(abs(learned.hyper - 0.25) < 0.01))
        True

    References:
        Maclaurin, Duvenaud, Adams (2015), Gradient-based hyperparameter optimization
        through reversible learning. Andrychowicz et al. (2016), Learning to learn by
        gradient descent by gradient descent (a fresh problem in each outer step).
        Bertsekas (1976), On the Goldstein-Levitin-Polyak gradient projection method.
    """
    steps, callback_every = arguments.counts(steps, callback_every)
    arguments.tolerances(rtol=rtol, atol=atol)
    arguments.functions(objective, engine, project, callback)
    arguments.choices(history, keep)
    hyper, logs = arguments.start(hyper, log, project)
    arguments.optimizer(outer_optimizer, hyper, drawn=key is not None)
    if key is not None:
        key = random_key(key)
        arguments.maker(objective)
    problem = Problem(
        as_pytree(objective), as_pytree(engine), key, project and as_pytree(project)
    )
    method = Method(outer_optimizer, logs, history, keep)
    begin = functools.partial(_loop.begin, method=method)
    start = begin(problem, hyper) if state is None else state
    if state is not None:
        arguments.same_form(state, jax.eval_shape(begin, problem, hyper))
    loop = functools.partial(_loop.loop, method=method)
    if callback is None or steps == 0:
        return loop(problem, hyper, start, Limits(rtol, atol, steps), steps=steps)
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((problem, start))):
        msg = "callback needs concrete values: call learn outside of jit and vmap"
        raise ValueError(msg)
    learned: Any = None
    made, begun = 0, int(start.step)
    while made < steps:
        asked = min(callback_every - (begun + made) % callback_every, steps - made)
        limits = Limits(rtol, atol, asked)
        chunk = loop(problem, hyper, start, limits, steps=callback_every)
        learned = joined(learned, chunk)
        hyper, start, made = learned.hyper, learned.state, int(learned.steps)
        if callback(learned) is True or int(chunk.steps) < asked:
            break
    return padded(learned, steps)


def joined(before: Learned | None, chunk: Learned) -> Learned:
    """One loop out of two; its history has no row that was not made."""
    made = int(chunk.steps)
    rows = jax.tree.map(lambda rows: rows[: made + 1], chunk.history)
    if before is None:
        return chunk._replace(history=rows)
    rows = jax.tree.map(
        lambda old, new: jnp.concatenate([old, new[1:]]), before.history, rows
    )
    return chunk._replace(history=rows, steps=before.steps + chunk.steps)


def padded(learned: Learned, steps: int) -> Learned:
    """The same with rows of nan, up to those of a loop of `steps` steps."""

    def pad(rows: jax.Array) -> jax.Array:
        missing = (steps + 1 - rows.shape[0], *rows.shape[1:])
        return jnp.concatenate([rows, jnp.full(missing, jnp.nan, rows.dtype)])

    return learned._replace(history=jax.tree.map(pad, learned.history))
