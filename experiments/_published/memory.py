"""What two ways to save memory need, in their papers' settings."""

from collections.abc import Iterator

import numpy as np

from experiments._published.row import Row, compared, ordered, printed
from experiments._settings.papers import (
    MIXED_SETTING,
    mixed_mode_memory,
    reversible_bits,
)


def reversible(*, steps: int) -> Iterator[Row]:
    """Exact reversal of momentum (Maclaurin et al. 2015)."""
    for momentum, published in ((0.98, printed("0.029")), (0.9, printed("0.152"))):
        found = reversible_bits(momentum, steps=steps, dtype="float32")
        bits = float(found.bits)
        row = compared(
            f"bits a step and weight, momentum {momentum}",
            published,
            bits,
            note=f"bit-exact: {'yes' if bool(found.exact) else 'NO'}; "
            f"T = {steps}; log₂(1/γ) = {-np.log2(momentum):.4f}",
        )
        yield row._replace(holds=row.holds and bool(found.exact))


def mixed_mode(*, seed: int) -> Iterator[Row]:
    """Forward over reverse (Kemaev et al. 2025)."""
    temps = mixed_mode_memory(seed=seed, dtype="float32")
    ratio = {name: temps[name] / temps["Mixed()"] for name in temps}
    plain = ratio["plain reverse"]
    rematerialized = ratio["per-step rematerialization"]
    note = (
        f"temporary memory, {MIXED_SETTING}; against per-step rematerialization only "
        f"{rematerialized:.2f}: the gain is that of not storing activations"
    )
    setting, holds = "plain reverse over Mixed()", plain >= 10.0
    yield ordered(setting, "≥ 10", plain, holds=holds, note=note)
