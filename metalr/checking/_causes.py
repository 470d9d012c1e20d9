"""What is known to make derivatives differ from the run that they are of."""

from typing import Any

import jax

from .._types import Hyper, Objective
from ..optimizers.stopped import stops_gradient
from ..runs.gradient import trained
from ..runs.unrolled import Unrolled


def causes(objective: Objective, hyper: Hyper) -> str:
    """A gradient that the optimizer stops, rules of the loss's own; "" if neither.

    Every engine follows them, and agrees with the others; the run does not.
    """
    if not isinstance(objective, Unrolled) or objective.steps == 0:
        return ""
    found = []
    stopped = stops_gradient(objective.optimizer, _weights(objective, hyper), hyper)
    if stopped:
        where = ", ".join(stopped)
        found.append(f"the optimizer stops a gradient (on the way to {where})")
    rules = loss_rules(objective, hyper)
    if rules:
        found.append(f"the loss has derivatives of its own ({', '.join(rules)})")
    return "; ".join(found)


def loss_rules(objective: Unrolled, hyper: Hyper) -> tuple[str, ...]:
    """What may keep the inner field from being the gradient of the loss, by name."""
    found: list[tuple[str, ...]] = []

    def look(hyper: Hyper) -> Any:
        prepared = objective.prepare(hyper)
        found.append(objective.rules(prepared, objective.init(prepared), 0))
        return hyper

    jax.eval_shape(look, hyper)
    return found[0]


def _weights(objective: Unrolled, hyper: Hyper) -> Any:
    def start(hyper: Hyper) -> Any:
        prepared = objective.prepare(hyper)
        return trained(objective.public(prepared, objective.init(prepared)).params)

    return jax.eval_shape(start, hyper)
