r"""Question: what does a hypergradient cost by metalr, and by what else one would use?

The same work (a 100 × 20 regression and an MLP 64-256-1 on 512 examples; the same
float32 numbers, from one file) by metalr's engines, a hand-written optax `scan`,
optimistix, jaxopt, higher and torchopt (extra `bench`; a peer that is missing is a row
that says so). Each measurement is a process of its own on `threads` cores, in turns.

Verdict: against float64 hypergradients that finite differences confirm. Time: median of
the calls after the first; the first call includes compilation. Memory: what the peak of
the process (VmHWM) rose during the first call, after imports and compilation, and for
JAX no less than XLA's own accounting (memory that the process had already does not
show as a rise). Ratios are to the best of metalr's engines in the same case: of
time to the fastest, of memory to the smallest; below 0.1 MB memory is not resolved.
Linux only.

Claims: every exact engine gives the float64 hypergradient. For one rate at the longest
horizon the PyTorch peers take 20 × the time of `Forward()` where products are small
(the regression) and no less where one matrix product dominates (the MLP), there with
100 × its memory; the JAX peers take no less of its memory, by XLA's accounting, which
is exact, and no less of its time on the MLP (on the regression an optax scan is as
fast).
"""

import importlib.util
import math
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.figure import Figure
from pydantic import Field, PositiveFloat, PositiveInt

from experiments._command.experiment import ConfigError, ExperimentConfig, Record
from experiments._peers import work
from experiments._peers.judge import Answer, verdict
from experiments._peers.parent import fresh
from experiments._peers.summary import FLOOR_MB, Row, summary
from experiments._peers.ways import BY_NAME, WAYS, Way
from experiments._report.style import panels


class Config(ExperimentConfig):
    """Options of this experiment."""

    experiment: Literal["peers"] = "peers"
    dtype: Literal["float64", "float32"] = "float32"  # that of the work: only float32
    problems: tuple[work.Problem, ...] = ("regression", "mlp")
    optimizers: tuple[work.Optimizer, ...] = ("sgd", "adam")
    learned: tuple[work.Learned, ...] = ("scalar", "per_step")
    steps: tuple[int, ...] = Field((100, 1000), min_length=1)
    ways: tuple[str, ...] = tuple(way.name for way in WAYS)
    repeats: PositiveInt = 1  # processes for each row …
    aim_repeats: PositiveInt = 3  # … and where the aim is judged: scalar, longest
    calls: PositiveInt = 10  # timed calls in a process, at most
    seconds: PositiveFloat = 5.0  # of timed calls in a process; at least one is made
    threads: PositiveInt = 2
    time_limit: PositiveFloat = 120.0  # seconds of a process
    memory_limit_gb: PositiveFloat = 12.0  # of a process
    tolerance: PositiveFloat = 1e-3  # relative error that counts as right


def size(config: Config) -> int:
    """Records that `run` yields: measurements, then the summary's rows."""
    plan = [(case, len(_ways(case, config))) for case in _cases(config)]
    return sum(count * (_repeats(case, config) + 1) for case, count in plan)


def run(config: Config) -> Iterator[Record]:
    """Yield each measurement as it is made, then the summary."""
    _check(config)
    with tempfile.TemporaryDirectory() as folder:
        for case in _cases(config):
            rows = [Row(way, case, [], [], []) for way in _ways(case, config)]
            yield from _measure(rows, config, Path(folder))
            yield from summary(rows, aimed=_aimed(case, config))


def figures(records: Sequence[Record]) -> dict[str, Figure]:
    """Time against memory of each way, where the answer is right."""
    rows = [record for record in records if record.get("verdict") == "right"]
    cases = _drawn(rows)
    if not cases:
        return {}
    figure, axes = panels(min(2, len(cases)), math.ceil(len(cases) / 2), height=3.8)
    for panel, case in zip(axes, cases, strict=False):
        of_case = [row for row in rows if row["table"] == case]
        for index, row in enumerate(of_case):
            ours = row["way"].startswith("metalr")
            color, marker = ("C0", "o") if ours else ("C1", "s")
            at = max(row["memory_mb"], FLOOR_MB), row["ms"]
            panel.plot(*at, marker, color=color, markersize=6)
            panel.annotate(
                row["way"].removeprefix("metalr "),
                at,
                fontsize=6,
                xytext=(5, 3 if index % 2 else -7),
                textcoords="offset points",
            )
        panel.set(xscale="log", yscale="log", title=case)
        panel.set(xlabel=f"memory (MB; not resolved below {FLOOR_MB})")
        panel.set(ylabel="time of a hypergradient (ms)")
        panel.margins(x=0.25, y=0.15)
    for panel in axes[len(cases) :]:
        panel.set_visible(False)
    return {"peers": figure}


