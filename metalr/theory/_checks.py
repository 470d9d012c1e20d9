"""Checks of what is static, shared by the closed forms."""

from typing import Any

import jax.numpy as jnp
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
    if not isinstance(value, Tracer) and not bool(jnp.all(jnp.asarray(value) >= 0.0)):
        msg = f"{name} = {value!r} must be ≥ 0"
        raise ValueError(msg)
