"""The structure of traced programs, the same on every supported version of JAX.

Every reading of a program is one `fold` over its equations: what a value is, and what
an equation makes of values, is the reader's; names, literals and constants are followed
here. Only the primitives in `_CALLS` stand for the program that they carry. Others
carry a program and mean something else by it (`reduce` applies it between the entries,
`shard_map` to the parts of an array): a reader has a rule for them, or says that it
does not know them.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var

T = TypeVar("T")

_CALLS = {
    "call": "call_jaxpr",
    "checkpoint": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "guarded": "jaxpr",  # of metalr.guard
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "remat": "jaxpr",
    "remat2": "jaxpr",
}
"""Primitives whose value is that of a program in their parameters, and its name."""


def fold(
    program: ClosedJaxpr | Jaxpr,
    inputs: Sequence[T],
    *,
    equation: Callable[[JaxprEqn, list[T]], Sequence[T]],
    constant: Callable[[Any], T],
) -> list[T]:
    """What a reader makes of the outputs of a program, given what it has of the inputs.

    Args:
        program: e.g. `jax.make_jaxpr(f)(x)`. The constants of a bare `Jaxpr` are not
            known: `constant` is given the variable.
        inputs: one value for each input; of any kind: an array, an interval, a degree,
            a set of names.
        equation: `equation(eqn, operands)` = the values of the equation's outputs. To
            enter what it calls, fold `inner_program(eqn)`; for loops see `fold_scan`.
        constant: the value of a literal or constant array.

    Returns:
        One value for each output.
    """
    jaxpr = _bare(program)
    consts = program.consts if isinstance(program, ClosedJaxpr) else jaxpr.constvars
    known: dict[Var, T] = {
        variable: constant(value)
        for variable, value in zip(jaxpr.constvars, consts, strict=True)
    }
    known.update(zip(jaxpr.invars, inputs, strict=True))

    def read(atom: Any) -> T:
        return constant(atom.val) if isinstance(atom, Literal) else known[atom]

    for eqn in jaxpr.eqns:
        outputs = equation(eqn, [read(atom) for atom in eqn.invars])
        known.update(zip(eqn.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def fold_scan(
    eqn: JaxprEqn,
    operands: Sequence[T],
    body: Callable[[list[T]], list[T]],
    *,
    entry: Callable[[T, int], T],
    stack: Callable[[list[T]], T],
    settle: Callable[[int, list[T], list[T]], list[T] | None] = lambda _, __, new: new,
) -> list[T]:
    """The outputs of a `scan`, step by step.

    Args:
        eqn: the equation.
        operands: the values of its operands.
        body: the outputs of one step, given its inputs (a `fold` of the body).
        entry: `entry(rows, index)` = what a step sees of scanned rows.
        stack: what is made of the outputs of all steps, in order (of those up to where
            the carry settled).
        settle: `settle(step, old, new)` = the carry to go on with, or None where it is
            settled: no further step would change anything.
    """
    consts, carry, rows = scan_operands(eqn, operands)
    count, length = len(carry), eqn.params["length"]
    collected: list[list[T]] = []
    for step in range(length):
        index = length - 1 - step if eqn.params["reverse"] else step
        outputs = body([*consts, *carry, *(entry(row, index) for row in rows)])
        collected.append(outputs[count:])
        new = settle(step, carry, outputs[:count])
        if new is None:
            break
        carry = new
    if eqn.params["reverse"]:
        collected.reverse()
    columns = [[row[i] for row in collected] for i in range(len(eqn.outvars) - count)]
    return [*carry, *map(stack, columns)]


def inner_program(eqn: JaxprEqn) -> ClosedJaxpr | None:
    """The program that a call (jit, checkpoint, custom derivative) stands for."""
    program: Any = eqn.params.get(_CALLS.get(eqn.primitive.name, ""))
    if program is None or isinstance(program, ClosedJaxpr):
        return program
    return ClosedJaxpr(program, ())


def programs_in(eqn: JaxprEqn) -> Iterator[Jaxpr]:
    """All programs among the parameters of an equation, whatever it does with them."""
    for value in eqn.params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, ClosedJaxpr | Jaxpr):
                yield _bare(item)


def equations(jaxpr: Jaxpr) -> Iterator[JaxprEqn]:
    """All equations, also of the programs that others carry, however deep."""
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in programs_in(eqn):
            yield from equations(inner)


def bind(
    eqn: JaxprEqn, operands: Sequence[Any], changes: dict[str, Any] | None = None
) -> list[Any]:
    """The outputs of the equation for these arrays, with some parameters changed."""
    params = eqn.primitive.get_bind_params({**eqn.params, **(changes or {})})
    functions, params = params if isinstance(params, tuple) else ((), params)
    out = eqn.primitive.bind(*functions, *operands, **params)
    return list(out) if eqn.primitive.multiple_results else [out]


def scan_operands(
    eqn: JaxprEqn, operands: Sequence[T]
) -> tuple[list[T], list[T], list[T]]:
    """What belongs to the constants, the carry and the rows of a `scan`."""
    if "ft_in" in eqn.params:  # JAX 0.12
        consts, carry, _ = (len(part) for part in eqn.params["ft_in"].unpack())
    else:
        consts, carry = eqn.params["num_consts"], eqn.params["num_carry"]
    return (
        list(operands[:consts]),
        list(operands[consts : consts + carry]),
        list(operands[consts + carry :]),
    )


def _bare(program: ClosedJaxpr | Jaxpr) -> Jaxpr:
    return program.jaxpr if isinstance(program, ClosedJaxpr) else program
