"""A scan that reverse mode goes back through in bounded memory.

Nested `lax.scan`s of `jax.checkpoint`ed pieces: unlike a checkpointed while loop, every
derivative of it works (`jvp`, `vjp`, `hessian`, `grad` of `grad`, `vmap`).
"""

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from .._types import PyTree

Step: TypeAlias = Callable[[PyTree, jax.Array], tuple[PyTree, PyTree]]
"""`step(carry, index) -> (carry, output)`."""


def scan(
    step: Step, init: PyTree, steps: int, checkpoints: int | None = None
) -> tuple[PyTree, PyTree]:
    r"""`lax.scan` over `range(steps)` that keeps about `checkpoints` carries.

    None is the plain scan: reverse mode keeps what every step computes. With a number,
    the steps are nested in as few levels as fit (`branching`): level i is a scan of
    $b_i$ checkpointed pieces, so that the backward pass holds at most $\sum b_i$
    carries, and the work of one step. Each level runs every step once more. The carry
    and the outputs are those of the plain scan.

    Args:
        step: `step(carry, index) -> (carry, output)`.
        init: the first carry.
        steps: number of steps, any number ≥ 0.
        checkpoints: carries to keep, or None.

    Returns:
        The last carry, and the outputs stacked along a leading axis of length `steps`.
    """
    if checkpoints is None or steps < 2:
        return jax.lax.scan(step, init, jnp.arange(steps))
    # The mixed-radix digits of `steps`: pieces of each size, the largest first.
    sizes = [1]
    for factor in branching(steps, checkpoints)[:-1]:
        sizes.append(sizes[-1] * factor)
    carry, start, outputs = init, 0, []
    for level in reversed(range(len(sizes))):
        count = (steps - start) // sizes[level]
        if count:
            starts = start + sizes[level] * jnp.arange(count)
            carry, output = jax.lax.scan(_piece(step, sizes, level), carry, starts)
            outputs.append(_flatten(output, count * sizes[level], level + 1))
            start += count * sizes[level]
    return carry, jax.tree.map(lambda *parts: jnp.concatenate(parts), *outputs)


def branching(steps: int, checkpoints: int) -> list[int]:
    """Pieces a level, innermost first: product ≥ `steps`, sum about `checkpoints`.

    The fewest levels m with $m T^{1/m}$ ≤ `checkpoints`: one level runs each step twice
    in all, and each further level once more. Below about e·log(T) no nesting fits; the
    nearest is returned (`Reverse(checkpoints)` goes further).
    """
    deepest = max(1, round(math.log(steps)))
    fits = (
        levels
        for levels in range(1, deepest)
        if math.floor(levels * steps ** (1 / levels)) <= checkpoints
    )
    levels = next(fits, deepest)
    base = max(1, math.floor(steps ** (1 / levels)))
    factors = [base] * levels
    for level in range(levels):
        if math.prod(factors) < steps:
            factors[level] += 1
    return factors


def _flatten(tree: PyTree, length: int, axes: int) -> PyTree:
    """The leading `axes` axes as one."""
    return jax.tree.map(lambda x: x.reshape(length, *x.shape[axes:]), tree)


def _piece(step: Step, sizes: list[int], level: int) -> Step:
    """A checkpointed run of `sizes[level]` steps from a given index."""
    if level == 0:
        return jax.checkpoint(step)
    inner = _piece(step, sizes, level - 1)
    count = sizes[level] // sizes[level - 1]

    def piece(carry: PyTree, start: jax.Array) -> tuple[PyTree, Any]:
        starts = start + sizes[level - 1] * jnp.arange(count)
        return jax.lax.scan(inner, carry, starts)

    return jax.checkpoint(piece)
