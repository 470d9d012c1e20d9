"""Comparisons, and the choices that hang on them: decided only where strict."""

from typing import Any

import numpy as np

from . import _series
from ._exact import Exact
from ._interval import Interval
from ._run import NotCoveredError, Rule, Run, Truth, Value, aligned, shape_of
from ._series import Series

_NUMPY_COMPARISONS: dict[str, Any] = {
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "eq": np.equal,
    "ne": np.not_equal,
}


def _compare(name: str) -> Rule:
    """Decided where it is strict on a whole box."""

    def rule(eqn: Any, operands: list[Value], run: Run) -> Value:
        if all(isinstance(x, np.ndarray) for x in operands):
            return np.asarray(_NUMPY_COMPARISONS[name](*operands))
        if eqn.invars[0] is eqn.invars[1]:  # x ≠ x: how a program asks for nan
            real = _bounded(run.series(operands[0]))
            if name in ("eq", "le", "ge"):
                return _decided(real, np.ones_like(real))
            return _decided(np.zeros_like(real), ~real)
        below, equal, above = _ordered(aligned(run, *operands), run)
        must, never = {
            "lt": (below, above | equal),
            "le": (below | equal, above),
            "gt": (above, below | equal),
            "ge": (above | equal, below),
            "eq": (equal, below | above),
            "ne": (below | above, equal),
        }[name]
        return _decided(must, ~never)

    return rule


def _ordered(pair: list[Series], run: Run) -> tuple[np.ndarray, ...]:
    """Where a < b, a = b, a > b, surely."""
    a, b = pair
    if isinstance(a[0], Interval):
        below, above = a[0].hi < b[0].lo, a[0].lo > b[0].hi
        return below, np.zeros_like(below), above
    if len(a) > 1 or len(b) > 1:
        run.unknown(())
    difference = (a[0] - b[0]).numerators
    signs = ((difference < 0), (difference == 0), (difference > 0))
    return tuple(np.asarray(sign, bool) for sign in signs)


def _decided(must: np.ndarray, may: np.ndarray) -> Value:
    """An exact array where every box says the same."""
    first = must[0]
    if np.array_equal(must, may) and np.all(must == first):
        return np.asarray(first)
    return Truth(must, may)


def _logical(name: str) -> Rule:
    def rule(eqn: Any, operands: list[Value], _: Run) -> Value:
        if eqn.outvars[0].aval.dtype != np.dtype(bool):
            msg = f"the primitive `{name}` on what depends on the hyperparameter"
            raise NotCoveredError(msg)
        truths = [
            x
            if isinstance(x, Truth)
            else Truth(np.asarray(x)[None], np.asarray(x)[None])
            for x in operands
        ]
        if name == "not":
            return _decided(~truths[0].may, ~truths[0].must)
        join = np.logical_and if name == "and" else np.logical_or
        return _decided(
            join(truths[0].must, truths[1].must), join(truths[0].may, truths[1].may)
        )

    return rule


def _is_finite(_: Any, operands: list[Value], run: Run) -> Value:
    """Decided where the enclosure is bounded."""
    if isinstance(operands[0], np.ndarray):
        return np.isfinite(operands[0])
    real = _bounded(run.series(operands[0]))
    return _decided(real, np.ones_like(real))


def _bounded(a: Series) -> np.ndarray:
    if isinstance(a[0], Exact):
        return np.ones(a[0].shape, bool)
    return np.isfinite(a[0].lo) & np.isfinite(a[0].hi)


def _select_n(eqn: Any, operands: list[Value], run: Run) -> Value:
    which, *cases = operands
    if isinstance(which, np.ndarray):
        if all(isinstance(case, np.ndarray) for case in cases):
            return np.asarray(np.select([which == i for i in range(len(cases))], cases))
        if which.ndim == 0 or np.all(which == which.flat[0]):
            case = cases[int(which.flat[0])]
            return _full(case, shape=shape_of(eqn.outvars[0]), run=run)
        which = Truth(which[None] != 0, which[None] != 0)
    if not isinstance(which, Truth) or len(cases) != 2:
        msg = "the primitive `select_n` with more than two cases"
        raise NotCoveredError(msg)
    return _choose(
        which, *aligned(run, *cases), shape=shape_of(eqn.outvars[0]), run=run
    )


def _full(value: Value, shape: tuple[int, ...], run: Run) -> Value:
    if isinstance(value, np.ndarray):
        return np.broadcast_to(value, shape)
    (a,) = aligned(run, value)
    return _series.moved(a, lambda x: np.broadcast_to(x, (x.shape[0], *shape)))


