r"""Question: does metalr reproduce the figures that the literature prints?

One row a figure: source, setting, the published figure, ours, their difference, what
is allowed (rounding; half a unit of the last digit of a rounded figure; four standard
errors of a Monte Carlo mean), and the command that gives the row. Where a paper claims
an order and the data are not those of the paper, the order is what is held.
Claim: every row holds; where a figure cannot be held as printed, the note says why.

No row: figures of data that are not at hand. Hyper-cleaning (20 000 of MNIST: 90.5,
90.1, 87.7), distillation (all of MNIST, LeNet: 94 %) and hypertorch's curve have the
same protocols on other data in `hyper_cleaning`, `distillation` and `regularization`,
with that word in their tables.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple, TypeAlias, get_args

from matplotlib.figure import Figure
from pydantic import PositiveFloat, PositiveInt

from experiments._command.experiment import ExperimentConfig, Record
from experiments._published import (
    hypergradient_descent,
    influence_balancing,
    memory,
    sharing,
    sinusoids,
    theory,
    toy_regression,
)
from experiments._published.row import Row

PartName: TypeAlias = Literal[
    "influence_balancing",
    "toy_regression",
    "reversible_bits",
    "sharing",
    "mixed_mode",
    "hypergradient_descent",
    "network_size",
    "short_horizon",
    "sinusoids",
    "sinusoids_by_steps",
]


class Config(ExperimentConfig):
    """Options of this experiment."""

    experiment: Literal["published"] = "published"
    parts: tuple[PartName, ...] = get_args(PartName)
    steps: PositiveInt = 1000  # of influence balancing
    pairs: PositiveInt = 40_000  # of the evolution strategies on it
    sigma: PositiveFloat = 0.1
    windows: tuple[PositiveInt, ...] = (1, 10, 100)  # of persistent ES
    toy_updates: PositiveInt = 2000  # published: 20000
    toy_pairs: PositiveInt = 50
    reversed_steps: PositiveInt = 100_000
    sharing_runs: PositiveInt = 10_000
    epochs: PositiveInt = 50  # of hypergradient descent
    horizon: PositiveInt = 20  # of the short-horizon bias
    meta_steps: PositiveInt = 60_000  # of MAML and Meta-SGD, in the latter's setting
    maml_steps: PositiveInt = 70_000  # of MAML, in its own


def run(config: Config) -> Iterator[Record]:
    """Yield one record for each published figure, as soon as it is known."""
    for name in config.parts:
        part = PARTS[name]
        for row in part.rows(config):
            yield row.record(name, part.source)


def headline(records: Sequence[Record]) -> str:
    """How many figures hold."""
    return f"{sum(r['holds'] for r in records)} of {len(records)} figures hold"


def figures(records: Sequence[Record]) -> dict[str, Figure]:
    """Influence balancing: truncated and persistent estimates beside the exact one."""
    return influence_balancing.figures(records)


class Part(NamedTuple):
    """Where figures were published, and what computes ours."""

    source: str
    rows: Callable[[Config], Iterator[Row]]


PARTS: dict[PartName, Part] = {
    "influence_balancing": Part(
        "Vicol et al. 2021",
        lambda config: influence_balancing.rows(
            steps=config.steps,
            pairs=config.pairs,
            sigma=config.sigma,
            windows=config.windows,
            seed=config.seed,
        ),
    ),
    "toy_regression": Part(
        "Vicol et al. 2021",
        lambda config: toy_regression.rows(
            updates=config.toy_updates, pairs=config.toy_pairs, seed=config.seed
        ),
    ),
    "reversible_bits": Part(
        "Maclaurin et al. 2015",
        lambda config: memory.reversible(steps=config.reversed_steps),
    ),
    "sharing": Part(
        "Micaelli & Storkey 2021, theorem 4.1",
        lambda config: sharing.rows(runs=config.sharing_runs, seed=config.seed),
    ),
    "mixed_mode": Part(
        "Kemaev et al. 2025", lambda config: memory.mixed_mode(seed=config.seed)
    ),
    "hypergradient_descent": Part(
        "Baydin et al. 2018",
        lambda config: hypergradient_descent.rows(
            epochs=config.epochs, seed=config.seed, dtype=config.dtype
        ),
    ),
    "network_size": Part(
        "LeCun 1998, Krizhevsky 2012, Simonyan 2014",
        lambda _: theory.parameters(),
    ),
    "short_horizon": Part(
        "Wu et al. 2018",
        lambda config: theory.short_horizon_bias(
            steps=config.horizon, dtype=config.dtype
        ),
    ),
    "sinusoids": Part(
        "Li et al. 2017, table 1",
        lambda config: sinusoids.table(steps=config.meta_steps, seed=config.seed),
    ),
    "sinusoids_by_steps": Part(
        "Finn et al. 2017, figure 3",
        lambda config: sinusoids.figure(steps=config.maml_steps, seed=config.seed),
    ),
}
"""A part is its name in `PartName`, its options in `Config`, and its rows here."""


if __name__ == "__main__":
    from experiments._command.cli import module_main

    raise SystemExit(module_main("published"))
