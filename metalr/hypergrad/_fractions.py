"""The fractions that stand for momenta, and at which steps the buffers spill.

See `_exact`, which multiplies by them.
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
    exact_limit: int  # of what `_floor` divides exactly, whatever the divisor
    range_bits: int  # |V|, |W| < 2**range_bits: nothing wraps around in a step
    split_bits: int  # V mod d is taken of its high and its low part
    params_bits: int  # fractional bits of the weights
    trace_bits: int  # and of the momentum's trace


WORDS = {
    jnp.dtype("float32"): Words(
        real=jnp.dtype("float32"),
        integer=jnp.dtype("int32"),
        stack=jnp.dtype("uint8"),
        spill_bits=8,
        max_denominator=2**8,
        exact_limit=2**20,
        range_bits=29,
        split_bits=18,
        params_bits=22,
        trace_bits=20,
    ),
    jnp.dtype("float64"): Words(
        real=jnp.dtype("float64"),
        integer=jnp.dtype("int64"),
        stack=jnp.dtype("uint16"),
        spill_bits=16,
        max_denominator=2**14,
        exact_limit=2**49,
        range_bits=61,
        split_bits=37,
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
    # x·|den - num| is to be exact with x before a step, and with x after it, den/num
    # as large.
    growth = jnp.maximum(den, num) / jnp.maximum(num, 1).astype(momentum.dtype)
    change = jnp.maximum(jnp.abs(den - num), 1).astype(momentum.dtype)
    limit = words.exact_limit / jnp.max(change * growth, axis=0, initial=1.0)
    limit = limit.astype(words.integer)

    def step(carry: tuple[Array, Array, Array], fraction: tuple) -> tuple:
        bound, row, fits = carry
        num, den = fraction
        spill = bound > limit
        bound = jnp.where(spill, (bound >> words.spill_bits) + 1, bound)
        fits &= bound <= limit
        # ⌈bound·den/num⌉: the carry counts, or a long run is silently wrong.
        grown = bound - (bound * (num - den)) // jnp.maximum(num, 1)
        return (grown, row + spill, fits), (spill, row)

    leaves = momentum.shape[1:]
    start = (
        jnp.ones(leaves, words.integer),
        jnp.zeros(leaves, jnp.int32),
        jnp.ones(leaves, bool),
    )
    (bound, rows, fits), (spill, row) = jax.lax.scan(step, start, (num, den))
    fits = jnp.all(fits & (rows <= slots))
    fits &= jnp.all(num >= 1)
    bits = words.spill_bits * rows + jnp.log2(bound.astype(momentum.dtype))
    return Schedule(num, den, spill, row, bits, fits)


def slots_needed(steps: int, min_momentum: float, words: Words) -> int:
    """Rows of the stack for `steps` steps of at least this momentum."""
    least = _least_fraction(min_momentum, words)
    change = max((1.0 - least) * words.max_denominator, 1.0)
    limit = words.exact_limit * least / change
    bound, rows = 1.0, 0
    for _ in range(steps):
        while bound > limit:
            bound, rows = math.floor(bound * 2.0**-words.spill_bits) + 1.0, rows + 1
        bound = math.ceil(bound / least)
    # Of momenta that differ, each fraction may be below its own: a part of a spill.
    return rows + 1


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
