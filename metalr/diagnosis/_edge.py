r"""Where an optimizer becomes unstable, read off its linearized update.

With at most one momentum buffer m, and every weight updated by itself, a step along an
eigenvector of the Hessian of eigenvalue λ is

$$\binom{w}{m} \leftarrow
  \begin{pmatrix}1 + p - a\lambda & -b\\ c\lambda + q & \gamma\end{pmatrix}
  \binom{w}{m}$$

whose eigenvalue −1 appears at $\lambda = 2/M$, with the equivalent rate of gradient
descent $M = 2\,\frac{a(1+\gamma) - bc}{(2+p)(1+\gamma) + bq}$: η for gradient descent,
η/(1 + β) with momentum β, η(1 + 2β)/(1 + β) for Nesterov's,
$\frac{1-\beta_1}{1+\beta_1}\,\eta P^{-1}$ for Adam with its preconditioner P held fixed
(so that the edge of $P^{-1}H$ is 38/η at β₁ = 0.9; Cohen et al. 2022).
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float

from .._types import Hyper, Params
from ..runs.unrolled import State, Unrolled

Kind: TypeAlias = Literal["plain", "trace", "average", "unknown"]
_RTOL = 1e-4
"""Agreement asked of two derivatives that are to be one; above float32's rounding."""


class Buffer(NamedTuple):
    """The momentum buffer of an optimizer's state."""

    kind: Kind
    get: Callable[[Any], Params]  # of opt_state
    put: Callable[[Any, Params], Any]


class At(NamedTuple):
    """A step that is about to be made."""

    state: State
    value: Any
    grads: Params
    index: Any


class Equivalent(NamedTuple):
    """Rates of gradient descent with the same edge of stability."""

    rates: Float[Array, " n"]
    known: Bool[Array, ""]


def buffer_of(objective: Unrolled, hyper: Hyper) -> Buffer:
    """What the state of the optimizer remembers of the gradients; `hyper` prepared."""
    opt_state = jax.eval_shape(lambda h: objective.init(h).opt_state, hyper)
    parts, structure = jax.tree.flatten(opt_state, is_leaf=_remembers)
    places = [i for i, part in enumerate(parts) if _remembers(part)]
    others = [part for i, part in enumerate(parts) if i not in places]
    smooth = any(jnp.issubdtype(x.dtype, jnp.inexact) for x in others)
    if smooth or len(places) > 1:
        return Buffer("unknown", lambda _: (), lambda state, _: state)
    if not places:
        return Buffer("plain", lambda _: (), lambda state, _: state)
    (place,) = places
    average = isinstance(parts[place], optax.ScaleByAdamState)
    name = "mu" if average else "trace"

    def get(state: Any) -> Params:
        return getattr(jax.tree.leaves(state, is_leaf=_remembers)[place], name)

    def put(state: Any, memory: Params) -> Any:
        leaves = jax.tree.leaves(state, is_leaf=_remembers)
        leaves[place] = leaves[place]._replace(**{name: memory})
        return jax.tree.unflatten(structure, leaves)

    return Buffer("average" if average else "trace", get, put)


def is_plain_average(objective: Unrolled, hyper: Hyper, buffer: Buffer) -> Array:
    """Whether an update follows the average alone, as Adam's and not NAdam's.

    Seen at a gradient of 0, where the preconditioner does not move: the derivatives of
    the update in gradient and average are as (1 − β) to β.
    """
    state = objective.init(hyper)
    raised = jax.tree.map(lambda x: x + jnp.ones_like(x), state.opt_state)
    memory = buffer.get(state.opt_state)
    opt_state = buffer.put(raised, jax.tree.map(jnp.zeros_like, memory))
    zeros = jax.tree.map(jnp.zeros_like, state.params)
    state = State(state.params, opt_state)
    d = _Derivatives(objective, hyper, buffer, At(state, jnp.zeros(()), zeros, 0))
    ones = jnp.ones_like(d.flat)
    a, _ = d.along(gradient=ones)
    b, gamma = d.along(memory=ones)
    return _close(a * gamma, b * (1.0 - gamma))


def equivalent_rates(
    objective: Unrolled,
    hyper: Hyper,
    buffer: Buffer,
    at: At,
) -> Equivalent:
    """M of every weight at one step; not known where the update isn't of the form."""
    d = _Derivatives(objective, hyper, buffer, at)
    ones = jnp.ones_like(d.flat)
    probe = 1.0 + 0.5 * jnp.cos(jnp.arange(ones.size, dtype=ones.dtype))
    a, c = d.along(gradient=ones)
    b, gamma = d.along(memory=ones)
    kept, q = d.along(params=ones)
    p = -kept - 1.0
    if buffer.kind == "average":
        # a also moves the preconditioner: hold it, as the derivative in m does.
        diagonal = _close(d.along(memory=probe)[0], b * probe)
        diagonal &= _close(c, 1.0 - gamma)
        a = b * (1.0 - gamma) / gamma
    else:
        diagonal = _close(d.along(gradient=probe)[0], a * probe)
    numerator = a * (1.0 + gamma) - b * c
    denominator = (2.0 + p) * (1.0 + gamma) + b * q
    rates = 2.0 * numerator / denominator
    uniform = _close(p, p[0]) & _close(b * q, (b * q)[0])
    sound = jnp.all(jnp.isfinite(rates) & (rates >= 0.0)) & jnp.any(rates > 0.0)
    return Equivalent(rates, diagonal & uniform & sound)


class _Derivatives:
    """The linearized update, applied to flat vectors; −1 times that of the weights."""

    def __init__(
        self,
        objective: Unrolled,
        hyper: Hyper,
        buffer: Buffer,
        at: At,
    ) -> None:
        state, value, grads, index = at
        self.flat, self.unravel = ravel_pytree(state.params)
        memory = buffer.get(state.opt_state)
        self.empty = not jax.tree.leaves(memory)

        def update(params: Params, memory: Params, grads: Params) -> Any:
            opt_state = buffer.put(state.opt_state, memory)
            before = State(params, opt_state)
            new = objective.update(hyper, before, value, grads, index)
            return new.params, buffer.get(new.opt_state)

        _, self.linear = jax.linearize(update, state.params, memory, grads)

    def along(
        self,
        params: Array | None = None,
        memory: Array | None = None,
        gradient: Array | None = None,
    ) -> tuple[Array, Array]:
        tangents = [
            self.unravel(jnp.zeros_like(self.flat) if x is None else x)
            for x in (params, memory, gradient)
        ]
        if self.empty:
            tangents[1] = ()
        moved, remembered = self.linear(*tangents)
        kept = jnp.zeros_like(self.flat) if self.empty else ravel_pytree(remembered)[0]
        return -ravel_pytree(moved)[0], kept


def _close(x: Array, y: Array) -> Array:
    scale = jnp.max(jnp.abs(x)) + jnp.max(jnp.abs(y))
    return jnp.all(jnp.abs(x - y) <= _RTOL * scale)


def _remembers(part: Any) -> bool:
    return isinstance(part, optax.TraceState | optax.ScaleByAdamState)