def _check(config: Config) -> None:
    if config.dtype != "float32":
        msg = f"dtype = {config.dtype!r}: the peers are compared in float32"
        raise ConfigError(msg)
    unknown = [name for name in config.ways if name not in BY_NAME]
    if unknown:
        msg = f"ways: {unknown[0]!r} must be one of {', '.join(map(repr, BY_NAME))}"
        raise ConfigError(msg)
    if min(config.steps) < 3:
        msg = f"steps = {list(config.steps)}: at least 3, for a run with one step less"
        raise ConfigError(msg)
    if not Path("/proc/self/clear_refs").exists():
        msg = "peers measures the peak of a process (VmHWM): it needs Linux"
        raise ConfigError(msg)


def _cases(config: Config) -> list[work.Case]:
    return [
        work.Case(problem, optimizer, learned, steps)
        for problem in config.problems
        for steps in config.steps
        for learned in config.learned
        for optimizer in config.optimizers
    ]


def _ways(case: work.Case, config: Config) -> list[Way]:
    return [way for way in WAYS if way.name in config.ways and way.applies(case)]


def _repeats(case: work.Case, config: Config) -> int:
    return max(config.repeats, config.aim_repeats * _aimed(case, config))


def _aimed(case: work.Case, config: Config) -> bool:
    """Whether the aim is judged here: one rate, the longest horizon."""
    return case.learned == "scalar" and case.steps == max(config.steps)


def _measure(rows: list[Row], config: Config, folder: Path) -> Iterator[Record]:
    """All ways in turns, as often as the case is repeated."""
    case = rows[0].case if rows else None
    if case is None:
        return
    path = str(folder / f"{case.problem}.npz")
    work.save(work.make_work(case.problem, config.seed), path)
    references, check = _references(case, path, config)
    for repeat in range(_repeats(case, config)):
        for row in rows:
            result = _ask(row.way, case, path, config)
            text, error = _judge(result, references, config)
            row.results.append(result)
            row.verdicts.append(text)
            row.errors.append(error)
            said = f"{case}: {row.way.name}, process {repeat + 1}: {text}"
            yield {
                "table": "measurements",
                "measurement": f"{said}{_figures_of(result)}",
                "result": {
                    "case": case._asdict(),
                    "way": row.way.name,
                    "verdict": text,
                    "error": error,
                    "reference_against_differences": check,
                    **{k: v for k, v in result.items() if k != "grad"},
                },
            }


def _ask(way: Way, case: work.Case, path: str, config: Config) -> dict[str, Any]:
    missing = [name for name in way.packages if importlib.util.find_spec(name) is None]
    if missing:
        return {"not_installed": missing[0]}
    return _fresh(way.name, case, path, config)


def _fresh(name: str, case: work.Case, path: str, config: Config) -> dict[str, Any]:
    request = {
        "way": name,
        "case": list(case),
        "work": path,
        "seed": config.seed,
        "threads": config.threads,
        "calls": config.calls,
        "seconds": config.seconds,
    }
    return fresh(
        request,
        time_limit=config.time_limit,
        memory_limit=1e9 * config.memory_limit_gb,
    )


def _references(
    case: work.Case, path: str, config: Config
) -> tuple[dict[int, Answer], float]:
    """The exact answers by horizon.

    Raises:
        RuntimeError: if they could not be computed, or finite differences disagree.
    """
    found = _fresh("reference", case, path, config)
    error = found.get("difference_error", math.inf)
    if not error < 1e-5:
        msg = f"no reference for {case}: {found if 'answers' not in found else error}"
        raise RuntimeError(msg)
    answers = {
        int(steps): Answer(answer["value"], np.asarray(answer["grad"]))
        for steps, answer in found["answers"].items()
    }
    return answers, error


def _judge(
    result: dict[str, Any], references: dict[int, Answer], config: Config
) -> tuple[str, float | None]:
    for key in ("failed", "too_slow", "not_installed"):
        if key in result:
            return f"{key.replace('_', ' ')}: {result[key]}", None
    answer = Answer(result["value"], np.asarray(result["grad"]))
    steps = sorted(references)[1]
    return verdict(answer, references, steps, config.tolerance)


def _figures_of(result: dict[str, Any]) -> str:
    if "seconds" not in result:
        return ""
    milliseconds = 1e3 * statistics.median(result["seconds"])
    return f", {milliseconds:.4g} ms, {result['peak_bytes'] / 1e6:.4g} MB"


def _drawn(rows: Sequence[Record]) -> list[str]:
    """The cases of the figure: the MLP's longest where there are, or the last one's."""
    cases = list(dict.fromkeys(row["table"] for row in rows))
    mlp = [case for case in cases if case.startswith("mlp")] or cases
    longest = [case.rpartition("= ")[2] for case in mlp]
    return [case for case in mlp if case.endswith(f"= {longest[-1]}")] if mlp else []


if __name__ == "__main__":
    from experiments._command.cli import module_main

    raise SystemExit(module_main("peers"))
