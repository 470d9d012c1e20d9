"""YAML as plain data: YAML 1.2's scalars, no Python objects, nothing that explodes.

`010` is 10, `1:30`, `yes` and `2026-01-02` are texts, `1e-3` is a number; `10_000` is
one too, as in Python. Keys are texts, none is set twice. A text whose aliases would
unfold to more than `MAX_NODES` values, or that is nested deeper than `MAX_DEPTH`, is
refused before it is unfolded.
"""

import re
from collections import Counter
from typing import Any

import yaml

from experiments._command.errors import ConfigError

MAX_NODES = 200_000
"""Values of a text, aliases unfolded: beyond that it is taken for an attack."""

MAX_DEPTH = 32
"""Levels of nesting."""

MAX_DIGITS = 400
"""Of a whole number."""

_TAG = "tag:yaml.org,2002:"
_SCALARS = {  # YAML 1.2, core schema; and digits grouped by _
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (
        r"[-+]?[0-9]+(_[0-9]+)*|0o[0-7]+|0x[0-9a-fA-F]+",
        list("-+0123456789"),
    ),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(_[0-9]+)*(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
}


def parse(text: str, source: str) -> Any:
    """The value of a text; `source` says in messages where it is from.

    Raises:
        ConfigError: if it is not such YAML.
    """
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _check_size(node)
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except (yaml.YAMLError, ValueError) as error:
        msg = f"{source} is not valid YAML: {error}"
        raise ConfigError(msg) from error
    except RecursionError as error:
        msg = f"{source} is not valid YAML: nested deeper than {MAX_DEPTH} levels"
        raise ConfigError(msg) from error


def dump(content: Any) -> str:
    """A text that `parse` takes back."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _Loader(yaml.SafeLoader):
    """Only the scalars, lists and mappings of YAML 1.2's core schema."""

    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012 (as PyYAML has it)
    yaml_constructors: dict[Any, Any] = {}  # noqa: RUF012

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Merge keys (`<<`) are YAML 1.1's: here they are keys like any other."""


class _Dumper(yaml.SafeDumper):
    """Quotes a text exactly where `_Loader` would take it for something else."""

    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012

    def ignore_aliases(self, data: Any) -> bool:
        """Equal parts are written out."""
        del data
        return True


def _text(dumper: _Dumper, text: str) -> yaml.Node:
    """What has no glyph is written as an escape."""
    style = None if text.isprintable() else '"'
    return dumper.represent_scalar(f"{_TAG}str", text, style=style)


_Dumper.add_representer(str, _text)


def _check_size(root: yaml.Node) -> None:
    """Count the values with every alias unfolded, each node visited once."""
    sizes: dict[int, tuple[int, int]] = {}  # nodes and depth; (0, 0): being counted

    def measure(node: yaml.Node) -> tuple[int, int]:
        if id(node) in sizes:
            if sizes[id(node)] == (0, 0):
                msg = "an alias refers to what contains it"
                raise yaml.YAMLError(msg)
            return sizes[id(node)]
        sizes[id(node)] = (0, 0)
        count, depth = 1, 0
        for child in _children(node):
            more, below = measure(child)
            count, depth = count + more, max(depth, below)
        sizes[id(node)] = (count, depth + 1)
        return sizes[id(node)]

    count, depth = measure(root)
    if count > MAX_NODES:
        msg = f"it unfolds to {count:,} values, more than {MAX_NODES:,}"
        raise yaml.YAMLError(msg)
    if depth > MAX_DEPTH:
        raise RecursionError


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []


def _null(loader: _Loader, node: yaml.Node) -> None:
    del loader, node


def _bool(loader: _Loader, node: yaml.Node) -> bool:
    return _scalar(loader, node).lower() == "true"


def _int(loader: _Loader, node: yaml.Node) -> int:
    text = _scalar(loader, node)
    if len(text) > MAX_DIGITS:
        msg = f"a number of {len(text)} digits"
        raise yaml.YAMLError(msg)
    base = 8 if text.startswith("0o") else 16 if text.startswith("0x") else 10
    return int(text, base)


def _float(loader: _Loader, node: yaml.Node) -> float:
    text = _scalar(loader, node).replace("_", "").lower()
    return float(text.replace(".inf", "inf").replace(".nan", "nan"))


def _scalar(loader: _Loader, node: yaml.Node) -> str:
    return str(loader.construct_scalar(node))  # type: ignore[arg-type]


def _list(loader: _Loader, node: yaml.SequenceNode) -> list[Any]:
    return loader.construct_sequence(node, deep=True)


def _mapping(loader: _Loader, node: yaml.Node) -> dict[str, Any]:
    if not isinstance(node, yaml.MappingNode):
        return _unknown(loader, node)
    keys = [loader.construct_object(key, deep=True) for key, _ in node.value]
    for key in keys:
        if not isinstance(key, str):
            problem = f"key {key!r} is no text"
            raise yaml.constructor.ConstructorError(
                None, None, problem, node.start_mark
            )
    twice = sorted(key for key, count in Counter(keys).items() if count > 1)
    if twice:
        problem = f"key {', '.join(twice)} is set twice"
        raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
    values = (loader.construct_object(value, deep=True) for _, value in node.value)
    return dict(zip(keys, values, strict=True))


def _unknown(loader: _Loader, node: yaml.Node) -> Any:
    del loader
    problem = f"the tag {node.tag!r} is not allowed: plain values only"
    raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


for _kind, (_pattern, _first) in _SCALARS.items():
    for _class in (_Loader, _Dumper):
        _regexp = re.compile(rf"^(?:{_pattern})$")
        _class.add_implicit_resolver(_TAG + _kind, _regexp, _first)
for _kind, _constructor in {
    "null": _null,
    "bool": _bool,
    "int": _int,
    "float": _float,
    "str": _scalar,
    "seq": _list,
    "map": _mapping,
}.items():
    _Loader.add_constructor(_TAG + _kind, _constructor)
_Loader.yaml_constructors[None] = _unknown
