"""What the rows come to."""

import math
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import numpy as np

from .._checks import path_name
from .._types import Hyper
from ._rows import Row, finite, folded, table

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
        said = [*folded(f"{self.verdict}: {self.reason}"), *folded(self.precision)]
        return "\n".join([table(self.rows), *said])


def nothing_finite(rows: tuple[Row, ...]) -> Check:
    """No row can be the reference."""
    rows = _marked(rows)
    if any(row.status == "not finite" for row in rows):
        reason = "no engine returns a finite hypergradient; metalr.diagnose says why"
        return Check("not finite", None, rows, reason, "")
    reason = "no exact engine ran: see the rows"
    return Check("inconclusive", None, rows, reason, "")


def run_not_finite(hyper: Hyper, value: float, rows: tuple[Row, ...]) -> Check:
    """The value itself is inf or nan: there is nothing to compare."""
    bad = [
        path_name("hyper", path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(hyper)
        if not np.all(np.isfinite(np.asarray(leaf, np.float64)))
    ]
    reason = (
        f"{', '.join(bad)} is not finite: pass a number"
        if bad
        else f"the run itself ends at {value}: it diverges or starts there; "
        "metalr.diagnose says from which step"
    )
    return Check("not finite", None, _marked(rows), reason, "")


def conclude(
    grad: Hyper,
    rows: tuple[Row, ...],
    dtype: np.dtype,
    *,
    wider: np.dtype | None,
    x64: bool,
    cause: str = "",
) -> Check:
    """The verdict on rows that are judged.

    Args:
        grad: the reference.
        rows: all ways, with their status.
        dtype: that limits the value.
        wider: that of the reference, if it is another.
        x64: whether JAX has float64.
        cause: what is known to make derivatives differ from the run.
    """
    named = lambda *status: [row for row in rows if row.status in status]
    wrong, infinite = named("differs"), named("not finite")
    independent = [
        row
        for row in named("agrees", "reference")
        if row.role in ("closed form", "differences")
    ]
    precision = _precision(rows, dtype, wider=wider, x64=x64)
    if wrong:
        reason = f"beyond the tolerance: {_names(wrong)}{cause and f'; {cause}'}"
        return Check("differs", grad, rows, reason, precision)
    if infinite:
        reason = f"inf or nan: {_names(infinite)}; metalr.diagnose says from which step"
        return Check("not finite", grad, rows, reason, precision)
    if not independent:
        reason = "the engines agree, but differences tell nothing here"
        return Check("inconclusive", grad, rows, reason, precision)
    by = " and ".join(row.name for row in independent)
    return Check("agrees", grad, rows, f"confirmed by {by}", precision)


def _names(rows: list[Row]) -> str:
    return ", ".join(
        f"{row.name} ({row.leaf})"
        if row.role in ("inner gradient", "pull back")
        else row.name
        for row in rows
    )


def _marked(rows: tuple[Row, ...]) -> tuple[Row, ...]:
    return tuple(
        row._replace(status="not finite")
        if row.grad is not None and not finite(row.grad)
        else row
        for row in rows
    )


def _precision(
    rows: tuple[Row, ...], dtype: np.dtype, *, wider: np.dtype | None, x64: bool
) -> str:
    engines = [
        row.difference
        for row in rows
        if row.status in _EXACT and row.temp_bytes is not None and row.difference
    ]
    worst = max(engines, default=0.0)
    if wider:
        return (
            f"{dtype} limits the agreement: engines are up to {worst:.1e} from the "
            f"reference in {wider}"
        )
    (differences,) = (row for row in rows if row.role == "differences")
    hint = ""
    if dtype != np.dtype("float64"):
        hint = (
            f"; {dtype} limits it: it is fixed in the loss or the optimizer"
            if x64
            else "; set jax_enable_x64 to tell why"
        )
    return (
        f"engines agree to {worst:.1e} in {dtype}; finite differences resolve "
        f"{differences.tolerance or math.nan:.1e}{hint}"
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
