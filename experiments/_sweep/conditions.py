"""Conditions on the fields of a config or a result: data, never code.

A condition is a value (equal), a list (one of), or a mapping of comparisons that must
all hold: `{gt: 10, le: 100}`, `{ne: adam}`, `{not_in: [1, 2]}`.
"""

import operator
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag, model_validator

from experiments._command.config import ConfigError, Model

_ORDER = {
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
}

_ABSENT = object()


class Comparisons(Model):
    """All of them must hold."""

    lt: int | float | str | None = None
    le: int | float | str | None = None
    gt: int | float | str | None = None
    ge: int | float | str | None = None
    ne: Any = None
    in_: list[Any] | None = Field(default=None, alias="in")
    not_in: list[Any] | None = None

    @model_validator(mode="after")
    def _compares(self) -> "Comparisons":
        if not self.model_fields_set:
            msg = "needs one of lt, le, gt, ge, ne, in, not_in"
            raise ValueError(msg)
        return self


def _kind(value: Any) -> str:
    if isinstance(value, Mapping | Comparisons):
        return "comparisons"
    return "one of" if isinstance(value, list) else "equal"


Condition = Annotated[
    Annotated[Comparisons, Tag("comparisons")]
    | Annotated[list[Any], Tag("one of")]
    | Annotated[Any, Tag("equal")],
    Discriminator(_kind),
]


def holds(conditions: Mapping[str, Any], fields: Mapping[str, Any]) -> bool:
    """Whether all conditions are met; a field that is absent meets none.

    Args:
        conditions: for dotted names, what is asked of them.
        fields: values under their dotted names (`experiments._command.config.dotted`).

    Raises:
        ConfigError: if a text is compared with a number.
    """
    return all(
        fields.get(name, _ABSENT) is not _ABSENT and _meets(name, fields[name], asked)
        for name, asked in conditions.items()
    )


def _meets(name: str, value: Any, asked: Any) -> bool:
    if isinstance(asked, list):
        return any(_equal(value, item) for item in asked)
    if not isinstance(asked, Comparisons):
        return _equal(value, asked)
    return all(
        _compares(name, value, key, getattr(asked, key))
        for key in asked.model_fields_set
    )


def _compares(name: str, value: Any, key: str, bound: Any) -> bool:
    if key == "ne":
        return not _equal(value, bound)
    if key in ("in_", "not_in"):
        return any(_equal(value, item) for item in bound) == (key == "in_")
    if value is None:
        return False
    if isinstance(value, str) != isinstance(bound, str):
        msg = f"{name} = {value!r} cannot be compared with {bound!r} ({key})"
        raise ConfigError(msg)
    return bool(_ORDER[key](value, bound))


def _equal(one: Any, other: Any) -> bool:
    """Equality in which true is not 1."""
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)
