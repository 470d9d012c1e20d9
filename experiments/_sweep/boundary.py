"""What a point hands over, made into what a store keeps; its failure, made into text.

Experiments are anybody's code. Nothing passes here that could stop the sweep later, at
the store, at a terminal, or in a column of numbers.
"""

import sys
import traceback
from collections.abc import Iterable, Mapping
from typing import Any

_DEPTH = 50
"""Levels of lists and mappings in a record."""

_LONGEST = 20_000
"""Characters of an error that are kept: its last ones."""


def plain(records: Iterable[Any]) -> list[dict[str, Any]]:
    """Records as JSON values.

    Raises:
        ValueError: naming the record and field that is none.
    """
    kept = []
    for index, record in enumerate(records):
        if not isinstance(record, Mapping):
            msg = f"record {index} is a {type(record).__name__}, not a mapping"
            raise ValueError(msg)
        kept.append(_value(record, f"record {index}", 0))
    return kept


def error_text(error: BaseException) -> str:
    """The traceback, as text that can be stored and shown."""
    try:
        text = "".join(traceback.format_exception(error))
    except BaseException as further:  # noqa: BLE001 (an error that cannot be printed)
        text = f"{type(error).__name__} (its text raises {type(further).__name__})\n"
    text = text if len(text) <= _LONGEST else f"…\n{text[-_LONGEST:]}"
    return text.encode("utf-8", "backslashreplace").decode()


def _value(value: Any, where: str, depth: int) -> Any:
    """A JSON value of exactly JSON's types, whatever subclass of them it was."""
    if depth > _DEPTH:
        msg = f"{where}: more than {_DEPTH} levels deep"
        raise ValueError(msg)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _text(value, where)
    if isinstance(value, int):
        return _whole(value, where)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, Mapping):
        return {
            _name(key, where): _value(part, f"{where}, {key!r}", depth + 1)
            for key, part in value.items()
        }
    if isinstance(value, list | tuple):
        return [_value(part, where, depth + 1) for part in value]
    msg = f"{where}: a {type(value).__name__} is no JSON value: make it a float or text"
    raise ValueError(msg)


def _text(value: str, where: str) -> str:
    text = str.__str__(value)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        msg = f"{where}: {text[:50]!a} is no text that UTF-8 can encode"
        raise ValueError(msg) from error
    return text


def _whole(value: int, where: str) -> int:
    if value.bit_length() >= sys.float_info.max_exp:
        msg = f"{where}: an int of {value.bit_length()} bits, more than a float can say"
        raise ValueError(msg)
    return int.__int__(value)


def _name(key: Any, where: str) -> str:
    if not isinstance(key, str | int):
        msg = f"{where}: a key is a {type(key).__name__}, not text"
        raise ValueError(msg)
    return _text(str(key), where)
