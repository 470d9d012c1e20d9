"""Tasks that may be one program: alike but for their arrays; what they share."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


def stack(objectives: Sequence[Any]) -> Any:
    """One objective whose arrays lead with an axis of tasks, to `vmap` over.

    `Mean(objectives)` does without the copies: arrays that all tasks share are kept
    once there.

    Args:
        objectives: alike but for their arrays: one optimizer, one number of steps, and
            losses that carry their data as a pytree (`problems.least_squares`, or
            `jax.tree_util.Partial(function, data)`); a loss that captures its
            data in a closure is another function for each task.

    Raises:
        ValueError: if there is none, or two differ in more than the values of arrays,
            naming the first field that does.
    """
    check_alike(objectives)
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *objectives)


def check_alike(objectives: Sequence[Any]) -> None:
    """Refuse tasks that differ in more than the values of arrays, by field."""
    if not objectives:
        msg = "objectives is empty: pass at least one metalr.Unrolled"
        raise ValueError(msg)
    first = objectives[0]
    for index, other in enumerate(objectives):
        if not dataclasses.is_dataclass(other) or type(other) is not type(first):
            msg = (
                f"objectives[{index}] = {other!r} must be a metalr.Unrolled, as "
                "objectives[0] is to be"
            )
            raise ValueError(msg)
        for field in dataclasses.fields(first):
            mine, theirs = getattr(first, field.name), getattr(other, field.name)
            if _form(mine) != _form(theirs):
                remedy = (
                    "The tasks of one program take the same number of steps: make one "
                    "Mean for each T and add them, or take the longest T and rates of "
                    "0 (metalr.per_step) in the steps too many"
                    if field.name == "steps"
                    else "Data belong into a pytree loss, "
                    "jax.tree_util.Partial(loss, data), not into a closure"
                )
                msg = (
                    f"objectives[{index}].{field.name} is not that of objectives[0] "
                    f"({_form(theirs)} against {_form(mine)}): tasks may differ in the "
                    f"values of their arrays alone. {remedy}"
                )
                raise ValueError(msg)


def _form(value: Any) -> Any:
    """What two tasks must share of a field: structure, functions, shapes, dtypes."""
    leaves, structure = jax.tree.flatten(value)
    arrays = all(hasattr(leaf, "dtype") for leaf in leaves)
    if not arrays:
        return value
    return structure, tuple((leaf.shape, str(leaf.dtype)) for leaf in leaves)


def is_shared(column: Sequence[Any]) -> bool:
    """Whether an array is one and the same in all tasks, by identity or by value."""
    first, *rest = column
    different = [leaf for leaf in rest if leaf is not first]
    if any(isinstance(leaf, Tracer) for leaf in column):
        return not different
    # Bit for bit: 0.0 is not −0.0, and a nan is itself.
    return all(_bits(first) == _bits(leaf) for leaf in different)


def _bits(leaf: Any) -> Any:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf).tobytes()
