"""The same six meta-gradients in plain JAX: what metalr's are held against."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax

from experiments._maml.methods import Inner
from experiments._maml.sinusoids import Family, Params, Points, Sinusoid, error

Gradient: TypeAlias = Callable[[Any, Sinusoid, int, Inner], tuple[jax.Array, Any]]
"""Of one task: (θ, task, steps, inner) -> error on the query points, its gradient."""


def descended(params: Params, points: Points, steps: int, rate: Any) -> Params:
    """Gradient steps; `rate` is one number or a tree of them."""
    rates = rate if isinstance(rate, dict) else jax.tree.map(lambda _: rate, params)
    for _ in range(steps):
        grads = jax.grad(error)(params, points)
        params = jax.tree.map(lambda p, r, g: p - r * g, params, rates, grads)
    return params


def maml(theta: Params, task: Sinusoid, steps: int, inner: Inner) -> Any:
    """Through the steps."""
    after = lambda t: error(descended(t, task.support, steps, inner.rate), task.query)
    return jax.value_and_grad(after)(theta)


def first_order(theta: Params, task: Sinusoid, steps: int, inner: Inner) -> Any:
    """The gradient where the steps end."""
    end = descended(theta, task.support, steps, inner.rate)
    return jax.value_and_grad(error)(end, task.query)


def meta_sgd(theta: Any, task: Sinusoid, steps: int, inner: Inner) -> Any:
    """Through the steps, for start and rates."""
    del inner

    def after(theta: Any) -> jax.Array:
        end = descended(theta["start"], task.support, steps, theta["rates"])
        return error(end, task.query)

    return jax.value_and_grad(after)(theta)


def anil(theta: Params, task: Sinusoid, steps: int, inner: Inner) -> Any:
    """Through steps of the last layer."""

    def after(theta: Params) -> jax.Array:
        head = theta["head"]
        for _ in range(steps):
            loss = lambda head: error({**theta, "head": head}, task.support)
            grads = jax.grad(loss)(head)
            head = jax.tree.map(lambda p, g: p - inner.rate * g, head, grads)
        return error({**theta, "head": head}, task.query)

    return jax.value_and_grad(after)(theta)


def reptile(theta: Params, task: Sinusoid, steps: int, inner: Inner) -> Any:
    """θ − w_T, of all points; and half its square."""
    points = Points(*(jnp.concatenate(both) for both in zip(*task, strict=True)))
    end = descended(theta, points, steps, inner.rate)
    field = optax.tree.sub(theta, end)
    return 0.5 * optax.tree.norm(field, squared=True), field


def imaml(theta: Params, task: Sinusoid, steps: int, inner: Inner) -> Any:
    """λ q with (∇²loss + λI) q = ∇error(w), by conjugate gradients."""

    def loss(params: Params) -> jax.Array:
        away = optax.tree.norm(optax.tree.sub(params, theta), squared=True)
        return error(params, task.support) + 0.5 * inner.proximal * away

    end = theta
    for _ in range(steps):
        step = lambda p, g: p - inner.proximal_rate * g
        end = jax.tree.map(step, end, jax.grad(loss)(end))
    value, right = jax.value_and_grad(error)(end, task.query)
    times = lambda q: jax.jvp(jax.grad(loss), (end,), (q,))[1]
    solved, _ = jax.scipy.sparse.linalg.cg(
        times, right, maxiter=inner.iterations, tol=1e-6
    )
    return value, jax.tree.map(lambda q: inner.proximal * q, solved)


GRADIENTS: dict[str, Gradient] = {
    "maml": maml,
    "first_order": first_order,
    "meta_sgd": meta_sgd,
    "anil": anil,
    "reptile": reptile,
    "imaml": imaml,
}


def learn(
    gradient: Gradient,
    theta: Any,
    key: jax.Array,
    *,
    family: Family,
    tasks: int,
    inner_steps: int,
    inner: Inner,
    steps: int,
    rate: float,
) -> Any:
    """Meta-Adam on the mean over fresh tasks: step i draws them from `fold_in(key, i)`.

    Returns:
        θ after `steps` steps.
    """
    adam = optax.adam(rate)

    def step(carry: Any, index: jax.Array) -> tuple[Any, jax.Array]:
        theta, state = carry
        keys = jax.random.split(jax.random.fold_in(key, index), tasks)
        drawn = jax.vmap(family.draw)(keys)
        of_task = lambda task: gradient(theta, task, inner_steps, inner)
        value, grads = jax.tree.map(lambda x: x.mean(0), jax.vmap(of_task)(drawn))
        updates, state = adam.update(grads, state, theta)
        return (optax.apply_updates(theta, updates), state), value

    start = (theta, adam.init(theta))
    return jax.lax.scan(step, start, jnp.arange(steps))[0][0]
