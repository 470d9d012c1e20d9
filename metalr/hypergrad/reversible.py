"""SGD with momentum run backwards, bit for bit: no state is stored."""

import dataclasses
import functools
import math
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Bool, Float

from .._checks import int_at_least, one_dtype
from .._types import Hyper, Objective, Params, Scalar
from ..runs.unrolled import State, Unrolled
from ._engine import Options, unrolled_of
from ._exact import (
    WORDS,
    Buffer,
    Schedule,
    Words,
    in_range,
    multiply,
    quantize,
    schedule,
    slots_needed,
)
from ._heavy_ball import HeavyBall, recognize
from .facts import REVERSED, count


class ReversibleHyperGradient(NamedTuple):
    """Value and gradient of an exactly reversed run, and how the reversal went."""

    value: Scalar
    grad: Hyper
    bits: Float[Array, "*batch"]  # memory of the reversal, bits per step and weight
    exact: Bool[Array, "*batch"]  # the start was met bit for bit, the buffers are empty
    overflow: Bool[Array, "*batch"]
    """A number left the range of the integers (a diverged run, or too many fractional
    bits): value and gradient are nan."""
    fits: Bool[Array, "*batch"]  # the buffers were long enough for the momentum


@dataclasses.dataclass(frozen=True, repr=False)
class Reversible(Options):
    r"""SGD with momentum in fixed-point arithmetic, reversed exactly.

    $$V \leftarrow \gamma_s V + \lfloor g(W)\rceil,\quad
      W \leftarrow W - \lfloor\eta_s V\rceil \qquad\text{backwards:}\qquad
      W \leftarrow W + \lfloor\eta_s V\rceil,\quad
      V \leftarrow (V - \lfloor g(W)\rceil)/\gamma_s$$

    with W and V integers (multiples of $2^{-b}$), so that nothing is lost but the low
    digits of $\gamma V$: $\log_2(1/\gamma)$ bits per step and weight, kept in a
    buffer. γ is rounded to a fraction, to within 1/(256·d) for float32 and 1/(2¹⁴·d)
    for float64, with d its denominator.

    The result is that of the fixed-point run, which differs from the float run by the
    rounding: some $2^{-20}$ a step in float32 (32-bit integers), $2^{-44}$ in float64
    (64-bit). Derivatives go straight through the rounding, by the vector-Jacobian
    product of the optimizer itself, at the weights of the reversed run. Every
    run is checked: the start must be reconstructed bit for bit and the buffers be
    empty, else `hypergradient` raises (under an outer `jit` or `vmap`: the
    result is nan and its `exact` False). Where a number leaves the range,
    $\pm 2^{29-b}$ (float64: $\pm 2^{61-b}$), the run counts as diverged: value and
    gradient are nan and `overflow` is True; nothing wraps around.

    Memory: a few states whatever `steps` is, and the buffers: rows of 8 (float64: 16)
    bits per weight, $T\log_2(1/\text{min\_momentum})$ bits in all. Time: some six
    times that of the run (two gradients and a Hessian-vector product a step, and the
    exact arithmetic, whose share falls as the batch grows), for any number of
    hyperparameters: rates and momenta (a number, per step, or in each leaf; rates also
    per weight), those of the losses, and a learned start. Works under `jit` and
    `vmap`. The result can't be differentiated again: a Hessian through integers
    would be silently wrong.

    Args:
        min_momentum: the smallest momentum that the buffers are made for (the geometric
            mean, where it differs from step to step). A larger bound saves memory.
        params_bits: fractional bits of the weights; None: 22, and 44 in float64.
        trace_bits: fractional bits of gradient and trace; None: 20, and 44 in float64.

    Returns:
        When called: a `ReversibleHyperGradient`, with `bits`, the memory of the
        reversal per step and weight, beside value and gradient.

    Raises:
        ValueError: for options out of range. When called: if the objective is not an
            `Unrolled` of `optax.sgd` with momentum (adam and nesterov are refused by
            name), or a momentum is smaller than `min_momentum`.
        RuntimeError: when called, if the reversal is not exact.
        NotImplementedError: when the result is differentiated.

    Example:
        >>> import optax, metalr
        >>> loss = lambda params, hyper, batch: 0.5 * params**2
        >>> optimizer = lambda h: optax.sgd(h["rate"], h["momentum"])
        >>> L = metalr.Unrolled(loss, optimizer, 1.0, steps=5)
        >>> hyper = {"rate": 0.1, "momentum": 0.9}
        >>> value, grad, *_ = metalr.hypergradient(L, hyper, metalr.Reversible())
        >>> print(f"{value:.4f} {grad['rate']:.3f} {grad['momentum']:.3f}")
        0.0004 0.224 0.040

    References:
        Maclaurin, Duvenaud, Adams (2015), Gradient-based hyperparameter optimization
        through reversible learning.
    """

    _: dataclasses.KW_ONLY
    min_momentum: float = 0.9
    params_bits: int | None = None
    trace_bits: int | None = None

    def __post_init__(self) -> None:
        if not 0.05 <= self.min_momentum <= 1.0:
            msg = (
                f"min_momentum = {self.min_momentum!r} must lie in [0.05, 1]: the "
                "buffers grow by log2(1/min_momentum) bits a step"
            )
            raise ValueError(msg)
        for name in ("params_bits", "trace_bits"):
            bits = getattr(self, name)
            if bits is not None and int_at_least(bits, name, 0, note=", or None") > 60:
                msg = f"{name} = {bits!r} must be an int from 0 to 60, or None"
                raise ValueError(msg)

    exact: ClassVar[bool] = True

    def cost(self, objective: Objective, hyper: Hyper) -> float:
        """5.3: two gradients, a pullback and the exact arithmetic of each step."""
        del objective, hyper
        return REVERSED

    def kept_bytes(self, objective: Objective, hyper: Hyper) -> int:
        """The buffers: log₂(1/min_momentum) bits a step and weight, linear in steps."""
        run = unrolled_of(objective, self, "its optimizer is read off")
        start = jax.eval_shape(lambda h: run.init(run.prepare(h)).params, hyper)
        bits = run.steps * math.log2(1.0 / self.min_momentum)
        return math.ceil(bits / 8) * count(start)

    def __call__(self, objective: Objective, hyper: Hyper) -> ReversibleHyperGradient:
        """Run forwards, then backwards with the adjoint, and compare with the start."""
        unrolled = unrolled_of(objective, self, "it reverses SGD with momentum")
        start = jax.eval_shape(lambda h: unrolled.init(unrolled.prepare(h)), hyper)
        dtype = jnp.dtype(one_dtype(start.params, "params"))
        if dtype not in WORDS:
            msg = f"params are {dtype}: Reversible runs in float32 or float64"
            raise ValueError(msg)
        words = WORDS[dtype]
        words = words._replace(
            params_bits=_or(self.params_bits, words.params_bits),
            trace_bits=_or(self.trace_bits, words.trace_bits),
        )
        recognize(unrolled, unrolled.prepare(hyper), str(self))
        if unrolled.steps == 0:
            nothing, yes = jnp.zeros((), dtype), jnp.array(True)
            return ReversibleHyperGradient(
                *jax.value_and_grad(unrolled)(hyper), nothing, yes, ~yes, yes
            )
        slots = slots_needed(unrolled.steps, self.min_momentum, words)
        return _reverse(unrolled, hyper, words, slots, str(self))

    def verify(self, result: ReversibleHyperGradient) -> None:
        """Raise if the reversal was not exact; under trace the result is nan instead.

        Raises:
            ValueError: if the momentum was smaller than the buffers are made for.
            RuntimeError: if the start was not reconstructed bit for bit.
        """
        if isinstance(result.exact, Tracer):
            return
        if not bool(jnp.all(result.fits)):
            msg = (
                "the momentum is smaller than the buffers of Reversible are made for, "
                "or not in (0, 2): pass Reversible(min_momentum=...), a lower bound of "
                "it (of its geometric mean, where it differs from step to step)"
            )
            raise ValueError(msg)
        if not bool(jnp.all(result.exact | result.overflow)):
            msg = (
                "the reversed run did not end at its start: the inner gradient is not "
                "the same number each time it is computed (a random or nondeterministic"
                " loss?). Take another engine, such as metalr.Reverse()"
            )
            raise RuntimeError(msg)


