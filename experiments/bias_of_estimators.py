r"""Question: what do truncation and smoothing do to a hypergradient?

Inner problem: gradient descent on a regression, T steps, one learning rate.
Claim: without momentum, the derivative through the last K of T steps is K/T of the full
one: the sign is right, the size is not; with momentum there is no such rule. Evolution
strategies optimize the loss smoothed by their noise: the closed form equals Gauss–
Hermite quadrature of the unroll and lies within the error of its Monte Carlo mean; its
best rate is smaller than η*_T.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

import metalr
from experiments._command.experiment import ConfigError, Record
from experiments._report.style import panels
from experiments._settings.data import (
    RegressionConfig,
)
from metalr.theory import Quadratic, estimators


class Config(RegressionConfig):
    """Options of this experiment."""

    experiment: Literal["bias_of_estimators"] = "bias_of_estimators"
    steps: PositiveInt = 16  # T
    relative_rate: PositiveFloat = 0.5  # η as a part of η*_T
    momentum: NonNegativeFloat = 0.9  # of the comparison
    relative_sigmas: tuple[PositiveFloat, ...] = (0.01, 0.02, 0.04, 0.07, 0.1)
    # deviation of the noise, as a part of η*_T
    samples: PositiveInt = 20_000  # Monte Carlo


def size(config: Config) -> int:
    """Records that `run` yields."""
    return config.steps + len(config.relative_sigmas)


def run(config: Config) -> Iterator[Record]:
    """Yield one record for each truncation, then one for each width of smoothing."""
    X, t, _ = config.regression()
    exact = Quadratic.from_regression(X, t)
    if exact.eigenvalues.size == 0:
        msg = "the targets are orthogonal to the inputs: every learning rate is as good"
        raise ConfigError(msg)
    loss = metalr.problems.least_squares(X, t)
    best = exact.optimal_rate(config.steps)
    eta = config.relative_rate * best

    def objective(momentum: float | None) -> metalr.Unrolled:
        optimizer = metalr.per_step(lambda rate: optax.sgd(rate, momentum))
        start = jnp.zeros_like(X[0])
        return metalr.Unrolled(loss, optimizer, start, steps=config.steps)

    yield from _truncation(config, exact, objective, eta)
    for index, relative in enumerate(config.relative_sigmas):
        key = jax.random.fold_in(jax.random.key(config.seed), index)
        rates = eta, relative * best
        yield _smoothing(config, exact, objective(None), rates, key)


def figures(records: Sequence[Record]) -> dict[str, Figure]:
    """The truncated part of the hypergradient, and the smoothed losses."""
    figure, (left, right) = panels(2)
    cut = [record for record in records if "K" in record]
    smooth = [record for record in records if "curve" in record]
    last = [record["K"] for record in cut]
    left.plot(last, [r["K_over_T"] for r in cut], "C0-", label="closed form K/T")
    left.plot(last, [r["ratio"] for r in cut], "C1x", label="measured, no momentum")
    left.plot(
        last, [r["ratio_momentum"] for r in cut], "C2.", label="measured, momentum"
    )
    left.axhline(0.0, color="black", linewidth=0.8)
    left.set(xlabel="steps K that are differentiated", ylabel="truncated / full slope")
    left.legend(fontsize=8)
    for index, record in enumerate([None, *smooth]):
        curve = smooth[0]["curve"] if record is None else record["curve"]
        values = curve["plain"] if record is None else curve["smoothed"]
        part = 0.0 if record is None else record["sigma_over_best"]
        label = "σ = 0" if record is None else f"σ = {part:g} η*"
        eta, values = np.array(curve["eta"]), np.array(values) - curve["minimum"]
        color = "black" if record is None else f"C{index - 1}"
        right.plot(eta, values, color=color, label=label)
        lowest = int(np.argmin(values))
        right.plot(eta[lowest], values[lowest], "o", color=color, markersize=4)
    top = smooth[0]["curve"]["start"] - smooth[0]["curve"]["minimum"]
    right.set(yscale="log", xlabel="mean learning rate η")
    right.set_ylabel("smoothed excess loss")
    right.set_ylim(top=10.0 * top)
    right.legend(fontsize=8)
    return {"bias_of_estimators": figure}


def _truncation(
    config: Config,
    exact: Quadratic,
    objective: Callable[[float | None], metalr.Unrolled],
    eta: jax.Array,
) -> Iterator[Record]:
    lasts = range(1, config.steps + 1)
    plain = _truncated_slopes(objective(None), eta, lasts)
    heavy = _truncated_slopes(objective(config.momentum), eta, lasts)
    for last in lasts:
        closed = float(estimators.truncated_slope(exact, eta, config.steps, last))
        found = plain[last - 1]
        yield {
            "table": "truncation: the hypergradient of the last K steps",
            "K": last,
            "slope": found,
            "closed_form": closed,
            "relative_error": abs(found / closed - 1.0),
            "ratio": found / plain[-1],
            "K_over_T": last / config.steps,
            "ratio_momentum": heavy[last - 1] / heavy[-1],
        }


def _truncated_slopes(
    objective: metalr.Unrolled, eta: jax.Array, lasts: Iterable[int]
) -> list[float]:
    """Derivative in a constant rate through the last K steps only, for each K."""
    rates = jnp.broadcast_to(eta, (objective.steps,))
    return [
        float(
            jnp.sum(
                metalr.hypergradient(objective, rates, metalr.Truncated(last=last)).grad
            )
        )
        for last in lasts
    ]


def _smoothing(
    config: Config,
    exact: Quadratic,
    objective: metalr.Unrolled,
    rates: tuple[jax.Array, jax.Array],
    key: jax.Array,
) -> Record:
    (eta, sigma), steps = rates, config.steps
    best = exact.optimal_rate(steps)
    nodes, weights = np.polynomial.hermite.hermgauss(steps + 1)  # exact to degree 2T
    places = eta + sigma * np.sqrt(2.0) * jnp.asarray(nodes, eta.dtype)
    constant = jnp.broadcast_to(places[:, None], (places.size, steps))
    quadrature = weights @ np.asarray(_losses(objective, constant)) / np.sqrt(np.pi)
    closed = float(estimators.smoothed_loss(exact, eta, sigma, steps))
    per_step = float(estimators.per_step_smoothed_loss(exact, eta, sigma, steps))
    draws = jax.random.normal(key, (config.samples, steps), eta.dtype)
    each = np.asarray(_losses(objective, eta + sigma * draws))
    whole = np.asarray(_losses(objective, eta + sigma * draws[:, :1] + 0.0 * draws))
    grid = jnp.linspace(0.0, 1.5, 301) * best
    at = lambda function: jax.vmap(function)(grid)
    smoothed = at(lambda rate: estimators.smoothed_loss(exact, rate, sigma, steps))
    return {
        "table": "smoothing: E L(η + σε), one perturbation a run, and one a step",
        "sigma_over_best": float(sigma / best),
        "closed_form": closed,
        "quadrature": float(quadrature),
        "relative_error": abs(float(quadrature) / closed - 1.0),
        "monte_carlo_z": _z(whole, closed),
        "best_rate_over_unsmoothed": float(grid[jnp.argmin(smoothed)] / best),
        "per_step_closed": per_step,
        "per_step_monte_carlo": float(each.mean()),
        "per_step_z": _z(each, per_step),
        "curve": {
            "eta": grid.tolist(),
            "plain": at(lambda rate: exact.loss(rate, steps)).tolist(),
            "smoothed": smoothed.tolist(),
            "minimum": float(exact.minimum),
            "start": float(exact.loss(0.0, 0)),
        },
    }


def _z(samples: np.ndarray, expected: float) -> float:
    """Distance of the mean from what is expected, in standard errors."""
    error = samples.std(ddof=1) / np.sqrt(samples.size)
    return float((samples.mean() - expected) / error)


@jax.jit
def _losses(objective: Any, schedules: jax.Array) -> jax.Array:
    return jax.lax.map(objective, schedules, batch_size=2000)


if __name__ == "__main__":
    from experiments._command.cli import module_main

    raise SystemExit(module_main("bias_of_estimators"))
