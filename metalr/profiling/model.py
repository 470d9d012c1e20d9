r"""The stated model of memory and time: what each engine keeps, what it recomputes.

Memory is (what is kept between steps) + (one step's work). What is kept is counted in
states of $|w| + |\text{optimizer state}|$ bytes, except for plain reverse mode, which
keeps the residuals of every step. The work is what XLA says of the same engine on five
steps (so that its loops are loops), less what the model says is kept there.

Time is in units of the run without a derivative.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax

from .._types import Hyper
from ..graph import reverse_residuals
from ..hypergrad import Engine, Forward, Mixed, Reverse, Reversible, Truncated
from ..hypergrad.binomial import forward_steps
from ..optimizers.per_step import PerStep
from ..runs.checkpointing import branching
from ..runs.unrolled import Unrolled

TANGENT, PLAIN_REVERSE, PULL_BACK = 1.1, 2.3, 2.7
"""Cost of one tangent, of plain backward, and of a step's pullback, in training steps.

Rounded from the ratios measured on an MLP 784-256-10 (`configs/engines.yaml`)."""

_FEW = 5
"""Steps of the short problem that the work of a step is read from."""

_FEW_PLACES = 2
"""Places for states in that short problem, however many the engine has."""

Temp = Callable[[Unrolled, Hyper, Engine | None], int]


def state_bytes(objective: Unrolled, hyper: Hyper) -> int:
    """Bytes of the parameters and the optimizer's state."""
    state = jax.eval_shape(lambda h: objective.init(objective.prepare(h)), hyper)
    return _bytes(state)


def predicted_bytes(
    objective: Unrolled, hyper: Hyper, engine: Engine | None, temp: Temp
) -> int | None:
    """Temporary bytes by the model; None for an engine that it does not cover.

    Args:
        objective: what is differentiated.
        hyper: the point.
        engine: how, or None for the run itself.
        temp: measures the temporary bytes of a compiled hypergradient; called on five
            steps (`measure.remembering` compiles each short program once).
    """
    kept = _kept_bytes(objective, hyper, engine)
    if kept is None or objective.steps == 0:
        return None
    few, hyper_few = shortened(objective, hyper, min(_FEW, objective.steps))
    # Any number of places does the same work in a step: one short program for all.
    if few.checkpoints is not None:
        few = dataclasses.replace(few, checkpoints=_FEW_PLACES)
    if isinstance(engine, Mixed | Reverse) and engine.checkpoints is not None:
        engine = dataclasses.replace(engine, checkpoints=_FEW_PLACES)
    kept_few = _kept_bytes(few, hyper_few, engine)
    assert kept_few is not None
    return temp(few, hyper_few, engine) + kept - kept_few


def cost(objective: Unrolled, hyper: Hyper, engine: Engine) -> float:
    """Time of the hypergradient in units of the run itself, by the model.

    Forward: the run and 1.1 for each tangent, once for each chunk. Plain reverse: the
    run and 2.3. Sweeps: the steps that are run forward, and for each one pullback of
    2.7. nan for an engine that the model does not cover.
    """
    steps = max(objective.steps, 1)
    if isinstance(engine, Forward):
        count = sum(leaf.size for leaf in jax.tree.leaves(hyper))
        width = min(engine.chunk or count, count)
        return math.ceil(count / width) * (1.0 + TANGENT * width)
    if isinstance(engine, Mixed | Reverse) and engine.checkpoints is not None:
        return forward_steps(steps, engine.checkpoints) / steps + PULL_BACK
    if isinstance(engine, Mixed):
        return 1.0 + PULL_BACK
    if isinstance(engine, Truncated):
        return 1.0 + PLAIN_REVERSE * min(engine.last, steps) / steps
    if isinstance(engine, Reversible):
        return 1.0 + PULL_BACK
    if isinstance(engine, Reverse):
        return 1.0 + PLAIN_REVERSE + _levels(objective)
    return math.nan


def shortened(objective: Unrolled, hyper: Hyper, steps: int) -> tuple[Unrolled, Hyper]:
    """The same problem with fewer steps, and the hyperparameters of those."""
    batches = jax.tree.map(lambda leaf: leaf[:steps], objective.batches)
    if isinstance(objective.optimizer, PerStep):
        flags = objective.optimizer.flags(hyper)
        hyper = jax.tree.map(lambda f, x: x[:steps] if f else x, flags, hyper)
    return dataclasses.replace(objective, steps=steps, batches=batches), hyper


def _kept_bytes(objective: Unrolled, hyper: Hyper, engine: Engine | None) -> int | None:
    """Bytes kept between the steps."""
    state, steps = state_bytes(objective, hyper), objective.steps
    if engine is None or isinstance(engine, Forward):
        return 0
    if isinstance(engine, Mixed | Reverse) and engine.checkpoints is not None:
        return min(engine.checkpoints, steps) * state
    if isinstance(engine, Mixed):
        return steps * state
    if isinstance(engine, Truncated):
        last, hyper_last = shortened(objective, hyper, min(engine.last, steps))
        return reverse_residuals(last, hyper_last).bytes
    if isinstance(engine, Reversible):
        bits = steps * math.log2(1.0 / engine.min_momentum)
        return math.ceil(bits / 8) * _weights(objective, hyper)
    if not isinstance(engine, Reverse):
        return None
    if objective.checkpoints is not None:
        return sum(branching(max(steps, 2), objective.checkpoints)) * state
    return reverse_residuals(objective, hyper).bytes


def _levels(objective: Unrolled) -> int:
    """Further runs of each step that the objective's own checkpoints cost."""
    if objective.checkpoints is None:
        return 0
    return len(branching(max(objective.steps, 1), objective.checkpoints))


def _weights(objective: Unrolled, hyper: Hyper) -> int:
    start = jax.eval_shape(lambda h: objective.init(objective.prepare(h)), hyper)
    return sum(leaf.size for leaf in jax.tree.leaves(start.params))


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
