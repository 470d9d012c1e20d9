r"""How a value depends on a number c that cancels in the end: u + k·c, or u·exp(k·c).

Followed through the equations of a program, along the axes on which c is constant or
runs. In logsumexp(x) = c + log Σ exp(x − c), x − c is shifted by −1, its exponential
and the sum over it have the factor exp(−c), the logarithm is shifted by −1 again, and
the sum with c is free of it.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax.numpy as jnp
from jax.extend.core import JaxprEqn


class Shift(NamedTuple):
    """How a value v depends on a stopped value c: u + k·c, or u·exp(k·c)."""

    power: bool  # u·exp(k·c)
    factor: float  # k
    axes: tuple[int | None, ...]  # of v: which axis of c runs along it, if any


def stopped(atom: Any) -> Shift:
    """C itself."""
    shape = enumerate(_shape(atom))
    return Shift(False, 1.0, tuple(i if size > 1 else None for i, size in shape))


def shifted(eqn: JaxprEqn, operands: Sequence[Shift | None]) -> Shift | None:
    """How the result depends on c, given how the operands do; None: in some other way.

    What does not depend on it is `FREE`, or has the factor 0.
    """
    rule = _RULES.get(eqn.primitive.name)
    known = [shift for shift in operands if shift is not None]
    if rule is None or len(known) < len(operands):
        return None
    return rule(eqn, known)


FREE = Shift(False, 0.0, ())
"""Does not depend on c."""

_Rule: TypeAlias = Callable[[JaxprEqn, list[Shift]], Shift | None]


def _sum(sign: float) -> _Rule:
    """(u + k·c) ± (v + l·c), or u·exp(k·c) ± v·exp(k·c)."""

    def rule(eqn: JaxprEqn, operands: list[Shift]) -> Shift | None:
        a, b = operands
        if a.power != b.power or (a.power and a != b):
            return None  # also where one of two powers does not depend on c
        return a if a.power else _together(eqn, a, b, sign)

    return rule


def _product(sign: float) -> _Rule:
    """u·exp(k·c) times, or over, v·exp(l·c)."""

    def rule(eqn: JaxprEqn, operands: list[Shift]) -> Shift | None:
        a, b = operands
        if any(x.factor and not x.power for x in operands):
            return None
        both = _together(eqn, a, b, sign)
        return both and both._replace(power=True)

    return rule


def _together(eqn: JaxprEqn, a: Shift, b: Shift, sign: float) -> Shift | None:
    """The factors added, where c runs along the same axes of both."""
    if a.factor and b.factor and a.axes != b.axes:
        return None
    axes = a.axes if a.factor else b.axes
    rank = len(_shape(eqn.outvars[0]))
    if len(axes) != rank:
        axes = (None,) * rank  # a scalar meets an array
    return Shift(a.power, a.factor + sign * b.factor, axes)


def _exp(_: JaxprEqn, operands: list[Shift]) -> Shift | None:
    (a,) = operands
    return None if a.power else a._replace(power=True)


def _log(_: JaxprEqn, operands: list[Shift]) -> Shift | None:
    (a,) = operands
    return a._replace(power=False) if a.power else None


def _neg(_: JaxprEqn, operands: list[Shift]) -> Shift | None:
    (a,) = operands
    return a if a.power else a._replace(factor=-a.factor)


def _abs(_: JaxprEqn, operands: list[Shift]) -> Shift | None:
    return operands[0] if operands[0].power else None


def _sign(_: JaxprEqn, operands: list[Shift]) -> Shift | None:
    return FREE if operands[0].power else None


def _same(_: JaxprEqn, operands: list[Shift]) -> Shift | None:
    return operands[0]


def _convert(eqn: JaxprEqn, operands: list[Shift]) -> Shift | None:
    is_float = jnp.issubdtype(eqn.params["new_dtype"], jnp.floating)
    return operands[0] if is_float else None


def _reduce_sum(eqn: JaxprEqn, operands: list[Shift]) -> Shift | None:
    """Along axes on which c is constant."""
    (a,) = operands
    summed = eqn.params["axes"]
    if any(a.axes[axis] is not None for axis in summed):
        return None
    count = math.prod(_shape(eqn.invars[0])[axis] for axis in summed)
    axes = tuple(x for i, x in enumerate(a.axes) if i not in summed)
    return Shift(a.power, a.factor * (1 if a.power else count), axes)


def _broadcast(eqn: JaxprEqn, operands: list[Shift]) -> Shift | None:
    a, *sizes = operands
    axes: list[int | None] = [None] * len(_shape(eqn.outvars[0]))
    for axis, place in zip(a.axes, eqn.params["broadcast_dimensions"], strict=True):
        axes[place] = axis
    return None if sizes else a._replace(axes=tuple(axes))


def _reshape(eqn: JaxprEqn, operands: list[Shift]) -> Shift | None:
    """Axes of length 1 come and go."""
    (a,) = operands
    old, new = _shape(eqn.invars[0]), _shape(eqn.outvars[0])
    kept = [axis for axis, size in zip(a.axes, old, strict=True) if size != 1]
    if [size for size in old if size != 1] != [size for size in new if size != 1]:
        return None
    axes = iter(kept)
    return a._replace(axes=tuple(None if size == 1 else next(axes) for size in new))


def _transpose(eqn: JaxprEqn, operands: list[Shift]) -> Shift | None:
    (a,) = operands
    return a._replace(axes=tuple(a.axes[i] for i in eqn.params["permutation"]))


_RULES: dict[str, _Rule] = {
    "abs": _abs,
    "add": _sum(1.0),
    "add_any": _sum(1.0),
    "broadcast_in_dim": _broadcast,
    "convert_element_type": _convert,
    "copy": _same,
    "div": _product(-1.0),
    "exp": _exp,
    "log": _log,
    "mul": _product(1.0),
    "name": _same,
    "neg": _neg,
    "reduce_sum": _reduce_sum,
    "reshape": _reshape,
    "sign": _sign,
    "squeeze": _reshape,
    "sub": _sum(-1.0),
    "transpose": _transpose,
}


def _shape(atom: Any) -> tuple[int, ...]:
    return tuple(atom.aval.shape)