def _or(value: int | None, default: int) -> int:
    return default if value is None else value


class _Exact(NamedTuple):
    """The state of the run, in integers; lists of leaves."""

    params: list[Array]
    trace: list[Array]
    buffers: list[Buffer]


class _Adjoint(NamedTuple):
    """Derivatives of the value with respect to the state, and hyper."""

    params: Params
    trace: Params
    hyper: Hyper
    value: Scalar  # of the steps from here on


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3, 4))
def _reverse(
    objective: Unrolled, hyper: Hyper, words: Words, slots: int, engine: str
) -> ReversibleHyperGradient:
    prepared = objective.prepare(hyper)
    run = _Run(objective, prepared, words, recognize(objective, prepared, engine))
    start = objective.init(prepared).params
    plan = run.schedule(slots)
    first = run.start(start, slots)

    def phase(carry: tuple, forward: Array) -> tuple[tuple, None]:
        # One loop serves both directions, so that the inner gradient is the same
        # machine code in both: two loops may round differently.
        def step(
            carry: tuple[_Exact, _Adjoint], count: Array
        ) -> tuple[tuple[_Exact, _Adjoint], None]:
            index = jnp.where(forward, count, objective.steps - 1 - count)
            return run.step(plan, *carry, index, forward), None

        state, adjoint, overflow = carry
        (state, adjoint), _ = jax.lax.scan(
            step, (state, adjoint), jnp.arange(objective.steps)
        )
        overflow = jnp.where(forward, run.overflow(state), overflow)
        adjoint = jax.lax.cond(forward, run.turn, lambda _, kept: kept, state, adjoint)
        return (state, adjoint, overflow), None

    value = jax.eval_shape(run.turn, first, None).value
    params, trace, none = jax.tree.map(jnp.zeros_like, (start, start, prepared))
    zeros = _Adjoint(params, trace, none, jnp.zeros((), value.dtype))
    carry = (first, zeros, jnp.array(False))
    directions = jnp.array([True, False])
    (state, adjoint, overflow), _ = jax.lax.scan(phase, carry, directions)
    grad = run.to_hyper(adjoint, hyper)
    exact = run.is_start(state, first)
    ok = exact & ~overflow & plan.fits
    value, grad = jax.tree.map(
        lambda x: jnp.where(ok, x, jnp.nan), (adjoint.value, grad)
    )
    sizes = jnp.array([leaf.size for leaf in jax.tree.leaves(start)])
    bits = jnp.sum(plan.bits * sizes) / (jnp.sum(sizes) * max(objective.steps, 1))
    return ReversibleHyperGradient(value, grad, bits, exact, overflow, plan.fits)


