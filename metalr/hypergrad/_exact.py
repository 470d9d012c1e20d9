r"""Multiplication of integers by a fraction, exactly undone, in a fraction of a bit.

$V \mapsto \gamma V$ with $\gamma = n/d$ loses $\log_2(d/n)$ bits of information. They
go into a word x for each weight, and room is made by taking the new low digit
of V out of that word (Maclaurin et al. 2015, section 3):

    y = x·d + V mod d;    V ← (V div d)·n + y mod n;    x ← y div n

The inverse is the same map with n and d exchanged. x stays below a bound that grows
by d/n a step and does not depend on the data; before y can leave the range in which
floats are exact, the low byte of every x is spilled to a stack, at steps known
beforehand (`schedule`).
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

_CONTINUED = 24
"""Terms of a continued fraction: the denominator of the 24th is at least 46 368."""


class Words(NamedTuple):
    """The numbers that carry a run of one floating dtype."""

    real: jnp.dtype  # of x: a float whose integers are exact
    integer: jnp.dtype  # of the weights W and the trace V
    stack: jnp.dtype
    spill_bits: int  # bits of x that move to the stack in one spill
    max_denominator: int  # of the fraction that stands for the momentum
    word_limit: int  # x below it: y is exact, whatever the denominator
    range_bits: int  # |V|, |W| < 2**range_bits: nothing wraps around in a step
    params_bits: int  # fractional bits of the weights
    trace_bits: int  # and of the momentum's trace


WORDS = {
    jnp.dtype("float32"): Words(
        real=jnp.dtype("float32"),
        integer=jnp.dtype("int32"),
        stack=jnp.dtype("uint8"),
        spill_bits=8,
        max_denominator=2**8,
        word_limit=2**16,
        range_bits=29,
        params_bits=22,
        trace_bits=20,
    ),
    jnp.dtype("float64"): Words(
        real=jnp.dtype("float64"),
        integer=jnp.dtype("int64"),
        stack=jnp.dtype("uint16"),
        spill_bits=16,
        max_denominator=2**14,
        word_limit=2**39,
        range_bits=61,
        params_bits=44,
        trace_bits=44,
    ),
}


class Schedule(NamedTuple):
    """Which fraction multiplies, and when words spill, at each step in each leaf."""

    num: Int[Array, "steps leaves"]
    den: Int[Array, "steps leaves"]
    spill: Bool[Array, "steps leaves"]  # the low bits of x are spilled before the step
    row: Int[Array, "steps leaves"]  # … to this row of the stack
    bits: Float[Array, " leaves"]  # held by one weight's buffer after all steps
    fits: Bool[Array, ""]  # the fractions are valid and the stack is long enough

    def at(self, index: Array, leaf: int) -> "Entry":
        """The entry of one step and leaf."""
        return Entry(*(column[index, leaf] for column in self[:4]))


def schedule(
    momentum: Float[Array, "steps leaves"], words: Words, slots: int
) -> Schedule:
    """Fractions for the momenta of all steps, and where the buffers spill."""
    num, den = fraction(momentum, words)
    ratio = den / jnp.maximum(num, 1).astype(momentum.dtype)
    exact = float(words.word_limit * words.max_denominator)
    limit = exact / jnp.max(den, axis=0, initial=1).astype(momentum.dtype)

    def step(carry: tuple[Array, Array, Array], ratio: Array) -> tuple:
        bound, row, fits = carry
        spill = bound > limit
        spilled = jnp.floor(bound * 2.0**-words.spill_bits) + 1.0
        bound = jnp.where(spill, spilled, bound)
        fits &= bound <= limit
        # ⌈bound·ratio⌉ ≤ this: the carry bit counts, or a long run is silently wrong.
        grown = bound * ratio * (1.0 + 2.0**-20) + 1.0
        return (grown, row + spill, fits), (spill, row)

    leaves = momentum.shape[1:]
    start = (
        jnp.ones(leaves, momentum.dtype),
        jnp.zeros(leaves, jnp.int32),
        jnp.ones(leaves, bool),
    )
    (bound, rows, fits), (spill, row) = jax.lax.scan(step, start, ratio)
    fits = jnp.all(fits & (rows < slots))  # the last row is spare
    fits &= jnp.all(num >= 1)
    bits = words.spill_bits * rows + jnp.log2(bound)
    return Schedule(num, den, spill, row, bits, fits)


def slots_needed(steps: int, min_momentum: float, words: Words) -> int:
    """Rows of the stack for `steps` steps of at least this momentum, one to spare."""
    ratio = (1.0 + 2.0**-12) / _least_fraction(min_momentum, words)
    bound, rows = 1.0, 0
    for _ in range(steps):
        while bound > words.word_limit:
            bound, rows = math.floor(bound * 2.0**-words.spill_bits) + 1.0, rows + 1
        bound = bound * ratio + 1.0
    # Of momenta that differ, each fraction may be below its own: a part of a spill.
    return rows + 2


def _least_fraction(momentum: float, words: Words) -> float:
    """What may stand for a momentum of at least this: ½ is less than 0.5019.

    `fraction` is less than 1/(d·max_denominator) below what it stands for.
    """
    found = [momentum]
    for den in range(1, words.max_denominator + 1):
        num = math.floor(momentum * den)
        if num > 0 and momentum * den - num < 1.0 / words.max_denominator:
            found.append(num / den)
    return min(found)


def fraction(value: Float[Array, "..."], words: Words) -> tuple[Array, Array]:
    """The last convergent n/d of `value` with a denominator that the words allow.

    Off by less than 1/(d·max_denominator): 0.9 is 9/10 in every dtype. n = 0 where the
    value is not a positive finite number that a fraction stands for.
    """
    valid = jnp.isfinite(value) & (value > 0.0) & (value < 2.0)
    rest = jnp.where(valid, value, 0.0)
    one, zero = jnp.ones_like(rest), jnp.zeros_like(rest)

    def convergent(_: Array, carry: tuple) -> tuple:
        rest, num, num_before, den, den_before, active = carry
        term = jnp.floor(rest)
        new_num, new_den = term * num + num_before, term * den + den_before
        active &= new_den <= words.max_denominator
        num, num_before = jnp.where(active, new_num, num), num
        den, den_before = jnp.where(active, new_den, den), den
        active &= rest > term
        rest = 1.0 / jnp.where(active, rest - term, one)
        return rest, num, num_before, den, den_before, active

    carry = (rest, one, zero, zero, one, jnp.ones_like(valid))
    _, num, _, den, *_ = jax.lax.fori_loop(0, _CONTINUED, convergent, carry)
    return num.astype(words.integer), den.astype(words.integer)


class Entry(NamedTuple):
    """What the schedule says of one step and leaf."""

    num: Array
    den: Array
    spill: Array
    row: Array


class Buffer(NamedTuple):
    """What was lost of every weight of a leaf, bit for bit."""

    word: Array  # x, for each weight; nan once a number has left the range
    stack: Array  # (slots, …): parts of the words, spilled


def multiply(
    V: Array, buffer: Buffer, entry: Entry, words: Words, forward: Array
) -> tuple[Array, Buffer]:
    """V·num/den, what is lost going to the buffer; its exact inverse if not forward."""
    x, stack = buffer
    spill, restore = entry.spill & forward, entry.spill & ~forward
    base = 2.0**words.spill_bits
    shifted = jnp.floor(x / base)
    low = (x - shifted * base).astype(stack.dtype)
    # Written at every step, so that it is done in place: what is no spill goes to a
    # row not filled yet or, backwards, to the last one, which is spare.
    row = jnp.where(forward, entry.row, stack.shape[0] - 1)
    stack = jax.lax.dynamic_update_index_in_dim(stack, low, row, 0)
    kept = jax.lax.dynamic_index_in_dim(stack, entry.row, keepdims=False)
    num = jnp.where(forward, entry.num, entry.den)
    den = jnp.where(forward, entry.den, entry.num)
    V, x = rescale(V, jnp.where(spill, shifted, x), num, den, words)
    return V, Buffer(jnp.where(restore, x * base + kept, x), stack)


def rescale(
    V: Array, x: Array, num: Array, den: Array, words: Words
) -> tuple[Array, Array]:
    """V·num/den and the word that remembers the rest; undone by den/num."""
    high = _divide_integers(V, den, words)
    real_num = num.astype(words.real)
    y = x * den.astype(words.real) + (V - high * den).astype(words.real)
    x = jnp.floor(y * (1.0 / real_num))
    rest = y - x * real_num  # exact, and one division off at most
    x += (rest >= real_num).astype(words.real) - (rest < 0.0).astype(words.real)
    return high * num + (y - x * real_num).astype(words.integer), x


def quantize(values: Array, bits: int, words: Words) -> Array:
    """The nearest multiples of 2**-bits, as integers.

    What is not in range, nan too, becomes a number that takes any sum out of range.
    """
    scaled = jnp.round(values * 2.0**bits)
    far = 2.0 ** (words.range_bits + 1)
    return jnp.where(jnp.abs(scaled) < far, scaled, far).astype(words.integer)


def in_range(integers: Array, words: Words) -> Bool[Array, "..."]:
    """Where the next sum with a quantized number can't wrap around."""
    return jnp.abs(integers) < 2**words.range_bits


def _divide_integers(y: Array, divisor: Array, words: Words) -> Array:
    """Exact floor division.

    Through floats with corrections in integers: CPUs have no vector instruction for
    integer division. The first quotient is right to the float's 24 (53) bits, the
    second corrects the rest, the last step the rounding.
    """
    inverse = 1.0 / divisor.astype(words.real)
    first = (y.astype(words.real) * inverse).astype(y.dtype)
    rest = y - first * divisor
    second = (rest.astype(words.real) * inverse).astype(y.dtype)
    rest -= second * divisor
    last = (rest >= divisor).astype(y.dtype) - (rest < 0).astype(y.dtype)
    return first + second + last
