r"""Multiplication of integers by a fraction, exactly undone, in a fraction of a bit.

$V \mapsto \gamma V$ with $\gamma = n/d$ loses $\log_2(d/n)$ bits of information. They
go into a word x for each weight, and room is made by taking the new low digit
of V out of that word (Maclaurin et al. 2015, section 3):

    y = x·d + V mod d;    V ← (V div d)·n + y mod n;    x ← y div n

The inverse is the same map with n and d exchanged. x stays below a bound that grows
by d/n a step and does not depend on the data; before y - x·n, which is what is divided,
can leave the range in which floats divide exactly, the low byte of every x is spilled
to a stack, at steps known beforehand (`_fractions.schedule`).

Nothing is divided, as CPUs have no vector instruction for integer division: quotients
of floats are products with the inverse, exact where they are small enough (`_floor`),
and V div d, exact once V mod d is taken off, is a product with the inverse of d in
integers that wrap around.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from ._fractions import Entry, Words

Carry = TypeVar("Carry")


class Buffer(NamedTuple):
    """What was lost of every weight of a leaf, bit for bit."""

    word: Array  # x, for each weight; nan once a number has left the range
    stack: Array  # (slots, …): parts of the words, spilled


def multiply(
    V: Array, buffer: Buffer, entry: Entry, words: Words, forward: Array
) -> tuple[Array, Buffer]:
    """V·num/den, what is lost going to the buffer; its exact inverse if not forward."""
    base = 2.0**words.spill_bits

    def spill(buffer: Buffer) -> Buffer:
        x, stack = buffer
        low = (x - jnp.floor(x / base) * base).astype(stack.dtype)
        stack = jax.lax.dynamic_update_index_in_dim(stack, low, entry.row, 0)
        return Buffer((x - row(stack)) / base, stack)  # read again: x changes in place

    def restore(buffer: Buffer) -> Buffer:
        x, stack = buffer
        return Buffer(x * base + row(stack), stack)

    def row(stack: Array) -> Array:
        low = jax.lax.dynamic_index_in_dim(stack, entry.row, keepdims=False)
        return low.astype(words.real)

    num = jnp.where(forward, entry.num, entry.den)
    den = jnp.where(forward, entry.den, entry.num)
    x, stack = in_place_if(entry.spill & forward, spill, buffer)
    V, x = rescale(V, x, num, den, words)
    return V, in_place_if(entry.spill & ~forward, restore, Buffer(x, stack))


def in_place_if(
    flag: Bool[Array, ""], function: Callable[[Carry], Carry], carry: Carry
) -> Carry:
    """`function(carry)` where the flag is set, else the carry itself, not copied.

    A loop of one trip or none: XLA writes the result of a conditional to buffers of
    its own, the carry of a loop in place.
    """
    trips = flag.astype(jnp.int32)
    return jax.lax.fori_loop(0, trips, lambda _, carry: function(carry), carry)


def rescale(
    V: Array, x: Array, num: Array, den: Array, words: Words
) -> tuple[Array, Array]:
    """V·num/den and the word that remembers the rest; undone by den/num."""
    real_num, real_den = num.astype(words.real), den.astype(words.real)
    low = _modulo(V, den, words)
    beyond = x * (real_den - real_num) + low  # y - x·num, smaller than y
    more = _floor(beyond, real_num)
    digit = (beyond - more * real_num).astype(words.integer)
    # V - low is a multiple of den = odd · 2^twos: divided by the power, then by odd.
    twos = jax.lax.population_count((den & -den) - 1)
    odd = jax.lax.shift_right_logical(den, twos)
    multiples = (V - low.astype(words.integer)) >> twos
    return multiples * (_inverse(odd) * num) + digit, x + more


def _modulo(V: Array, den: Array, words: Words) -> Array:
    """V mod den, from 0 to den - 1, as floats.

    V = high · 2^split + low: with 2^split reduced to at most den/2 in size, the sum has
    19 (38) bits for |V| < 2^29 (2^61).
    """
    split = jnp.asarray(2**words.split_bits, words.integer) % den
    split = jnp.where(2 * split > den, split - den, split).astype(words.real)
    low = (V & (2**words.split_bits - 1)).astype(words.real)
    total = (V >> words.split_bits).astype(words.real) * split + low
    real_den = den.astype(words.real)
    return total - _floor(total, real_den) * real_den


def _floor(y: Array, divisor: Array) -> Array:
    """⌊y/divisor⌋ of floats that are integers, |y| ≤ 2^20 (float64: 2^49).

    (y + ½)/divisor is 1/(2·divisor) or more from every integer, and its rounding errors
    (two of 2^-24, or 2^-22 for the inverse on a GPU) are less than 1/(3·divisor).
    """
    return jnp.floor((y + 0.5) * (1.0 / divisor))


def _inverse(odd: Array) -> Array:
    """The integer whose product with this odd one is 1, modulo 2^32 (2^64)."""
    inverse = odd  # right to 3 bits; each turn doubles them
    for _ in range(5):
        inverse = inverse * (2 - odd * inverse)
    return inverse


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
