r"""Between which numbers the values of a program lie, whatever its inputs are.

An update is full of poles that nothing can meet: $\sqrt v + \epsilon \ge \epsilon$ is
never 0, nor is the bias correction $1 - b^t$ once a step is counted. `bounds` of a
value hold for all its entries that are not nan. They are real bounds moved outward by
the rounding of one operation in the value's dtype; where a rule is missing, the bounds
are infinite. That a counter of 32 bits does not run over is taken for granted.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

from .._programs.equations import fold, inner_program


class Bounds(NamedTuple):
    """low ≤ x ≤ high for every entry x that is not nan."""

    low: float = -math.inf
    high: float = math.inf

    def within(self, other: "Bounds") -> bool:
        """Whether the other bounds hold, too."""
        return other.low <= self.low and self.high <= other.high


ANY = Bounds()
_UNIT = Bounds(0.0, 1.0)
_POSITIVE = Bounds(0.0, math.inf)
_MANY_ULPS = 64
"""Outward, in units of the dtype's precision, for what is not correctly rounded."""

Rule: TypeAlias = Callable[[JaxprEqn, list[Bounds]], Bounds]


def bounds(program: ClosedJaxpr | Jaxpr, inputs: Sequence[Bounds]) -> list[Bounds]:
    """Bounds of the outputs of a program, given those of its inputs."""
    return fold(program, inputs, equation=of_equation, constant=of_constant)


def of_equation(eqn: JaxprEqn, operands: list[Bounds]) -> list[Bounds]:
    """Bounds of the outputs of an equation, given those of its operands."""
    if eqn.primitive.name == "cond":
        branches = [bounds(branch, operands[1:]) for branch in eqn.params["branches"]]
        return [join(*outputs) for outputs in zip(*branches, strict=True)]
    inner = inner_program(eqn)
    if inner is not None:
        return bounds(inner, operands)
    if len(eqn.outvars) != 1:
        return [ANY] * len(eqn.outvars)
    dtype = _dtype(eqn.outvars[0])
    if dtype == jnp.bool_:
        return [_UNIT]
    rule = _RULES.get(eqn.primitive.name)
    if rule is None or any(_is_complex(atom) for atom in eqn.invars):
        return [ANY]
    return [_outward(rule(eqn, operands), dtype, eqn.primitive.name)]


def of_constant(value: Any) -> Bounds:
    """Those of a number, or of a small array whose entries are known."""
    if isinstance(value, Tracer) or np.size(value) not in range(1, 65):
        return ANY
    if not isinstance(value, jax.Array | np.ndarray | np.generic | float | int):
        return ANY
    try:
        array = np.asarray(value).astype(np.float64)
    except (TypeError, ValueError):  # a random key
        return ANY
    finite = not np.isnan(array).all()
    return Bounds(float(np.nanmin(array)), float(np.nanmax(array))) if finite else ANY


def join(*several: Bounds) -> Bounds:
    """What holds of a value that is one of these."""
    return Bounds(min(b.low for b in several), max(b.high for b in several))


def invariant(
    start: Sequence[Bounds], step: Callable[[list[Bounds]], list[Bounds]]
) -> list[Bounds]:
    """Bounds of a state that hold at the start and, if before a step, after it.

    Args:
        start: bounds of the state's leaves at the start.
        step: the bounds after a step, given those before it.
    """
    known = list(start)
    while True:  # every bound moves at most twice: to 0, to ±∞
        new = step(known)
        if all(after.within(before) for after, before in zip(new, known, strict=True)):
            return known
        known = [_widened(a, b) for a, b in zip(known, new, strict=True)]


def _widened(old: Bounds, new: Bounds) -> Bounds:
    low = old.low if new.low >= old.low else 0.0 if new.low >= 0.0 else -math.inf
    high = old.high if new.high <= old.high else 0.0 if new.high <= 0.0 else math.inf
    return Bounds(low, high)


