"""Settings of papers that more than one experiment measures."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

import metalr


def reversible_bits(
    momentum: float, *, steps: int, dtype: str
) -> metalr.ReversibleHyperGradient:
    """Exact reversal of momentum (Maclaurin et al. 2015) on 50 weights."""

    def loss(params: jax.Array, hyper: Any, batch: None) -> jax.Array:
        del hyper, batch
        return jnp.sum(jnp.cos(params))

    optimizer = lambda hyper: optax.sgd(hyper["rate"], hyper["momentum"])
    start = jnp.linspace(0.1, 2.0, 50, dtype=dtype)
    objective = metalr.Unrolled(loss, optimizer, start, steps=steps)
    engine = metalr.Reversible(min_momentum=momentum)
    hyper = {"rate": 0.01, "momentum": momentum}
    return metalr.hypergradient(objective, hyper, engine)


MIXED_SETTING = "tanh MLP, depth 8, width 32, T = 32, batch 512"


def mixed_mode_memory(*, seed: int, dtype: str) -> dict[str, int]:
    """Temporary bytes in the setting of Kemaev et al. (2025): `MIXED_SETTING`, Adam."""
    width, steps, batch = 32, 32, 512
    keys = jax.random.split(jax.random.key(seed), 3)
    weights = jax.random.normal(keys[0], (8, width, width), dtype) / width**0.5
    x, y = (jax.random.normal(k, (batch, width), dtype) for k in keys[1:])

    def loss(params: Any, hyper: Any, rows: Any) -> jax.Array:
        del hyper
        hidden = x[rows]
        for layer in params:
            hidden = jnp.tanh(hidden @ layer)
        return jnp.mean((hidden - y[rows]) ** 2)

    rows = jnp.broadcast_to(jnp.arange(batch), (steps, batch))

    def temp_bytes(checkpoints: int | None, engine: metalr.hypergrad.Engine) -> int:
        objective = metalr.Unrolled(
            loss,
            optax.adam,
            list(weights),
            steps=steps,
            batches=rows,
            checkpoints=checkpoints,
        )
        rate = jnp.asarray(1e-3, dtype)
        return metalr.profiling.memory(objective, rate, engine).temp_bytes

    return {
        "plain reverse": temp_bytes(None, metalr.Reverse()),
        "per-step rematerialization": temp_bytes(steps, metalr.Reverse()),
        "Mixed()": temp_bytes(None, metalr.Mixed()),
    }
