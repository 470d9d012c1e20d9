"""A traced program run on power series: over intervals, or over the rationals.

What does not depend on the hyperparameter and is an integer, a boolean or an index is
computed by JAX itself, exactly. Loops are unrolled, calls are entered. Comparisons are
decided only where they are strict on the whole box; a choice that is not decided gives
the whole line, so a kink or a jump is never certified across.

google/autobound (Taylor enclosures of a jaxpr) runs on current JAX, but does not round
outward, so that its enclosures prove nothing; jax_verify bounds networks, without
rounding either.

The program stands for the exact real function that it names: the rounding errors of
its own floating-point evaluation, and changes of precision, are not part of it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, JaxprEqn

from .._programs.equations import bind, fold, fold_scan, inner_program
from .._programs.known import known_function
from . import _series
from ._rules import RULES, logaddexp
from ._run import NotCoveredError, OverBudgetError, Run, Truth, Value, is_known

_MOST_LOOPS = 10_000


def interpret(program: ClosedJaxpr, inputs: Sequence[Value], run: Run) -> list[Value]:
    """The outputs of a traced program, given its inputs.

    Raises:
        NotCoveredError: naming the primitive that has no rule.
        NotRationalError: naming a function that leaves the rational numbers.
        OverBudgetError: if `run.work` is spent.
    """
    with np.errstate(all="ignore"):
        return _program(program, inputs, run)


def _program(program: ClosedJaxpr, inputs: Sequence[Value], run: Run) -> list[Value]:
    return fold(
        program,
        inputs,
        equation=lambda eqn, operands: _equation(eqn, operands, run),
        constant=_constant,
    )


def _constant(value: Any) -> Value:
    is_key = jnp.issubdtype(getattr(value, "dtype", float), jax.dtypes.prng_key)
    return value if is_key else np.asarray(value)


def _equation(eqn: JaxprEqn, operands: list[Value], run: Run) -> list[Value]:
    name = eqn.primitive.name
    if name in _CONTROL:
        return _CONTROL[name](eqn, operands, run)
    inner = inner_program(eqn)
    if inner is not None:
        # It is written with max and |·|, whose kinks cancel: log(eᵃ + eᵇ) is smooth.
        if known_function(eqn) == "logaddexp":
            return [logaddexp(operands, run)]
        return _program(inner, operands, run)
    if all(map(is_known, operands)) and _is_discrete(eqn):
        return _by_jax(eqn, operands)
    if name not in RULES:
        msg = f"the primitive `{name}`"
        raise NotCoveredError(msg)
    if not all(isinstance(x, np.ndarray | Truth | list) for x in operands):
        msg = f"the primitive `{name}` on a random key"
        raise NotCoveredError(msg)
    try:
        result: Any = RULES[name](eqn, operands, run)
    except (TypeError, ValueError, IndexError) as error:
        msg = f"the primitive `{name}` in a form that its rule does not know ({error})"
        raise NotCoveredError(msg) from error
    return result if eqn.primitive.multiple_results else [result]


def _is_discrete(eqn: JaxprEqn) -> bool:
    """No floating-point operation takes part: JAX's result is exact."""
    atoms: list[Any] = [*eqn.invars, *eqn.outvars]
    floats = [jnp.issubdtype(atom.aval.dtype, jnp.inexact) for atom in atoms]
    return not any(floats) or eqn.primitive.name in {"bitcast_convert_type", "iota"}


def _by_jax(eqn: Any, operands: Sequence[Any]) -> list[Value]:
    arrays = [
        jnp.asarray(x, atom.aval.dtype) if isinstance(x, np.ndarray) else x
        for x, atom in zip(operands, eqn.invars, strict=True)
    ]
    try:
        return [_constant(array) for array in bind(eqn, arrays)]
    except Exception as error:  # whatever a primitive that we do not know may raise
        msg = f"the primitive `{eqn.primitive.name}` ({error})"
        raise NotCoveredError(msg) from error


def _scan(eqn: JaxprEqn, operands: list[Value], run: Run) -> list[Value]:
    return fold_scan(
        eqn,
        operands,
        lambda inputs: _program(eqn.params["jaxpr"], inputs, run),
        entry=_entry,
        stack=_stack,
    )


def _entry(value: Value, index: int) -> Value:
    if isinstance(value, Truth):
        return Truth(value.must[:, index], value.may[:, index])
    if isinstance(value, list):
        return _series.moved(value, lambda x: x[:, index])
    return _constant(value[index])


def _stack(values: list[Value]) -> Value:
    if values and all(isinstance(value, np.ndarray) for value in values):
        return np.stack(values)
    msg = "a scan that stacks what depends on the hyperparameter"
    raise NotCoveredError(msg)


def _cond(eqn: JaxprEqn, operands: list[Value], run: Run) -> list[Value]:
    index, *rest = operands
    if not isinstance(index, np.ndarray):
        msg = "a branch (`cond`) that depends on the hyperparameter"
        raise NotCoveredError(msg)
    branches = eqn.params["branches"]
    return _program(branches[int(np.clip(index, 0, len(branches) - 1))], rest, run)


def _while(eqn: JaxprEqn, operands: list[Value], run: Run) -> list[Value]:
    test, body = eqn.params["cond_jaxpr"], eqn.params["body_jaxpr"]
    start = eqn.params["cond_nconsts"]
    split = start + eqn.params["body_nconsts"]
    of_test, of_body, carry = operands[:start], operands[start:split], operands[split:]
    for _ in range(_MOST_LOOPS):
        (going,) = _program(test, [*of_test, *carry], run)
        if not isinstance(going, np.ndarray):
            msg = "a loop (`while`) whose end depends on the hyperparameter"
            raise NotCoveredError(msg)
        if not going:
            return carry
        carry = _program(body, [*of_body, *carry], run)
    msg = f"a loop (`while`) of more than {_MOST_LOOPS} rounds"
    raise OverBudgetError(msg)


_CONTROL: dict[str, Callable[[JaxprEqn, list[Value], Run], list[Value]]] = {
    "scan": _scan,
    "cond": _cond,
    "while": _while,
}
