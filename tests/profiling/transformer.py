"""A decoder of GPT-2's shape with random weights and tokens, in plain JAX."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

import metalr


class Shape(NamedTuple):
    """Of the network and of its batches."""

    layers: int
    width: int
    heads: int
    vocabulary: int
    length: int
    batch: int


GPT2 = Shape(12, 768, 12, 50257, 256, 2)  # 124 M weights
SMALL = Shape(2, 16, 2, 31, 6, 2)


def weights(shape, key):
    """Normal, of deviation 0.02, as GPT-2 starts; the blocks' weights are stacked."""
    d, n = shape.width, shape.layers
    sizes = {
        "tokens": (shape.vocabulary, d),
        "places": (shape.length, d),
        "attend": (n, d, 3 * d),
        "project": (n, d, d),
        "widen": (n, d, 4 * d),
        "narrow": (n, 4 * d, d),
    }
    keys = jax.random.split(key, len(sizes))
    drawn = {
        name: 0.02 * jax.random.normal(k, size, jnp.float32)
        for k, (name, size) in zip(keys, sizes.items(), strict=True)
    }
    return drawn | {"scales": jnp.ones((n, 2, d), jnp.float32)}


def normalized(x, scale):
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    return scale * x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-5)


def logits(params, tokens, heads):
    """Next-token scores (batch, length, vocabulary)."""
    length, width = tokens.shape[1], params["tokens"].shape[1]
    x = params["tokens"][tokens] + params["places"][:length]
    mask = jnp.tril(jnp.ones((length, length), bool))

    def block(x, w):
        qkv = normalized(x, w["scales"][0]) @ w["attend"]
        q, k, v = (
            part.reshape(*x.shape[:2], heads, -1) for part in jnp.split(qkv, 3, axis=-1)
        )
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / (width // heads) ** 0.5
        chances = jax.nn.softmax(jnp.where(mask, scores, -jnp.inf))
        mixed = jnp.einsum("bhqk,bkhd->bqhd", chances, v).reshape(x.shape)
        x = x + mixed @ w["project"]
        hidden = jax.nn.gelu(normalized(x, w["scales"][1]) @ w["widen"])
        return x + hidden @ w["narrow"], None

    names = ("attend", "project", "widen", "narrow", "scales")
    x, _ = jax.lax.scan(block, x, {name: params[name] for name in names})
    return x @ params["tokens"].T


def training(shape, steps):
    """Adam on random tokens: the loss after `steps` updates, of the learning rate."""
    keys = jax.random.split(jax.random.key(0), 2)
    size = (steps, shape.batch, shape.length + 1)
    tokens = jax.random.randint(keys[1], size, 0, shape.vocabulary, jnp.int32)

    def loss(params, hyper, batch):
        scores = logits(params, batch[:, :-1], shape.heads)
        losses = optax.losses.softmax_cross_entropy_with_integer_labels(
            scores, batch[:, 1:]
        )
        return jnp.mean(losses)

    params = weights(shape, keys[0])
    return metalr.Unrolled(loss, optax.adam, params, steps=steps, batches=tokens)
