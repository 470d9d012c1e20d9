"""Exact reversal: its cost against training, and the bits that it keeps."""

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax

import metalr
from experiments._command.experiment import Record
from experiments._engines.options import Options
from experiments._engines.problem import mlp
from experiments._engines.ways import Way, by_engine, compare, times
from experiments._settings.papers import reversible_bits


def momentum(options: Options) -> Iterator[Record]:
    """Rate and momentum, by exact reversal and by checkpoints."""

    def optimizer(hyper: Any) -> optax.GradientTransformation:
        return optax.sgd(hyper["rate"], hyper["momentum"])

    objective = mlp(options, optimizer, options.steps)
    for momentum in (0.98, 0.9):
        engine = metalr.Reversible(min_momentum=momentum)
        hyper = {"rate": jnp.float32(1e-3), "momentum": jnp.float32(momentum)}
        places = round(2 * options.steps**0.5)
        ways = [
            Way("training", objective),
            by_engine(objective, engine, times(4.0, 4.0)),
            by_engine(objective, metalr.Reverse(checkpoints=places)),
        ]
        title = f"momentum {momentum}, T = {options.steps}"
        rows = list(compare(title, ways, hyper, options))
        yield from rows
        # An exact reversal keeps W, V and their adjoints, and the bits that γ loses.
        weights = sum(leaf.size for leaf in jax.tree.leaves(objective.params))
        item = jnp.dtype(options.dtype).itemsize
        lost = options.steps * math.log2(1.0 / momentum)
        bound = weights * (lost / 8 + 4 * item)
        training, ours = (1e6 * row["temp_mb"] for row in rows[:2])
        yield {
            "table": "what an exact reversal must keep",
            "momentum": momentum,
            "T": options.steps,
            "bound_mb": bound / 1e6,
            "bound_over_training": bound / training,
            "this_over_bound": ours / bound,
        }


def bits(options: Options) -> Iterator[Record]:
    """Bits kept for each step and weight, against those published."""
    steps = options.long_steps
    for momentum, published in ((0.98, 0.029), (0.9, 0.152)):
        found = reversible_bits(momentum, steps=steps, dtype=options.dtype)
        yield {
            "table": f"exact reversal, T = {steps}",
            "momentum": momentum,
            "bits_per_step_and_weight": float(found.bits),
            "published": published,
            "bit_exact": bool(found.exact),
            "reached": bool(found.exact)
            and abs(float(found.bits) / published - 1) < 0.05,
        }
