r"""Question: which training examples made a model what it is?

One derivative through a whole training says it: $L(w)$ is the held-out loss after T
steps on $\sum_i w_i\ell_i$, and its gradient at w = 1 predicts, to first order, every
retraining without some of the examples. The truth of each claim is in the same run.
Claim: the predicted losses rank as retrainings do where the run is smooth (linear
datamodeling score; 1 is the best), and not through ReLU and max pooling; derivatives
through the last steps alone do not predict it; most of the examples with the largest
derivatives have wrong labels; plain JAX gives the same derivative; the memory is a
small part of plain reverse mode's.

The gradient is exact: where the score falls short of 1 the run is curved in the weights
(the table "beyond the first order"), and metasmoothness, three runs without a
derivative, says so beforehand. Settings are chosen by it, not by the score.

`check_hypergrad` (T = 12, float64) agrees: the conv net (40 examples) to 7.2e-12 of
differences and 5.2e-13 between engines, the transformer (16 windows) to 1.9e-11 and
3.4e-16. `diagnose` finds nothing in either; of ReLU with max pooling it says "kinks".

Inner runs: a conv net on images (momentum), a tiny transformer on Python's
documentation (Adam). Engstrom et al. (2025), Optimizing ML training with metagradient
descent; Ilyas and Engstrom (2025), MAGIC. Theirs are larger nets on other data.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from matplotlib.figure import Figure

from experiments._command.config import digest
from experiments._command.experiment import Record, output_folder
from experiments._command.sources import code_version
from experiments._example_weights import cost, scores, smoothness, uses
from experiments._example_weights.figures import drawn
from experiments._example_weights.retraining import Kept
from experiments._example_weights.settings import Part, Settings


class Config(Settings):
    """Options of this experiment."""

    experiment: Literal["example_weights"] = "example_weights"


def size(config: Config) -> int:
    """Records that `run` yields."""
    each: dict[Part, int] = {
        "score": scores.size(config),
        "orders": 1 + (config.text is not None),
        "poison": 2,
        "selection": 3,
        "smoothness": smoothness.size(config),
        "cost": cost.size(config),
        "by hand": cost.by_hand_size(config),
    }
    return sum(each[part] for part in config.parts)


def run(config: Config) -> Iterator[Record]:
    """Yield the records of each part in turn."""
    kept = _kept(config)
    every: dict[Part, Callable[[], Iterator[Record]]] = {
        "score": lambda: scores.scores(config, kept),
        "orders": lambda: scores.beyond_first_order(config, kept),
        "poison": lambda: uses.poison(config),
        "selection": lambda: uses.selection(config),
        "smoothness": lambda: smoothness.smoothness(config, kept),
        "cost": lambda: cost.cost(config),
        "by hand": lambda: cost.beside_hand_written(config),
    }
    for part in config.parts:
        yield from every[part]()


def headline(records: Sequence[Record]) -> str | None:
    """The score of the first engine."""
    needed = ("score", "standard_error", "left_out")
    whole = (r for r in records if all(r.get(key) is not None for key in needed))
    first = next(whole, None)
    if first is None:
        return None
    return (
        f"score {first['score']:.3f} ± {first['standard_error']:.3f} by retraining "
        f"without {first['left_out']:.0%} of the examples"
    )


def figures(records: Sequence[Record]) -> dict[str, Figure]:
    """Predicted against retrained losses; bytes and times against the horizon."""
    return drawn(records)


def _kept(config: Config) -> Kept:
    """Where a run that was killed goes on from: of this config and this code alone."""
    folder = output_folder()
    if folder is None:
        return Kept(None)
    version = code_version(sys.modules[__name__])
    return Kept(folder / "checkpoints" / digest(config) / version)


if __name__ == "__main__":
    from experiments._command.cli import module_main

    raise SystemExit(module_main("example_weights"))
