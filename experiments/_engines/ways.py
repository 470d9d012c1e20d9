"""Ways to compute the same, and their memory and time against the first of them."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax

import metalr
from experiments._engines.options import Options
from metalr.profiling import compiled


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


def times(temp: float, time: float) -> Bar:
    """At most so many times training's memory and time."""
    return Bar(f"temp ≤ {temp} ×, time ≤ {time} ×", temp, time)


def by_engine(
    objective: metalr.Unrolled, engine: metalr.hypergrad.Engine, bar: Bar | None = None
) -> Way:
    """The hypergradient by an engine."""

    def function(hyper: Any) -> Any:
        value, grad, *_ = metalr.hypergradient(objective, hyper, engine)
        return value, grad

    name = str(engine) + ("" if objective.guarded else ", guarded=False")
    return Way(name, function, bar)


def compare(
    title: str, ways: Sequence[Way], hyper: Any, options: Options
) -> Iterator[dict[str, Any]]:
    """Compile all, then run them in turns; ratios to the first."""
    programs = [compiled(way.function, hyper) for way in ways]
    temps = [program.temp_bytes for program in programs]
    medians = in_turns([program.run for program in programs], hyper, options.repeats)
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


def in_turns(
    runs: Sequence[Callable[[Any], Any]], hyper: Any, repeats: int
) -> list[float]:
    """Median seconds of each of several programs, run one after the other."""
    seconds: list[list[float]] = [[] for _ in runs]
    for _ in range(repeats):
        for taken, run in zip(seconds, runs, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(run(hyper))
            taken.append(time.perf_counter() - start)
    return [statistics.median(taken) for taken in seconds]


def _reached(way: Way, bar: Bar, measured: Mapping[str, tuple[int, float]]) -> bool:
    low, high = measured[way.name], measured[bar.other]
    if bar.ours:
        low, high = high, low
    return low[0] <= bar.temp * high[0] and low[1] <= bar.time * high[1]
