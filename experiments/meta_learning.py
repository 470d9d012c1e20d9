r"""Question: does a rate learned on many regressions serve regressions not seen?

Each task is a regression on a random subset of the rows. The rate is learned by the
mean hypergradient over the training tasks (`metalr.tasks`, spread over the devices
there are), and judged on held-out tasks. Claims: a mean of quadratics is again
Σ p(1 − ηλ)^{2T}, of the pooled spectrum, so that the learned rate has a closed form. A
rate learned on one task can diverge on others; from several it is nearly as good on new
tasks as their own best rate.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType
from matplotlib.figure import Figure
from pydantic import PositiveFloat, PositiveInt

import metalr
from experiments._command.experiment import ConfigError, Record
from experiments._report.style import panels
from experiments._settings.data import (
    RegressionConfig,
)
from metalr.tasks import AXIS, Each, Mean, stack
from metalr.theory import Quadratic


class Config(RegressionConfig):
    """Options of this experiment."""

    experiment: Literal["meta_learning"] = "meta_learning"
    rows: PositiveInt = 8  # of each task
    tasks: tuple[PositiveInt, ...] = (1, 2, 4, 8, 16, 32)  # to learn from
    held_out: PositiveInt = 64  # tasks to judge by
    steps: PositiveInt = 20
    start: PositiveFloat = 1e-3


def size(config: Config) -> int:
    """Records that `run` yields."""
    return len(config.tasks)


def run(config: Config) -> Iterator[Record]:
    """Yield one record for each number of training tasks."""
    X, t, _ = config.regression()
    if config.rows > len(t):
        msg = f"rows = {config.rows}: the data has only {len(t)}"
        raise ConfigError(msg)
    rng = np.random.default_rng(config.seed)
    picked = [
        rng.choice(len(t), config.rows, replace=False)
        for _ in range(config.held_out + max(config.tasks))
    ]
    held_out, training = picked[: config.held_out], picked[config.held_out :]
    unseen = pooled([Quadratic.from_regression(X[i], t[i]) for i in held_out])
    best = unseen.optimal_rate(config.steps)
    for count in config.tasks:
        objectives = [
            metalr.Unrolled(
                metalr.problems.least_squares(X[i], t[i]),
                optax.sgd,
                jnp.zeros_like(X[0]),
                steps=config.steps,
            )
            for i in training[:count]
        ]
        devices = jax.make_mesh(
            (len(jax.devices()),), (AXIS,), axis_types=(AxisType.Auto,)
        )
        learned = metalr.learn(
            Mean(stack(objectives), devices),
            jnp.asarray(config.start, X.dtype),
            outer_optimizer=metalr.Newton(),
            steps=100,
            log=True,
            rtol=1e-12,
            engine=Each(metalr.Forward()),
        )
        spectra = [Quadratic.from_regression(X[i], t[i]) for i in training[:count]]
        closed = pooled(spectra).optimal_rate(config.steps)
        yield {
            "tasks": count,
            "eta_closed": float(closed),
            "eta_learned": float(learned.hyper),
            "relative_error": float(abs(learned.hyper - closed) / closed),
            "loss_training": float(learned.value),
            "loss_held_out": float(unseen.loss(learned.hyper, config.steps)),
            "loss_held_out_best": float(unseen.loss(best, config.steps)),
            "eta_held_out_best": float(best),
            "outer_steps": int(learned.steps),
            "converged": bool(learned.converged),
            "devices": len(jax.devices()),
        }


def pooled(spectra: Sequence[Quadratic]) -> Quadratic:
    """The mean of quadratics: all their eigenvalues, p divided by their number."""
    eigenvalues = jnp.concatenate([q.eigenvalues for q in spectra])
    weights = jnp.concatenate([q.weights for q in spectra]) / len(spectra)
    order = jnp.argsort(eigenvalues)
    minimum = sum(float(q.minimum) for q in spectra) / len(spectra)
    return Quadratic(
        eigenvalues=eigenvalues[order], weights=weights[order], minimum=minimum
    )


def figures(records: Sequence[Record]) -> dict[str, Figure]:
    """The rate, and the loss on unseen tasks, against the number of tasks."""
    figure, (left, right) = panels(2)
    tasks = [r["tasks"] for r in records]
    left.plot(tasks, [r["eta_closed"] for r in records], "-", label="closed form")
    left.plot(tasks, [r["eta_learned"] for r in records], "x", label="learned")
    label = "best for the held-out tasks"
    best = records[0]["eta_held_out_best"]
    left.axhline(best, color="black", linestyle=":", label=label)
    left.set(xscale="log", xlabel="training tasks N", ylabel="learning rate η")
    left.legend()
    right.plot(tasks, [r["loss_held_out"] for r in records], "o-", label="learned rate")
    floor = records[0]["loss_held_out_best"]
    right.axhline(floor, color="black", linestyle=":", label=label)
    right.set(xscale="log", yscale="log", xlabel="training tasks N")
    right.set(ylabel="mean loss of held-out tasks")
    right.legend()
    return {"meta_learning": figure}


if __name__ == "__main__":
    from experiments._command.cli import module_main

    raise SystemExit(module_main("meta_learning"))
