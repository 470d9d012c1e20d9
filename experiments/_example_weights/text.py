"""A tiny transformer on text that Python ships: the documentation of its language."""

import importlib
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments._command.experiment import ConfigError
from experiments._example_weights.runs import Data, Training, epochs

_TOKENS = 128
"""ASCII; anything else is 0."""


def python_topics() -> np.ndarray:
    """What `help("TOPIC")` shows, one topic after the other, as ASCII codes.

    Raises:
        ConfigError: if this Python was installed without it.
    """
    try:
        topics = importlib.import_module("pydoc_data.topics").topics
    except ImportError as error:
        msg = f"this Python comes without pydoc_data, the text to learn: {error}"
        raise ConfigError(msg) from error
    text = "\n".join(topics[name] for name in sorted(topics))
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    return np.where(codes < _TOKENS, codes, 0).astype(np.int32)


def windows(codes: np.ndarray, length: int, count: int, seed: int) -> Data:
    """`count` windows of text that do not overlap, drawn at random; labels follow."""
    places = len(codes) // (length + 1)
    if count > places:
        msg = f"{count} windows of {length + 1} characters need more text: {places} fit"
        raise ConfigError(msg)
    rows = np.random.default_rng(seed).permutation(places)[:count]
    cut = codes[: places * (length + 1)].reshape(places, length + 1)[rows]
    return Data(jnp.asarray(cut[:, :-1]), jnp.asarray(cut[:, 1:]))


def language_model(
    *,
    examples: int,
    held_out: int,
    length: int,
    width: int,
    blocks: int,
    batch: int,
    steps: int,
    optimizer: optax.GradientTransformation,
    dtype: str,
    seed: int,
) -> Training:
    """Next characters of windows of text by a causal transformer."""
    drawn = windows(python_topics(), length, examples + 2 * held_out, seed)
    cuts = (0, examples, examples + held_out, examples + 2 * held_out)
    parts = [drawn.taken(slice(*ends)) for ends in itertools.pairwise(cuts)]

    def each(params: Any, data: Data) -> jax.Array:
        losses = optax.softmax_cross_entropy_with_integer_labels(
            logits(params, data.inputs), data.labels
        )
        return jnp.mean(losses, axis=-1)

    def hits(params: Any, data: Data) -> jax.Array:
        found = jnp.argmax(logits(params, data.inputs), axis=-1)
        return jnp.mean(found == data.labels)

    params = transformer(jax.random.key(seed), length, width, blocks, dtype)
    order = epochs(seed, examples, batch * steps)
    train, outer, test = parts
    return Training(each, hits, optimizer, params, train, outer, test, batch, order)


def transformer(key: Any, length: int, width: int, blocks: int, dtype: str) -> Any:
    """Parameters of blocks of one-headed attention and a dense layer of 4 × width."""
    keys = iter(jax.random.split(key, 6 * blocks + 3))

    def normal(*shape: int, scale: float) -> jax.Array:
        return scale * jax.random.normal(next(keys), shape, dtype)

    root = width**-0.5
    return {
        "embed": normal(_TOKENS, width, scale=0.1),
        "place": normal(length, width, scale=0.1),
        "blocks": [
            {
                "qkv": normal(3, width, width, scale=root),
                "out": normal(width, width, scale=root),
                "up": normal(width, 4 * width, scale=root),
                "down": normal(4 * width, width, scale=0.5 * root),
            }
            for _ in range(blocks)
        ],
        "read": normal(width, _TOKENS, scale=root),
    }


def logits(params: Any, tokens: jax.Array) -> jax.Array:
    """(batch, length, tokens): each position sees what is before it."""
    length = tokens.shape[-1]
    x = params["embed"][tokens] + params["place"][:length]
    seen = jnp.tril(jnp.ones((length, length), bool))
    for block in params["blocks"]:
        q, k, v = jnp.einsum("bsi,cij->cbsj", _normalized(x), block["qkv"])
        scores = jnp.einsum("bsj,btj->bst", q, k) * q.shape[-1] ** -0.5
        mixed = jax.nn.softmax(jnp.where(seen, scores, -1e9), axis=-1) @ v
        x = x + mixed @ block["out"]
        x = x + jax.nn.gelu(_normalized(x) @ block["up"]) @ block["down"]
    return _normalized(x) @ params["read"]


def _normalized(x: jax.Array) -> jax.Array:
    """To mean 0 and variance 1 along the last axis."""
    centered = x - jnp.mean(x, axis=-1, keepdims=True)
    return centered * jax.lax.rsqrt(jnp.mean(centered**2, -1, keepdims=True) + 1e-5)
