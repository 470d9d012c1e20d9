"""Where tasks are computed, and how much each counts: the checks of both."""

from typing import Any

import jax.numpy as jnp
from jax.core import Tracer
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array

AXIS = "tasks"
"""The mesh axis that tasks are spread over."""


def checked_weights(weights: Any, count: int) -> Array:
    """One float a task."""
    array = jnp.asarray(weights)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        array = array.astype(jnp.result_type(float))
    good = array.shape == (count,)
    if good and not isinstance(array, Tracer):
        good = bool(jnp.all((array >= 0.0) & jnp.isfinite(array)) & jnp.any(array > 0))
    if not good:
        msg = (
            f"weights = {weights!r} must be one finite number ≥ 0 for each of "
            f"{count} tasks, and not all 0"
        )
        raise ValueError(msg)
    return array


def checked_mesh(mesh: Mesh) -> Mesh:
    """The mesh with axes that the compiler propagates, whatever the user's are."""
    if mesh.axis_names != (AXIS,):
        msg = (
            f"mesh has the axes {mesh.axis_names}: it must have the one axis "
            f"{AXIS!r}, e.g. jax.make_mesh((4,), ({AXIS!r},))"
        )
        raise ValueError(msg)
    return Mesh(mesh.devices, mesh.axis_names)


def spec(shared: bool) -> PartitionSpec:
    return PartitionSpec() if shared else PartitionSpec(AXIS)
