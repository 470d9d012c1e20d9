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

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from .._types import Hyper, PyTree
from ..runs.gradient import trained
from ..runs.run import is_float
from ..runs.unrolled import State, Unrolled
from ._flat import Flat, flat

Kind: TypeAlias = Literal["plain", "trace", "average", "unknown"]
_RTOL = 1e-4
"""Agreement asked of two derivatives that are to be one; above float32's rounding."""


class Buffer(NamedTuple):
    """The momentum buffer of an optimizer's state, an entry for each weight."""

    kind: Kind
    get: Callable[[Any], PyTree]  # of opt_state
    put: Callable[[Any, PyTree], Any]


class At(NamedTuple):
    """A step that is about to be made."""

    state: State
    value: Any
    grads: PyTree
    step: Any


class Equivalent(NamedTuple):
    """Rates of gradient descent with the same edge of stability."""

    rates: Float[Array, " n"]
    known: Bool[Array, ""]


def buffer_of(objective: Unrolled, hyper: Hyper) -> Buffer:
    """What the state of the optimizer remembers of the gradients; `hyper` prepared.

    Unknown where there is more than one buffer, or one that is not of all weights
    (`optax.masked`, `optax.multi_transform`).
    """
    state = jax.eval_shape(objective.init, hyper)
    parts, structure = jax.tree.flatten(state.opt_state, is_leaf=_remembers)
    places = [i for i, part in enumerate(parts) if _remembers(part)]
    others = [part for i, part in enumerate(parts) if i not in places]
    unknown = Buffer("unknown", lambda _: (), lambda state, _: state)
    if any(is_float(x) for x in others) or len(places) > 1:
        return unknown
    if not places:
        return Buffer("plain", lambda _: (), lambda state, _: state)
    (place,) = places
    average = isinstance(parts[place], optax.ScaleByAdamState)
    name = "mu" if average else "trace"
    if _count(getattr(parts[place], name)) != _count(state.params):
        return unknown

    def get(state: Any) -> PyTree:
        return getattr(jax.tree.leaves(state, is_leaf=_remembers)[place], name)

    def put(state: Any, memory: PyTree) -> Any:
        leaves = jax.tree.leaves(state, is_leaf=_remembers)
        leaves[place] = leaves[place]._replace(**{name: memory})
        return jax.tree.unflatten(structure, leaves)

    return Buffer("average" if average else "trace", get, put)


def weights_of(objective: Unrolled, hyper: Hyper, state: State) -> PyTree:
    """What is trained, in its own dtypes; None for ints and keys among the params."""
    return trained(objective.public(hyper, state).params)


def is_plain_average(objective: Unrolled, hyper: Hyper, buffer: Buffer) -> Array:
    """Whether an update follows the average alone, as Adam's and not NAdam's.

    Seen at a gradient of 0, where the preconditioner does not move: the derivatives of
    the update in gradient and average are as (1 − β) to β.
    """
    state = objective.init(hyper)
    raise_ = lambda x: x + jnp.ones_like(x)
    raised = jax.tree.map(raise_, state.opt_state)
    memory = buffer.get(state.opt_state)
    opt_state = buffer.put(raised, jax.tree.map(jnp.zeros_like, memory))
    zeros = jax.tree.map(jnp.zeros_like, weights_of(objective, hyper, state))
    state = state._replace(opt_state=opt_state)
    d = _Derivatives(objective, hyper, buffer, At(state, jnp.zeros(()), zeros, 0))
    ones = jnp.ones_like(d.weights.vector)
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
    ones = jnp.ones_like(d.weights.vector)
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
        self.weights, gradient = flat(state.params), flat(grads)
        memory = buffer.get(state.opt_state)
        self.empty = not jax.tree.leaves(memory)
        remembered = Flat(self.weights.vector[:0], lambda _: ())
        remembered = remembered if self.empty else flat(memory)
        self.dtypes = [x.vector.dtype for x in (self.weights, remembered, gradient)]

        def update(weights: Array, memory: Array, grads: Array) -> tuple[Array, Array]:
            opt_state = buffer.put(state.opt_state, remembered.put(memory))
            before = state._replace(
                params=self.weights.put(weights), opt_state=opt_state
            )
            new = objective.update(hyper, before, value, gradient.put(grads), index)
            kept = weights[:0] if self.empty else flat(buffer.get(new.opt_state)).vector
            return flat(new.params).vector, kept

        _, self.linear = jax.linearize(
            update, self.weights.vector, remembered.vector, gradient.vector
        )

    def along(
        self,
        params: Array | None = None,
        memory: Array | None = None,
        gradient: Array | None = None,
    ) -> tuple[Array, Array]:
        """What the update moves by, and what is remembered."""
        zeros = jnp.zeros_like(self.weights.vector)
        given = [zeros if x is None else x for x in (params, memory, gradient)]
        tangents = [x.astype(d) for x, d in zip(given, self.dtypes, strict=True)]
        if self.empty:
            tangents[1] = tangents[1][:0]
        moved, remembered = self.linear(*tangents)
        kept = zeros if self.empty else remembered.astype(zeros.dtype)
        return -moved, kept


def _close(x: Array, y: Array) -> Array:
    scale = jnp.max(jnp.abs(x)) + jnp.max(jnp.abs(y))
    return jnp.all(jnp.abs(x - y) <= _RTOL * scale)


def _count(tree: PyTree) -> int:
    """Floats in a tree of shapes."""
    return sum(math.prod(x.shape) for x in jax.tree.leaves(tree) if is_float(x))


def _remembers(part: Any) -> bool:
    return isinstance(part, optax.TraceState | optax.ScaleByAdamState)
