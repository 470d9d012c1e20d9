"""Degrees of a traced program's values as polynomials in its inputs.

An abstract interpretation: every intermediate carries an upper bound on its degree in
each group of inputs, `inf` where it is not known to be a polynomial. What the bounds
say is a proof about the program for all values of its inputs, not a guess from samples.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, JaxprEqn

from .._programs.equations import fold, fold_scan, inner_program

Degrees: TypeAlias = tuple[float, ...]
"""One bound for each group of inputs."""

_LINEAR = frozenset(
    {
        "add",
        "add_any",
        "broadcast_in_dim",
        "concatenate",
        "convert_element_type",
        "copy",
        "copy_p",  # JAX's name of `copy`
        "cumsum",
        "device_put",
        "name",
        "neg",
        "optimization_barrier",
        "pad",
        "reduce_sum",
        "reshape",
        "rev",
        "slice",
        "split",
        "squeeze",
        "stack",
        "stop_gradient",
        "sub",
        "transpose",
        "unstack",
    }
)
"""Linear in all operands together: the degree is the largest."""

_FIRST_ONLY = frozenset({"gather", "dynamic_slice"})
"""Linear in the first operand; the others are indices."""

_MULTILINEAR = frozenset({"mul", "dot_general", "conv_general_dilated"})

_DEEPEST_LOOP = 100_000


def degrees(program: ClosedJaxpr, inputs: Sequence[Degrees]) -> list[Degrees]:
    """Bounds on the degrees of the outputs, given those of the inputs."""
    constant = (0.0,) * len(inputs[0])

    def equation(eqn: JaxprEqn, operands: list[Degrees]) -> list[Degrees]:
        if all(degree == constant for degree in operands):
            return [constant] * len(eqn.outvars)
        if eqn.primitive.name == "scan" and eqn.params["length"] <= _DEEPEST_LOOP:
            return _scan(eqn, operands, entered)
        inner = inner_program(eqn)
        if inner is not None:
            return entered(inner, operands)
        return [_rule(eqn, operands)] * len(eqn.outvars)

    def entered(program: ClosedJaxpr, inputs: Sequence[Degrees]) -> list[Degrees]:
        return fold(program, inputs, equation=equation, constant=lambda _: constant)

    return entered(program, inputs)


def _rule(eqn: JaxprEqn, operands: list[Degrees]) -> Degrees:
    name = eqn.primitive.name
    constant = (0.0,) * len(operands[0])
    if name == "convert_element_type" and not _is_float(eqn.params["new_dtype"]):
        return _after(constant, operands)  # a staircase
    if name in _LINEAR:
        return _largest(operands)
    if name in _MULTILINEAR:
        return _added(operands)
    if name == "square":
        return tuple(2.0 * d for d in operands[0])
    if name == "integer_pow" and eqn.params["y"] >= 0:
        return tuple(_times(eqn.params["y"], d) for d in operands[0])
    if name == "div" or name in _FIRST_ONLY:
        return _after(operands[0], operands[1:])
    if name == "select_n":
        return _after(_largest(operands[1:]), operands[:1])
    return _after(constant, operands)


def _is_float(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.floating)


def _after(degree: Degrees, others: Sequence[Degrees]) -> Degrees:
    """`degree`, but inf in the groups that one of the `others` depends on."""
    hidden = _largest(others)
    return tuple(math.inf if h > 0 else d for d, h in zip(degree, hidden, strict=True))


def _scan(
    eqn: JaxprEqn, operands: list[Degrees], enter: Callable[..., list[Degrees]]
) -> list[Degrees]:
    return fold_scan(
        eqn,
        operands,
        lambda inputs: enter(eqn.params["jaxpr"], inputs),
        entry=lambda row, _: row,
        stack=lambda rows: _largest(rows or operands),
        settle=lambda _, old, new: None if new == old else new,
    )


def _largest(several: Sequence[Degrees]) -> Degrees:
    return tuple(max(column) for column in zip(*several, strict=True))


def _added(several: Sequence[Degrees]) -> Degrees:
    return tuple(sum(column) for column in zip(*several, strict=True))


def _times(count: int, degree: float) -> float:
    return 0.0 if count == 0 or degree == 0.0 else count * degree
