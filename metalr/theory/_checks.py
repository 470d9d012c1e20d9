"""Checks of what is static, shared by the closed forms."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.core import Tracer

from .._checks import int_at_least


def check_steps(steps: int, *, least: int, name: str = "steps") -> None:
    """A count must be an int, at least `least`.

    Raises:
        ValueError: if it is not.
    """
    int_at_least(steps, name, least, note=": it counts updates")


def check_not_negative(name: str, value: Any) -> None:
    """What must not be negative; a traced value passes, unseen.

    Raises:
        ValueError: if an entry is negative or nan.
    """
    if not _passes(value, lambda x: x >= 0.0):
        msg = f"{name} = {value!r} must be ≥ 0"
        raise ValueError(msg)


def check_positive(name: str, value: Any) -> None:
    """What must be positive; a traced value passes, unseen.

    Raises:
        ValueError: if an entry is 0, negative or nan.
    """
    if not _passes(value, lambda x: x > 0.0):
        msg = f"{name} = {value!r} must be > 0"
        raise ValueError(msg)


def _passes(value: Any, condition: Callable[[Array], Array]) -> bool:
    return isinstance(value, Tracer) or bool(jnp.all(condition(jnp.asarray(value))))
