"""What a call of `hypergradient` outside `jit` costs beside a trivial compiled one."""

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax

import metalr
from experiments._command.experiment import Record
from experiments._engines.options import Options

_CALLS = 200
"""Calls that are timed together."""


def calling(options: Options) -> Iterator[Record]:
    """Two steps on one number: nothing but the way to the program takes time."""

    def loss(params: Any, hyper: Any, batch: None) -> jax.Array:
        del hyper, batch
        return 0.5 * params**2

    start = jnp.ones((), options.dtype)
    objective = metalr.Unrolled(loss, optax.sgd, start, steps=2)
    rate, engine = jnp.asarray(0.5, options.dtype), metalr.Forward()
    trivial = jax.jit(lambda x: x + 1)
    ways: dict[str, Callable[[], Any]] = {
        "jax.jit(lambda x: x + 1)": lambda: trivial(rate),
        "hypergradient": lambda: metalr.hypergradient(objective, rate, engine),
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(20 * options.repeats + 1):
        for name, call in ways.items():
            begin = time.perf_counter()
            for _ in range(_CALLS - 1):
                call()
            jax.block_until_ready(call())
            seconds = (time.perf_counter() - begin) / _CALLS
            if repeat:
                taken[name].append(seconds)
    least = statistics.median(taken["jax.jit(lambda x: x + 1)"])
    for name, each in taken.items():
        ratio = statistics.median(each) / least
        yield {
            "table": "a call outside jit, compiled before",
            "way": name,
            "microseconds": 1e6 * statistics.median(each),
            "trivial_calls": ratio,
            "target": "≤ 3" if name == "hypergradient" else "",
            "reached": ratio <= 3.0 if name == "hypergradient" else None,
        }
