"""What is known to make derivatives differ from the run that they are of."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .._programs.symmetry import own_derivatives
from .._types import Hyper, Objective
from ..optimizers.stopped import stops_gradient
from ..runs.gradient import trained
from ..runs.unrolled import Unrolled
from ..tasks import Mean


def causes(objective: Objective, hyper: Hyper) -> str:
    """A gradient that the optimizer stops, rules of the losses' own; "" if neither.

    Every engine follows them, and agrees with the others; the run does not. Of a `Mean`
    the first task is looked at.
    """
    if isinstance(objective, Mean):
        return causes(objective.task(0), hyper)
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
    for what, part in (
        ("the model_state that the loss returns", _new_model_state),
        ("the outer loss", Unrolled.outer),
    ):
        rules = set(_rules_of(part, objective, hyper)) - set(rules)
        if rules:
            names = ", ".join(sorted(rules))
            found.append(f"{what} has derivatives of its own ({names})")
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


def _new_model_state(objective: Unrolled, hyper: Hyper, state: Any) -> Any:
    return objective.step(hyper, state, 0)[0].model_state


def _rules_of(
    part: Callable[[Unrolled, Hyper, Any], Any], objective: Unrolled, hyper: Hyper
) -> tuple[str, ...]:
    """Of a function of prepared hyper and state, in the floats of both."""

    def start(hyper: Hyper) -> Any:
        prepared = objective.prepare(hyper)
        return prepared, objective.init(prepared)

    given = jax.eval_shape(start, hyper)
    program = jax.make_jaxpr(lambda *given: part(objective, *given))(*given)
    floats = [jnp.issubdtype(x.dtype, jnp.floating) for x in jax.tree.leaves(given)]
    return own_derivatives(program, floats)


def _weights(objective: Unrolled, hyper: Hyper) -> Any:
    def start(hyper: Hyper) -> Any:
        prepared = objective.prepare(hyper)
        return trained(objective.public(prepared, objective.init(prepared)).params)

    return jax.eval_shape(start, hyper)
