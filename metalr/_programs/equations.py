"""The structure of traced programs, the same on every supported version of JAX."""

from collections.abc import Sequence
from typing import Any, TypeVar

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

T = TypeVar("T")


def inner_program(eqn: JaxprEqn) -> ClosedJaxpr | None:
    """The program that a call (jit, checkpoint, custom derivative) stands for."""
    for name in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        inner: Any = eqn.params.get(name)
        if isinstance(inner, Jaxpr) and not isinstance(inner, ClosedJaxpr):
            inner = ClosedJaxpr(inner, ())
        if isinstance(inner, ClosedJaxpr):
            return inner if len(inner.jaxpr.invars) == len(eqn.invars) else None
    return None


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