def _outward(found: Bounds, dtype: Any, name: str) -> Bounds:
    """Also after rounding; a number that may underflow may be 0."""
    if name in _MOVES:
        return found
    low, high = found
    if math.isnan(low) or math.isnan(high):
        return ANY
    if jnp.issubdtype(dtype, jnp.integer):
        largest = math.inf if name == "add" else jnp.iinfo(dtype).max  # a counter
        unsigned = jnp.issubdtype(dtype, jnp.unsignedinteger)
        wraps = unsigned or low < jnp.iinfo(dtype).min or high > largest
        return ANY if wraps else found
    info = jnp.finfo(dtype)
    slack = float(info.eps) * (_MANY_ULPS if name in _NOT_ROUNDED else 2)
    low, high = low - slack * abs(low), high + slack * abs(high)
    tiny, largest = float(info.tiny), float(info.max)
    low = 0.0 if 0.0 < low < tiny else -math.inf if low < -largest else low
    high = 0.0 if -tiny < high < 0.0 else math.inf if high > largest else high
    return Bounds(low, high)


_NOT_ROUNDED = frozenset({"exp", "exp2", "integer_pow", "log1p", "pow"})
"""Functions that are not the nearest float."""


# Rules.


def _first(_: JaxprEqn, operands: list[Bounds]) -> Bounds:
    return operands[0]


def _all(_: JaxprEqn, operands: list[Bounds]) -> Bounds:
    return join(*operands)


def _updated(_: JaxprEqn, operands: list[Bounds]) -> Bounds:
    return join(*operands[:2])


def _convert(eqn: JaxprEqn, operands: list[Bounds]) -> Bounds:
    real = [jnp.issubdtype(_dtype(atom), jnp.floating) for atom in eqn.invars]
    to_real = jnp.issubdtype(_dtype(eqn.outvars[0]), jnp.floating)
    return operands[0] if to_real or not any(real) else ANY  # nan as an integer


def _cases(_: JaxprEqn, operands: list[Bounds]) -> Bounds:
    return join(*operands[1:])


def _always(found: Bounds) -> Rule:
    return lambda _, __: found


def _add(_: JaxprEqn, operands: list[Bounds]) -> Bounds:
    a, b = operands
    return Bounds(a.low + b.low, a.high + b.high)


def _sub(_: JaxprEqn, operands: list[Bounds]) -> Bounds:
    a, b = operands
    return Bounds(a.low - b.high, a.high - b.low)


def _neg(_: JaxprEqn, operands: list[Bounds]) -> Bounds:
    (a,) = operands
    return Bounds(-a.high, -a.low)


def _mul(eqn: JaxprEqn, operands: list[Bounds]) -> Bounds:
    a, b = operands
    return _even(a, 2) if eqn.invars[0] is eqn.invars[1] else _product(a, b)


def _product(a: Bounds, b: Bounds) -> Bounds:
    ends = [0.0 if 0.0 in {x, y} else x * y for x in a for y in b]
    return Bounds(min(ends), max(ends))


def _div(_: JaxprEqn, operands: list[Bounds]) -> Bounds:
    a, b = operands
    if not (b.low > 0.0 or b.high < 0.0):
        return ANY
    return _product(a, Bounds(1.0 / b.high, 1.0 / b.low))


def _even(a: Bounds, power: int) -> Bounds:
    ends = [_power(abs(end), power) for end in a]
    return Bounds(0.0 if a.low <= 0.0 <= a.high else min(ends), max(ends))


def _integer_pow(eqn: JaxprEqn, operands: list[Bounds]) -> Bounds:
    (a,), power = operands, eqn.params["y"]
    if power < 0:
        return _POSITIVE if a.low > 0.0 or power % 2 == 0 else ANY
    if power % 2 == 0:
        return _even(a, power)
    return Bounds(_power(a.low, power), _power(a.high, power))


def _pow(_: JaxprEqn, operands: list[Bounds]) -> Bounds:
    base, power = operands
    if base.low < 0.0 or (base.low == 0.0 and power.low < 0.0):  # -0.0 is among them
        return ANY
    small = base.high <= 1.0 and power.low >= 0.0
    return Bounds(0.0, _power(base.high, power.low) if small else math.inf)


def _power(base: float, power: float | int) -> float:
    try:
        return base**power
    except OverflowError:
        return math.copysign(math.inf, base)


