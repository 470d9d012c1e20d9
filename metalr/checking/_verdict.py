"""What the rows come to."""

import math
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import numpy as np

from .._types import Hyper
from ._rows import Row, table

Verdict: TypeAlias = Literal["agrees", "differs", "not finite", "inconclusive"]

_EXACT = ("reference", "agrees", "differs", "rounding")


class HypergradientError(ArithmeticError):
    """The hypergradient is wrong or not finite; the message says where."""


class Check(NamedTuple):
    """Every way to the hypergradient, and what they come to.

    Attributes:
        verdict: "agrees": all engines agree with each other, and with differences or a
            closed form. "differs": one does not. "not finite": one returns inf or nan.
            "inconclusive": the engines agree, but nothing independent confirms them.
        grad: the reference.
        rows: see `Row`.
        reason: one sentence on the verdict.
        precision: which dtype, or which method, limits the agreement.
    """

    verdict: Verdict
    grad: Hyper
    rows: tuple[Row, ...]
    reason: str
    precision: str

    def __str__(self) -> str:
        return f"{table(self.rows)}\n{self.verdict}: {self.reason}\n{self.precision}"


def nothing_finite(rows: tuple[Row, ...]) -> Check:
    rows = tuple(
        row._replace(status="not finite") if row.grad is not None else row
        for row in rows
    )
    if any(row.status == "not finite" for row in rows):
        reason = "no engine returns a finite hypergradient; metalr.diagnose says why"
        return Check("not finite", None, rows, reason, "")
    reason = "no exact engine ran: see the rows"
    return Check("inconclusive", None, rows, reason, "")


def conclude(grad: Hyper, rows: tuple[Row, ...], dtype: np.dtype, low: bool) -> Check:
    named = lambda *status: [row for row in rows if row.status in status]
    wrong, infinite = named("differs"), named("not finite")
    independent = [
        row
        for row in named("agrees", "reference")
        if row.name in ("closed form", "finite differences")
    ]
    precision = _precision(rows, dtype, low)
    if wrong:
        names = ", ".join(row.name for row in wrong)
        reason = f"beyond the tolerance: {names}"
        return Check("differs", grad, rows, reason, precision)
    if infinite:
        names = ", ".join(row.name for row in infinite)
        reason = f"inf or nan: {names}; metalr.diagnose says from which step"
        return Check("not finite", grad, rows, reason, precision)
    if not independent:
        reason = "the engines agree, but differences tell nothing here"
        return Check("inconclusive", grad, rows, reason, precision)
    by = " and ".join(row.name for row in independent)
    return Check("agrees", grad, rows, f"confirmed by {by}", precision)


def _precision(rows: tuple[Row, ...], dtype: np.dtype, low: bool) -> str:
    engines = [
        row.difference
        for row in rows
        if row.status in _EXACT and row.temp_bytes is not None and row.difference
    ]
    worst = max(engines, default=0.0)
    (differences_row,) = (row for row in rows if row.name == "finite differences")
    allowed = differences_row.tolerance or math.nan
    if low:
        return (
            f"{dtype} limits the agreement: engines are up to {worst:.1e} from the "
            "reference in float64"
        )
    hint = "" if dtype == np.dtype("float64") else "; set jax_enable_x64 to tell why"
    return (
        f"engines agree to {worst:.1e} in {dtype}; finite differences resolve "
        f"{allowed:.1e}{hint}"
    )


def complaint(check: Check) -> str:
    bad = [row for row in check.rows if row.status in ("differs", "not finite")]
    worst = max(bad, key=lambda row: _or_inf(row.difference))
    found, expected = (_at(tree, worst.leaf) for tree in (worst.grad, check.grad))
    return (
        f"{worst.name} {worst.status}: at {worst.leaf or 'hyper'} it gives {found}, "
        f"the reference {expected} (relative difference {worst.difference}, allowed "
        f"{worst.tolerance})\n{check}"
    )


def _or_inf(number: float | None) -> float:
    return math.inf if number is None or math.isnan(number) else number


def _at(grad: Hyper, leaf: str) -> Any:
    for path, value in jax.tree_util.tree_leaves_with_path(grad):
        if leaf == "hyper" + jax.tree_util.keystr(path):
            return value
    return "no gradient" if grad is None else grad
