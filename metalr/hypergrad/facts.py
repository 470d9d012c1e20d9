"""What an engine says of its own memory and time, and how it is asked.

An engine may state these facts; whoever plans, measures or checks asks for them here,
and an engine of one's own that states them is planned like every other:

- `exact`: whether it returns the derivative itself, to rounding; a bool, or a function
  of the objective. An engine that says nothing is taken at its word: exact.
- `additive = True`: what it makes of a mean of objectives is the mean of what it makes
  of each, so that a task of a mean can be left out; by default not.
- `cost(objective, hyper)`: its time, in units of the run without a derivative.
- `kept_bytes(objective, hyper)`: the bytes that it keeps from step to step, a lower
  bound of its temporary memory. What one step computes comes on top of them.
- `family`: engines of one family run the same program but for the numbers in it, so
  that one tells of the others. By default: of one type, with the same options set.
"""

import dataclasses
import math
from typing import Any

import jax
import numpy as np

from .._types import Hyper, Objective
from ..runs.checkpointing import branching
from ..runs.run import started

TANGENT, PLAIN_REVERSE, PULL_BACK, REVERSED = 1.1, 2.3, 2.7, 5.2
"""Cost of one tangent, of plain backward, of a step's pullback, and of a whole reversed
run, in training steps: rounded from the ratios that were measured on an MLP 784-256-10
(`configs/engines.yaml`)."""


def is_exact(engine: Any, objective: Any) -> bool:
    """Whether the engine returns the derivative itself, as far as it says."""
    stated = getattr(as_stated(engine), "exact", True)
    if not callable(stated):
        return bool(stated)
    while hasattr(objective, "pulled_back"):
        objective = objective.objective
    return bool(stated(objective))


def is_additive(engine: Any) -> bool:
    """Whether its result for a mean is the mean of its results, as far as it says."""
    return bool(getattr(as_stated(engine), "additive", False))


def cost(engine: Any, objective: Objective, hyper: Hyper) -> float:
    """Time in units of the run itself; nan for an engine that does not say."""
    stated = getattr(as_stated(engine), "cost", None)
    if stated is None:
        return math.nan
    return float(stated(*applied_to(engine, objective, hyper)))


def kept_bytes(engine: Any, objective: Objective, hyper: Hyper) -> int | None:
    """Bytes kept between the steps; None for an engine that does not say.

    `engine` None is the run itself, which keeps nothing.
    """
    if engine is None:
        return 0
    stated = getattr(as_stated(engine), "kept_bytes", None)
    if stated is None:
        return None
    return math.ceil(stated(*applied_to(engine, objective, hyper)))


def applied_to(engine: Any, objective: Any, hyper: Hyper) -> tuple[Any, Hyper]:
    """The objective and the point that `hypergradient` applies an engine to.

    Of one that is reparametrized, what is within: what it makes of f itself is a
    pullback, once. An engine that takes no derivative perturbs what is outside.
    """
    if getattr(as_stated(engine), "derivative_free", False):
        return objective, hyper
    while hasattr(objective, "pulled_back"):
        objective, hyper = objective.objective, objective.function(hyper)
    return objective, hyper


def family(engine: Any) -> Any:
    """What engines share that run the same program but for the numbers in it."""
    engine = as_stated(engine)
    stated = getattr(engine, "family", None)
    if stated is not None:
        return stated
    known = dataclasses.is_dataclass(engine) and not isinstance(engine, type)
    names = [field.name for field in dataclasses.fields(engine)] if known else []
    options = tuple(name for name in names if getattr(engine, name) is not None)
    return (type(engine), options) if known else engine


def state_bytes(objective: Any, hyper: Hyper) -> int:
    """Bytes of what one step hands to the next: parameters, optimizer's state, ….

    An objective that is made of several runs says so with a `state_bytes` of its own.
    """
    stated = getattr(objective, "state_bytes", None)
    if stated is not None:
        return stated(hyper)
    return _bytes(jax.eval_shape(lambda h: started(objective, h), hyper))


def residual_bytes(function: Any, hyper: Hyper) -> int:
    """What `jax.vjp` of a function keeps for its backward pass, without running it."""
    return _bytes(jax.eval_shape(lambda h: jax.vjp(function, h)[1], hyper))


def nested_levels(objective: Any) -> list[int]:
    """Pieces a level of the objective's own `checkpoints`; empty for a plain scan."""
    checkpoints = getattr(objective, "checkpoints", None)
    if checkpoints is None:
        return []
    return branching(max(objective.steps, 2), checkpoints)


def count(hyper: Hyper) -> int:
    """Numbers in hyper."""
    return sum(np.size(leaf) for leaf in jax.tree.leaves(hyper))


def as_stated(engine: Any) -> Any:
    """An engine that was made a pytree (a `Partial`) as it was."""
    if isinstance(engine, jax.tree_util.Partial) and not engine.args:
        return engine.func
    return engine


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
