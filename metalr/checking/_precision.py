"""Which dtype limits a value, and the same objective in the widest one."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._programs.limits import epsilon, limiting_dtype
from .._types import Hyper, Objective
from ..hypergrad.hypergradient import as_pytree


class Precise(NamedTuple):
    """An objective and a point, and the dtype that limits its value there."""

    objective: Objective
    hyper: Hyper
    dtype: np.dtype


def limited(objective: Objective, hyper: Hyper) -> Precise:
    """With the coarsest float dtype between hyper and the value."""
    return Precise(objective, hyper, limiting_dtype(objective, hyper))


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
    return found if epsilon(found.dtype) < epsilon(own.dtype) else own


def has_x64() -> bool:
    """Whether JAX's widest float is float64."""
    return jnp.result_type(float) == np.dtype("float64")