@_reverse.defjvp
def _refuse(words: Words, slots: int, engine: str, primals: Any, tangents: Any) -> Any:
    del words, slots, primals, tangents
    msg = (
        f"the result of {engine} can't be differentiated: it comes out of integers, "
        "through which a Hessian would be silently wrong. For second derivatives take "
        "metalr.Forward() or metalr.Reverse()"
    )
    raise NotImplementedError(msg)


class _Run(NamedTuple):
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

    def start(self, params: Params, slots: int) -> _Exact:
        """The quantized start, at rest, with empty buffers."""
        integers = [
            quantize(w, self.words.params_bits, self.words)
            for w in jax.tree.leaves(params)
        ]
        zeros = [jnp.zeros_like(leaf) for leaf in integers]
        buffers = [
            Buffer(
                jnp.zeros(z.shape, self.words.real),
                jnp.zeros((slots, *z.shape), self.words.stack),
            )
            for z in zeros
        ]
        return _Exact(integers, zeros, buffers)

    def step(
        self,
        plan: Schedule,
        state: _Exact,
        adjoint: _Adjoint,
        index: Array,
        forward: Array,
    ) -> tuple[_Exact, _Adjoint]:
        """Step `index`, or its inverse and its adjoint."""
        rates = self.ball.coefficients(self.hyper, index).rates
        ahead, back = (flag.astype(self.words.integer) for flag in (forward, ~forward))

        def move(W: list[Array], V: list[Array], sign: Array) -> list[Array]:
            return [
                w - sign * self.displacement(v, rate)
                for w, v, rate in zip(W, V, rates, strict=True)
            ]

        W = move(state.params, state.trace, -back)
        params = self.floats(W, "params")
        grads = self.field(params, index)[1]
        V, buffers = [], []
        for leaf, g in enumerate(jax.tree.leaves(grads)):
            push = quantize(g, self.words.trace_bits, self.words)
            before = state.trace[leaf] - back * push
            buffer = state.buffers[leaf]
            fine = in_range(before, self.words) & in_range(W[leaf], self.words)
            scaled, buffer = multiply(
                before,
                buffer._replace(word=jnp.where(fine, buffer.word, jnp.nan)),
                plan.at(index, leaf),
                self.words,
                forward,
            )
            V.append(scaled + ahead * push)
            buffers.append(buffer)
        W = move(W, V, ahead)

        pull = functools.partial(self.pull, index=index)
        adjoint = jax.lax.cond(
            forward, lambda kept, *_: kept, pull, adjoint, params, V, grads
        )
        return _Exact(W, V, buffers), adjoint

    def field(self, params: Params, index: Array) -> tuple[Scalar, Params, Any]:
        """Loss and gradient of step `index`, and the way back through them."""
        return self.objective.field(self.hyper, State(params, None), index)

    def pull(
        self,
        adjoint: _Adjoint,
        params: Params,
        V: list[Array],
        grads: Params,
        index: Array,
    ) -> _Adjoint:
        """The adjoint before step `index`, from the one after."""
        trace = self.floats(V, "trace")

        def update(hyper: Hyper, grads: Params, trace: Params) -> Any:
            return self.ball.update(hyper, grads, trace, params, index)

        _, transpose = jax.vjp(update, self.hyper, grads, trace)
        by_update, direction, before = transpose((adjoint.params, adjoint.trace))
        loss, _, back = self.field(params, index)
        value, value_bar, outer = self.outer(params, index, loss)
        through = back(value_bar, direction)
        by_params, by_hyper = jax.tree.map(
            lambda total, *parts: sum((p.astype(total.dtype) for p in parts), total),
            (adjoint.params, adjoint.hyper),
            through,
            *outer,
        )
        by_hyper = jax.tree.map(jnp.add, by_hyper, by_update)
        return _Adjoint(by_params, before, by_hyper, adjoint.value + value)

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

    def turn(self, state: _Exact, adjoint: _Adjoint | None) -> _Adjoint:
        """The adjoint at the end of the run."""
        del adjoint
        objective, steps = self.objective, self.objective.steps
        params, trace = (
            self.floats(state.params, "params"),
            self.floats(state.trace, "trace"),
        )

        def value(params: Params, trace: Params, hyper: Hyper) -> Scalar:
            opt_state = self.ball.opt_state_at(trace, steps)
            total = None if objective.outer_weights is None else jnp.zeros(())
            return objective.evaluate(hyper, State(params, opt_state, None, total))

        end, by = jax.value_and_grad(value, argnums=(0, 1, 2))(
            params, trace, self.hyper
        )
        by_params, by_trace, by_hyper = by
        return _Adjoint(by_params, by_trace, by_hyper, end)

    def to_hyper(self, adjoint: _Adjoint, hyper: Hyper) -> Hyper:
        """The gradient in the dtypes of the user's hyper, through the start as well."""

        def start(hyper: Hyper) -> tuple[Hyper, Params]:
            prepared = self.objective.prepare(hyper)
            return prepared, self.objective.init(prepared).params

        _, transpose = jax.vjp(start, hyper)
        return transpose((adjoint.hyper, adjoint.params))[0]

    def is_start(self, state: _Exact, first: _Exact) -> Bool[Array, ""]:
        """Whether weights, trace and buffers are those of the start."""
        empty = [buffer.word == 0 for buffer in state.buffers]
        same = jax.tree.map(jnp.equal, state[:2], first[:2])
        return jnp.all(
            jnp.stack([jnp.all(leaf) for leaf in jax.tree.leaves((same, empty))])
        )

    def floats(self, integers: list[Array], kind: str) -> Params:
        """The numbers that the integers stand for, as a pytree like params."""
        tree = jax.tree.structure(self.ball.template)
        dtype = jax.tree.leaves(self.ball.template)[0].dtype
        scale = 2.0 ** -getattr(self.words, f"{kind}_bits")
        return jax.tree.unflatten(tree, [i.astype(dtype) * scale for i in integers])

    def displacement(self, V: Array, rate: Array) -> Array:
        """η·V in the units of the weights."""
        bits = self.words.params_bits - self.words.trace_bits
        return quantize(V.astype(self.words.real) * rate, bits, self.words)

    def overflow(self, state: _Exact) -> Bool[Array, ""]:
        """Whether a number has left the range, at any step up to this one."""
        fine = [in_range(leaf, self.words) for leaf in (*state.params, *state.trace)]
        fine += [~jnp.isnan(buffer.word) for buffer in state.buffers]
        return ~jnp.all(jnp.stack([jnp.all(leaf) for leaf in fine]))
