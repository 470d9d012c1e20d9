"""JSON that every reader takes: a number that is not finite is a text.

`NaN`, `Infinity` and `-Infinity` are no JSON. They are written as the texts "NaN",
"Infinity", "-Infinity", and those texts are read back as the numbers.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

_NUMBERS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def dumps(content: Any, *, indent: int | None = None) -> str:
    """Strict JSON.

    Raises:
        TypeError: if something in it is no JSON value.
    """
    return json.dumps(strict(content), indent=indent, allow_nan=False)


def loads(text: str) -> Any:
    """What `dumps` wrote.

    Raises:
        ValueError: if it is not JSON, or nested too deep.
    """
    try:
        return _numbers(json.loads(text))
    except RecursionError as error:
        msg = "nested too deep"
        raise ValueError(msg) from error


def strict(value: Any) -> Any:
    """The value with texts in place of what is not finite."""
    if isinstance(value, Mapping):
        return {name: strict(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [strict(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else f"{'-' * (value < 0)}Infinity"
    return value


def _numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _numbers(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_numbers(part) for part in value]
    return _NUMBERS.get(value, value) if isinstance(value, str) else value
