"""A traced program run on power series: over intervals, or over the rationals.

What does not depend on the hyperparameter and is an integer, a boolean or an index is
computed by JAX itself, exactly. Loops are unrolled, calls are entered. Comparisons are
decided only where they are strict on the whole box; a choice that is not decided gives
the whole line, so a kink or a jump is never certified across.

No kept library does this for today's JAX: google/autobound (Taylor enclosures of a
jaxpr) is not maintained (its issue #12 and pull request #14: `Var.count`, removed in
2024) and does not round outward; jax_verify bounds networks, without rounding either.

The program stands for the exact real function that it names: the rounding errors of
its own floating-point evaluation, and changes of precision, are not part of it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var

from .._programs.equations import inner_program, scan_operands
from . import _series
from ._rules import RULES
from ._run import NotCoveredError, OverBudgetError, Run, Truth, Value


def interpret(program: ClosedJaxpr, inputs: Sequence[Value], run: Run) -> list[Value]:
    """The outputs of a traced program, given its inputs.

    Raises:
        NotCoveredError: naming the primitive that has no rule.
        OverBudgetError: if `run.work` is spent.
    """
    with np.errstate(all="ignore"):
        return _program(program.jaxpr, _constants(program), inputs, run)


def _constants(program: ClosedJaxpr) -> list[Value]:
    return [np.asarray(const) for const in program.consts]


def _program(
    jaxpr: Jaxpr, constants: Sequence[Value], inputs: Sequence[Value], run: Run
) -> list[Value]:
    known: dict[Var, Value] = dict(zip(jaxpr.constvars, constants, strict=True))
    known.update(zip(jaxpr.invars, inputs, strict=True))

    def read(atom: Any) -> Value:
        return np.asarray(atom.val) if isinstance(atom, Literal) else known[atom]

    for eqn in jaxpr.eqns:
        outputs = _equation(eqn, [read(atom) for atom in eqn.invars], run)
        known.update(zip(eqn.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _equation(eqn: JaxprEqn, operands: list[Value], run: Run) -> list[Value]:
    name = eqn.primitive.name
    if name in CONTROL:
        return CONTROL[name](eqn, operands, run)
    inner = inner_program(eqn)
    if inner is not None:
        smooth = _smooth_call(eqn, inner)
        if smooth is not None:
            return [RULES[smooth](eqn, operands, run)]
        return _program(inner.jaxpr, _constants(inner), operands, run)
    if all(isinstance(x, np.ndarray) for x in operands) and _is_discrete(eqn, operands):
        return _by_jax(eqn, operands)
    if name not in RULES:
        msg = f"the primitive `{name}`"
        raise NotCoveredError(msg)
    return [RULES[name](eqn, operands, run)]


def _is_discrete(eqn: JaxprEqn, operands: Sequence[Any]) -> bool:
    """No floating-point operation takes part: JAX's result is exact."""
    dtypes = [np.asarray(x).dtype for x in operands]
    outputs: list[Any] = eqn.outvars
    dtypes += [out.aval.dtype for out in outputs]
    return not any(jnp.issubdtype(dtype, jnp.inexact) for dtype in dtypes)


def _by_jax(eqn: Any, operands: Sequence[Any]) -> list[Value]:
    arrays = [
        jnp.asarray(x, atom.aval.dtype)
        for x, atom in zip(operands, eqn.invars, strict=True)
    ]
    result = eqn.primitive.bind(*arrays, **eqn.params)
    results = result if eqn.primitive.multiple_results else [result]
    return [np.asarray(array) for array in results]


