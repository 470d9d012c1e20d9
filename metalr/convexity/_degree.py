"""Degrees of a traced program's values as polynomials in its inputs.

An abstract interpretation: every intermediate carries an upper bound on its degree in
each group of inputs, `inf` where it is not known to be a polynomial. What the bounds
say is a proof about the program for all values of its inputs, not a guess from samples.
"""

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var

from .._programs.equations import inner_program, scan_operands

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
        "copy_p",
        "cumsum",
        "name",
        "neg",
        "optimization_barrier",
        "pad",
        "reduce_sum",
        "reshape",
        "rev",
        "slice",
        "squeeze",
        "sub",
        "transpose",
    }
)
"""Linear in all operands together: the degree is the largest."""

_FIRST_ONLY = frozenset({"gather", "dynamic_slice"})
"""Linear in the first operand; the others are indices."""

_MULTILINEAR = frozenset({"mul", "dot_general", "conv_general_dilated"})

_DEEPEST_LOOP = 100_000


def degrees(program: ClosedJaxpr, inputs: Sequence[Degrees]) -> list[Degrees]:
    """Bounds on the degrees of the outputs, given those of the inputs."""
    return _program(program.jaxpr, inputs, len(inputs[0]))


def primitives(program: ClosedJaxpr) -> set[str]:
    """Names of all primitives in the program and in the programs it calls."""
    return _names(program.jaxpr)


def _names(jaxpr: Jaxpr) -> set[str]:
    found = {eqn.primitive.name for eqn in jaxpr.eqns}
    for eqn in jaxpr.eqns:
        for value in eqn.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                if isinstance(inner, ClosedJaxpr | Jaxpr):
                    body: Any = getattr(inner, "jaxpr", inner)
                    found |= _names(body)
    return found


def _program(jaxpr: Jaxpr, inputs: Sequence[Degrees], groups: int) -> list[Degrees]:
    constant = (0.0,) * groups
    known: dict[Var, Degrees] = dict(zip(jaxpr.invars, inputs, strict=True))

    def read(atom: Any) -> Degrees:
        return constant if isinstance(atom, Literal) else known.get(atom, constant)

    for eqn in jaxpr.eqns:
        outputs = _equation(eqn, [read(atom) for atom in eqn.invars], groups)
        known.update(zip(eqn.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _equation(eqn: JaxprEqn, operands: list[Degrees], groups: int) -> list[Degrees]:
    name = eqn.primitive.name
    if name == "scan":
        return _scan(eqn, operands, groups)
    inner = inner_program(eqn)
    if inner is not None:
        return _program(inner.jaxpr, operands, groups)
    return [_rule(eqn, operands, groups)] * len(eqn.outvars)


def _rule(eqn: JaxprEqn, operands: list[Degrees], groups: int) -> Degrees:
    name = eqn.primitive.name
    constant = (0.0,) * groups
    if all(degree == constant for degree in operands):
        return constant
    if name in _LINEAR:
        return _largest(operands)
    if name in _MULTILINEAR:
        return _added(operands)
    if name == "square":
        return tuple(2.0 * d for d in operands[0])
    if name == "integer_pow" and eqn.params["y"] >= 0:
        return tuple(_times(eqn.params["y"], d) for d in operands[0])
    if name == "div":
        return _after(operands[0], operands[1:])
    if name in _FIRST_ONLY:
        return _after(operands[0], operands[1:])
    if name == "select_n":
        return _after(_largest(operands[1:]), operands[:1])
    return _after(constant, operands)


def _after(degree: Degrees, others: Sequence[Degrees]) -> Degrees:
    """`degree`, but inf in the groups that one of the `others` depends on."""
    hidden = _largest(others)
    return tuple(math.inf if h > 0 else d for d, h in zip(degree, hidden, strict=True))


def _scan(eqn: JaxprEqn, operands: list[Degrees], groups: int) -> list[Degrees]:
    body: Jaxpr = eqn.params["jaxpr"].jaxpr
    consts, carry, rows = scan_operands(eqn, operands)
    num_carry, length = len(carry), eqn.params["length"]
    stacked = [(0.0,) * groups] * (len(body.outvars) - num_carry)
    if length > _DEEPEST_LOOP:
        worst = _after((0.0,) * groups, operands)
        return [worst] * len(body.outvars)
    for _ in range(length):
        outputs = _program(body, [*consts, *carry, *rows], groups)
        new, ys = outputs[:num_carry], outputs[num_carry:]
        pairs = zip(stacked, ys, strict=True)
        stacked = [_largest(pair) for pair in pairs]
        if new == carry:
            break
        carry = new
    return [*carry, *stacked]


def _largest(several: Sequence[Degrees]) -> Degrees:
    return tuple(max(column) for column in zip(*several, strict=True))


def _added(several: Sequence[Degrees]) -> Degrees:
    return tuple(sum(column) for column in zip(*several, strict=True))


def _times(count: int, degree: float) -> float:
    return 0.0 if count == 0 or degree == 0.0 else count * degree
