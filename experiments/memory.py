r"""Question: how does the memory of a hypergradient grow with the number of steps?

This is question 2.1.2 of the notes, answered by measurement: temporary bytes (XLA's
accounting) and seconds against T for every engine, on regression, an MLP and a conv
net, for one rate and for one rate a step. Claim: the exponent is 1 for plain reverse
and mixed mode, ½ with about 2√T states, near 0 (log T) with log₂T states, 0 for
forward mode; `Reversible()` grows linearly too, in bits (0.15 a step and weight at
momentum 0.9). What is predicted is the exponent of the model's bytes over the same
horizons: what each engine says that it keeps, and one step's work.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

import metalr
from experiments._command.config import Model
from experiments._command.experiment import ExperimentConfig, Record
from experiments._command.fresh_peak import fresh_peak
from experiments._report.style import panels
from experiments._settings.workloads import Learned, Problem, Workload, workload
from metalr import profiling


class Case(Model):
    """An inner problem, and what is learned of it."""

    problem: Problem
    learned: Learned = "scalar"


class Config(ExperimentConfig):
    """Options of this experiment."""

    experiment: Literal["memory"] = "memory"
    dtype: Literal["float64", "float32"] = "float32"
    cases: tuple[Case, ...] = (
        Case(problem="regression"),
        Case(problem="mlp_momentum"),
        Case(problem="mlp_adam"),
        Case(problem="mlp_adam", learned="per_step"),
        Case(problem="conv_adam"),
    )
    steps: tuple[PositiveInt, ...] = (10, 100, 1000, 3000, 10_000)
    repeats: NonNegativeInt = 1  # 0: bytes only
    memory_limit: str = "2GiB"  # above it a program is compiled, not run
    longest: PositiveFloat = 30_000  # steps' worth of training beyond which none is run
    check_steps: NonNegativeInt = (
        1000  # horizon of the check by a fresh process; 0: none
    )


def sqrt_states(steps: int) -> metalr.Reverse:
    """Binomial checkpointing with 2√T states: at most one further run."""
    return metalr.Reverse(checkpoints=round(2 * math.sqrt(steps)))


def log_states(steps: int) -> metalr.Reverse:
    """Binomial checkpointing with log₂T states."""
    return metalr.Reverse(checkpoints=max(1, round(math.log2(steps))))


class Way(NamedTuple):
    """An engine, or a family of engines."""

    engine: Any
    nested: bool = False  # the objective itself has checkpoints=2√T


WAYS = {
    "training (no derivative)": Way(None),
    "Forward()": Way(metalr.Forward()),
    "Forward(chunk=8)": Way(metalr.Forward(chunk=8)),
    "Reverse()": Way(metalr.Reverse()),
    "Mixed()": Way(metalr.Mixed()),
    "Unrolled(checkpoints=2√T)": Way(metalr.Reverse(), nested=True),
    "Reverse(checkpoints=2√T)": Way(sqrt_states),
    "Reverse(checkpoints=log₂T)": Way(log_states),
    "Reversible()": Way(metalr.Reversible()),
    "Truncated(last=10)": Way(metalr.Truncated(last=10)),
}


def size(config: Config) -> int:
    """Records that `run` yields, at most."""
    each = len(config.steps) + 1
    checks = len(_CHECKED) if config.check_steps else 0
    return sum(len(_ways(case)) * each for case in config.cases) + checks


def run(config: Config) -> Iterator[Record]:
    """Yield a record for each engine and horizon, then its exponent; then the check."""
    limit = profiling.parse_bytes(config.memory_limit)
    for case in config.cases:
        work = workload(
            case.problem, case.learned, dtype=config.dtype, seed=config.seed
        )
        for label in _ways(case):
            yield from _grow(config, case, work, label, limit)
    if config.check_steps:
        yield from _check(config)


def figures(records: Sequence[Record]) -> dict[str, Figure]:
    """Temporary bytes against T for each problem; dashed: the model."""
    rows = [record for record in records if record.get("temp_bytes")]
    titles = list(dict.fromkeys(row["table"] for row in rows))
    figure, axes = panels(min(len(titles), 2), math.ceil(len(titles) / 2), height=3.8)
    for panel, title in zip(axes, titles, strict=False):
        labels = dict.fromkeys(r["engine"] for r in rows if r["table"] == title)
        for label in labels:
            place = list(WAYS).index(label)
            color, marker = f"C{place}", "os"[place // 7]  # seven colors in the cycle
            mine = [r for r in rows if r["table"] == title and r["engine"] == label]
            steps = np.array([r["T"] for r in mine])
            panel.plot(
                steps,
                [r["temp_bytes"] for r in mine],
                marker + "-",
                color=color,
                label=label,
                markersize=4,
            )
            model = [r["predicted_bytes"] or np.nan for r in mine]
            panel.plot(steps, model, "--", color=color, linewidth=1)
        panel.set(xscale="log", yscale="log", title=title)
        panel.set(xlabel="horizon T (steps)", ylabel="temporary memory (bytes)")
        panel.legend(fontsize=6)
    for panel in axes[len(titles) :]:
        panel.axis("off")
    return {"memory": figure}


_CHECKED = (None, metalr.Forward(), metalr.Mixed(), metalr.Reverse())
"""What the fresh process measures: where the figures are large enough to be seen."""


def _ways(case: Case) -> list[str]:
    """Those that make sense: one tangent or many; momentum for exact reversal."""
    skipped = {"Forward()" if case.learned == "per_step" else "Forward(chunk=8)"}
    if case.problem != "mlp_momentum":
        skipped.add("Reversible()")
    return [label for label in WAYS if label not in skipped]


def _grow(
    config: Config, case: Case, work: Workload, label: str, limit: int
) -> Iterator[Record]:
    way = WAYS[label]

    def make(steps: int) -> metalr.Unrolled:
        objective = work.make(steps)
        if not way.nested:
            return objective
        return dataclasses.replace(objective, checkpoints=round(2 * math.sqrt(steps)))

    rows = []
    for row in profiling.growth_rows(
        make,
        config.steps,
        work.hyper,
        [way.engine],
        repeats=config.repeats,
        memory_limit=limit,
        longest=config.longest,
    ):
        rows.append(row)
        yield {
            "table": f"{case.problem}, {case.learned}",
            "engine": label,
            "T": row.steps,
            "temp_bytes": row.temp_bytes,
            "predicted_bytes": row.predicted_bytes,
            "compile_seconds": row.compile_seconds,
            "seconds": row.seconds,
            "note": row.note,
        }
    fitted = profiling.fit_exponent(rows)
    model = [row._replace(temp_bytes=row.predicted_bytes) for row in rows]
    yield {
        "table": "exponent of bytes against T (larger half of the horizons)",
        "problem": f"{case.problem}, {case.learned}",
        "engine": label,
        "exponent": fitted.value,
        "standard_error": fitted.error,
        "predicted": profiling.fit_exponent(model).value,
    }


def _check(config: Config) -> Iterator[Record]:
    work = workload("conv_adam", "scalar", dtype=config.dtype, seed=config.seed)
    steps = config.check_steps
    for engine in _CHECKED:
        found = profiling.memory(work.make(steps), work.hyper(steps), engine)
        try:
            peak, note = (
                fresh_peak("conv_adam", "scalar", steps, engine, config.dtype),
                "",
            )
        except RuntimeError as error:
            peak, note = None, str(error)
        yield {
            "table": f"conv_adam, scalar, T = {steps}: XLA against a fresh process",
            "engine": str(engine or "training"),
            "xla_temp_bytes": found.temp_bytes,
            "process_peak_bytes": peak,
            "note_": note,
        }


if __name__ == "__main__":
    from experiments._command.cli import module_main

    raise SystemExit(module_main("memory"))
