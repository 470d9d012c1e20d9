"""The ways in JAX, each written as its user would write it.

A way takes the case and returns a function of hyper that gives value and hypergradient;
the lines of these functions are the "lines of code" of the table. What they have in
common (the loss, the optimizer, whether there is a rate for each step) is in `Setting`.
"""

# The peers are in the extra `bench`, which the checks do without:
# pyright: reportMissingImports=false

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import metalr
from experiments._peers.work import Case, Work


class Setting(NamedTuple):
    """A case in JAX."""

    loss: Callable[[Any], jax.Array]
    params: Any
    make: Callable[[Any], optax.GradientTransformation]  # of a rate, or of a schedule
    steps: int
    per_step: bool


def setting(case: Case, work: Work, dtype: str = "float32") -> Setting:
    """The loss on the arrays of `work`, and optax's optimizer."""
    inputs, targets, params = jax.tree.map(
        lambda leaf: jnp.asarray(leaf, dtype), tuple(work)
    )

    def loss(params: Any) -> jax.Array:
        if case.problem == "regression":
            outputs = inputs @ params["w"]
        else:
            hidden = jnp.tanh(inputs @ params["w1"] + params["b1"])
            outputs = hidden @ params["w2"] + params["b2"]
        return jnp.mean((outputs - targets) ** 2)

    make = optax.sgd if case.optimizer == "sgd" else optax.adam
    return Setting(loss, params, make, case.steps, case.learned == "per_step")


def by_metalr(this: Setting, engine: metalr.hypergrad.Engine) -> Any:
    optimizer = metalr.per_step(this.make) if this.per_step else this.make
    objective = metalr.Unrolled(
        lambda params, _hyper, _batch: this.loss(params),
        optimizer,
        this.params,
        steps=this.steps,
    )
    return lambda hyper: metalr.hypergradient(objective, hyper, engine)


def forward(this: Setting) -> Any:
    return by_metalr(this, metalr.Forward())


def reverse(this: Setting) -> Any:
    return by_metalr(this, metalr.Reverse())


def reverse_sqrt(this: Setting) -> Any:
    many = max(1, round(2 * math.sqrt(this.steps)))
    return by_metalr(this, metalr.Reverse(checkpoints=many))


def reverse_log(this: Setting) -> Any:
    few = max(1, round(math.log2(this.steps)))
    return by_metalr(this, metalr.Reverse(checkpoints=few))


def mixed(this: Setting) -> Any:
    return by_metalr(this, metalr.Mixed())


def optax_scan(this: Setting) -> Any:
    def objective(hyper):
        rate = (lambda count: hyper[count]) if this.per_step else hyper
        optimizer = this.make(rate)

        def step(carry, _):
            params, state = carry
            grads = jax.grad(this.loss)(params)
            updates, state = optimizer.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        start = this.params, optimizer.init(this.params)
        (params, _), _ = jax.lax.scan(step, start, length=this.steps)
        return this.loss(params)

    return jax.value_and_grad(objective)


def optimistix_optax(this: Setting) -> Any:
    import optimistix

    adjoint = optimistix.RecursiveCheckpointAdjoint()
    return _optimistix(this, _optimistix_optax(this), adjoint=adjoint)


def optimistix_default(this: Setting) -> Any:
    return _optimistix(this, _optimistix_optax(this))


def optimistix_descent(this: Setting) -> Any:
    import optimistix

    descent = lambda rate: optimistix.GradientDescent(rate, rtol=0.0, atol=0.0)
    adjoint = optimistix.RecursiveCheckpointAdjoint()
    return _optimistix(this, descent, adjoint=adjoint)


def _optimistix_optax(this: Setting) -> Any:
    import optimistix

    def solver(hyper):
        rate = (lambda count: hyper[count]) if this.per_step else hyper
        return optimistix.OptaxMinimiser(this.make(rate), rtol=0.0, atol=0.0)

    return solver


def _optimistix(this: Setting, solver: Any, **options: Any) -> Any:
    import optimistix

    def objective(hyper):
        solution = optimistix.minimise(
            lambda params, _: this.loss(params),
            solver(hyper),
            this.params,
            max_steps=this.steps,
            throw=False,
            **options,
        )
        return this.loss(solution.value)

    return jax.value_and_grad(objective)


def jaxopt_unrolled(this: Setting) -> Any:
    import jaxopt

    def objective(hyper):
        rate = (lambda count: hyper[count]) if this.per_step else hyper
        solver = jaxopt.OptaxSolver(
            this.loss, this.make(rate), maxiter=this.steps, tol=0.0, unroll=True
        )
        return this.loss(solver.run(this.params).params)

    return jax.value_and_grad(objective)


def jaxopt_default(this: Setting) -> Any:
    import jaxopt

    def objective(hyper):
        rate = (lambda count: hyper[count]) if this.per_step else lambda _: hyper
        solver = jaxopt.GradientDescent(
            this.loss, stepsize=rate, maxiter=this.steps, tol=0.0, acceleration=False
        )
        return this.loss(solver.run(this.params).params)

    return jax.value_and_grad(objective)


def jaxopt_implicit(this: Setting) -> Any:
    import jaxopt

    def objective(hyper):
        rate = (lambda count: hyper[count]) if this.per_step else hyper
        solver = jaxopt.OptaxSolver(
            this.loss, this.make(rate), maxiter=this.steps, tol=0.0, implicit_diff=True
        )
        return this.loss(solver.run(this.params).params)

    return jax.value_and_grad(objective)
