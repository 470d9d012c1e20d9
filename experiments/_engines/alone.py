"""Parts with a problem of their own: mixed mode, and a batch of learning rates."""

import statistics
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import optax

import metalr
from experiments._command.experiment import Record
from experiments._engines.options import Options
from experiments._settings.papers import MIXED_SETTING, mixed_mode_memory
from metalr.problems import least_squares


def mixed(options: Options) -> Iterator[Record]:
    """Kemaev et al.'s setting."""
    temps = mixed_mode_memory(seed=options.seed, dtype=options.dtype)
    for name, temp in temps.items():
        yield {
            "table": f"mixed mode: {MIXED_SETTING}",
            "way": name,
            "temp_mb": temp / 1e6,
            "plain_over_this": temps["plain reverse"] / temp,
            "target": "≥ 10" if name == "Mixed()" else "",
            "reached": temps["plain reverse"] >= 10 * temp
            if name == "Mixed()"
            else None,
        }


def vmap(options: Options) -> Iterator[Record]:
    """64 rates at once against a loop over the compiled single one."""
    key = jax.random.key(options.seed)
    X = jax.random.normal(key, (100, 20), options.dtype) / 10
    loss = least_squares(X, X @ jnp.ones(20, options.dtype))
    start = jnp.zeros(20, options.dtype)
    objective = metalr.Unrolled(loss, optax.sgd, start, steps=100)
    rates = jnp.linspace(0.01, 1.0, 64, dtype=options.dtype)
    single = jax.jit(lambda h: metalr.hypergradient(objective, h))
    batched = jax.jit(jax.vmap(lambda h: metalr.hypergradient(objective, h)))
    ways = {
        "Python loop over the compiled single one": lambda: [single(r) for r in rates],
        "vmap": lambda: batched(rates),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(10 * options.repeats + 1):
        for name, function in ways.items():
            begin = time.perf_counter()
            jax.block_until_ready(function())
            if repeat:
                seconds[name].append(time.perf_counter() - begin)
    loop = statistics.median(seconds["Python loop over the compiled single one"])
    for name, times in seconds.items():
        ratio = loop / statistics.median(times)
        yield {
            "table": "64 learning rates, regression 100 × 20, T = 100",
            "way": name,
            "milliseconds": 1e3 * statistics.median(times),
            "times_faster": ratio,
            "target": "≥ 5" if name == "vmap" else "",
            "reached": ratio >= 5 if name == "vmap" else None,
        }
