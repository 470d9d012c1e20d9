"""What of a pytree is static: functions and text, compared by what they are made of."""

import dataclasses
from typing import Any, NamedTuple

import jax

from .identity import identity


class Form(NamedTuple):
    """A pytree without its arrays: hashable, equal where the static parts are."""

    structure: Any  # a PyTreeDef
    static: tuple[tuple[int, "Static"], ...]  # leaves that are no arrays, by place


@dataclasses.dataclass(frozen=True, eq=False)
class Static:
    """A static leaf, compared by what it is made of: see `identity.identity`."""

    value: Any

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Static):
            return False
        same = self.value is other.value
        return same or identity(self.value, []) == identity(other.value, [])

    def __hash__(self) -> int:
        return hash(identity(self.value, []))


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
