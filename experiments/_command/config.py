"""Configs: YAML and key=value overrides in, one validated pydantic model out."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError


class ConfigError(Exception):
    """The user's input is wrong; the message says where and what is allowed."""


class Model(BaseModel):
    """A part of a config: strict types, no unknown keys, not to be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ExperimentConfig(Model):
    """What every experiment's config has."""

    seed: int = 0
    dtype: Literal["float64", "float32"] = "float64"


M = TypeVar("M", bound=Model)


def digest(config: ExperimentConfig) -> str:
    """Hash of the validated config: the same for every spelling of the same run."""
    text = json.dumps(config.model_dump(mode="json"), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ConfigError: if the file is missing, not YAML, or not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        msg = f"cannot read the config {path}: {error.strerror}"
        raise ConfigError(msg) from error
    content = parse(text, str(path))
    if not isinstance(content, dict):
        msg = f"{path} must hold a mapping (key: value lines), not {content!r}"
        raise ConfigError(msg)
    return content


def override(content: Mapping[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """`content` with dotted assignments such as `data.name=digits` put in.

    Raises:
        ConfigError: if an assignment has no `=`, or goes through a value that is not a
            mapping.
    """
    result = json.loads(json.dumps(content, default=str))
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
            msg = f"{key}={value!r}: {name} is {place!r}, which has no keys"
            raise ConfigError(msg)
    place[rest] = value


def validate(model: type[M], content: Mapping[str, Any]) -> M:
    """The validated config.

    Raises:
        ConfigError: with all mistakes at once, one line each.
    """
    try:
        # Strict validation of JSON: a list is a tuple, but "3" is not 3.
        return model.model_validate_json(json.dumps(content, default=str))
    except ValidationError as error:
        lines = [_explain(item, content) for item in error.errors()]
        msg = "\n".join([f"{len(lines)} mistake(s) in the config:", *lines])
        raise ConfigError(msg) from error


def to_yaml(config: ExperimentConfig) -> str:
    """The whole validated config, in a form that `read_yaml` takes back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


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
        return f"  {path} = {error['input']!r}: unknown key"
    return f"  {path} = {error['input']!r}: {error['msg']}"


def parse(text: str, source: str) -> Any:
    """A YAML value; only plain data, never Python objects.

    Raises:
        ConfigError: if it is not such YAML; `source` says where.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        msg = f"{source} is not valid YAML: {error}"
        raise ConfigError(msg) from error


class _Loader(yaml.SafeLoader):
    """YAML 1.2's floats (1e-3 is a number), and no key twice."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [loader.construct_object(key) for key, _ in node.value]
    twice = sorted({str(key) for key in keys if keys.count(key) > 1})
    if twice:
        problem = f"key {', '.join(twice)} is set twice"
        raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)
