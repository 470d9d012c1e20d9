"""The minimum of the inner loss where a run ended: derivatives, and how it moves."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from .._types import Hyper, Params
from ..runs.gradient import combined, trained
from ..runs.run import whole
from ..runs.unrolled import State, Unrolled


class End(NamedTuple):
    """Where the run ended: the float parameters, and the state around them."""

    params: Params
    state: State

    def at(self, params: Params) -> State:
        """That state with other parameters."""
        return self.state._replace(params=combined(params, self.state.params))


def minimizer_of(objective: Unrolled, hyper: Hyper, solve: Any) -> End:
    r"""$w_T$, which moves with hyper by the implicit function theorem.

    `solve(hessian, target)` is the solution q of H q = target.
    """
    state = jax.lax.stop_gradient(whole(objective, hyper, records=False).state)

    @jax.custom_jvp
    def minimizer(objective: Unrolled, hyper: Hyper) -> Params:
        return trained(whole(objective, hyper, records=False).state.params)

    @minimizer.defjvp
    def move(primals: tuple, tangents: tuple) -> tuple[Params, Params]:
        objective, hyper = primals
        params = minimizer(objective, hyper)
        end = End(params, state)
        _, hessian, _ = linearized(objective, hyper, end)
        _, change = jax.jvp(
            lambda o, h: gradient_at(o, h, end.params, end), primals, tangents
        )
        return params, jax.tree.map(jnp.negative, solve(hessian, change))

    return End(minimizer(objective, hyper), state)


def linearized(objective: Unrolled, hyper: Hyper, end: End) -> tuple:
    """The inner gradient, and its products: v ↦ Hv and v ↦ ∂²ℓ/∂η∂w v."""
    gradient = gradient_at(objective, hyper, end.params, end)

    def hessian(v: Params) -> Params:
        along = lambda w: gradient_at(objective, hyper, w, end)
        return jax.jvp(along, (end.params,), (v,))[1]

    def mixed(v: Params) -> Hyper:
        def along(hyper: Hyper) -> Any:
            return optax.tree.vdot(gradient_at(objective, hyper, end.params, end), v)

        return jax.grad(along)(hyper)

    return gradient, hessian, mixed


def gradient_at(objective: Unrolled, hyper: Hyper, params: Params, end: End) -> Params:
    """The gradient of the inner loss, or of its mean over the batches of the run."""

    def gradient(index: int | Array) -> Params:
        return objective.field(hyper, end.at(params), index)[1]

    if objective.batches is None or objective.steps == 0:
        return gradient(0)

    @jax.checkpoint
    def add(total: Params, index: Array) -> tuple[Params, None]:
        return optax.tree.add(total, gradient(index)), None

    zeros = jax.tree.map(jnp.zeros_like, params)
    total, _ = jax.lax.scan(add, zeros, jnp.arange(objective.steps))
    return optax.tree.scale(1.0 / objective.steps, total)


def shapes_at_end(objective: Unrolled, hyper: Hyper) -> State:
    """Zeros in the place of the run's last state."""
    start = jax.eval_shape(lambda h: objective.init(objective.prepare(h)), hyper)
    return jax.tree.map(lambda x: jnp.empty(x.shape, x.dtype), start)
