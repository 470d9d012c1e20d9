"""What is asked of a prover."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr

from ._report import Method, Report


class Question(NamedTuple):
    """Is the objective convex between `low` and `high`?

    A prover is a function of a question that answers with a `Report`; "undecided", with
    the reason, where it proves nothing.
    """

    objective: Callable[[Any], jax.Array]
    program: ClosedJaxpr  # its trace
    low: float
    high: float
    budget: int  # boxes
    work: float  # multiplications of 64 bits


def traced(
    objective: Callable[[Any], jax.Array], shape: tuple[int, ...] = ()
) -> ClosedJaxpr:
    """The program of the objective, after checking that it returns a real scalar."""
    program = jax.make_jaxpr(objective)(
        jax.ShapeDtypeStruct(shape, jnp.result_type(float))
    )
    outputs = [(out.shape, out.dtype) for out in program.out_avals]
    real = len(outputs) == 1 and jnp.issubdtype(outputs[0][1], jnp.floating)
    if not real or outputs[0][0] != ():
        msg = f"objective returns {outputs}, but must return one real scalar"
        raise ValueError(msg)
    return program


def certified(
    reason: str, method: Method, *, strict: bool | None, least: float = 0.0
) -> Report:
    """Convex on the whole interval."""
    return Report(
        "certified", None, reason, method, strict=strict, least=least, proved=1.0
    )


def refuted(witness: Any, reason: str, method: Method, curvature: float) -> Report:
    """Not convex: negative curvature at the witness."""
    return Report("refuted", witness, reason, method, curvature=curvature, strict=False)


def undecided(reason: str) -> Report:
    """This prover has nothing to say."""
    return Report("undecided", None, reason, "none")
