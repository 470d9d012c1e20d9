"""What the guard costs where nothing can go wrong: against a scan written by hand.

Bytes, seconds of a run, and seconds until there is a program: tracing and lowering
(Python), and XLA's. Each is built anew `repeats` times, in turns, after a first round
that warms up, with what JAX remembers forgotten before; medians are compared.
"""

import dataclasses
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

import metalr
from experiments._command.experiment import Record
from experiments._engines.by_equinox import equinox
from experiments._engines.by_hand import many_rates, one_rate, scan_of_scans
from experiments._engines.options import Options
from experiments._engines.problem import mlp, unguarded
from experiments._engines.ways import Way, by_engine, in_turns
from metalr.profiling import compiled

TEMP, BUILD = 1.03, 1.5
"""At most so many times the bytes, and the seconds of building, of the first row."""


def building(options: Options) -> Iterator[Record]:
    """Forward mode for one rate, then checkpoints for a rate a step."""
    steps = options.steps
    forward = mlp(options, optax.adam, steps)
    by_hand = Way("by hand: jax.jvp of the scan", one_rate(forward))
    ways = [by_hand, *_ours(forward, _rooted, metalr.Forward())]
    title = f"until there is a program: a scalar rate, Adam, T = {steps}"
    yield from _compare(title, ways, jnp.asarray(1e-3, options.dtype), options)

    reverse = mlp(options, metalr.per_step(optax.adam), steps)
    places = max(1, round((2 * steps) ** 0.5))
    loop: Any = lambda step, start, indices: equinox().scan(
        step, start, indices, kind="checkpointed", checkpoints=places
    )
    ways = [
        Way(f"by hand: equinox, {places} checkpoints", many_rates(reverse, loop)),
        Way("by hand: scan of checkpointed scans", many_rates(reverse, scan_of_scans)),
        *_ours(reverse, metalr.per_step(_rooted), metalr.Reverse(checkpoints=places)),
    ]
    title = f"until there is a program: a rate a step, Adam, T = {steps}"
    rates = jnp.full(steps, 1e-3, options.dtype)
    yield from _compare(title, ways, rates, options)


def _rooted(rate: Any) -> optax.GradientTransformation:
    """Adam whose root cannot meet 0."""
    return optax.adam(rate, eps_root=1e-12)


def _ours(objective: metalr.Unrolled, rooted: Any, engine: Any) -> list[Way]:
    root = by_engine(dataclasses.replace(objective, optimizer=rooted), engine)
    return [
        by_engine(objective, engine),
        by_engine(unguarded(objective), engine),
        root._replace(name=f"{root.name}, eps_root=1e-12"),
    ]


def _compare(
    title: str, ways: Sequence[Way], hyper: Any, options: Options
) -> Iterator[Record]:
    built: list[list[Any]] = [[] for _ in ways]
    for _ in range(options.repeats + 1):
        for programs, way in zip(built, ways, strict=True):
            jax.clear_caches()
            programs.append(compiled(way.function, hyper))
    runs = [programs[-1].run for programs in built]
    seconds = in_turns(runs, hyper, options.repeats)
    median = lambda values: statistics.median(list(values)[1:])
    traces = [median(p.trace_seconds for p in programs) for programs in built]
    xla = [median(p.compile_seconds for p in programs) for programs in built]
    temps = [programs[-1].temp_bytes for programs in built]
    for index, way in enumerate(ways):
        whole = (traces[index] + xla[index]) / (traces[0] + xla[0])
        ours = not way.name.startswith("by hand")
        temp = temps[index] / temps[0]
        yield {
            "table": title,
            "way": way.name,
            "temp_mb": temps[index] / 1e6,
            "temp_over_by_hand": temp,
            "seconds": seconds[index],
            "time_over_by_hand": seconds[index] / seconds[0],
            "trace_seconds": traces[index],
            "compile_seconds": xla[index],
            "build_over_by_hand": whole,
            "target": f"temp ≤ {TEMP} ×, building ≤ {BUILD} ×" if ours else "",
            "reached": temp <= TEMP and whole <= BUILD if ours else None,
        }