def _rising(function: Callable[[float], float]) -> Rule:
    """For an increasing function; outside its domain the value is nan."""

    def end(x: float, outside: float) -> float:
        try:
            return function(x)
        except OverflowError:
            return math.inf
        except ValueError:
            return outside

    def rule(_: JaxprEqn, operands: list[Bounds]) -> Bounds:
        (a,) = operands
        return Bounds(end(a.low, -math.inf), end(a.high, math.inf))

    return rule


def _rsqrt(_: JaxprEqn, operands: list[Bounds]) -> Bounds:
    return _POSITIVE if operands[0].low > 0.0 else ANY  # of -0.0 it is -∞


def _sqrt(_: JaxprEqn, operands: list[Bounds]) -> Bounds:
    (a,) = operands
    return Bounds(math.sqrt(max(a.low, 0.0)), math.sqrt(max(a.high, 0.0)))


def _abs(_: JaxprEqn, operands: list[Bounds]) -> Bounds:
    (a,) = operands
    return Bounds(max(a.low, -a.high, 0.0), max(-a.low, a.high))


def _max(_: JaxprEqn, operands: list[Bounds]) -> Bounds:
    a, b = operands
    return Bounds(max(a.low, b.low), max(a.high, b.high))


def _min(_: JaxprEqn, operands: list[Bounds]) -> Bounds:
    a, b = operands
    return Bounds(min(a.low, b.low), min(a.high, b.high))


def _clamp(eqn: JaxprEqn, operands: list[Bounds]) -> Bounds:
    low, x, high = operands
    return _min(eqn, [_max(eqn, [low, x]), high])


def _sum(_: JaxprEqn, operands: list[Bounds]) -> Bounds:
    (a,) = operands
    return Bounds(
        0.0 if a.low >= 0.0 else -math.inf, 0.0 if a.high <= 0.0 else math.inf
    )


def _iota(eqn: JaxprEqn, _: list[Bounds]) -> Bounds:
    return Bounds(0.0, max(eqn.params["shape"][eqn.params["dimension"]] - 1.0, 0.0))


_MOVES = frozenset(
    {
        "broadcast_in_dim",
        "clamp",
        "concatenate",
        "copy",
        "dynamic_slice",
        "dynamic_update_slice",
        "iota",
        "max",
        "min",
        "name",
        "neg",
        "pad",
        "reduce_max",
        "reduce_min",
        "reshape",
        "rev",
        "select_n",
        "slice",
        "squeeze",
        "stop_gradient",
        "transpose",
    }
)
"""Nothing is computed, so nothing is rounded."""

_RULES: dict[str, Rule] = {
    **dict.fromkeys(_MOVES, _first),
    "abs": _abs,
    "add": _add,
    "add_any": _add,
    "clamp": _clamp,
    "concatenate": _all,
    "convert_element_type": _convert,
    "cos": _always(Bounds(-1.0, 1.0)),
    "cumsum": _sum,
    "div": _div,
    "dynamic_update_slice": _updated,
    "exp": _rising(math.exp),
    "exp2": _rising(lambda x: 2.0**x),
    "integer_pow": _integer_pow,
    "iota": _iota,
    "log1p": _rising(math.log1p),
    "logistic": _always(_UNIT),
    "max": _max,
    "min": _min,
    "mul": _mul,
    "neg": _neg,
    "pad": _all,
    "pow": _pow,
    "reduce_sum": _sum,
    "rsqrt": _rsqrt,
    "select_n": _cases,
    "sign": _always(Bounds(-1.0, 1.0)),
    "sin": _always(Bounds(-1.0, 1.0)),
    "sqrt": _sqrt,
    "square": lambda _, operands: _even(operands[0], 2),
    "sub": _sub,
    "tanh": _always(Bounds(-1.0, 1.0)),
}
"""Bounds of a result, before rounding; of what is not real or not here, none."""


def _dtype(atom: Any) -> Any:
    return atom.aval.dtype


def _is_complex(atom: Any) -> bool:
    return jnp.issubdtype(_dtype(atom), jnp.complexfloating)
