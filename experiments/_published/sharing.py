"""One hyperparameter for many steps (Micaelli & Storkey 2021, theorem 4.1)."""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from experiments._published.row import Row, compared, exact, printed


def rows(*, runs: int, seed: int) -> Iterator[Row]:
    """Theorem 4.1 by simulation: one hyperparameter for W steps, of T."""
    steps, shared, sigma, drift = 400, 40, 0.25, 0.08
    key = jax.random.key(seed)

    @functools.partial(jax.jit, static_argnames="window")
    def errors(means: jax.Array, window: int) -> jax.Array:
        """Mean squared error in each run: of a window's mean, against each step."""

        def one(key: jax.Array) -> jax.Array:
            noisy = means + sigma * jax.random.normal(key, (steps,), means.dtype)
            average = jnp.mean(noisy.reshape(-1, window), axis=1)
            return jnp.mean((jnp.repeat(average, window) - means) ** 2)

        return jax.lax.map(one, jax.random.split(key, runs), batch_size=1000)

    still, drifting = jnp.zeros(steps), drift * jnp.arange(float(steps))
    bound = sigma**2 / shared + drift**2 * (shared**2 - 1) / 12
    for name, means, window, published, closed in (
        ("not shared", drifting, 1, exact(0.0625), sigma**2),
        ("shared, maximal drift", drifting, shared, printed("0.8544"), bound),
        ("shared, no drift", still, shared, exact(0.0015625), sigma**2 / shared),
    ):
        found = np.asarray(errors(means, window))
        error = float(found.std(ddof=1) / np.sqrt(found.size))
        yield compared(
            f"mean squared error, {name} (T = 400, W = 40, σ = 0.25, ε = 0.08)",
            published,
            float(found.mean()),
            4.0 * error,
            f"{runs} runs; the theorem's formula: {closed:.7g}",
        )