def _choose(
    which: Truth,
    if_false: Series,
    if_true: Series,
    *,
    shape: tuple[int, ...],
    run: Run,
    value: Interval | None = None,
) -> Series:
    """Entry by entry and box by box; the whole line where it is not decided.

    Where the choice is continuous, `value` encloses it even so; its derivatives are
    not known.
    """
    if any(isinstance(c, Exact) for c in (*if_false, *if_true)):
        return _choose_exact(which, if_false, if_true)
    rank = len(shape)
    must, may = (
        x.reshape(x.shape[0], *[1] * (rank + 1 - x.ndim), *x.shape[1:]) for x in which
    )
    undecided = must != may
    if np.any(undecided):
        run.kinks.add("a choice (where, max, relu, |·|) that changes inside")
    length = max(len(if_false), len(if_true))
    if np.any(undecided):
        length = (run.order or 0) + 1
    zero = run.lift(np.zeros((1,) * rank))
    result = []
    for k in range(length):
        no = if_false[k] if k < len(if_false) else zero
        yes = if_true[k] if k < len(if_true) else zero
        picked = Interval(np.where(must, yes.lo, no.lo), np.where(must, yes.hi, no.hi))
        if k == 0 and value is not None:
            picked = Interval(
                np.where(undecided, value.lo, picked.lo),
                np.where(undecided, value.hi, picked.hi),
            )
        else:
            picked = picked.where(~undecided)
        result.append(picked.map(lambda x: np.broadcast_to(x, (x.shape[0], *shape))))
    return result


def _choose_exact(which: Truth, if_false: Series, if_true: Series) -> Series:
    mask = np.asarray(which.must[0], np.float64)
    yes, no = [Exact.lift(mask)], [Exact.lift(np.asarray(1.0 - mask))]
    return _series.add(
        _series.product(yes, if_true, None), _series.product(no, if_false, None)
    )


def extremum(
    a: Series, b: Series, *, largest: bool, shape: tuple[int, ...], run: Run
) -> Series:
    """The larger or smaller, where that is strict on the whole box."""
    below, equal, above = _ordered([a, b], run)
    value = None
    if not run.exact:
        pick = np.maximum if largest else np.minimum
        value = Interval(pick(a[0].lo, b[0].lo), pick(a[0].hi, b[0].hi))
    truth = Truth(above | equal, ~below) if largest else Truth(below | equal, ~above)
    return _choose(truth, b, a, shape=shape, run=run, value=value)


def _extremum(*, largest: bool) -> Rule:
    pick = np.maximum if largest else np.minimum

    def rule(eqn: Any, operands: list[Any], run: Run) -> Value:
        if all(isinstance(x, np.ndarray) for x in operands):
            return np.asarray(pick(operands[0], operands[1]))
        a, b = aligned(run, *operands)
        return extremum(a, b, largest=largest, shape=shape_of(eqn.outvars[0]), run=run)

    return rule


def _reduce_extremum(*, largest: bool) -> Rule:
    pick = np.max if largest else np.min

    def rule(eqn: Any, operands: list[Value], run: Run) -> Value:
        axes = tuple(int(axis) for axis in eqn.params["axes"])
        if isinstance(operands[0], np.ndarray):
            return np.asarray(pick(operands[0], axes))
        a, shape = run.series(operands[0]), shape_of(eqn.outvars[0])
        kept = [i for i in range(len(a[0].shape) - 1) if i not in axes]
        order = [0, *(1 + i for i in (*axes, *kept))]
        rows = _series.moved(
            a, lambda x: x.transpose(order).reshape(x.shape[0], -1, *shape)
        )
        best, *others = (
            _series.moved(rows, lambda x, i=i: x[:, i]) for i in range(rows[0].shape[1])
        )
        for row in others:
            best = extremum(best, row, largest=largest, shape=shape, run=run)
        return best

    return rule


def _clamp(eqn: Any, operands: list[Value], run: Run) -> Value:
    low, x, high = operands
    raised = CHOICES["max"](eqn, [x, low], run)
    return CHOICES["min"](eqn, [raised, high], run)


def _abs(eqn: Any, operands: list[Value], run: Run) -> Value:
    if isinstance(operands[0], np.ndarray):
        return np.abs(operands[0])
    a, zero = aligned(run, operands[0], np.zeros(()))
    below, equal, above = _ordered([a, zero], run)
    value = None
    if not run.exact:  # used where 0 may be inside
        size = np.maximum(np.abs(a[0].lo), np.abs(a[0].hi))
        value = Interval(np.zeros_like(size), size)
    truth, shape = Truth(above | equal, ~below), shape_of(eqn.outvars[0])
    return _choose(truth, _series.negative(a), a, shape=shape, run=run, value=value)


def _sign(eqn: Any, operands: list[Value], run: Run) -> Value:
    if isinstance(operands[0], np.ndarray):
        return np.sign(operands[0])
    a, zero = aligned(run, operands[0], np.zeros(()))
    below, equal, above = _ordered([a, zero], run)
    if run.exact:
        return np.asarray(above[0] * 1.0 - below[0])
    shape = shape_of(eqn.outvars[0])
    ones = run.series(np.ones((1,) * len(shape)))
    truth = Truth(above, ~(below | equal))
    return _choose(truth, _series.negative(ones), ones, shape=shape, run=run)


CHOICES: dict[str, Rule] = {
    "select_n": _select_n,
    "max": _extremum(largest=True),
    "min": _extremum(largest=False),
    "reduce_max": _reduce_extremum(largest=True),
    "reduce_min": _reduce_extremum(largest=False),
    "clamp": _clamp,
    "abs": _abs,
    "sign": _sign,
    "is_finite": _is_finite,
    **{name: _compare(name) for name in _NUMPY_COMPARISONS},
    **{name: _logical(name) for name in ("and", "or", "not")},
}
