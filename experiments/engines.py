r"""Question: what do the engines cost, in memory and time, against training itself?

An MLP 784-256-10 in minibatches of 128 (made-up data), Adam or momentum, T steps; the
peers are plain reverse mode and equinox's checkpointed loop (extra `bench`). Ratios are
within one run: programs are compiled first, then run in turns, medians are compared.
Each row has the target that this project set itself, and whether it was reached.
"""

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from matplotlib.figure import Figure
from pydantic import PositiveInt

import metalr
from experiments._command.experiment import ConfigError, ExperimentConfig, Record
from experiments._report.style import panels
from experiments._settings.papers import (
    MIXED_SETTING,
    mixed_mode_memory,
    reversible_bits,
)
from metalr.convnet import Dense
from metalr.hypergrad.binomial import forward_steps
from metalr.problems import classifier, least_squares
from metalr.profiling import compiled


class Config(ExperimentConfig):
    """Options of this experiment."""

    experiment: Literal["engines"] = "engines"
    dtype: Literal["float64", "float32"] = "float32"
    steps: PositiveInt = 1000
    long_steps: PositiveInt = 10_000
    repeats: PositiveInt = 3
    hidden: PositiveInt = 256
    batch: PositiveInt = 128
    parts: tuple[
        Literal["scalar", "per_step", "momentum", "long", "mixed", "bits", "vmap"], ...
    ] = ("scalar", "per_step", "momentum", "mixed", "bits", "vmap", "long")


class Bar(NamedTuple):
    """What a way should reach: at most so many times the memory and time of another."""

    text: str
    temp: float
    time: float
    other: str = "training"  # the name of the other way
    ours: bool = False  # it is the other way, ours, that should be no worse than this


class Way(NamedTuple):
    """One way to compute something: a function of hyper, and what it should reach."""

    name: str
    function: Callable[[Any], Any]
    bar: Bar | None = None


def run(config: Config) -> Iterator[Record]:
    """Yield the rows of each part as they are measured."""
    if "per_step" in config.parts:
        _equinox()  # a missing extra is said before anything runs
    for part in config.parts:
        yield from _PARTS[part](config)


def figures(records: Sequence[Record]) -> dict[str, Figure]:
    """Memory and time of each way, as multiples of training."""
    rows = [
        record
        for record in records
        if record.get("time_ratio") and record["way"] != "training"
    ]
    figure, (axes, key) = panels(2, height=4.5)
    for index, row in enumerate(rows):
        axes.plot(
            row["temp_ratio"],
            row["time_ratio"],
            "os^Dv"[index % 5],
            color=f"C{index % 7}",
            label=f"{row['way']} ({row['table'].partition(',')[0]})",
        )
    axes.plot(1.0, 1.0, "k*", label="training")
    axes.set(xscale="log", xlabel="temporary memory (× training's)")
    axes.set(ylabel="time (× training's)")
    key.legend(*axes.get_legend_handles_labels(), loc="center left")
    key.axis("off")
    return {"engines": figure}


def _scalar(config: Config) -> Iterator[Record]:
    objective, rate = _mlp(config, optax.adam, config.steps), jnp.float32(1e-3)
    ways = [
        Way("training", objective),
        _engine(objective, metalr.Forward(), _times(1.8, 2.3)),
        _engine(_unguarded(objective), metalr.Forward(), _times(1.8, 2.3)),
    ]
    yield from _compare(f"scalar rate, Adam, T = {config.steps}", ways, rate, config)


