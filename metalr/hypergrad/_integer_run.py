r"""A run of SGD with momentum in integers: a step, its inverse, and its adjoint.

W and V are multiples of $2^{-b}$. One function does the step in both directions,

    forwards:   W ← W − ⌊η_{s−1} V⌉;  g = ⌊∇ℓ(W)⌉;  V ← γ_s V + g
    backwards:  W ← W + ⌊η_s V⌉;      g = ⌊∇ℓ(W)⌉;  V ← (V − g)/γ_s

so that the gradient is the same machine code, hence the same number, in both. (Forwards
a step moves the weights by the trace of the step before; V = 0 at first, and the last
move is made by `turn`.) The gradient's linearization is at hand where the adjoint
needs it: nothing is computed twice in a step.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from .._types import Hyper, Params, Scalar
from ..runs.unrolled import State, Unrolled
from ._exact import Buffer, in_place_if, in_range, multiply, quantize
from ._fractions import Schedule, Words, schedule
from ._heavy_ball import HeavyBall


class Integers(NamedTuple):
    """The state of the run; lists of leaves."""

    params: list[Array]
    trace: list[Array]
    buffers: list[Buffer]


class Adjoint(NamedTuple):
    """Derivatives of the value with respect to the state, and hyper."""

    params: Params
    trace: Params
    hyper: Hyper
    value: Scalar  # of the steps from here on


class IntegerRun(NamedTuple):
    """One run in integers: its parts, with hyper prepared."""

    objective: Unrolled
    hyper: Hyper
    words: Words
    ball: HeavyBall

    def schedule(self, slots: int) -> Schedule:
        """The plan of all steps, from their momenta."""
        momenta = jax.lax.map(
            lambda s: self.ball.coefficients(self.hyper, s).momenta,
            jnp.arange(self.objective.steps),
        )
        return schedule(momenta, self.words, slots)

    def start(self, params: Params, slots: int) -> Integers:
        """The quantized start, at rest, with empty buffers."""
        integers = self.quantized(params, "params")
        zeros = [jnp.zeros_like(leaf) for leaf in integers]
        buffers = [
            Buffer(
                jnp.zeros(z.shape, self.words.real),
                jnp.zeros((slots, *z.shape), self.words.stack),
            )
            for z in zeros
        ]
        return Integers(integers, zeros, buffers)

    def step(
        self,
        plan: Schedule,
        state: Integers,
        adjoint: Adjoint,
        index: Array,
        forward: Array,
    ) -> tuple[Integers, Adjoint]:
        """Step `index`, or its inverse and its adjoint."""
        ahead, back = (flag.astype(self.words.integer) for flag in (forward, ~forward))
        W = self.moved(state, jnp.maximum(index - ahead, 0), forward)
        params = self.floats(W, "params")
        loss, grads, through = self.objective.field(
            self.hyper, State(params, None), index
        )
        pushes = self.quantized(grads, "trace")
        V, buffers = [], []
        for leaf, push in enumerate(pushes):
            before = state.trace[leaf] - back * push
            fine = in_range(before, self.words) & in_range(W[leaf], self.words)
            buffer = state.buffers[leaf]
            scaled, buffer = multiply(
                before,
                buffer._replace(word=jnp.where(fine, buffer.word, jnp.nan)),
                plan.at(index, leaf),
                self.words,
                forward,
            )
            V.append(scaled + ahead * push)
            buffers.append(buffer)

        def narrow(value_bar: Scalar, direction: Params) -> Any:
            same = lambda d, g: d.astype(g.dtype)  # of narrow params: float32 before
            return through(value_bar, jax.tree.map(same, direction, grads))

        def pull(adjoint: Adjoint) -> Adjoint:
            return self.pull(adjoint, params, V, pushes, loss, index, narrow)

        adjoint = in_place_if(~forward, pull, adjoint)
        return Integers(W, V, buffers), adjoint

    def moved(self, state: Integers, index: Array, forward: Array) -> list[Array]:
        """The weights after (else before) the move by the trace, at rate `index`."""
        bits = self.words.params_bits - self.words.trace_bits
        sign = jnp.where(forward, -1.0, 1.0).astype(self.words.real)
        rates = self.ball.coefficients(self.hyper, index).rates
        return [
            w + quantize(v.astype(self.words.real) * (sign * rate), bits, self.words)
            for w, v, rate in zip(state.params, state.trace, rates, strict=True)
        ]

    def pull(
        self,
        adjoint: Adjoint,
        params: Params,
        V: list[Array],
        pushes: list[Array],
        loss: Scalar,
        index: Array,
        through: Any,
    ) -> Adjoint:
        """The adjoint before step `index`, from the one after."""
        trace, grads = self.floats(V, "trace"), self.floats(pushes, "trace")

        bars = adjoint.params, adjoint.trace

        def update(hyper: Hyper, grads: Params, trace: Params) -> Any:
            moved = self.ball.update(hyper, grads, trace, params, index)
            return jax.tree.map(lambda new, bar: new.astype(bar.dtype), moved, bars)

        _, transpose = jax.vjp(update, self.hyper, grads, trace)
        by_update, direction, before = transpose(bars)
        before = jax.tree.map(lambda b, bar: b.astype(bar.dtype), before, bars[1])
        value, value_bar, outer = self.outer(params, index, loss)
        by_params, by_hyper = jax.tree.map(
            lambda total, *parts: sum((p.astype(total.dtype) for p in parts), total),
            (adjoint.params, adjoint.hyper),
            through(value_bar, direction),
            *outer,
        )
        by_hyper = jax.tree.map(jnp.add, by_hyper, by_update)
        return Adjoint(by_params, before, by_hyper, adjoint.value + value)

    def outer(
        self, params: Params, index: Array, loss: Scalar
    ) -> tuple[Scalar, Scalar, list]:
        """What the outer loss at the start of step `index` adds to the value.

        Also its cotangents: of the inner loss, where it is that, and of params and
        hyper otherwise.
        """
        none = jnp.zeros((), loss.dtype)
        if self.objective.outer_weights is None:
            return none, none, []
        weight = self.objective.outer_weights[index].astype(loss.dtype)
        if self.objective.outer_loss is None:
            return weight * loss, weight, []
        value, by = jax.value_and_grad(
            lambda w, h: weight * self.objective.outer(h, State(w, None)),
            argnums=(0, 1),
        )(params, self.hyper)
        return value, none, [by]

    def turn(self, state: Integers) -> tuple[Integers, Adjoint, Bool[Array, ""]]:
        """The end of the run: the last move made, the adjoint, whether it overflows."""
        objective, steps = self.objective, self.objective.steps
        state = state._replace(
            params=self.moved(state, jnp.asarray(steps - 1), jnp.array(True))
        )

        def value(params: Params, trace: Params, hyper: Hyper) -> Scalar:
            opt_state = self.ball.opt_state_at(trace, steps)
            total = None if objective.outer_weights is None else jnp.zeros(())
            return objective.evaluate(hyper, State(params, opt_state, None, total))

        end, by = jax.value_and_grad(value, argnums=(0, 1, 2))(
            self.floats(state.params, "params"),
            self.floats(state.trace, "trace"),
            self.hyper,
        )
        by_params, by_trace, by_hyper = by
        adjoint = Adjoint(by_params, by_trace, by_hyper, end)
        return state, adjoint, self.overflow(state)

    def to_hyper(self, adjoint: Adjoint, hyper: Hyper) -> Hyper:
        """The gradient in the dtypes of the user's hyper, through the start as well."""

        def start(hyper: Hyper) -> tuple[Hyper, Params]:
            prepared = self.objective.prepare(hyper)
            return prepared, self.objective.init(prepared).params

        _, transpose = jax.vjp(start, hyper)
        return transpose((adjoint.hyper, adjoint.params))[0]

    def is_start(self, state: Integers, params: Params) -> Bool[Array, ""]:
        """Whether the weights are those of the start, at rest, the buffers empty."""
        start = self.quantized(params, "params")
        same = [w == first for w, first in zip(state.params, start, strict=True)]
        same += [v == 0 for v in state.trace]
        same += [buffer.word == 0 for buffer in state.buffers]
        return jnp.all(jnp.stack([jnp.all(leaf) for leaf in same]))

    def overflow(self, state: Integers) -> Bool[Array, ""]:
        """Whether a number has left the range, at any step up to this one."""
        fine = [in_range(leaf, self.words) for leaf in (*state.params, *state.trace)]
        fine += [~jnp.isnan(buffer.word) for buffer in state.buffers]
        return ~jnp.all(jnp.stack([jnp.all(leaf) for leaf in fine]))

    def quantized(self, tree: Params, kind: str) -> list[Array]:
        """The integers that stand for a pytree like params, leaf by leaf."""
        bits = getattr(self.words, f"{kind}_bits")
        return [quantize(leaf, bits, self.words) for leaf in jax.tree.leaves(tree)]

    def floats(self, integers: list[Array], kind: str) -> Params:
        """The numbers that the integers stand for, as a pytree like params."""
        tree = jax.tree.structure(self.ball.template)
        scale = 2.0 ** -getattr(self.words, f"{kind}_bits")
        wide = [i.astype(self.words.real) * scale for i in integers]
        return jax.tree.unflatten(tree, wide)
