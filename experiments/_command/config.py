"""Configs: YAML and key=value overrides in, one validated pydantic model out."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from annotated_types import Le, Lt
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from experiments._command.errors import ConfigError
from experiments._command.plain_yaml import dump, parse

__all__ = [
    "ConfigError",
    "Model",
    "digest",
    "dotted",
    "override",
    "parse",
    "put",
    "read_yaml",
    "to_yaml",
    "validate",
]

MAX_BYTES = 1_000_000
"""Of a config file."""

MAX_INT = 2**63 - 1
"""The largest whole number that arrays and stores can hold."""

MAX_SIZE = 2**31 - 1
"""The largest size or index in JAX's default precision."""


class Model(BaseModel):
    """A part of a config: strict types, finite numbers, no unknown keys, frozen."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False
    )


M = TypeVar("M", bound=Model)


def digest(config: Model) -> str:
    """Hash of the validated config: the same for every spelling of the same run."""
    text = json.dumps(config.model_dump(mode="json"), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ConfigError: if the file is missing, too large, not UTF-8, not YAML, or not a
            mapping.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        msg = f"cannot read the config {path}: {error.strerror}"
        raise ConfigError(msg) from error
    if len(raw) > MAX_BYTES:
        msg = f"the config {path} is larger than {MAX_BYTES:,} bytes"
        raise ConfigError(msg)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        msg = f"the config {path} is not UTF-8 text: {error.reason} at {error.start}"
        raise ConfigError(msg) from error
    content = parse(text, str(path))
    if not isinstance(content, dict):
        msg = f"{path} must hold a mapping (key: value lines), not {_short(content)}"
        raise ConfigError(msg)
    return content


def override(content: Mapping[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """`content` with dotted assignments such as `data.name=digits` put in.

    Raises:
        ConfigError: if an assignment has no `=`, or goes through a value that is not a
            mapping.
    """
    result = json.loads(json.dumps(content))
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key:
            msg = f"{assignment!r} is not an override: write key=value, e.g. seed=1"
            raise ConfigError(msg)
        put(result, key, parse(text, assignment))
    return result


def put(content: dict[str, Any], key: str, value: Any) -> None:
    """Set the entry with a dotted key, making the mappings on the way.

    Raises:
        ConfigError: if the key goes through a value that is not a mapping.
    """
    place, rest = content, key
    while "." in rest and rest not in place:  # `sweep.axes` has keys with dots in them
        name, _, rest = rest.partition(".")
        place = place.setdefault(name, {})
        if not isinstance(place, dict):
            msg = f"{key}={value!r}: {name} is {_short(place)}, which has no keys"
            raise ConfigError(msg)
    place[rest] = value


def dotted(
    content: Mapping[str, Any],
    *,
    whole: Callable[[Mapping[str, Any]], bool] = lambda value: not value,
) -> dict[str, Any]:
    """Nested mappings flattened: `{"data": {"name": 1}}` is `{"data.name": 1}`.

    Args:
        content: a config, or a part of one.
        whole: which mappings are kept as values; the empty ones by default.
    """
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, Mapping) and not whole(value):
            inner = dotted(value, whole=whole)
            flat |= {f"{key}.{name}": part for name, part in inner.items()}
        else:
            flat[str(key)] = value
    return flat


def validate(model: type[M], content: Mapping[str, Any]) -> M:
    """The validated config.

    Raises:
        ConfigError: with all mistakes at once, one line each.
    """
    lines = [
        f"  {path} = {_short(value)}: no whole number here is beyond ±{MAX_INT}"
        for path, value in _leaves(content)
        if isinstance(value, int) and abs(value) > MAX_INT
    ]
    if lines:
        raise _mistakes(lines)
    try:
        # Strict validation of JSON: a list is a tuple, but "3" is not 3.
        config = model.model_validate_json(json.dumps(content))
    except ValidationError as error:
        raise _mistakes([_explain(item, content) for item in error.errors()]) from error
    if lines := list(_oddities(config)):
        raise _mistakes(lines)
    return config


def to_yaml(config: Model) -> str:
    """The whole validated config, in a form that `read_yaml` takes back."""
    return dump(config.model_dump(mode="json"))


def _mistakes(lines: list[str]) -> ConfigError:
    return ConfigError("\n".join([f"{len(lines)} mistake(s) in the config:", *lines]))


def _leaves(content: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(content, Mapping):
        pairs = content.items()
    elif isinstance(content, list | tuple):
        pairs = enumerate(content)
    else:
        yield path or "config", content
        return
    for name, value in pairs:
        yield from _leaves(value, f"{path}.{name}" if path else str(name))


def _oddities(
    value: Any, path: str = "", field: FieldInfo | None = None
) -> Iterator[str]:
    """What fits the types and can mean nothing.

    Lists that are empty, where they are not so by default; whole numbers that no array
    has as a size, where the field sets no limit of its own.
    """
    if isinstance(value, BaseModel):
        for name, inner in type(value).model_fields.items():
            where = f"{path}.{name}" if path else name
            yield from _oddities(getattr(value, name), where, inner)
    elif isinstance(value, tuple):
        if not value and not _empty_by_default(field):
            yield f"  {path} = []: at least one entry is needed"
        for index, item in enumerate(value):
            yield from _oddities(item, f"{path}.{index}")
    elif isinstance(value, int) and abs(value) > MAX_SIZE and not _limited(field):
        yield f"  {path} = {value}: must be within ±{MAX_SIZE}"


def _empty_by_default(field: FieldInfo | None) -> bool:
    if field is None:
        return False
    default = field.get_default(call_default_factory=True)
    return isinstance(default, tuple | list) and not default


def _limited(field: FieldInfo | None) -> bool:
    """Whether a field says how large it may be."""
    bounds = Le | Lt
    return field is not None and any(isinstance(m, bounds) for m in field.metadata)


def _explain(error: Any, content: Any) -> str:
    names = []
    for part in error["loc"]:
        # Pydantic puts the tag of a union into the path; the user never wrote it.
        unwritten = isinstance(content, Mapping) and part not in content
        if unwritten and not (error["type"] == "missing" and part == error["loc"][-1]):
            continue
        names.append(str(part))
        if isinstance(content, Mapping):
            content = content.get(part)
        elif isinstance(content, list) and isinstance(part, int):
            content = content[part] if part < len(content) else None
    path = ".".join(names) or "config"
    if error["type"] == "missing":
        return f"  {path}: missing; it is required"
    if error["type"] == "extra_forbidden":
        return f"  {path} = {_short(error['input'])}: unknown key"
    return f"  {path} = {_short(error['input'])}: {error['msg']}"


def _short(value: Any, most: int = 200) -> str:
    """A value as a message shows it, on one line of bounded length."""
    try:
        text = repr(value)
    except ValueError:  # an int with thousands of digits
        text = f"an int of {value.bit_length()} bits"
    return text if len(text) <= most else f"{text[:most]}…"
