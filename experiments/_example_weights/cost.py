"""What the metagradient costs: against training, plain reverse and hand-written JAX."""

import statistics
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax

import metalr
from experiments._command.experiment import Record
from experiments._example_weights import by_hand, problems, runs
from experiments._example_weights.settings import Settings
from experiments._settings.beside import beside
from metalr.profiling import compiled
from metalr.profiling.measure import program_of, timed


def size(config: Settings) -> int:
    """Records of `cost`."""
    return 4 * len(_horizons(config))


def cost(config: Settings) -> Iterator[Record]:
    """Bytes and seconds of each engine's program, beside those of a training."""
    training, name = _last(config)
    ones = runs.uniform(training)
    ways = (None, metalr.Reverse(), *problems.engines(config))
    for horizon in _horizons(config):
        objective = runs.objective(training, horizon)
        plain = trained = None
        for way in ways:
            program = program_of(objective, ones, way)
            row: dict[str, Any] = {
                "table": f"cost of the {name}",
                "T": horizon,
                "way": str(way or "training (no derivative)"),
                "temp_bytes": program.temp_bytes,
            }
            if way is not None:
                plain = plain or program.temp_bytes
                row["part_of_plain_reverse"] = program.temp_bytes / plain
            if config.repeats:
                times = timed(program.run, objective, ones, config.repeats)
                seconds = statistics.median(times)
                trained = trained or seconds
                row |= {"seconds": seconds, "times_training": seconds / trained}
            yield row


def by_hand_size(config: Settings) -> int:
    """Records of `beside_hand_written`."""
    return 1 + (config.text is not None)


def beside_hand_written(config: Settings) -> Iterator[Record]:
    """The same value and gradient in plain JAX: how near, how long, how dear."""
    problem = [("conv net", problems.vision(config), config.vision.steps)]
    if config.text:
        steps = config.text.cost_steps[-1]
        problem.append(("transformer", problems.language(config), steps))
    engine = problems.engines(config)[0]
    for name, training, steps in problem:
        ones = runs.uniform(training)
        ours = compiled(partial(metagradient, training, steps, engine), ones)
        theirs = compiled(partial(by_hand.metagradient, training, steps), ones)
        yield {
            "table": "beside hand-written JAX",
            "run": name,
            "T": steps,
            "engine": str(engine),
            **beside(
                ours.run,
                theirs.run,
                ones,
                written=(metagradient, runs.objective),
                by_hand=(by_hand.metagradient,),
                rounds=max(1, config.repeats),
            ),
            "temp_bytes": ours.temp_bytes,
            "temp_bytes_by_hand": theirs.temp_bytes,
        }


def metagradient(
    run: runs.Training, steps: int, engine: Any, weights: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """All that a user writes, beside `runs.objective`."""
    value, grad = metalr.hypergradient(runs.objective(run, steps), weights, engine)
    return value, grad


def _horizons(config: Settings) -> tuple[int, ...]:
    return config.text.cost_steps if config.text else (config.vision.steps,)


def _last(config: Settings) -> tuple[runs.Training, str]:
    """The transformer, if there is one."""
    if config.text:
        return problems.language(config), "transformer"
    return problems.vision(config), "conv net"
