"""A row of the errata, and the problems that the rows share."""

from typing import Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

import metalr

Verdict: TypeAlias = Literal["wrong", "loose", "missing", "right"]
"""Of a statement: false; true under a condition that it leaves out, or of what it
stands for; not made; true."""


class Row(NamedTuple):
    """A statement of the notes beside what is true, each as one number."""

    question: str
    verdict: Verdict
    notes: str  # what the notes say
    truth: str
    notes_value: float | None  # None where the notes say nothing
    true_value: float


def example(*x: float) -> tuple[jax.Array, jax.Array]:
    """One example, of target 3."""
    return jnp.array([x]), jnp.array([3.0])


def wide() -> tuple[jax.Array, jax.Array, jax.Array]:
    """Three examples, five columns, a start off their row space."""
    keys = jax.random.split(jax.random.key(0), 3)
    X, t, w0 = (
        jax.random.normal(k, s) for k, s in zip(keys, [(3, 5), (3,), (5,)], strict=True)
    )
    return X, t, w0


def descent(
    X: jax.Array, t: jax.Array, w0: jax.Array, *, steps: int
) -> metalr.Unrolled:
    """The loss after `steps` of gradient descent, as a function of the rate."""
    loss = metalr.problems.least_squares(X, t)
    return metalr.Unrolled(loss, optax.sgd, w0, steps=steps)
