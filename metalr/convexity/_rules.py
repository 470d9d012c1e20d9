"""What each primitive does to series, exact arrays and comparisons."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from . import _elementary, _series
from ._choices import CHOICES
from ._exact import NotRationalError
from ._interval import Interval
from ._movement import MOVEMENTS
from ._run import NotCoveredError, Rule, Run, Truth, Value, aligned, shape_of
from ._series import Series


def _add(_: Any, operands: list[Value], run: Run) -> Value:
    return _series.add(*aligned(run, *operands))


def _sub(_: Any, operands: list[Value], run: Run) -> Value:
    a, b = aligned(run, *operands)
    return _series.add(a, _series.negative(b))


def _neg(_: Any, operands: list[Value], run: Run) -> Value:
    return _series.negative(run.series(operands[0]))


def _mul(eqn: Any, operands: list[Value], run: Run) -> Value:
    a, b = aligned(run, *operands)
    size = int(np.prod(shape_of(eqn.outvars[0])))
    _spend(run, a, b, size)
    if operands[0] is operands[1]:
        return run.narrowed(_series.square(a, run.order))
    return run.narrowed(_series.product(a, b, run.order))


def _integer_pow(eqn: Any, operands: list[Value], run: Run) -> Value:
    return _repeated(eqn, operands[0], eqn.params["y"], run)


def _square(eqn: Any, operands: list[Value], run: Run) -> Value:
    return _mul(eqn, [operands[0], operands[0]], run)


def _div(_: Any, operands: list[Value], run: Run) -> Value:
    a, b = aligned(run, *operands)
    return _divide(a, b, run)


def _divide(a: Series, b: Series, run: Run) -> Series:
    _rational(run, b)
    a, b = aligned(run, a, b)
    return run.narrowed(_series.quotient(a, b, run.order))


def _rational(run: Run, b: Series) -> None:
    if run.exact and len(b) > 1:
        msg = "a division by something that depends on the hyperparameter"
        raise NotRationalError(msg)


def _dot_general(eqn: Any, operands: list[Value], run: Run) -> Value:
    a, b = (run.series(value) for value in operands)
    (contract_a, contract_b), (batch_a, batch_b) = eqn.params["dimension_numbers"]
    shape = shape_of(eqn.outvars[0])
    left = _matrices(a, batch_a, contract_a, last=True)
    right = _matrices(b, batch_b, contract_b, last=False)
    _spend(run, a, b, int(np.prod(shape)) * left[0].shape[-1])
    same = operands[0] is operands[1] and contract_a == contract_b
    if same and shape == () and not run.exact:
        flat = _series.moved(left, lambda x: x[..., 0, :])  # xᵀx is a sum of squares
        return run.narrowed([c.total((1,)) for c in _series.square(flat, run.order)])
    result = _series.product(left, right, run.order, lambda x, y: x @ y)
    return run.narrowed(_series.moved(result, lambda x: x.reshape(x.shape[0], *shape)))


def _matrices(
    a: Series, batch: tuple[int, ...], contract: tuple[int, ...], *, last: bool
) -> Series:
    """Axes as (boxes, batch…, free, contracted), or with the last two swapped."""
    rank = len(a[0].shape) - 1
    free = [i for i in range(rank) if i not in batch and i not in contract]
    groups = (free, contract) if last else (contract, free)

    def move(x: np.ndarray) -> np.ndarray:
        sizes = x.shape[1:]
        axes = [0, *(1 + i for i in (*batch, *groups[0], *groups[1]))]
        return x.transpose(axes).reshape(
            x.shape[0],
            *(sizes[i] for i in batch),
            *(int(np.prod([sizes[i] for i in group])) for group in groups),
        )

    return _series.moved(a, move)


def _reduce_sum(eqn: Any, operands: list[Value], run: Run) -> Value:
    axes = tuple(1 + int(axis) for axis in eqn.params["axes"])
    return [c.total(axes) for c in run.series(operands[0])] if axes else operands[0]


def _cumsum(eqn: Any, operands: list[Value], run: Run) -> Value:
    """A product with a triangle of ones."""
    a, axis = run.series(operands[0]), 1 + eqn.params["axis"]
    size = a[0].shape[axis]
    triangle = np.tri(size) if eqn.params["reverse"] else np.tri(size).T
    swap = lambda x: np.swapaxes(x, axis, -1)
    ones = run.lift(triangle).map(
        lambda x: x.reshape(1, *[1] * (len(a[0].shape) - 3), size, size)
    )
    return [
        (c.map(lambda x: swap(x)[..., None, :]) @ ones).map(
            lambda x: swap(x[..., 0, :])
        )
        for c in a
    ]


def _spend(run: Run, a: Series, b: Series, multiplications: int) -> None:
    if run.exact:
        words = [max(c.bits for c in s) / 64 + 1 for s in (a, b)]
        run.spend(len(a) * len(b) * multiplications * words[0] * words[1])


def _function(name: str, apply: Callable[[Series, int], Series]) -> Rule:
    """An elementary function: intervals only."""

    def rule(_: Any, operands: list[Value], run: Run) -> Value:
        if run.exact or run.order is None:
            msg = f"the function `{name}`"
            raise NotRationalError(msg)
        return run.narrowed(apply(run.series(operands[0]), run.order))

    return rule


def logaddexp(operands: list[Value], run: Run) -> Series:
    """log(eᵃ + eᵇ) = b + softplus(a − b)."""
    if run.exact or run.order is None:
        msg = "the function `logaddexp`"
        raise NotRationalError(msg)
    a, b = aligned(run, *operands)
    difference = _series.add(a, _series.negative(b))
    return run.narrowed(_series.add(b, _elementary.softplus(difference, run.order)))


def _pow(eqn: Any, operands: list[Value], run: Run) -> Value:
    base, exponent = operands
    if not isinstance(exponent, np.ndarray) or exponent.ndim > 0:
        msg = "the primitive `pow` with an exponent that is not one constant"
        raise NotCoveredError(msg)
    number = float(exponent)
    if number.is_integer():
        return _repeated(eqn, base, int(number), run)
    rule = _function("pow", lambda u, order: _elementary.real_power(u, number, order))
    return rule(eqn, [base], run)


def _repeated(eqn: Any, base: Value, exponent: int, run: Run) -> Value:
    if exponent == 0:
        return np.ones(shape_of(eqn.outvars[0]))
    a = run.series(base)
    _spend(run, a, a, abs(exponent) * int(np.prod(a[0].shape)))
    result = _series.power(a, abs(exponent), run.order)
    if exponent < 0:
        return _divide(run.series(np.ones(())), result, run)
    return run.narrowed(result)


def _same(_: Any, operands: list[Value], __: Run) -> Value:
    return operands[0]


def _barrier(_: Any, operands: list[Value], __: Run) -> list[Value]:
    return operands


def _convert(eqn: Any, operands: list[Value], run: Run) -> Value:
    value, dtype = operands[0], eqn.params["new_dtype"]
    if jnp.issubdtype(dtype, jnp.floating):
        # Real numbers have no precision: rounding to a shorter float is not followed.
        return value if not isinstance(value, Truth) else run.series(value)
    if isinstance(value, np.ndarray) and value.dtype.kind in "bi":
        return value.astype(dtype)
    msg = f"a conversion to {dtype}"
    raise NotCoveredError(msg)


_FUNCTIONS: dict[str, Callable[[Series, int], Series]] = {
    "exp": _elementary.exp,
    "expm1": lambda u, order: _elementary.exp(u, order, minus_one=True),
    "log": _elementary.log,
    "log1p": lambda u, order: _elementary.log(u, order, one_plus=True),
    "sqrt": _elementary.sqrt,
    "rsqrt": lambda u, order: _series.quotient(
        [Interval.lift(np.ones((1,) * (len(u[0].shape) - 1)))],
        _elementary.sqrt(u, order),
        order,
    ),
    "tanh": _elementary.tanh,
    "sin": lambda u, order: _elementary.sin_cos(u, order)[0],
    "cos": lambda u, order: _elementary.sin_cos(u, order)[1],
    "sinh": lambda u, order: _elementary.sinh_cosh(u, order)[0],
    "cosh": lambda u, order: _elementary.sinh_cosh(u, order)[1],
    "logistic": _elementary.logistic,
}

RULES: dict[str, Rule] = {
    "add": _add,
    "add_any": _add,
    "sub": _sub,
    "neg": _neg,
    "mul": _mul,
    "div": _div,
    "integer_pow": _integer_pow,
    "square": _square,
    "pow": _pow,
    "dot_general": _dot_general,
    "reduce_sum": _reduce_sum,
    "cumsum": _cumsum,
    "convert_element_type": _convert,
    "name": _same,
    "stop_gradient": _same,
    "reduce_precision": _same,
    "optimization_barrier": _barrier,
    "device_put": _barrier,
    **{name: _function(name, apply) for name, apply in _FUNCTIONS.items()},
    **CHOICES,
    **MOVEMENTS,
}
"""Primitives that are covered; anything else is refused by name."""
