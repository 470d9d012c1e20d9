"""Forward and reverse mode against the run itself, equinox, and each other."""

import math
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax

import metalr
from experiments._command.experiment import Record
from experiments._engines.by_equinox import loss_of
from experiments._engines.options import Options
from experiments._engines.problem import mlp, unguarded
from experiments._engines.ways import Bar, Way, by_engine, compare, times
from metalr.hypergrad.binomial import forward_steps
from metalr.profiling import compiled


def scalar(options: Options) -> Iterator[Record]:
    """One rate: forward mode; by hand it takes 1.86 × training's bytes (`building`)."""
    objective, rate = mlp(options, optax.adam, options.steps), jnp.float32(1e-3)
    ways = [
        Way("training", objective),
        by_engine(objective, metalr.Forward(), times(1.8, 2.3)),
        by_engine(unguarded(objective), metalr.Forward(), times(1.8, 2.3)),
    ]
    yield from compare(f"scalar rate, Adam, T = {options.steps}", ways, rate, options)


def per_step(options: Options) -> Iterator[Record]:
    """A rate for each step: reverse mode in as much memory as it is given."""
    steps = options.steps
    objective = mlp(options, metalr.per_step(optax.adam), steps)
    rates = jnp.full(steps, 1e-3, options.dtype)
    few, many = int(math.log2(steps)), round(2 * math.sqrt(steps))
    theirs = int(math.sqrt(2 * steps + 0.25) - 0.5)  # equinox's default
    equinox = lambda n: jax.value_and_grad(loss_of(objective, n))
    plain = by_engine(objective, metalr.Reverse())
    log = by_engine(objective, metalr.Reverse(checkpoints=few), times(8.0, 6.5))
    same = by_engine(objective, metalr.Reverse(checkpoints=theirs))
    ways = [
        Way("training", objective),
        log,
        by_engine(
            unguarded(objective), metalr.Reverse(checkpoints=few), times(8.0, 6.5)
        ),
        same,
        by_engine(
            objective,
            metalr.Reverse(checkpoints=many),
            Bar("temp ≤ 1/30 and time ≤ 1 × plain reverse", 1 / 30, 1.0, plain.name),
        ),
        plain,
        Way(
            f"equinox, default ({theirs}) checkpoints",
            equinox(None),
            Bar("ours is no worse", 1.0, 1.0, same.name, ours=True),
        ),
        Way(
            f"equinox, {few} checkpoints",
            equinox(few),
            Bar("ours is no worse", 1.0, 1.0, log.name, ours=True),
        ),
    ]
    title = f"{steps} per-step rates, Adam, T = {steps}"
    yield from compare(title, ways, rates, options)
    yield {
        "table": "recomputation by the formula",
        "checkpoints": many,
        "T": steps,
        "further_runs": forward_steps(steps, many) / steps - 1.0,
        "target": "≤ 1",
        "reached": forward_steps(steps, many) <= 2 * steps,
    }


def long(options: Options) -> Iterator[Record]:
    """Ten thousand steps in the memory of a few states."""
    steps = options.long_steps
    objective = mlp(options, metalr.per_step(optax.adam), steps)
    rates = jnp.full(steps, 1e-4, options.dtype)
    few = round(math.log2(steps))
    way = by_engine(objective, metalr.Reverse(checkpoints=few))
    program = compiled(way.function, rates)
    temp = program.temp_bytes
    start = time.perf_counter()
    found: Any = jax.block_until_ready(program.run(rates))
    yield {
        "table": f"{steps} per-step rates, Adam, T = {steps}",
        "way": way.name,
        "temp_mb": temp / 1e6,
        "seconds": time.perf_counter() - start,
        "finite": bool(jnp.all(jnp.isfinite(found[1]))),
        "target": "≤ 100 MiB, completes",
        "reached": temp <= 100 * 2**20 and bool(jnp.all(jnp.isfinite(found[1]))),
    }
