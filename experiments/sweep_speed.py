r"""Question: how many points a second does a sweep make, batched and not?

A point is a run of `tuned_rate`: a learning rate learned by hypergradients, beside its
closed form. The same points are made as one vmapped program (in batches of several
sizes), one by one in this process (the program compiled once), and one process per
point: `python` starts, imports, compiles and runs a single point; alone, with as many
at once as `at_once`, and with JAX's compilation cache filled beforehand.
Ratios are within one run: the first round compiles and is stated apart, then the ways
take turns and medians are compared. Processes make `process_points` points a round, the
others all of theirs.

Claim: a batch makes more points a second than one by one, and that more than a process
for each point; every way gives the same rates.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

import jax
from matplotlib.figure import Figure
from pydantic import PositiveInt

from experiments import tuned_rate
from experiments._command.experiment import Record
from experiments._report.style import panels
from experiments._settings.data import RegressionConfig

Points: TypeAlias = Sequence[tuned_rate.Config]


class Config(RegressionConfig):
    """Options of this experiment."""

    experiment: Literal["sweep_speed"] = "sweep_speed"
    steps: tuple[PositiveInt, ...] = (1, 10, 100)
    optimizer: Literal["sgd", "heavy_ball", "nesterov"] = "sgd"
    batches: tuple[PositiveInt, ...] = (4, 16, 64, 256)
    points: PositiveInt = 64  # one by one
    process_points: PositiveInt = 2  # in processes of their own, each round
    at_once: PositiveInt = 2  # processes, where several run together
    repeats: PositiveInt = 3


class Way(NamedTuple):
    """One way to make points."""

    name: str
    points: Points
    make: Callable[[Points], list[float]]  # the learned rates
    size: int  # points that one program or process makes


def run(config: Config) -> Iterator[Record]:
    """Yield one record for each way, horizon by horizon."""
    with tempfile.TemporaryDirectory() as folder:
        for steps in config.steps:
            yield from _measure(_ways(config, steps, folder), steps, config.repeats)


def child() -> None:
    """One point in a process of its own: the config on stdin, the rate on stdout."""
    config = tuned_rate.Config.model_validate_json(sys.stdin.read())
    with jax.enable_x64(config.dtype == "float64"):
        sys.stdout.write(json.dumps(_one_by_one([config])))


def figures(records: Sequence[Record]) -> dict[str, Figure]:
    """Points a second against the batch's size, the other ways as levels."""
    horizons = list(dict.fromkeys(record["T"] for record in records))
    figure, axes = panels(len(horizons))
    for axis, steps in zip(axes, horizons, strict=True):
        rows = [record for record in records if record["T"] == steps]
        batched = [row for row in rows if row["way"].startswith("batch of")]
        sizes = [row["batch"] for row in batched]
        axis.plot(sizes, [r["points_per_second"] for r in batched], "o-", label="batch")
        others = [row for row in rows if row not in batched]
        for index, row in enumerate(others, start=1):
            style = {"color": f"C{index}", "linestyle": "--", "label": row["way"]}
            axis.axhline(row["points_per_second"], **style)
        axis.set(xscale="log", yscale="log", title=f"T = {steps}")
        axis.set(xlabel="points in a batch", ylabel="points a second")
        axis.set_xticks(sizes, [str(size) for size in sizes])
        axis.minorticks_off()
        axis.legend(fontsize=6)
    return {"sweep_speed": figure}


def _ways(config: Config, steps: int, folder: str) -> list[Way]:
    point = tuned_rate.Config(
        data=config.data,
        data_seed=config.seed,
        dtype=config.dtype,
        steps=steps,
        optimizer=config.optimizer,
    )
    most = max(*config.batches, config.points, config.process_points)
    points = [point.model_copy(update={"seed": seed}) for seed in range(most)]
    few, together = points[: config.process_points], config.at_once
    cache = {
        "JAX_COMPILATION_CACHE_DIR": folder,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    name = "a process each"
    return [
        *(Way(f"batch of {n}", points[:n], _batched, n) for n in config.batches),
        Way("one by one", points[: config.points], _one_by_one, 1),
        Way(name, few, lambda few: _processes(few, 1, {}), 1),
        Way(
            f"{name}, {together} at once", few, lambda f: _processes(f, together, {}), 1
        ),
        Way(
            f"{name}, {together} at once, compiled before",
            few,
            lambda few: _processes(few, together, cache),
            1,
        ),
    ]


def _measure(ways: Sequence[Way], steps: int, repeats: int) -> Iterator[Record]:
    seconds: dict[str, list[float]] = {way.name: [] for way in ways}
    rates: dict[str, list[float]] = {}
    for _ in range(repeats + 1):
        for way in ways:
            begin = time.perf_counter()
            rates[way.name] = way.make(way.points)
            seconds[way.name].append(time.perf_counter() - begin)
    each = {
        way.name: statistics.median(seconds[way.name][1:]) / len(way.points)
        for way in ways
    }
    fastest = min(each.values())
    truth = max(rates.values(), key=len)
    for way in ways:
        pairs = zip(rates[way.name], truth, strict=False)
        yield {
            "T": steps,
            "way": way.name,
            "batch": way.size,
            "points": len(way.points),
            "compilation_seconds": _compilation(way, seconds[way.name]),
            "milliseconds_per_point": 1e3 * each[way.name],
            "points_per_second": 1.0 / each[way.name],
            "times_slower_than_fastest": each[way.name] / fastest,
            "largest_difference": max(abs(a / b - 1.0) for a, b in pairs),
        }


def _compilation(way: Way, seconds: Sequence[float]) -> float | None:
    """What the first round took longer; None where each point compiles for itself."""
    if way.make not in {_batched, _one_by_one}:
        return None
    return max(seconds[0] - statistics.median(seconds[1:]), 0.0)


def _batched(points: Points) -> list[float]:
    batch = tuned_rate.run_batch(points)
    return [record["eta_learned"] for (record,) in batch]


def _one_by_one(points: Points) -> list[float]:
    return [r["eta_learned"] for point in points for r in tuned_rate.run(point)]


def _processes(
    points: Points, at_once: int, environment: Mapping[str, str]
) -> list[float]:
    root = str(Path(__file__).parents[1])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    variables = {**os.environ, "PYTHONPATH": path, **environment}

    def one(point: tuned_rate.Config) -> float:
        code = "from experiments.sweep_speed import child; child()"
        done = subprocess.run(
            [sys.executable, "-c", code],
            input=point.model_dump_json(),
            env=variables,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            msg = f"the process of seed {point.seed} failed:\n{done.stderr}"
            raise RuntimeError(msg)
        return json.loads(done.stdout)[0]

    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(one, points))


if __name__ == "__main__":
    from experiments._command.cli import module_main

    raise SystemExit(module_main("sweep_speed"))
