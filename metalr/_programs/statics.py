"""What of a pytree is static: functions, by what they are made of; and held weakly."""

import dataclasses
import functools
import types
import weakref
from collections.abc import Hashable
from typing import Any, NamedTuple

import jax
from jax.tree_util import PyTreeDef


class Form(NamedTuple):
    """A pytree without its arrays: hashable, equal where the static parts are."""

    structure: PyTreeDef
    static: tuple[tuple[int, "Static"], ...]  # leaves that are no arrays, by place


class Static:
    """A static leaf, compared by what it is made of.

    `functools.partial`, bound methods and frozen dataclasses made anew are equal where
    their parts are; any other function is equal to itself alone.
    """

    __slots__ = ("parts", "value")

    def __init__(self, value: Any) -> None:
        self.value = value
        self.parts = _parts(value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Static) and self.parts == other.parts

    def __hash__(self) -> int:
        return hash(self.parts)

    def __repr__(self) -> str:
        return f"Static({self.value!r})"


def is_static(leaf: Any) -> bool:
    """Whether a leaf is a function, a class or text: what `jit` does not take."""
    return isinstance(leaf, str | bytes) or (
        callable(leaf) and not hasattr(leaf, "dtype")
    )


def flatten(tree: Any) -> tuple[list[Any], Form]:
    """The leaves that may be arrays, and the rest; `unflatten` is the inverse."""
    leaves, structure = jax.tree.flatten(tree)
    static = tuple((i, Static(x)) for i, x in enumerate(leaves) if is_static(x))
    if static:
        leaves = [leaf for leaf in leaves if not is_static(leaf)]
    return leaves, Form(structure, static)


def unflatten(form: Form, arrays: Any) -> Any:
    """The pytree of that form with these leaves."""
    if not form.static:
        return jax.tree.unflatten(form.structure, arrays)
    given, static = iter(arrays), dict(form.static)
    return jax.tree.unflatten(
        form.structure,
        [
            static[i].value if i in static else next(given)
            for i in range(form.structure.num_leaves)
        ],
    )


def weak(value: Any, functions: list[Any]) -> Hashable:
    """A key that equals that of an equal `value`, without keeping functions alive.

    Args:
        value: a `PyTreeDef`, or what its nodes are made of.
        functions: is extended by what the key knows by its `id` alone: the key is good
            for as long as they live.
    """
    if isinstance(value, PyTreeDef):
        data = value.node_data()
        if data is None:
            return value
        return (
            data[0],
            weak(data[1], functions),
            *(weak(child, functions) for child in value.children()),
        )
    if isinstance(value, Static):
        return weak(value.parts, functions)
    if isinstance(value, tuple | list):
        return (type(value), *(weak(part, functions) for part in value))
    if isinstance(value, _Same):
        value = value.value
    else:
        parts = _parts(value)
        if parts is not value:
            return weak(parts, functions)
        if not callable(value) or isinstance(value, type):
            return value
    try:
        weakref.ref(value)
    except TypeError:  # kept alive by the key
        return _Same(value)
    functions.append(value)
    return _Same, id(value)


def _parts(value: Any) -> Hashable:
    """What a function is made of, as a hashable value; the function itself if whole."""
    made: Hashable = value
    if isinstance(value, functools.partial):
        made = (
            functools.partial,
            _parts(value.func),
            *map(_parts, value.args),
            *((name, _parts(x)) for name, x in sorted(value.keywords.items())),
        )
    elif isinstance(value, types.MethodType):
        made = (types.MethodType, value.__func__, _Same(value.__self__))
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        if value.__hash__ is None or not jax.tree_util.all_leaves([value]):
            return _Same(value)
        made = (
            type(value),
            *(_parts(getattr(value, f.name)) for f in dataclasses.fields(value)),
        )
    try:
        hash(made)
    except TypeError:
        return _Same(value)
    return made


class _Same:
    """An object compared by identity."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)
