"""Six ways to learn a start, each as an objective of metalr and an engine for it.

What is learned is the first argument: the start θ itself (Meta-SGD: θ and a rate for
every parameter). A method says how a run on one task depends on it, and how the run is
differentiated; `metalr.learn` does the rest.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial

import metalr
from experiments._maml.sinusoids import Family, Params, Points, Sinusoid, error
from metalr.tasks import Mean


class Inner(NamedTuple):
    """The numbers of the inner loop."""

    rate: float = 0.01
    proximal: float = 20.0  # of iMAML: λ/2 ‖w − θ‖² beside the loss, H + λI ≻ 0
    proximal_rate: float = 0.002  # of iMAML, which goes to a minimum
    iterations: int = 10  # of conjugate gradients, in iMAML


class Method(NamedTuple):
    """How a task is learned from what was learned of all of them."""

    objective: Callable[[Sinusoid, int, Inner], metalr.Unrolled]
    start: Callable[[Params, Inner], Any] = lambda params, _: params
    engine: Callable[[Inner], Any] = lambda _: metalr.Reverse()


def maml(task: Sinusoid, steps: int, inner: Inner) -> metalr.Unrolled:
    """Finn et al. 2017: the error after gradient steps from θ."""
    return _run(task, steps, partial(_sgd, inner.rate))


def first_order(task: Sinusoid, steps: int, inner: Inner) -> metalr.Unrolled:
    """Finn et al. 2017, section 5.2: w_T = θ + d, with the way d held fixed."""
    outer_loss = Partial(_moved_along, task.query)
    return _run(task, steps, partial(_sgd, inner.rate), outer_loss=outer_loss)


def meta_sgd(task: Sinusoid, steps: int, inner: Inner) -> metalr.Unrolled:
    """Li et al. 2017: a rate for every parameter is learned with θ."""
    del inner
    return _run(task, steps, _own_rates, start=_its_start)


def anil(task: Sinusoid, steps: int, inner: Inner) -> metalr.Unrolled:
    """Raghu et al. 2020: only the last layer moves."""
    return _run(task, steps, partial(_head_sgd, inner.rate))


def reptile(task: Sinusoid, steps: int, inner: Inner) -> metalr.Unrolled:
    """Nichol et al. 2018: θ moves towards w_T; ½‖θ − w_T‖² with w_T held fixed."""
    points = Points(*(jnp.concatenate(both) for both in zip(*task, strict=True)))
    both = Sinusoid(points, points)
    return _run(both, steps, partial(_sgd, inner.rate), outer_loss=_towards)


def imaml(task: Sinusoid, steps: int, inner: Inner) -> metalr.Unrolled:
    """Rajeswaran et al. 2019: the error at the minimum of loss + λ/2 ‖w − θ‖²."""
    loss = Partial(_proximal_loss, task.support, inner.proximal)
    return _run(task, steps, partial(_sgd, inner.proximal_rate), loss=loss)


METHODS: dict[str, Method] = {
    "maml": Method(maml),
    "first_order": Method(first_order),
    "meta_sgd": Method(
        meta_sgd,
        start=lambda params, inner: {
            "start": params,
            "rates": jax.tree.map(lambda p: jnp.full_like(p, inner.rate), params),
        },
    ),
    "anil": Method(anil),
    "reptile": Method(reptile),
    "imaml": Method(
        imaml, engine=lambda inner: metalr.Implicit(iterations=inner.iterations)
    ),
}


def mean(
    method: Method, family: Family, steps: int, inner: Inner, tasks: int, key: jax.Array
) -> Mean:
    """The mean of the method's objective over tasks drawn from the key."""
    make = lambda key: method.objective(family.draw(key), steps, inner)
    return Mean.of(make, jax.random.split(key, tasks))


def _run(
    task: Sinusoid,
    steps: int,
    optimizer: Callable[[Any], optax.GradientTransformation],
    *,
    start: Callable[[Any], Params] = lambda theta: theta,
    loss: Any = None,
    outer_loss: Any = None,
) -> metalr.Unrolled:
    return metalr.Unrolled(
        loss or Partial(_loss, task.support),
        optimizer,
        start,
        steps=steps,
        outer_loss=outer_loss or Partial(_outer_loss, task.query),
    )


def _loss(points: Points, params: Params, theta: Any, batch: None) -> jax.Array:
    del theta, batch
    return error(params, points)


def _proximal_loss(
    points: Points, strength: float, params: Params, theta: Params, batch: None
) -> jax.Array:
    del batch
    away = optax.tree.norm(optax.tree.sub(params, theta), squared=True)
    return error(params, points) + 0.5 * strength * away


def _outer_loss(points: Points, params: Params, theta: Any) -> jax.Array:
    del theta
    return error(params, points)


def _moved_along(points: Points, params: Params, theta: Params) -> jax.Array:
    way = jax.lax.stop_gradient(optax.tree.sub(params, theta))
    return error(optax.tree.add(theta, way), points)


def _towards(params: Params, theta: Params) -> jax.Array:
    away = optax.tree.sub(theta, jax.lax.stop_gradient(params))
    return 0.5 * optax.tree.norm(away, squared=True)


def _its_start(theta: Any) -> Params:
    return theta["start"]


def _sgd(rate: float, theta: Any) -> optax.GradientTransformation:
    del theta
    return optax.sgd(rate)


def _own_rates(theta: Any) -> optax.GradientTransformation:
    step = lambda rate, grad: -rate * grad
    return optax.stateless(lambda grads, _: jax.tree.map(step, theta["rates"], grads))


def _head_sgd(rate: float, theta: Any) -> optax.GradientTransformation:
    kinds: dict[Any, Any] = {"moved": _sgd(rate, theta), "fixed": optax.set_to_zero()}
    return optax.partition(kinds, {"body": "fixed", "head": "moved"})
