r"""Is the gradient that JAX takes of a program the gradient of what it computes?

Only then is its derivative a symmetric Hessian, and $H^\top v$ may be had as $Hv$.
Whatever brings its own derivative may break that: `stop_gradient` (targets, straight
through), `jax.custom_jvp` and `jax.custom_vjp` (gradient reversal, clipped backward
passes), solvers. Decided on the traced program, on the safe side.

Two things are seen through. JAX's own functions with a rule (`relu`, `softplus`, …) are
recognized (`known`). And a stopped value that cancels, as the largest entry does in

    softmax(x) = exp(x − c) / Σ exp(x − c),  logsumexp(x) = c + log Σ exp(x − c),

is harmless: where the value does not depend on c, a derivative at constant c is the
derivative. So each stopped value is taken for a free variable c, and followed as long
as it enters as $u + k\,c$ or $u \cdot e^{k c}$.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, primitives

from .equations import fold, fold_scan, inner_program, programs_in
from .known import known_function
from .shifts import FREE, Shift, shifted, stopped

_OWN_RULE = frozenset(
    {
        "custom_jvp_call",
        "custom_lin",
        "custom_linear_solve",
        "custom_vjp_call",
        "guarded",  # at a pole it has a derivative by convention
        "linear_call",
        "stop_gradient",
    }
)
"""Primitives whose derivative is what someone wrote."""

_DERIVED = frozenset(
    primitive.name
    for name, primitive in vars(primitives).items()
    if name.endswith("_p")
) | {
    "optimization_barrier",
    "psum_invariant",
    "pvary",
    "ragged_dot_general",
    "random_unwrap",
    "random_wrap",
    "remat_opt",
    "reshard",
    "scatter-sub",
    "shard_map",
    "split",
    "stack",
    "tile",
    "unstack",
}
"""Primitives whose derivative JAX derives from what they compute."""


def own_derivatives(
    program: ClosedJaxpr | Jaxpr, inputs: Sequence[bool] | None = None
) -> tuple[str, ...]:
    """What may keep the gradient of a program from being that of what it computes.

    Args:
        program: a traced function of any inputs, e.g. a loss; calls, loops and branches
            in it are entered.
        inputs: for each input of the program whether derivatives are taken in it; all,
            if not given. What does not depend on those does no harm.

    Returns:
        Names of primitives (such as "custom_vjp_call" or "stop_gradient"), sorted;
        empty where the gradient is a true one and its Jacobian symmetric.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> program = jax.make_jaxpr(lambda x: x * jax.lax.stop_gradient(x))(1.0)
        >>> own_derivatives(program)
        ('stop_gradient',)
        >>> program = jax.make_jaxpr(lambda x: jnp.sum(jax.nn.softmax(x)[0]))(
        ...     jnp.ones(3)
        ... )
        >>> own_derivatives(program)
        ()
    """
    jaxpr = program.jaxpr if isinstance(program, ClosedJaxpr) else program
    chosen = [True] * len(jaxpr.invars) if inputs is None else inputs
    reading = _Reading(found=set(), fresh=itertools.count())
    values = [_MOVES if moves else _STILL for moves in chosen]
    outputs = reading.program(jaxpr, values)
    if any(value.shifts for value in outputs):
        reading.found.add("stop_gradient")
    return tuple(sorted(reading.found))


class _Value(NamedTuple):
    """Does it depend on the inputs in question, and how on the stopped values."""

    moves: bool
    shifts: dict[int, Shift | None]  # None: in some other way


_STILL, _MOVES, _SOMEHOW = _Value(False, {}), _Value(True, {}), -1


class _Reading(NamedTuple):
    """One pass over a program: what was found, and numbers for stopped values."""

    found: set[str]
    fresh: Iterator[int]

    def program(self, jaxpr: ClosedJaxpr | Jaxpr, inputs: Any) -> list[_Value]:
        return fold(jaxpr, inputs, equation=self.equation, constant=lambda _: _STILL)

    def equation(self, eqn: JaxprEqn, operands: list[_Value]) -> list[_Value]:
        name = eqn.primitive.name
        moves = any(value.moves for value in operands)
        if not moves and not any(value.shifts for value in operands):
            return [_STILL] * len(eqn.outvars)
        if name == "stop_gradient":
            return [self.stopped(eqn, operands[0])]
        if name in _LOOPS:
            return _LOOPS[name](self, eqn, [_somehow(value) for value in operands])
        own = name in _OWN_RULE or name not in _DERIVED
        inner = None if own else inner_program(eqn)
        if inner is not None:
            return self.program(inner, operands)
        if moves and own and known_function(eqn) is None:
            self.found.add(name)
        elif moves and not own:  # whatever is in a program of `reduce`, `shard_map`, …
            for carried in programs_in(eqn):
                self.found.update(own_derivatives(carried))
        return [_Value(moves, _shifts(eqn, operands))] * len(eqn.outvars)

    def stopped(self, eqn: JaxprEqn, value: _Value) -> _Value:
        if not value.moves:
            return value
        return _Value(False, {next(self.fresh): stopped(eqn.outvars[0])})


def _somehow(value: _Value) -> _Value:
    """Of a stopped value it is only kept that there is one."""
    return _Value(value.moves, {_SOMEHOW: None} if value.shifts else {})


def _joined(several: Sequence[_Value]) -> _Value:
    shifts = any(value.shifts for value in several)
    moves = any(value.moves for value in several)
    return _Value(moves, {_SOMEHOW: None} if shifts else {})


def _scan(reading: _Reading, eqn: JaxprEqn, operands: list[_Value]) -> list[_Value]:
    def body(inputs: list[_Value]) -> list[_Value]:
        return [_somehow(v) for v in reading.program(eqn.params["jaxpr"], inputs)]

    def settle(_: int, old: list[_Value], new: list[_Value]) -> list[_Value] | None:
        new = [_joined(pair) for pair in zip(old, new, strict=True)]
        return None if new == old else new

    return fold_scan(
        eqn, operands, body, entry=lambda row, _: row, stack=_joined, settle=settle
    )


def _while(reading: _Reading, eqn: JaxprEqn, operands: list[_Value]) -> list[_Value]:
    start = eqn.params["cond_nconsts"]
    split = start + eqn.params["body_nconsts"]
    carry = operands[split:]
    while True:  # what is known only grows
        (going,) = reading.program(
            eqn.params["cond_jaxpr"], [*operands[:start], *carry]
        )
        new = reading.program(
            eqn.params["body_jaxpr"], [*operands[start:split], *carry]
        )
        new = [_joined([old, new, going]) for old, new in zip(carry, new, strict=True)]
        if new == carry:
            return carry
        carry = new


def _cond(reading: _Reading, eqn: JaxprEqn, operands: list[_Value]) -> list[_Value]:
    which, *rest = operands
    branches = [reading.program(b, rest) for b in eqn.params["branches"]]
    return [_joined([which, *outputs]) for outputs in zip(*branches, strict=True)]


_LOOPS: dict[str, Callable[[_Reading, JaxprEqn, list[_Value]], list[_Value]]] = {
    "cond": _cond,
    "scan": _scan,
    "while": _while,
}


def _shifts(eqn: JaxprEqn, operands: list[_Value]) -> dict[int, Shift | None]:
    """For each stopped value, how the result of an equation depends on it."""
    shifts = {
        number: shifted(eqn, [value.shifts.get(number, FREE) for value in operands])
        for number in {number for value in operands for number in value.shifts}
    }
    return {n: s for n, s in shifts.items() if s is None or s.factor != 0.0}
