"""Hypergradient descent beside plain SGD (Baydin et al. 2018)."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax

import metalr
from experiments._published.row import Row, ordered
from metalr import convnet
from metalr.problems import classifier


def rows(*, epochs: int, seed: int, dtype: str) -> Iterator[Row]:
    """Logistic regression on digits, as on MNIST in the paper's repository."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images = (images - images.mean()) / images.std()
    inputs, batch = jnp.asarray(images, dtype), 128
    entropy = classifier([convnet.Dense(10)], inputs, jnp.asarray(labels))

    def loss(params: Any, hyper: Any, rows: Any) -> jax.Array:
        decay = 0.5e-4 * optax.tree.norm(params, squared=True)
        return entropy(params, hyper, rows) + decay

    order, start = jax.random.split(jax.random.key(seed))
    whole = len(labels) // batch
    shuffled = jax.vmap(lambda key: jax.random.permutation(key, len(labels)))(
        jax.random.split(order, epochs)
    )
    batches = shuffled[:, : whole * batch].reshape(-1, batch)
    nesterov = lambda rate: optax.sgd(rate, 0.9, nesterov=True)
    for name, optimizer, beta, plain, adapted in (
        ("SGD", optax.sgd, 1e-3, 0.3957, 0.2934),
        ("SGDN", nesterov, 1e-3, 0.2893, 0.2612),
        ("Adam", optax.adam, 1e-7, 0.2590, 0.2583),
    ):
        objective = metalr.Unrolled(
            loss, optimizer, entropy.init(start), steps=len(batches), batches=batches
        )

        def final(
            beta: jax.Array, objective: metalr.Unrolled = objective
        ) -> tuple[jax.Array, jax.Array]:
            run = metalr.online(objective, 1e-3, outer_learning_rate=beta)
            return entropy(run.params, None, None), run.hyper

        losses, rates = jax.vmap(final)(jnp.array([0.0, beta]))
        ratio = float(losses[1] / losses[0])
        yield ordered(
            f"final loss, {name}-HD over {name}",
            f"< 1 ({adapted / plain:.3f})",
            ratio,
            holds=ratio < 1.0,
            note=f"digits, {epochs} epochs: {losses[0]:.4f}, {losses[1]:.4f} (rate "
            f"{rates[1]:.2g} from 0.001); MNIST, 10 epochs, in the results of the "
            f"authors' repository: {plain}, {adapted}; the order is held, not the size",
        )
