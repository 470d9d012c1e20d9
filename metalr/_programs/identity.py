"""What makes two static values the same, without keeping either alive."""

import dataclasses
import functools
import types
import weakref
from collections.abc import Hashable
from typing import Any, cast

import jax
import numpy as np

_CONSTANT = frozenset({"optax", "chex", "jax", "metalr"})
"""Packages whose globals do not change: what their closures do is in what they hold."""


class _Weak:
    """An object known by identity, and not kept alive by being known."""

    __slots__ = ("at", "reference")

    def __init__(self, held: Any) -> None:
        self.at, self.reference = id(held), weakref.ref(held)

    def __eq__(self, other: object) -> bool:
        held = self.reference()
        return (
            isinstance(other, _Weak) and held is not None and other.reference() is held
        )

    def __hash__(self) -> int:
        return self.at


def identity(value: Any, seen: list[Any]) -> Hashable:
    """What makes two static values the same: equal keys, the same program.

    Numbers and strings by value; containers, hashable dataclasses, bound methods and
    `functools.partial` by their parts; closures of optax by their code and what they
    hold, where all of that is immutable. Everything else that has no equality of its
    own is known by identity.

    Args:
        value: anything that can be static.
        seen: the objects known by identity are appended to it.

    Returns:
        A key that keeps no function alive.
    """
    if value is None or isinstance(value, int | str | bytes | np.dtype):
        return type(value), value
    if isinstance(value, float | complex | np.generic):  # nan is nan, -0.0 is not 0.0
        return type(value), np.asarray(value).tobytes()
    parts = _parts(value)
    if parts is not None:
        kind = identity(type(value), seen)
        return kind, tuple(identity(part, seen) for part in parts)
    own = type(value).__hash__ is not object.__hash__ and not isinstance(value, type)
    if own and not isinstance(value, jax.Array):
        return cast(Hashable, value)  # if not, it cannot be static
    try:
        key = _Weak(value)
    except TypeError:  # its type has no weak references
        return cast(Hashable, value)
    seen.append(value)
    return key


def _parts(value: Any) -> tuple[Any, ...] | None:
    """What a value consists of, if that is all that it is."""
    if isinstance(value, jax.tree_util.PyTreeDef):
        return value.node_data(), *value.children()
    if isinstance(value, tuple | list):
        return tuple(value)
    if isinstance(value, dict):
        return tuple(value.items())
    if isinstance(value, types.MethodType):
        return value.__self__, value.__func__
    if isinstance(value, functools.partial):
        parts = (value.func, value.args, *value.keywords.items())
        return parts if not vars(value) and _immutable(parts, ()) else None
    if isinstance(value, types.FunctionType):
        return _closure(value, ())
    hashable = type(value).__hash__ is not object.__hash__
    if dataclasses.is_dataclass(value) and hashable and not isinstance(value, type):
        return tuple(getattr(value, f.name) for f in dataclasses.fields(value))
    return None


def _closure(
    function: types.FunctionType, within: tuple[Any, ...]
) -> tuple[Any, ...] | None:
    """Code and contents of a closure made by a package whose globals are constant."""
    package = str(function.__globals__.get("__name__", "")).partition(".")[0]
    if package not in _CONSTANT or "<locals>" not in function.__qualname__:
        return None
    try:
        cells = tuple(cell.cell_contents for cell in function.__closure__ or ())
    except ValueError:  # a cell that is still empty
        return None
    options = (*(function.__kwdefaults__ or {}).items(), *vars(function).items())
    held = (cells, function.__defaults__, options)
    return (function.__code__, held) if _immutable(held, within) else None


def _immutable(value: Any, within: tuple[Any, ...]) -> bool:
    """Whether nothing in it can change while it stays the same object."""
    if any(value is outer for outer in within):
        return False  # it holds itself
    constant = int | float | complex | str | bytes | np.generic | np.dtype | type
    if value is None or isinstance(value, constant | jax.Array):
        return True
    within = (*within, value)
    if isinstance(value, tuple):
        return all(_immutable(part, within) for part in value)
    if isinstance(value, functools.partial):
        return _immutable((value.func, value.args, *value.keywords.items()), within)
    if isinstance(value, types.FunctionType):
        # A user's function is what it is: like JAX, by identity.
        package = str(value.__globals__.get("__name__", "")).partition(".")[0]
        made = package in _CONSTANT and "<locals>" in value.__qualname__
        return not made or _closure(value, within) is not None
    return False
