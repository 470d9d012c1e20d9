r"""Question: how much does it cost to choose each learning rate for the next step only?

The noisy quadratic model: each coordinate has its curvature and gradient noise. The
greedy schedule takes in every step the rate that is best for that step; the optimal one
is solved for; the learned one follows the hypergradient through an unroll.
Claim: in one dimension greedy is optimal. In more it is not, and falls further behind
the longer the horizon (short-horizon bias). Learned from the greedy schedule, the rates
reach the optimal loss, or at long horizons a local minimum next to it. The closed-form
expectation equals the unroll's to rounding.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

import metalr
from experiments._command.experiment import ExperimentConfig, Record
from experiments._report.style import panels
from experiments._short_horizon.search import best_schedule
from metalr.theory import NoisyQuadratic


class Config(ExperimentConfig):
    """Options of this experiment."""

    experiment: Literal["short_horizon"] = "short_horizon"
    curvatures: tuple[PositiveFloat, ...] = (1.0, 0.3, 0.1, 0.03, 0.01)
    noise: NonNegativeFloat = 1.0  # variance, in every coordinate
    start: PositiveFloat = 1.0  # second moment of the distance, in every coordinate
    steps: tuple[PositiveInt, ...] = (1, 2, 5, 10, 20, 50)
    outer_steps: PositiveInt = 500  # of L-BFGS
    rtol: NonNegativeFloat = 1e-9


def size(config: Config) -> int:
    """Records that `run` yields."""
    return len(config.steps)


def run(config: Config) -> Iterator[Record]:
    """Yield one record for each horizon, as soon as it is known."""
    model = quadratic(config)
    single = NoisyQuadratic(*(x[:1] for x in jax.tree.leaves(model)))
    for steps in config.steps:
        greedy, optimal = model.greedy_schedule(steps), best_schedule(model, steps)
        objective = _unrolled(model, steps)
        learned = metalr.learn(
            objective,
            greedy,
            outer_optimizer=optax.lbfgs(memory_size=50),
            steps=config.outer_steps,
            log=True,
            rtol=config.rtol,
        )
        best = float(model.loss(optimal))
        yield {
            "T": steps,
            "loss_greedy": float(model.loss(greedy)),
            "loss_optimal": best,
            "loss_learned": float(learned.value),
            "short_horizon_bias": float(model.short_horizon_bias(steps, optimal)),
            "bias_in_1d": float(single.short_horizon_bias(steps)),
            "learned_over_optimal": float(learned.value) / best - 1.0,
            "closed_over_unrolled": float(model.loss(greedy) / objective(greedy)) - 1.0,
            "outer_steps": int(learned.steps),
            "rates": {
                "greedy": greedy.tolist(),
                "optimal": optimal.tolist(),
                "learned": learned.hyper.tolist(),
            },
            "curves": {
                "greedy": _curve(model, greedy),
                "optimal": _curve(model, optimal),
            },
        }


def quadratic(config: Config) -> NoisyQuadratic:
    """The model that a config describes."""
    curvatures = jnp.array(config.curvatures, config.dtype)
    everywhere = jnp.ones_like(curvatures)
    return NoisyQuadratic(
        curvatures, config.noise * everywhere, config.start * everywhere
    )


def headline(records: Sequence[Record]) -> str:
    """What greed costs at the longest horizon, and what was learned there."""
    last = max(records, key=lambda record: record["T"])
    return (
        f"greedy rates end {last['short_horizon_bias']:.3g} above the optimal loss at "
        f"T = {last['T']}; learned ones {last['learned_over_optimal']:.1e}"
    )


def figures(records: Sequence[Record]) -> dict[str, Figure]:
    """Loss against T; the schedules of the longest; the loss on the way."""
    figure, (left, middle, right) = panels(3)
    steps = [record["T"] for record in records]
    last = records[-1]
    index = np.arange(last["T"])
    for name, style in (("greedy", "C1-"), ("optimal", "C0-"), ("learned", "C2x")):
        losses = [record[f"loss_{name}"] for record in records]
        left.plot(steps, losses, style, label=name)
        rates = last["rates"][name]
        middle.plot(index, rates, style, markersize=4, label=name)
        if name in last["curves"]:
            right.plot(last["curves"][name], style, label=name)
    left.set(xscale="log", yscale="log", xlabel="horizon T (steps)")
    left.set_ylabel("expected loss after T steps")
    middle.set(yscale="log", xlabel="step s", ylabel="learning rate")
    middle.set_title(f"the schedules of T = {last['T']}", fontsize=9)
    right.set(yscale="log", xlabel="step s", ylabel="expected loss after s steps")
    right.set_title(f"on the way to T = {last['T']}", fontsize=9)
    for axes in (left, middle, right):
        axes.legend(fontsize=8)
    return {"short_horizon": figure}


def _unrolled(model: NoisyQuadratic, steps: int) -> metalr.Unrolled:
    """The expected loss as one unroll: independent sources add their squares.

    Run 0 starts at the root of the second moments and sees no noise. Run s + 1 starts
    at the optimum and sees one deviation of noise, in step s alone. The run is linear,
    so the second moment after T steps is the sum of the squares over the T + 1 runs.
    """
    h = model.curvatures
    start = jnp.zeros((steps + 1, h.size), h.dtype).at[0].set(jnp.sqrt(model.start))
    each = jnp.arange(steps)
    noise = jnp.zeros((steps, steps + 1, h.size), h.dtype)
    noise = noise.at[each, each + 1].set(jnp.sqrt(model.noise))

    def loss(params: Any, hyper: Any, center: Any) -> jax.Array:
        del hyper
        return 0.5 * jnp.sum(h * (params - center) ** 2)

    return metalr.Unrolled(
        loss,
        metalr.per_step(optax.sgd),
        start,
        steps=steps,
        batches=noise,
        outer_loss=lambda params, _: 0.5 * jnp.sum(h * params**2),
    )


def _curve(model: NoisyQuadratic, schedule: jax.Array) -> list[float]:
    """Expected losses after 0 … T steps of the schedule."""

    def step(m: jax.Array, rate: jax.Array) -> tuple[jax.Array, jax.Array]:
        m = model.step(m, rate)
        return m, 0.5 * jnp.sum(model.curvatures * m)

    after = jax.lax.scan(step, model.start, schedule)[1]
    return [float(0.5 * jnp.sum(model.curvatures * model.start)), *after.tolist()]


if __name__ == "__main__":
    from experiments._command.cli import module_main

    raise SystemExit(module_main("short_horizon"))
