r"""Question: how good is a learned rate for each step, and can it be learned at all?

Inner problem: gradient descent on a regression, T steps. Outer variables: the T rates.
Claim: the best schedule is the reciprocals of the Ritz values, as good as T steps of
conjugate gradients; learned from a start with the symmetry between the steps broken it
reaches that loss to 1e-6. From a constant start, gradient descent on the schedule stays
constant, at the best constant rate: a strict saddle.
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
    BundledData,
    RegressionConfig,
    RegressionData,
)
from metalr.theory import Quadratic, schedules


class Config(RegressionConfig):
    """Options of this experiment."""

    experiment: Literal["schedules"] = "schedules"
    data: RegressionData = BundledData(name="digits")
    steps: tuple[PositiveInt, ...] = (2, 4, 6, 8, 12, 16)
    jitter: PositiveFloat = 0.1  # deviation of the log rates where symmetry is broken
    outer_steps: PositiveInt = 1500  # of L-BFGS
    memory: PositiveInt = 50  # of L-BFGS: the Hessian is far from round
    rtol: NonNegativeFloat = 1e-9
    constant_outer_steps: PositiveInt = 40  # of gradient descent from a constant start


def size(config: Config) -> int:
    """Records that `run` yields."""
    return len(config.steps)


def run(config: Config) -> Iterator[Record]:
    """Yield one record for each horizon, as soon as it is known."""
    X, t, _ = config.regression()
    exact = Quadratic.from_regression(X, t)
    active = exact.eigenvalues.size
    if active < max(config.steps):
        msg = f"steps = {max(config.steps)}: the data have {active} active eigenvalues"
        raise ConfigError(msg)
    conjugate = _conjugate_gradients(np.asarray(X), np.asarray(t), max(config.steps))
    loss = metalr.problems.least_squares(X, t)
    for index, steps in enumerate(config.steps):
        objective = metalr.Unrolled(
            loss, metalr.per_step(optax.sgd), jnp.zeros_like(X[0]), steps=steps
        )
        best = jnp.full(steps, exact.optimal_rate(steps))
        kept = _from_constant(objective, exact, best, config)
        key = jax.random.fold_in(jax.random.key(config.seed), index)
        noise = jax.random.normal(key, best.shape, best.dtype)
        learned = metalr.learn(
            objective,
            best * jnp.exp(config.jitter * noise),
            outer_optimizer=optax.lbfgs(memory_size=config.memory),
            steps=config.outer_steps,
            log=True,
            rtol=config.rtol,
        )
        ritz = exact.optimal_schedule(steps)
        yield {
            "T": steps,
            "loss_cg": conjugate[steps],
            "loss_ritz": float(exact.schedule_loss(ritz)),
            "loss_learned": float(learned.value),
            "learned_over_cg": float(learned.value) / conjugate[steps] - 1.0,
            "rates_error": _distance(learned.hyper, ritz),
            "outer_steps": int(learned.steps),
            "loss_chebyshev": float(
                exact.schedule_loss(exact.chebyshev_schedule(steps))
            ),
            "loss_best_constant": float(exact.schedule_loss(best)),
            "loss_from_constant": float(kept.value),
            "spread_from_constant": float(jnp.ptp(kept.hyper) / jnp.mean(kept.hyper)),
            "minimum": [float(exact.minimum)],
            "rates": {
                "ritz": np.sort(ritz).tolist(),
                "learned": np.sort(learned.hyper).tolist(),
                "chebyshev": np.sort(exact.chebyshev_schedule(steps)).tolist(),
                "constant": float(best[0]),
            },
        }


def headline(records: Sequence[Record]) -> str:
    """How near the learned schedules come to conjugate gradients."""
    worst = max(record["learned_over_cg"] for record in records)
    longest = max(record["T"] for record in records)
    return f"learned over CG loss − 1 ≤ {worst:.1e} to T = {longest}"


def figures(records: Sequence[Record]) -> dict[str, Figure]:
    """Excess loss of each schedule against T, and the rates of the longest one."""
    figure, (left, right) = panels(2)
    floor = records[0]["minimum"][0]
    steps = [record["T"] for record in records]
    for name, label, style in (
        ("chebyshev", "Chebyshev", "C4-."),
        ("best_constant", "best constant rate", "C2--"),
        ("from_constant", "learned from a constant start", "C2s"),
        ("cg", "conjugate gradients", "C0-"),
        ("ritz", "Ritz reciprocals", "C0o"),
        ("learned", "learned, symmetry broken", "C1x"),
    ):
        excess = [record[f"loss_{name}"] - floor for record in records]
        left.plot(steps, excess, style, label=label, markerfacecolor="none")
    left.set(yscale="log", xlabel="horizon T (steps)", ylabel="excess loss $L_T - L_∞$")
    low, high = left.get_ylim()
    left.set_ylim(low, high * 30.0)  # room for the legend
    left.legend(fontsize=7, ncols=2)
    rates, T = records[-1]["rates"], steps[-1]
    index = np.arange(1, T + 1)
    right.plot(index, rates["chebyshev"], "C4.", label="Chebyshev")
    right.plot(index, rates["ritz"], "C0o", markerfacecolor="none", label="Ritz")
    right.plot(index, rates["learned"], "C1x", label="learned")
    right.axhline(rates["constant"], color="C2", linestyle="--", label="constant")
    right.set(yscale="log", xlabel="rank of the rate", ylabel="learning rate")
    right.set_title(f"the rates of T = {T}, ascending", fontsize=9)
    right.legend(fontsize=8)
    return {"schedules": figure}


def _from_constant(
    objective: metalr.Unrolled, exact: Quadratic, best: jax.Array, config: Config
) -> metalr.Learned:
    """Gradient descent on the schedule, from a constant one at half the best rate."""
    spectrum = exact.eigenvalues, exact.weights
    # The Hessian's eigenvalue along the constant direction; a convex function of the
    # rate, so that it is largest at an end of the way: no step overshoots.
    curvatures = [
        jnp.sum(schedules.constant_schedule_hessian(*spectrum, rate, best.size)[0])
        for rate in (0.5 * best[0], best[0])
    ]
    rate = 1.0 / float(jnp.max(jnp.stack(curvatures)))
    return metalr.learn(
        objective,
        0.5 * best,
        outer_optimizer=optax.sgd(rate),
        steps=config.constant_outer_steps,
        rtol=0.0,
    )


def _distance(found: jax.Array, truth: jax.Array) -> float:
    """Largest relative distance between the rates, in ascending order."""
    found, truth = jnp.sort(found), jnp.sort(truth)
    return float(jnp.max(jnp.abs(found / truth - 1.0)))


def _conjugate_gradients(X: np.ndarray, t: np.ndarray, steps: int) -> list[float]:
    """Losses of CGLS from zero, after 0 … `steps` steps."""
    w, r = np.zeros(X.shape[1]), t.copy()
    s = X.T @ r
    p, losses = s.copy(), [float(np.mean(r**2))]
    for _ in range(steps):
        q = X @ p
        size, length = s @ s, s @ s / (q @ q)
        w, r = w + length * p, r - length * q
        s = X.T @ r
        p = s + s @ s / size * p
        losses.append(float(np.mean((X @ w - t) ** 2)))
    return losses


if __name__ == "__main__":
    from experiments._command.cli import module_main

    raise SystemExit(module_main("schedules"))
