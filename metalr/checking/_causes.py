"""What is known to make derivatives differ from the run that they are of."""

import dataclasses
from typing import Any

import jax
from jax.extend.core import Jaxpr

from .._programs.equations import equations
from .._programs.symmetry import own_derivatives
from .._types import Hyper, Objective
from ..runs.gradient import trained
from ..runs.unrolled import Unrolled


def causes(objective: Objective, hyper: Hyper) -> str:
    """A gradient that the optimizer stops, rules of the loss's own; "" if neither.

    Every engine follows them, and agrees with the others; the run does not.
    """
    if not isinstance(objective, Unrolled) or objective.steps == 0:
        return ""
    hyper = objective.prepare(hyper)
    state = jax.eval_shape(objective.init, hyper)
    found = []
    stopped = _stopped(objective, hyper, state)
    if stopped:
        found.append(f"the optimizer stops a gradient (in {stopped})")
    rules = loss_rules(objective, hyper)
    if rules:
        found.append(f"the loss has derivatives of its own ({', '.join(rules)})")
    return "; ".join(found)


def _stopped(objective: Unrolled, hyper: Hyper, state: Any) -> str:
    """Where the update of the optimizer stops a gradient; "" if nowhere."""
    plain = dataclasses.replace(objective, guarded=False)

    def update(hyper: Hyper, state: Any, value: Any, grads: Any) -> Any:
        return plain.update(hyper, state, value, grads, 0)

    value, grads = jax.eval_shape(_value_and_grads(plain), hyper, state)
    program = jax.make_jaxpr(update)(hyper, state, value, grads)
    if "stop_gradient" not in own_derivatives(program):
        return ""
    return _name(program.jaxpr) or repr(objective.optimizer)


def _value_and_grads(objective: Unrolled) -> Any:
    def both(hyper: Hyper, state: Any) -> Any:
        loss = objective.inner_loss(hyper, 0, state)
        return jax.value_and_grad(loss)(trained(objective.public(hyper, state).params))

    return both


def loss_rules(objective: Unrolled, hyper: Hyper) -> tuple[str, ...]:
    """What may keep the inner field from being the gradient of the loss, by name."""
    found: list[tuple[str, ...]] = []

    def look(hyper: Hyper) -> Any:
        prepared = objective.prepare(hyper)
        found.append(objective.rules(prepared, objective.init(prepared), 0))
        return hyper

    jax.eval_shape(look, hyper)
    return found[0]


def _name(jaxpr: Jaxpr) -> str:
    """The function of optax that stops a gradient, from where the equation was made."""
    for eqn in equations(jaxpr):
        if eqn.primitive.name != "stop_gradient" or eqn.source_info.traceback is None:
            continue
        for frame in eqn.source_info.traceback.frames:
            if "optax" in frame.file_name:
                return frame.function_name
    return ""
