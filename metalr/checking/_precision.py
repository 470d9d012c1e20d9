"""Which dtype limits a value, and the same objective in the widest one."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn

from .._programs.dataflow import Facts, propagate
from .._types import Hyper, Objective
from ..hypergrad.hypergradient import as_pytree


class Precise(NamedTuple):
    """An objective and a point, and the dtype that limits its value there."""

    objective: Objective
    hyper: Hyper
    dtype: np.dtype


def limited(objective: Objective, hyper: Hyper) -> Precise:
    """With the coarsest float dtype between hyper and the value.

    Read off the traced program: the dtypes of hyper, and of every value that depends on
    it and that the result depends on. So a cast inside the loss counts, and an
    optimizer's state that is kept in another dtype; data in a wider one do not.
    """
    shapes = jax.tree.map(lambda h: jax.ShapeDtypeStruct(h.shape, h.dtype), hyper)
    program = jax.make_jaxpr(objective)(shapes).jaxpr
    inputs = [_floats([leaf]) for leaf in jax.tree.leaves(shapes)]
    found = frozenset[Any]().union(*propagate(program, inputs, _passed))
    dtypes = [np.dtype(str(name)) for name in found] or [
        np.dtype(program.outvars[0].aval.dtype)
    ]
    return Precise(objective, hyper, max(dtypes, key=_eps))


def most_precise(objective: Objective, hyper: Hyper) -> Precise:
    """The same with every floating array that it holds in the widest dtype JAX has.

    Float64 where x64 is on, else float32. Where the program does not take it (a loop
    whose carry is of a fixed dtype), the objective as it is.
    """
    widest = jnp.finfo(jnp.result_type(float)).dtype

    def cast(leaf: Any) -> Any:
        dtype = getattr(leaf, "dtype", None)
        if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
            return leaf
        return jnp.asarray(leaf, widest)

    own = limited(objective, hyper)
    if own.dtype == widest:
        return own
    wide = jax.tree.map(cast, as_pytree(objective)), jax.tree.map(cast, hyper)
    try:
        found = limited(*wide)
    except (TypeError, ValueError):
        return own
    return found if _eps(found.dtype) < _eps(own.dtype) else own


def _passed(eqn: JaxprEqn, facts: Facts) -> Facts:
    return facts | _floats([out.aval for out in eqn.outvars]) if facts else facts


def _floats(avals: list[Any]) -> Facts:
    dtypes = [getattr(aval, "dtype", None) for aval in avals]
    floats = [d for d in dtypes if d is not None and jnp.issubdtype(d, jnp.floating)]
    return frozenset(str(np.dtype(d)) for d in floats)


def _eps(dtype: Any) -> float:
    return float(jnp.finfo(dtype).eps)
