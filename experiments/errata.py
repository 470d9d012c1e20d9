r"""Question: where are the source notes wrong, and what is true?

One row for each statement of the notes that does not hold or holds only under a
condition they leave out, for what they leave open, and for what they have right. Both
sides are numbers, computed by metalr on a concrete problem; what the notes print is in
`experiments._settings.source_notes`. Unless a row says otherwise it is n = 1,
x = (1, 2), t = 3.
Claim: every "wrong" and "loose" row has a difference that is not rounding; every
"right" row none.
"""

from collections.abc import Iterator
from typing import Literal

from experiments._command.experiment import ExperimentConfig, Record
from experiments._errata import learning_rates, networks, where_optimizers_end

ROWS = (*where_optimizers_end.ROWS, *learning_rates.ROWS, *networks.ROWS)


class Config(ExperimentConfig):
    """Options of this experiment."""

    experiment: Literal["errata"] = "errata"


def run(config: Config) -> Iterator[Record]:
    """Yield one record for each statement."""
    del config
    for make in ROWS:
        row = make()
        values = (row.notes_value, row.true_value)
        difference = None if values[0] is None else abs(values[0] - values[1])
        yield {"table": "errata", **row._asdict(), "difference": difference}


def size(config: Config) -> int:
    """Records that `run` yields."""
    del config
    return len(ROWS)


if __name__ == "__main__":
    from experiments._command.cli import module_main

    raise SystemExit(module_main("errata"))
