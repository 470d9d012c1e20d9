"""What engines need that take a run apart."""

import dataclasses
from typing import Any

from .._types import Objective
from ..runs.unrolled import Unrolled
from ._engine import Engine


class Options:
    """Base of the engines: prints what was set, e.g. `Reverse(checkpoints=8)`."""

    def __repr__(self) -> str:
        fields = dataclasses.fields(self)  # pyright: ignore[reportArgumentType]
        options = {field.name: getattr(self, field.name) for field in fields}
        chosen = [f"{k}={v!r}" for k, v in options.items() if v is not None]
        return f"{type(self).__name__}({', '.join(chosen)})"


def unrolled_with(objective: Objective, engine: Engine, **changes: Any) -> Unrolled:
    """The objective as an `Unrolled`, with some options changed.

    Raises:
        ValueError: if it is another kind of function.
    """
    if not isinstance(objective, Unrolled):
        msg = (
            f"{engine} takes the run apart step by step and needs a metalr.Unrolled, "
            f"not {objective!r}: use Reverse() or Forward() for other functions"
        )
        raise ValueError(msg)
    return dataclasses.replace(objective, **changes) if changes else objective
