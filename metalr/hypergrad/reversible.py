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
from .._types import Hyper, Objective, Scalar
from ..runs.unrolled import Unrolled
from ._engine import Options, unrolled_of
from ._exact import in_place_if
from ._fractions import WORDS, Words, slots_needed
from ._heavy_ball import recognize
from ._integer_run import Adjoint, IntegerRun, Integers
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

    Memory: what any exact reversal must keep, the integers W and V, their two adjoints
    and $T\log_2(1/\gamma)$ bits a weight, that is $16 + T\log_2(1/\gamma)/8$ bytes in
    float32 (35 for γ = 0.9 and T = 1000, of which 19 are the bits: no multiple of
    training's bytes bounds it for every T). To that come the temporaries of a step: a
    word for each weight, the gradient, its product with the Hessian, activations. The
    bits are kept in rows of 8 (float64: 16) per weight, made for `min_momentum`.

    Time: a gradient a step forwards; backwards a gradient and its product with the
    Hessian; and the exact arithmetic, whose share falls as the batch grows (`cost`, in
    runs without a derivative, is measured on an MLP). The same for any number of
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
        """Two gradients, a pullback and the exact arithmetic of each step: measured."""
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


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3, 4))
def _reverse(
    objective: Unrolled, hyper: Hyper, words: Words, slots: int, engine: str
) -> ReversibleHyperGradient:
    prepared = objective.prepare(hyper)
    run = IntegerRun(objective, prepared, words, recognize(objective, prepared, engine))
    start = objective.init(prepared).params
    plan = run.schedule(slots)
    first = run.start(start, slots)

    def phase(carry: tuple, forward: Array) -> tuple[tuple, None]:
        # One loop serves both directions, so that the inner gradient is the same
        # machine code in both: two loops may round differently.
        def step(
            carry: tuple[Integers, Adjoint], count: Array
        ) -> tuple[tuple[Integers, Adjoint], None]:
            index = jnp.where(forward, count, objective.steps - 1 - count)
            return run.step(plan, *carry, index, forward), None

        state, adjoint, overflow = carry
        (state, adjoint), _ = jax.lax.scan(
            step, (state, adjoint), jnp.arange(objective.steps)
        )
        turn = lambda carry: run.turn(carry[0])
        return in_place_if(forward, turn, (state, adjoint, overflow)), None

    value = jax.eval_shape(run.turn, first)[1].value
    params, trace, none = jax.tree.map(jnp.zeros_like, (start, start, prepared))
    zeros = Adjoint(params, trace, none, jnp.zeros((), value.dtype))
    carry = (first, zeros, jnp.array(False))
    directions = jnp.array([True, False])
    (state, adjoint, overflow), _ = jax.lax.scan(phase, carry, directions)
    grad = run.to_hyper(adjoint, hyper)
    # Made again rather than kept all along: behind a barrier, or XLA would keep it.
    state, prepared = jax.lax.optimization_barrier((state, prepared))
    again = jax.lax.optimization_barrier(objective.init(prepared).params)
    exact = run.is_start(state, again)
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
