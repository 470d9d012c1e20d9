r"""The stated model of memory: what is kept between steps, and one step's work.

What each engine keeps, and what it costs in time, the engine itself says
(`metalr.hypergrad.facts`). The work is what XLA says of the same engine on five steps
(so that its loops are loops), less what the engine says is kept there.
"""

import copy
from collections.abc import Callable
from typing import Any

import jax

from .._types import Hyper, Objective
from ..hypergrad import Engine
from ..hypergrad.facts import kept_bytes
from ..optimizers.per_step import PerStep

_FEW = 5
"""Steps of the short problem that the work of a step is read from."""

_FEW_PLACES = 2
"""Places for states in that short problem, however many the engine has."""

Temp = Callable[[Any, Hyper, Engine | None], int]


def predicted_bytes(
    objective: Objective, hyper: Hyper, engine: Engine | None, temp: Temp
) -> int | None:
    """Temporary bytes by the model; None where there is none.

    Args:
        objective: what is differentiated.
        hyper: the point.
        engine: how, or None for the run itself.
        temp: measures the temporary bytes of a compiled hypergradient; called on five
            steps (`measure.remembering` compiles each short program once).
    """
    kept = kept_bytes(engine, objective, hyper)
    steps = getattr(objective, "steps", 0)
    if kept is None or steps == 0:
        return None
    try:
        few, hyper_few = shortened(objective, hyper, min(_FEW, steps))
    except ValueError:
        return None
    # Any number of places does the same work in a step: one short program for all.
    few, engine = _with_few_places(few), _with_few_places(engine)
    kept_few = kept_bytes(engine, few, hyper_few)
    assert kept_few is not None
    return temp(few, hyper_few, engine) + kept - kept_few


def shortened(objective: Any, hyper: Hyper, steps: int) -> tuple[Any, Hyper]:
    """The same problem with fewer steps, and the hyperparameters of those.

    An objective that is made of runs says what that is with a `shortened` of its own.

    Raises:
        ValueError: if the objective is no run.
    """
    own = getattr(objective, "shortened", None)
    if own is not None:
        return own(lambda run, hyper: shortened(run, hyper, steps), hyper)
    if "steps" not in getattr(objective, "__dataclass_fields__", ()):
        msg = (
            f"objective = {objective!r} has no steps to be cut: pass a metalr.Unrolled"
        )
        raise ValueError(msg)
    changes: dict[str, Any] = {"steps": steps}
    for name in ("batches", "_inputs"):  # of an Unrolled, of a Rollout
        value = getattr(objective, name, None)
        if value is not None and not callable(value):
            changes[name] = jax.tree.map(lambda leaf: leaf[:steps], value)
    weights = getattr(objective, "outer_weights", None)
    if weights is not None:
        changes["outer_weights"] = weights[: steps + 1]
    optimizer = getattr(objective, "optimizer", None)
    if isinstance(optimizer, PerStep):
        cut = lambda each, leaf: leaf[:steps] if each else leaf
        hyper = jax.tree.map(cut, optimizer.flags(hyper), hyper)
    return _changed(objective, **changes), hyper


def _with_few_places(value: Any) -> Any:
    """The same with `checkpoints`, its own or of what it wraps, made few."""
    if getattr(value, "checkpoints", None) is not None:
        return _changed(value, checkpoints=_FEW_PLACES)
    if getattr(getattr(value, "engine", None), "checkpoints", None) is not None:
        return _changed(value, engine=_with_few_places(value.engine))
    return value


def _changed(value: Any, **changes: Any) -> Any:
    """A copy of a frozen value with other fields, which need no checks again."""
    new = copy.copy(value)
    for name, change in changes.items():
        object.__setattr__(new, name, change)
    return new
