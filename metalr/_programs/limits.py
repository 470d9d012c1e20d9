"""The coarsest float dtype that a value passes through, read off the traced program."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn

from .._types import Hyper, Objective
from .dataflow import Facts, propagate


def limiting_dtype(objective: Objective, hyper: Hyper) -> np.dtype:
    """The coarsest float dtype between hyper and the value.

    Of hyper, and of every value that depends on it and that the result depends on. So a
    cast inside the loss counts, and an optimizer's state that is kept in another dtype;
    data in a wider one do not.
    """
    shapes = jax.tree.map(lambda h: jax.ShapeDtypeStruct(h.shape, h.dtype), hyper)
    program = jax.make_jaxpr(objective)(shapes).jaxpr
    inputs = [_floats([leaf]) for leaf in jax.tree.leaves(shapes)]
    found = frozenset[Any]().union(*propagate(program, inputs, _passed))
    own: Any = program.outvars[0].aval
    dtypes = [np.dtype(str(name)) for name in found] or [np.dtype(own.dtype)]
    return max(dtypes, key=epsilon)


def epsilon(dtype: Any) -> float:
    """Of any float dtype, bfloat16 too."""
    return float(jnp.finfo(dtype).eps)


def _passed(eqn: JaxprEqn, facts: Facts) -> Facts:
    return facts | _floats([out.aval for out in eqn.outvars]) if facts else facts


def _floats(avals: list[Any]) -> Facts:
    dtypes = [getattr(aval, "dtype", None) for aval in avals]
    floats = [d for d in dtypes if d is not None and jnp.issubdtype(d, jnp.floating)]
    return frozenset(str(np.dtype(d)) for d in floats)