def _smooth_call(eqn: JaxprEqn, inner: ClosedJaxpr) -> str | None:
    """`logaddexp`, if the program called is equation by equation `jnp.logaddexp`.

    It is written with max and |·|, whose kinks cancel: log(eᵃ + eᵇ) is smooth.
    """
    if len(eqn.invars) != 2 or len(inner.jaxpr.eqns) != len(_LOGADDEXP):
        return None
    numbers: dict[Any, int] = {v: i for i, v in enumerate(inner.jaxpr.invars)}
    text = []
    for inner_eqn in inner.jaxpr.eqns:
        if any(isinstance(atom, Literal) for atom in inner_eqn.invars):
            return None
        inputs = " ".join(str(numbers[atom]) for atom in inner_eqn.invars)
        text.append(f"{inner_eqn.primitive.name} {inputs}")
        numbers[inner_eqn.outvars[0]] = len(numbers)
    last = numbers.get(inner.jaxpr.outvars[0])
    return "logaddexp" if (tuple(text), last) == (_LOGADDEXP, 11) else None


_LOGADDEXP = (
    "max 0 1",
    "sub 0 1",
    "ne 3 3",
    "add 0 1",
    "abs 3",
    "neg 6",
    "exp 7",
    "log1p 8",
    "add 2 9",
    "select_n 4 10 5",
)
"""nan-safe max(a, b) + log1p(exp(−|a − b|)), operands numbered in order."""


def _scan(eqn: JaxprEqn, operands: list[Value], run: Run) -> list[Value]:
    body: ClosedJaxpr = eqn.params["jaxpr"]
    consts, carry, rows = scan_operands(eqn, operands)
    num_carry, length = len(carry), eqn.params["length"]
    constants = _constants(body)
    order = range(length)
    collected: list[list[Value]] = []
    for index in reversed(order) if eqn.params["reverse"] else order:
        entries = [_entry(row, index) for row in rows]
        outputs = _program(body.jaxpr, constants, [*consts, *carry, *entries], run)
        carry = outputs[:num_carry]
        collected.append(outputs[num_carry:])
    if eqn.params["reverse"]:
        collected.reverse()
    if length == 0 and len(body.jaxpr.outvars) > num_carry:
        msg = "a scan of length 0 with stacked outputs"
        raise NotCoveredError(msg)
    return [*carry, *(_stack(column) for column in zip(*collected, strict=True))]


def _entry(value: Value, index: int) -> Value:
    if isinstance(value, np.ndarray):
        return np.asarray(value[index])
    if isinstance(value, Truth):
        return Truth(value.must[:, index], value.may[:, index])
    return _series.moved(value, lambda x: x[:, index])


def _stack(values: Sequence[Value]) -> Value:
    arrays = [value for value in values if isinstance(value, np.ndarray)]
    if len(arrays) == len(values):
        return np.stack(arrays)
    msg = "a scan that stacks what depends on the hyperparameter"
    raise NotCoveredError(msg)


def _cond(eqn: JaxprEqn, operands: list[Value], run: Run) -> list[Value]:
    index, *rest = operands
    if not isinstance(index, np.ndarray):
        msg = "a branch (`cond`) that depends on the hyperparameter"
        raise NotCoveredError(msg)
    branches = eqn.params["branches"]
    branch = branches[int(np.clip(index, 0, len(branches) - 1))]
    return _program(branch.jaxpr, _constants(branch), rest, run)


def _while(eqn: JaxprEqn, operands: list[Value], run: Run) -> list[Value]:
    test, body = eqn.params["cond_jaxpr"], eqn.params["body_jaxpr"]
    start = eqn.params["cond_nconsts"]
    split = start + eqn.params["body_nconsts"]
    of_test, of_body, carry = operands[:start], operands[start:split], operands[split:]
    for _ in range(_MOST_LOOPS):
        (going,) = _program(test.jaxpr, _constants(test), [*of_test, *carry], run)
        if not isinstance(going, np.ndarray):
            msg = "a loop (`while`) whose end depends on the hyperparameter"
            raise NotCoveredError(msg)
        if not going:
            return carry
        carry = _program(body.jaxpr, _constants(body), [*of_body, *carry], run)
    msg = f"a loop (`while`) of more than {_MOST_LOOPS} rounds"
    raise OverBudgetError(msg)


_MOST_LOOPS = 10_000

CONTROL: dict[str, Callable[[JaxprEqn, list[Value], Run], list[Value]]] = {
    "scan": _scan,
    "cond": _cond,
    "while": _while,
}
