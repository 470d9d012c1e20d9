"""One line of the table: a way to compute a hypergradient, and how it fared."""

import math
import textwrap
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import numpy as np

from .._checks import path_name
from .._types import Hyper, PyTree

Role: TypeAlias = Literal[
    "engine",
    "wider engine",
    "closed form",
    "differences",
    "inner gradient",
    "pull back",
]

Status: TypeAlias = Literal[
    "reference",
    "agrees",
    "differs",
    "rounding",
    "inconclusive",
    "biased",
    "not finite",
    "refused",
    "out of memory",
    "failed",
]


class Row(NamedTuple):
    """A way to compute the hypergradient.

    Attributes:
        name: the engine, or what else it is.
        value: of the objective, as the engine computed it.
        grad: its result, of the structure of hyper; None where there is none.
        difference: largest deviation from the reference, as a part of the largest entry
            of the leaf (of the derivative along the direction, for differences).
        tolerance: what was allowed, in the same measure.
        leaf: path of the worst leaf, or the name of the worst direction.
        temp_bytes: temporary memory of the compiled program.
        seconds: of one run, once compiled.
        status: "reference"; "agrees"; "differs" (beyond the tolerance); "rounding"
            (differs, but not in float64, or its run ends at another value while
            finite differences tell nothing: chaos); "inconclusive" (differences that
            tell nothing here: a kink, chaos, noise); "biased" (by its nature, not
            judged); "not finite"; "refused" (the engine can't); "out of memory";
            "failed".
        reason: why, or with which settings.
        role: what kind of way it is.
    """

    name: str
    value: float | None = None
    grad: Any = None
    difference: float | None = None
    tolerance: float | None = None
    leaf: str = ""
    temp_bytes: int | None = None
    seconds: float | None = None
    status: Status = "inconclusive"
    reason: str = ""
    role: Role = "engine"


class Deviation(NamedTuple):
    """The worst leaf of one gradient against another."""

    difference: float
    tolerance: float
    leaf: str

    @property
    def within(self) -> bool:
        """Not beyond the tolerance; nan is."""
        return self.difference <= self.tolerance


def deviation(
    grad: Hyper, reference: Hyper, *, rtol: float, floor: PyTree
) -> Deviation:
    """How far `grad` is from `reference`, in the leaf that is worst for its tolerance.

    Both as parts of the leaf's largest entry; `floor` is an absolute error that each
    leaf may have besides.
    """
    worst = Deviation(0.0, rtol, "")
    ratio = -1.0
    pairs = zip(
        jax.tree_util.tree_leaves_with_path(reference),
        jax.tree.leaves(grad),
        jax.tree.leaves(floor),
        strict=True,
    )
    for (path, right), found, least in pairs:
        right64 = np.asarray(right, np.float64)
        error = float(np.max(np.abs(np.asarray(found, np.float64) - right64)))
        size = float(np.max(np.abs(right64))) or 1.0
        here = Deviation(error / size, rtol + least / size, path_name("hyper", path))
        part = here.difference / here.tolerance
        if not part <= ratio:  # nan counts as worse
            worst, ratio = here, part if math.isfinite(part) else math.inf
    return worst


def finite(grad: Hyper) -> bool:
    """Every entry is."""
    return all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(grad))


WIDTH = 80
"""Columns of a terminal that a table may take."""

_NAME = 24
"""A longer name has a line of its own."""

_INDENT = "    "


def table(rows: tuple[Row, ...]) -> str:
    """The rows as aligned text of 80 columns; what has no room is on lines below."""
    header = ("way", "status", "difference", "allowed", "memory", "time")
    cells = [header, *(_cells(row) for row in rows)]
    lines = [("" if _is_long(line[0]) else line[0], *line[1:]) for line in cells]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [_line(line, widths) for line in lines]
    gradients = ["gradient", *(_gradient(row.grad) for row in rows)]
    if len(text[0]) + 2 + max(map(len, gradients)) <= WIDTH:
        text = [f"{a}  {b}" for a, b in zip(text, gradients, strict=True)]
        gradients = [""] * len(text)
    made = [text[0].rstrip()]
    for row, line, gradient in zip(rows, text[1:], gradients[1:], strict=True):
        made += folded(row.name) if _is_long(row.name) else []
        made.append(line.rstrip())
        made += folded(gradient and f"gradient {gradient}", _INDENT)
        made += folded(row.reason, _INDENT)
    return "\n".join(made)


def _is_long(name: str) -> bool:
    return len(name) > _NAME


def folded(text: str, indent: str = "") -> list[str]:
    """As lines of at most 80 columns; a word that is longer stays whole."""
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _line(cells: tuple[str, ...], widths: list[int]) -> str:
    """Words on the left of their columns, numbers on the right."""
    pairs = list(zip(cells, widths, strict=True))
    words = [cell.ljust(width) for cell, width in pairs[:2]]
    return "  ".join([*words, *(cell.rjust(width) for cell, width in pairs[2:])])


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.name,
        row.status,
        "" if row.difference is None else f"{row.difference:.1e}",
        "" if row.tolerance is None else f"{row.tolerance:.1e}",
        "" if row.temp_bytes is None else _bytes(float(row.temp_bytes)),
        "" if row.seconds is None else f"{row.seconds:.2g} s",
    )


def _gradient(grad: Hyper) -> str:
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(grad)]
    if not leaves:
        return ""
    if sum(leaf.size for leaf in leaves) <= 3:
        return ", ".join(f"{x:.8g}" for leaf in leaves for x in leaf.ravel())
    norm = math.sqrt(
        sum(float(np.sum(leaf.astype(np.float64) ** 2)) for leaf in leaves)
    )
    return f"norm {norm:.8g}"


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000.0:
            return f"{count:.3g} {unit}"
        count /= 1000.0
    return f"{count:.3g} GB"
