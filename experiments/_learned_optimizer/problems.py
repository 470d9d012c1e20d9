"""Noisy quadratics with random axes, and training on them by any optimizer."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

import metalr


class Family(NamedTuple):
    """What the problems have in common; their axes, starts and noise are drawn."""

    condition: float  # λ_max / λ_min, spread evenly in the logarithm; λ_max = 1
    noise: float  # deviation of the gradient's noise, times √H
    start: float  # deviation of the starts, times 1/√H
    steps: int
    dtype: str

    def spectrum(self, dimension: int) -> jax.Array:
        """The eigenvalues."""
        low = -np.log10(self.condition)
        return jnp.logspace(0.0, low, dimension, dtype=self.dtype)


class Drawn(NamedTuple):
    """One problem: ½ wᵀHw with H = AᵀA, a start, the key of its noise."""

    root: jax.Array  # A
    start: jax.Array
    noise: jax.Array


def draw(family: Family, dimension: int, key: jax.Array) -> Drawn:
    """Random axes, and a start and noise of the same size along each of them."""
    axes, start, noise = jax.random.split(key, 3)
    h = family.spectrum(dimension)
    Q = jnp.linalg.qr(jax.random.normal(axes, (dimension,) * 2, h.dtype))[0]
    along = family.start * jax.random.normal(start, h.shape, h.dtype) / h**0.5
    return Drawn(jnp.sqrt(h)[:, None] * Q, Q.T @ along, noise)


def problems(
    family: Family, dimension: int, optimizer: Any
) -> Callable[[jax.Array], metalr.Unrolled]:
    """`key -> objective`: the mean loss along T steps of `optimizer(hyper)`."""
    scale = jnp.full(dimension, family.noise, family.dtype)
    along = jnp.ones(family.steps + 1, family.dtype).at[0].set(0.0) / family.steps

    def make(key: jax.Array) -> metalr.Unrolled:
        root, start, noise = draw(family, dimension, key)
        return metalr.Unrolled(
            Partial(noisy, root),
            optimizer,
            start,
            steps=family.steps,
            batches=Partial(noise_of_step, noise, scale),
            outer_loss=Partial(quadratic, root),
            outer_weights=along,
        )

    return make


def quadratic(root: Any, params: Any, hyper: Any) -> jax.Array:
    """½ wᵀHw, with H = AᵀA."""
    del hyper
    return 0.5 * jnp.sum((root @ params) ** 2)


def noisy(root: Any, params: Any, hyper: Any, noise: Any) -> jax.Array:
    """Its gradient is Hw + Aᵀn."""
    return quadratic(root, params, hyper) + noise @ (root @ params)


def noise_of_step(key: Any, scale: Any, index: Any) -> jax.Array:
    """As many normal deviates as `scale` has entries."""
    key = jax.random.fold_in(key, index)
    return scale * jax.random.normal(key, scale.shape, scale.dtype)
