r"""Question: can per-step rates be learned through 5000 steps of a conv net in 1 GiB?

A small conv net on digits, Adam, a learning rate for each of T steps; the outer loss is
the cross-entropy on held-out digits. `plan` chooses the fastest engine whose temporary
memory fits the limit, without running anything; then the rates are learned through the
whole run. Claim: plain reverse mode needs more than the limit; the plan keeps it.

With `checkpoint_every`, the same command continues where it was stopped.
"""

import functools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from pydantic import PositiveFloat, PositiveInt

import metalr
from experiments._command.config import digest
from experiments._command.experiment import (
    ConfigError,
    ExperimentConfig,
    Record,
    output_folder,
)
from experiments._command.scan_progress import scan_progress, watched
from experiments._command.sources import code_version
from experiments._report.style import panels
from experiments.resume import in_chunks
from metalr import profiling
from metalr.convnet import Conv, Dense, Pool
from metalr.problems import classifier

_TRAINING = 1400
"""Digits to train on; the other 397 are held out."""


class Config(ExperimentConfig):
    """Options of this experiment."""

    experiment: Literal["long_unroll"] = "long_unroll"
    dtype: Literal["float64", "float32"] = "float32"
    steps: PositiveInt = 5000
    batch: PositiveInt = 64
    memory_limit: str = "1GiB"
    start: PositiveFloat = 1e-4  # every rate, at first
    outer_steps: PositiveInt = 4
    outer_learning_rate: PositiveFloat = 0.5  # of Adam, on the logarithms
    checkpoint_every: PositiveInt | None = None  # outer steps; null: no checkpoints


def run(config: Config) -> Iterator[Record]:
    """Yield what the plan considered, then a record for each outer step."""
    checkpoints = _checkpoints(config)
    objective = _objective(config)
    rates = jnp.full(config.steps, config.start, config.dtype)
    limit = profiling.parse_bytes(config.memory_limit)
    try:
        chosen = profiling.plan(objective, rates, memory_limit=limit)
    except ValueError as error:
        msg = f"memory_limit: {error}"
        raise ConfigError(msg) from error
    for candidate in chosen.candidates:
        needs = candidate.temp_bytes  # None where the engine refuses
        yield {
            "table": f"plan within {config.memory_limit}, fastest first",
            "engine": str(candidate.engine),
            "temp_mb": None if needs is None else needs / 1e6,
            "by": candidate.note or ("XLA" if candidate.compiled else "at least"),
            "cost": candidate.cost,
            "fits": needs is not None and needs <= limit,
            "chosen": candidate.engine == chosen.engine,
        }
    shown = 0
    with scan_progress("long_unroll", total=config.steps) as tell:
        learn = functools.partial(
            metalr.learn,
            watched(objective, tell),
            outer_optimizer=optax.adam(config.outer_learning_rate),
            engine=chosen.engine,
            log=True,
        )
        for learned in _chunks(learn, rates, config, checkpoints):
            for step in range(shown, int(learned.steps) + 1):
                yield _row(learned.history, step, config)
            shown = int(learned.steps) + 1


def _checkpoints(config: Config) -> Path | None:
    """Where they are kept, if at all: the same folder for each run of a config."""
    if config.checkpoint_every is None:
        return None
    folder = output_folder()
    if folder is None:
        msg = (
            f"checkpoint_every = {config.checkpoint_every}: checkpoints are kept by "
            "`python -m experiments run` alone; leave it out of a sweep"
        )
        raise ConfigError(msg)
    return folder / "checkpoints" / digest(config)


def _chunks(
    learn: Any, rates: jax.Array, config: Config, checkpoints: Path | None
) -> Iterator[metalr.Learned]:
    """All that is known after each chunk; one chunk without checkpoints."""
    if checkpoints is None or config.checkpoint_every is None:
        yield learn(rates, steps=config.outer_steps)
        return
    engine = learn.keywords["engine"]
    version = code_version(sys.modules[__name__])
    yield from in_chunks(
        learn,
        rates,
        folder=checkpoints,
        every=config.checkpoint_every,
        steps=config.outer_steps,
        fingerprint=f"config {digest(config)}, code {version}, {engine}",
    )


def _row(history: Any, step: int, config: Config) -> Record:
    schedule = history.hyper[step]
    return {
        "table": f"rates learned through {config.steps} steps",
        "outer_step": step,
        "held_out_loss": float(history.value[step]),
        "grad_norm": float(history.grad_norm[step]),
        "smallest_rate": float(jnp.min(schedule)),
        "largest_rate": float(jnp.max(schedule)),
        "rates": schedule.tolist(),
    }


def figures(records: Sequence[Record]) -> dict[str, Figure]:
    """The held-out loss against outer steps, and the schedules."""
    figure, (left, right) = panels(2)
    rows = [record for record in records if "rates" in record]
    left.plot([r["outer_step"] for r in rows], [r["held_out_loss"] for r in rows], "o-")
    left.set(xlabel="outer step", ylabel="held-out cross-entropy (nats)")
    for index in np.unique(np.linspace(0, len(rows) - 1, 6).astype(int)):
        row = rows[index]
        right.plot(row["rates"], linewidth=0.6, label=f"outer step {row['outer_step']}")
    right.set(yscale="log", xlabel="inner step s", ylabel="learning rate η_s")
    right.legend(fontsize=7)
    return {"long_unroll": figure}


def _objective(config: Config) -> metalr.Unrolled:
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    images = jnp.asarray(digits.images[..., None] / 16.0, config.dtype)
    labels = jnp.asarray(digits.target)
    layers = [Conv(8, 3), Pool(2), Conv(16, 3), Pool(2), Dense(10)]
    training = classifier(layers, images[:_TRAINING], labels[:_TRAINING])
    held_out = classifier(layers, images[_TRAINING:], labels[_TRAINING:])
    init, sample = jax.random.split(jax.random.key(config.seed))
    batches = jax.random.randint(sample, (config.steps, config.batch), 0, _TRAINING)
    return metalr.Unrolled(
        training,
        metalr.per_step(optax.adam),
        training.init(init),
        steps=config.steps,
        batches=batches,
        outer_loss=lambda params, hyper: held_out(params, hyper, None),
    )


if __name__ == "__main__":
    from experiments._command.cli import module_main

    raise SystemExit(module_main("long_unroll"))
