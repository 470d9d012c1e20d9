"""The largest eigenvalue of a symmetric operator, in a fixed number of products."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._types import Scalar


class Ritz(NamedTuple):
    """A Ritz pair: some eigenvalue lies within `residual` of `value`."""

    value: Scalar
    residual: Scalar
    vector: Float[Array, " n"]


def largest(
    product: Callable[[Array], Array], start: Float[Array, " n"], iterations: int
) -> Ritz:
    """Lanczos with full reorthogonalization, from a `start` that is not zero.

    Keeps `iterations` vectors; exact where `iterations` reaches the dimension.
    """
    size = min(iterations, start.size)
    tiny = jnp.finfo(start.dtype).tiny

    def step(carry: tuple, index: Array) -> tuple[tuple, tuple[Array, Array]]:
        basis, vector = carry
        basis = basis.at[index].set(vector)
        image = product(vector)
        alpha = vector @ image
        for _ in range(2):  # once leaves rounding errors of the size of the basis
            image = image - basis.T @ (basis @ image)
        beta = jnp.linalg.norm(image)
        # An invariant subspace: what follows is zero, and must not add eigenvalues.
        vector = jnp.where(beta > tiny, image / jnp.maximum(beta, tiny), 0.0)
        return (basis, vector), (alpha, beta)

    first = start / jnp.linalg.norm(start)
    basis = jnp.zeros((size, start.size), start.dtype)
    (basis, _), (alpha, beta) = jax.lax.scan(step, (basis, first), jnp.arange(size))
    alive = jnp.sum(basis**2, axis=1) > 0.5
    alpha = jnp.where(alive, alpha, alpha[0])
    inner = jnp.where(alive[1:], beta[:-1], 0.0)
    tridiagonal = jnp.diag(alpha) + jnp.diag(inner, 1) + jnp.diag(inner, -1)
    values, vectors = jnp.linalg.eigh(tridiagonal)
    return Ritz(
        values[-1], jnp.abs(beta[-1] * vectors[-1, -1]), basis.T @ vectors[:, -1]
    )
