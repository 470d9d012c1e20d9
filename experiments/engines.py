r"""Question: what do the engines cost, in memory and time, against training itself?

An MLP 784-256-10 in minibatches of 128 (made-up data), Adam or momentum, T steps; the
peers are plain reverse mode and equinox's checkpointed loop (extra `bench`). Ratios are
within one run: programs are compiled first, then run in turns, medians are compared.
`compile` compares with loops written by hand, building included; `call` with a trivial
compiled function; `plan` with one training run of a conv net.
Each row has the target that this project set itself, and whether it was reached.

Claims: guarded or not, forward and checkpointed reverse mode take the bytes of loops
written by hand; plain reverse mode's memory is linear in T, theirs and that of an exact
reversal's states is not.
"""

from collections.abc import Iterator, Sequence
from typing import Literal, TypeAlias

from matplotlib.figure import Figure

from experiments._command.experiment import Record
from experiments._engines import (
    against_training,
    alone,
    building,
    calling,
    momentum,
    planning,
)
from experiments._engines.by_equinox import equinox
from experiments._engines.options import Options
from experiments._report.style import panels

Part: TypeAlias = Literal[
    "scalar",
    "per_step",
    "momentum",
    "long",
    "mixed",
    "bits",
    "vmap",
    "compile",
    "call",
    "plan",
]


class Config(Options):
    """Options of this experiment."""

    experiment: Literal["engines"] = "engines"
    parts: tuple[Part, ...] = (
        "scalar",
        "per_step",
        "momentum",
        "mixed",
        "bits",
        "vmap",
        "compile",
        "call",
        "plan",
        "long",
    )


_PARTS = {
    "scalar": against_training.scalar,
    "per_step": against_training.per_step,
    "momentum": momentum.momentum,
    "long": against_training.long,
    "mixed": alone.mixed,
    "bits": momentum.bits,
    "vmap": alone.vmap,
    "compile": building.building,
    "call": calling.calling,
    "plan": planning.planning,
}


def run(config: Config) -> Iterator[Record]:
    """Yield the rows of each part as they are measured."""
    if {"per_step", "compile"} & {*config.parts}:
        equinox()  # a missing extra is said before anything runs
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


if __name__ == "__main__":
    from experiments._command.cli import module_main

    raise SystemExit(module_main("engines"))