def _per_step(config: Config) -> Iterator[Record]:
    steps = config.steps
    objective = _mlp(config, metalr.per_step(optax.adam), steps)
    rates = jnp.full(steps, 1e-3, config.dtype)
    few, many = int(math.log2(steps)), round(2 * math.sqrt(steps))
    theirs = int(math.sqrt(2 * steps + 0.25) - 0.5)  # equinox's default
    equinox = lambda n: jax.value_and_grad(_equinox_loss(objective, n))
    plain = _engine(objective, metalr.Reverse())
    log = _engine(objective, metalr.Reverse(checkpoints=few), _times(8.0, 6.5))
    same = _engine(objective, metalr.Reverse(checkpoints=theirs))
    ways = [
        Way("training", objective),
        log,
        _engine(
            _unguarded(objective), metalr.Reverse(checkpoints=few), _times(8.0, 6.5)
        ),
        same,
        _engine(
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
    yield from _compare(title, ways, rates, config)
    yield {
        "table": "recomputation by the formula",
        "checkpoints": many,
        "T": steps,
        "further_runs": forward_steps(steps, many) / steps - 1.0,
        "target": "≤ 1",
        "reached": forward_steps(steps, many) <= 2 * steps,
    }


def _momentum(config: Config) -> Iterator[Record]:
    def optimizer(hyper: Any) -> optax.GradientTransformation:
        return optax.sgd(hyper["rate"], hyper["momentum"])

    objective = _mlp(config, optimizer, config.steps)
    for momentum in (0.98, 0.9):
        engine = metalr.Reversible(min_momentum=momentum)
        hyper = {"rate": jnp.float32(1e-3), "momentum": jnp.float32(momentum)}
        ways = [
            Way("training", objective),
            _engine(objective, engine, _times(4.0, 4.0)),
            _engine(
                objective, metalr.Reverse(checkpoints=round(2 * config.steps**0.5))
            ),
        ]
        title = f"momentum {momentum}, T = {config.steps}"
        rows = list(_compare(title, ways, hyper, config))
        yield from rows
        # An exact reversal keeps W, V and their adjoints, and the bits that γ loses.
        weights = sum(leaf.size for leaf in jax.tree.leaves(objective.params))
        item = jnp.dtype(config.dtype).itemsize
        bits = config.steps * math.log2(1.0 / momentum)
        bound = weights * (bits / 8 + 4 * item)
        training, ours = (1e6 * row["temp_mb"] for row in rows[:2])
        yield {
            "table": "what an exact reversal must keep",
            "momentum": momentum,
            "T": config.steps,
            "bound_mb": bound / 1e6,
            "bound_over_training": bound / training,
            "this_over_bound": ours / bound,
        }


def _long(config: Config) -> Iterator[Record]:
    steps = config.long_steps
    objective = _mlp(config, metalr.per_step(optax.adam), steps)
    rates = jnp.full(steps, 1e-4, config.dtype)
    few = round(math.log2(steps))
    way = _engine(objective, metalr.Reverse(checkpoints=few))
    program = compiled(way.function, rates)
    temp = program.temp_bytes
    start = time.perf_counter()
    found = jax.block_until_ready(program.run(rates))
    yield {
        "table": f"{steps} per-step rates, Adam, T = {steps}",
        "way": way.name,
        "temp_mb": temp / 1e6,
        "seconds": time.perf_counter() - start,
        "finite": bool(jnp.all(jnp.isfinite(found[1]))),
        "target": "≤ 100 MiB, completes",
        "reached": temp <= 100 * 2**20 and bool(jnp.all(jnp.isfinite(found[1]))),
    }


def _mixed(config: Config) -> Iterator[Record]:
    """Kemaev et al.'s setting."""
    temps = mixed_mode_memory(seed=config.seed, dtype=config.dtype)
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


def _bits(config: Config) -> Iterator[Record]:
    steps = config.long_steps
    for momentum, published in ((0.98, 0.029), (0.9, 0.152)):
        found = reversible_bits(momentum, steps=steps, dtype=config.dtype)
        yield {
            "table": f"exact reversal, T = {steps}",
            "momentum": momentum,
            "bits_per_step_and_weight": float(found.bits),
            "published": published,
            "bit_exact": bool(found.exact),
            "reached": bool(found.exact)
            and abs(float(found.bits) / published - 1) < 0.05,
        }


def _vmap(config: Config) -> Iterator[Record]:
    key = jax.random.key(config.seed)
    X = jax.random.normal(key, (100, 20), config.dtype) / 10
    loss = least_squares(X, X @ jnp.ones(20, config.dtype))
    start = jnp.zeros(20, config.dtype)
    objective = metalr.Unrolled(loss, optax.sgd, start, steps=100)
    rates = jnp.linspace(0.01, 1.0, 64, dtype=config.dtype)
    single = jax.jit(lambda h: metalr.hypergradient(objective, h))
    batched = jax.jit(jax.vmap(lambda h: metalr.hypergradient(objective, h)))
    ways = {
        "Python loop over the compiled single one": lambda: [single(r) for r in rates],
        "vmap": lambda: batched(rates),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(10 * config.repeats + 1):
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


_PARTS = {
    "scalar": _scalar,
    "per_step": _per_step,
    "momentum": _momentum,
    "long": _long,
    "mixed": _mixed,
    "bits": _bits,
    "vmap": _vmap,
}


def _mlp(config: Config, optimizer: Any, steps: int) -> metalr.Unrolled:
    keys = jax.random.split(jax.random.key(config.seed), 4)
    inputs = jax.random.normal(keys[0], (2000, 784), config.dtype)
    labels = jax.random.randint(keys[1], (2000,), 0, 10)
    loss = classifier([Dense(config.hidden), Dense(10)], inputs, labels)
    batches = jax.random.randint(keys[2], (steps, config.batch), 0, 2000)
    return metalr.Unrolled(
        loss, optimizer, loss.init(keys[3]), steps=steps, batches=batches
    )


def _times(temp: float, time: float) -> Bar:
    """At most so many times training's memory and time."""
    return Bar(f"temp ≤ {temp} ×, time ≤ {time} ×", temp, time)


def _engine(
    objective: metalr.Unrolled, engine: metalr.hypergrad.Engine, bar: Bar | None = None
) -> Way:
    def function(hyper: Any) -> Any:
        value, grad = metalr.hypergradient(objective, hyper, engine)
        return value, grad

    name = str(engine) + ("" if objective.guarded else ", guarded=False")
    return Way(name, function, bar)


def _unguarded(objective: metalr.Unrolled) -> metalr.Unrolled:
    """As JAX differentiates it: cheaper, and nan where a coordinate is dead."""
    return dataclasses.replace(objective, guarded=False)


def _compare(
    title: str, ways: Sequence[Way], hyper: Any, config: Config
) -> Iterator[dict[str, Any]]:
    """Compile all, then run them in turns; ratios to the first."""
    programs = [compiled(way.function, hyper) for way in ways]
    seconds: list[list[float]] = [[] for _ in ways]
    for _ in range(config.repeats):
        for times, program in zip(seconds, programs, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(program.run(hyper))
            times.append(time.perf_counter() - start)
    temps = [program.temp_bytes for program in programs]
    medians = [statistics.median(times) for times in seconds]
    pairs = zip(temps, medians, strict=True)
    measured = dict(zip([way.name for way in ways], pairs, strict=True))
    for way in ways:
        temp, median = measured[way.name]
        yield {
            "table": title,
            "way": way.name,
            "temp_mb": temp / 1e6,
            "temp_ratio": temp / temps[0],
            "seconds": median,
            "time_ratio": median / medians[0],
            "target": "" if way.bar is None else way.bar.text,
            "reached": None if way.bar is None else _reached(way, way.bar, measured),
        }


def _reached(way: Way, bar: Bar, measured: Mapping[str, tuple[int, float]]) -> bool:
    low, high = measured[way.name], measured[bar.other]
    if bar.ours:
        low, high = high, low
    return low[0] <= bar.temp * high[0] and low[1] <= bar.time * high[1]


def _equinox() -> Any:
    try:
        import equinox.internal as eqxi
    except ImportError as error:
        msg = "the part per_step compares with equinox: pip install -e '.[bench]'"
        raise ConfigError(msg) from error
    return eqxi


def _equinox_loss(
    objective: metalr.Unrolled, checkpoints: int | None
) -> Callable[[Any], jax.Array]:
    """The same run through equinox's checkpointed scan."""

    def loss(hyper: Any) -> jax.Array:
        def step(state: Any, index: jax.Array) -> tuple[Any, None]:
            return objective.step(hyper, state, index)[0], None

        last, _ = _equinox().scan(
            step,
            objective.init(hyper),
            jnp.arange(objective.steps),
            kind="checkpointed",
            checkpoints=checkpoints,
        )
        return objective.evaluate(hyper, last)

    return loss


if __name__ == "__main__":
    from experiments._command.cli import module_main

    raise SystemExit(module_main("engines"))
