"""The exact answers: float64, after T steps and its neighbors, checked by differences.

In float64 and in a process of its own. The run with one step less is that of the first
T − 1 rates; the run with one more uses the last rate twice, as a clamped index does.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import metalr
from experiments._peers import jax_ways, work


def reference(case: work.Case, data: work.Work, seed: int) -> dict[str, Any]:
    """Loss and hypergradient for T − 1, T and T + 1, and how differences agree."""
    with jax.enable_x64(True):
        hyper = jnp.asarray(work.hyper(case), "float64")
        answers = {steps: _answer(case, data, hyper, steps) for steps in _near(case)}
        check = _by_differences(case, data, hyper, answers[case.steps], seed)
    return {
        "answers": {
            str(steps): {"value": float(value), "grad": np.asarray(grad).tolist()}
            for steps, (value, grad) in answers.items()
        },
        "difference_error": check,
    }


def _near(case: work.Case) -> tuple[int, int, int]:
    return case.steps - 1, case.steps, case.steps + 1


def _objective(case: work.Case, data: work.Work, steps: int) -> Any:
    """The loss after `steps` updates, as a function of the hyper of `case`."""
    this = jax_ways.setting(case, data, "float64")
    optimizer = metalr.per_step(this.make) if this.per_step else this.make
    objective = metalr.Unrolled(
        lambda params, _hyper, _batch: this.loss(params),
        optimizer,
        this.params,
        steps=steps,
        checkpoints=math.isqrt(steps) + 1,
    )
    if not this.per_step:
        return objective
    index = jnp.minimum(jnp.arange(steps), case.steps - 1)
    return lambda rates: objective(rates[index])


def _answer(
    case: work.Case, data: work.Work, hyper: jax.Array, steps: int
) -> tuple[Any, Any]:
    return jax.jit(jax.value_and_grad(_objective(case, data, steps)))(hyper)


def _by_differences(
    case: work.Case, data: work.Work, hyper: jax.Array, answer: Any, seed: int
) -> float:
    """Relative error of the slope along a random direction against differences."""
    objective = jax.jit(_objective(case, data, case.steps))
    drawn = np.random.default_rng(seed).uniform(0.5, 1.5, size=hyper.shape)
    direction = jnp.asarray(drawn) * hyper
    step = float(np.finfo(np.float64).eps) ** (1 / 3)
    up, down = objective(hyper + step * direction), objective(hyper - step * direction)
    slope = jnp.vdot(answer[1], direction)
    return float(abs((up - down) / (2 * step) / slope - 1.0))
