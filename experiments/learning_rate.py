r"""Question: which learning rate is best after T steps, and does meta-learning find it?

Inner problem: gradient descent on a regression. Outer variable: the logarithm of the
learning rate, started badly and learned by its hypergradient through the unroll.
Claim: the learned rate meets the closed form η*_T to 1e-6 for every T; η*_T tends to
2/(λ_min + λ_max); L_T is convex in η; autodiff agrees with the closed form to 1e-9.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

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
from metalr.theory import Quadratic


class Config(RegressionConfig):
    """Options of this experiment."""

    experiment: Literal["learning_rate"] = "learning_rate"
    steps: tuple[PositiveInt, ...] = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
    start: PositiveFloat = 1e-3
    outer_optimizer: Literal["newton", "lbfgs", "adam", "sgd"] = "newton"
    outer_learning_rate: PositiveFloat = 0.1  # of adam and sgd
    outer_steps: PositiveInt = 200
    rtol: NonNegativeFloat = 1e-12
    grid: PositiveInt = 101  # rates on [0, 2/λ_max] for curvature and agreement


def size(config: Config) -> int:
    """Records that `run` yields."""
    return len(config.steps)


def run(config: Config) -> Iterator[Record]:
    """Yield one record for each horizon, as soon as it is known."""
    X, t, _ = config.regression()
    exact = Quadratic.from_regression(X, t)
    if exact.eigenvalues.size == 0:
        msg = "the targets are orthogonal to the inputs: every learning rate is as good"
        raise ConfigError(msg)
    loss = metalr.problems.least_squares(X, t)
    start = jnp.asarray(config.start, X.dtype)
    for steps in config.steps:
        objective = metalr.Unrolled(loss, optax.sgd, jnp.zeros_like(X[0]), steps=steps)
        learned = metalr.learn(
            objective,
            start,
            outer_optimizer=_outer_optimizer(config),
            steps=config.outer_steps,
            log=True,
            rtol=config.rtol,
        )
        best = exact.optimal_rate(steps)
        rates = jnp.linspace(0.0, 2.0 / jnp.max(exact.eigenvalues), config.grid)
        values, slopes, curvatures = _derivatives(objective, rates)
        yield {
            "T": steps,
            "eta_closed": float(best),
            "eta_learned": float(learned.hyper),
            "relative_error": float(abs(learned.hyper - best) / best),
            "loss_closed": float(exact.loss(best, steps)),
            "loss_learned": float(learned.value),
            "outer_steps": int(learned.steps),
            "converged": bool(learned.converged),
            "min_curvature": float(jnp.min(curvatures)),
            "autodiff_error": _disagreement(
                exact, steps, rates, (values, slopes, curvatures)
            ),
            "curve": {
                "eta": rates.tolist(),
                "unrolled": values.tolist(),
                "closed": [float(exact.loss(rate, steps)) for rate in rates],
                "minimum": float(exact.minimum),
                "asymptotic_rate": float(exact.asymptotic_rate()),
            },
        }


def figures(records: Sequence[Record]) -> dict[str, Figure]:
    """L_T(η) with both optima marked, and η*_T on its way to 2/(λ_min + λ_max)."""
    figure, (left, right) = panels(2)
    limit = records[0]["curve"]["asymptotic_rate"]
    for index, record in enumerate(_spread(records, 5)):
        curve, color = record["curve"], f"C{index}"
        floor = curve["minimum"]
        closed, unrolled = (np.array(curve[k]) - floor for k in ("closed", "unrolled"))
        eta = np.array(curve["eta"])
        left.plot(eta, closed, color=color, label=f"T = {record['T']}")
        left.plot(eta[::8], unrolled[::8], ".", color=color, markersize=4)
        for kind, marker in (("closed", "o"), ("learned", "x")):
            at = (record[f"eta_{kind}"], record[f"loss_{kind}"] - floor)
            left.plot(*at, marker, color=color, markersize=9, markerfacecolor="none")
    left.axvline(limit, color="black", linestyle=":", linewidth=1)
    left.set(
        yscale="log", xlabel="learning rate η", ylabel="excess loss $L_T(η) - L_∞$"
    )
    left.set_title(
        "lines: closed form; dots: unroll; ○ closed η*, × learned", fontsize=8
    )
    left.legend(fontsize=8)
    steps = [record["T"] for record in records]
    right.plot(steps, [r["eta_closed"] for r in records], "-", label="closed form η*")
    right.plot(steps, [r["eta_learned"] for r in records], "x", label="learned")
    label = r"$2/(\lambda_{\min}+\lambda_{\max})$"
    right.axhline(limit, color="black", linestyle=":", linewidth=1, label=label)
    right.set(
        xscale="log", xlabel="horizon T (steps)", ylabel="optimal learning rate η*"
    )
    right.legend(fontsize=8)
    return {"learning_rate": figure}


def _outer_optimizer(config: Config) -> optax.GradientTransformation | metalr.Newton:
    if config.outer_optimizer == "newton":
        return metalr.Newton()
    if config.outer_optimizer == "lbfgs":
        return optax.lbfgs()
    return getattr(optax, config.outer_optimizer)(config.outer_learning_rate)


@jax.jit
def _derivatives(
    objective: metalr.Unrolled, rates: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Value and two derivatives of the unroll at each rate, by autodiff."""

    def at(rate: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        slope = jax.grad(objective)
        return objective(rate), *jax.jvp(slope, (rate,), (jnp.ones_like(rate),))

    return jax.vmap(at)(rates)


def _disagreement(
    exact: Quadratic, steps: int, rates: jax.Array, found: Sequence[jax.Array]
) -> float:
    """Largest relative error of autodiff over the grid and the three derivatives.

    The slope passes through 0 at η*, so its error is taken relative to |L'| + η|L''|:
    the slope, or what a relative change of η makes of it.
    """
    forms = (exact.loss, exact.slope, exact.curvature)
    value, slope, curvature = (
        jax.vmap(lambda rate, form=form: form(rate, steps))(rates) for form in forms
    )
    sizes = (jnp.abs(value), jnp.abs(slope) + rates * curvature, curvature)
    errors = [
        jnp.where(truth == measured, 0.0, jnp.abs(measured - truth) / size)
        for measured, truth, size in zip(
            found, (value, slope, curvature), sizes, strict=True
        )
    ]
    return float(jnp.max(jnp.stack(errors)))


def _spread(records: Sequence[Record], count: int) -> list[Record]:
    """At most `count` records, evenly spread, first and last included."""
    last = len(records) - 1
    picked = sorted({round(i * last / max(count - 1, 1)) for i in range(count)})
    return [records[index] for index in picked]


if __name__ == "__main__":
    from experiments._command.cli import module_main

    raise SystemExit(module_main("learning_rate"))
