"""What the papers print of sinusoids, and in which setting."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Setting(NamedTuple):
    """What must be equal for figures to be comparable."""

    source: str
    shots: int  # in training
    frequency: tuple[float, float]
    meta_batch: int
    steps: int


META_SGD = Setting("Meta-SGD, table 1", 5, (0.8, 1.2), 4, 60_000)
"""Li et al. 2017. The table is quoted; the ranges and the meta-batch are the paper's as
we know it, not read again: of its stored text only the beginning is to be had."""

MAML = Setting("MAML, figure 3", 10, (1.0, 1.0), 25, 70_000)
"""Finn et al. 2017; read off the figure at 5 points, to about 0.2. Length and batch as
in the authors' code."""

PRINTED: dict[tuple[str, int], tuple[Setting, Mapping[int, tuple[float, float]]]] = {
    ("maml", 10): (META_SGD, {1: (0.85, 0.14)}),
    ("maml", 20): (META_SGD, {1: (0.71, 0.12)}),
    ("meta_sgd", 5): (META_SGD, {1: (0.90, 0.16)}),
    ("meta_sgd", 10): (META_SGD, {1: (0.63, 0.12)}),
    ("meta_sgd", 20): (META_SGD, {1: (0.50, 0.10)}),
}
"""By method and points to adapt to: errors after so many steps, and their ±."""

MAML_AT_5 = (MAML, {0: (2.8, 0.2), 1: (0.7, 0.2), 5: (0.3, 0.2)})
META_SGD_AT_5 = (META_SGD, {1: (1.13, 0.18)})


def printed(
    method: str, shots: int, config: Any
) -> tuple[Setting, Mapping[int, tuple[float, float]]] | None:
    """The paper that is nearer to this setting."""
    if (method, shots) == ("maml", 5):
        return META_SGD_AT_5 if config.shots == META_SGD.shots else MAML_AT_5
    return PRINTED.get((method, shots))


def beside(
    method: str, shots: int, errors: Mapping[int, Any], config: Any
) -> dict[str, Any]:
    """The published figures of a row: where, what, and whether comparable."""
    found = printed(method, shots, config)
    if found is None:
        return {}
    setting, figures = found
    known = {n: figure for n, figure in figures.items() if n in errors}
    text = ", ".join(f"{m:g} ± {h:g} after {n}" for n, (m, h) in known.items())
    apart = departures(setting, config)
    return {
        "published": f"{setting.source}: {text}",
        "comparable": f"no: {', '.join(apart)}" if apart else "yes",
        "holds": None if apart else holds(figures, errors),
        "printed": [] if apart else [[n, m, h] for n, (m, h) in known.items()],
    }


def holds(
    figures: Mapping[int, tuple[float, float]], errors: Mapping[int, Any]
) -> bool:
    """Whether ours are within the published intervals, widened by our own."""
    pairs = [(figures[n], errors[n]) for n in figures if n in errors]
    return all(abs(ours.mean - m) <= half + ours.half for (m, half), ours in pairs)


def departures(setting: Setting, config: Any) -> list[str]:
    """How a config differs from a published setting."""
    return [
        f"{name} {getattr(config, name)} instead of {theirs}"
        for name, theirs in setting._asdict().items()
        if name != "source" and getattr(config, name) != theirs
    ]
