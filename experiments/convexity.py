r"""Question: is the loss after T steps convex in the learning rate?

Inner problems: regression by gradient descent and with momentum, judged by the training
or by a separate validation loss; logistic regression; a small tanh network. Outer
variable: the learning rate, on an interval.
Claim: by gradient descent on a quadratic L_T is convex for every T, strictly iff
Xᵀa ≠ 0; with momentum it is not, from T = 2 (one eigenvalue: T wells); nor is a
validation loss; logistic regression is convex for T = 1 and need not be for T = 2. Each
verdict is a proof, or says that there is none.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

import metalr
from experiments._command.experiment import Record
from experiments._report.style import panels
from experiments._settings.data import (
    BundledData,
    RegressionConfig,
    load_regression,
)

_CURVE = 241
"""Learning rates of a curve in the figure."""


class Config(RegressionConfig):
    """Options of this experiment."""

    experiment: Literal["convexity"] = "convexity"
    classes: BundledData = BundledData(name="breast_cancer", samples=100)
    momentum: NonNegativeFloat = 0.9
    steps: tuple[PositiveInt, ...] = (1, 2, 10, 1000)  # of gradient descent
    few_steps: tuple[PositiveInt, ...] = (1, 2, 3)  # of everything else
    hidden: PositiveInt = 4  # units of the network
    network_samples: PositiveInt = 12
    reach: PositiveFloat = (
        2.0  # regression: up to reach/λ_max (momentum: × 1 + momentum)
    )
    budget: PositiveInt = 2048


class Case(NamedTuple):
    """One question: an objective on an interval."""

    table: str
    problem: str
    objective: metalr.Unrolled
    high: float


def size(config: Config) -> int:
    """Records that `run` yields."""
    return 3 * len(config.steps) + 7 * len(config.few_steps)


def run(config: Config) -> Iterator[Record]:
    """Yield one record for each objective."""
    for case in _cases(config):
        report = metalr.convexity.check(
            case.objective, 0.0, case.high, budget=config.budget
        )
        rates = jnp.linspace(0.0, case.high, _CURVE, dtype=config.dtype)
        losses, curvatures = _curve(case.objective, rates)
        smallest = int(np.argmin(curvatures))
        witness = None if report.witness is None else float(report.witness)
        yield {
            "table": case.table,
            "problem": case.problem,
            "T": case.objective.steps,
            "interval_end": case.high,
            "verdict": report.verdict,
            "proof": report.method,
            "strict": {True: "yes", False: "no", None: ""}[report.strict]
            if report.verdict == "certified"
            else "",
            "witness": witness,
            "curvature_there": report.curvature,
            "smallest_on_grid": float(curvatures[smallest]),
            "boxes": report.boxes,
            "curve": {
                "eta": rates.tolist(),
                "loss": losses.tolist(),
                "curvature": curvatures.tolist(),
                "witness_loss": None
                if witness is None
                else float(case.objective(jnp.asarray(witness, config.dtype))),
                "reason": report.reason,
            },
        }


def figures(records: Sequence[Record]) -> dict[str, Figure]:
    """The wells of momentum, the two wells of a validation loss, L'' of the others."""
    figure, axes = panels(2, 2, height=3.2)
    one = [r for r in records if r["problem"] == "X = (1, 1), t = 3"]
    by = {table: [r for r in records if r["table"] == table] for table in _TABLES}
    _losses(axes[0], [r for r in one if r["table"] == _MOMENTUM], floor=1e-6)
    axes[0].set_title("momentum, one eigenvalue: T wells", fontsize=9)
    _losses(axes[1], [r for r in by[_VALIDATION] if r["problem"] == "X = 1, target ½"])
    axes[1].set_title("validation loss (X = 1, t = 1, target ½)", fontsize=9)
    _curvatures(axes[2], [r for r in by[_LOGISTIC] if "made up" in r["problem"]])
    axes[2].set_title("logistic regression, three made-up examples", fontsize=9)
    _curvatures(axes[3], by[_NETWORK])
    axes[3].set_title("tanh network", fontsize=9)
    return {"convexity": figure}


_DESCENT = "gradient descent on a quadratic"
_MOMENTUM = "momentum"
_VALIDATION = "validation loss"
_LOGISTIC = "logistic regression"
_NETWORK = "tanh network"
_TABLES = (_DESCENT, _MOMENTUM, _VALIDATION, _LOGISTIC, _NETWORK)


def _cases(config: Config) -> Iterator[Case]:
    X, t, description = load_regression(
        config.data, seed=config.seed, dtype=config.dtype
    )
    name = description["name"]
    notes = jnp.ones((1, 2), config.dtype), jnp.array([3.0], config.dtype)
    stationary = jnp.ones((2, 1), config.dtype), jnp.array([1.0, -1.0], config.dtype)
    problems = {name: (X, t), "X = (1, 1), t = 3": notes}
    for problem, data in {**problems, "Xᵀa = 0": stationary}.items():
        for steps in config.steps:
            yield _regression(
                _DESCENT, problem, data, optax.sgd, steps=steps, config=config
            )

    def heavy_ball(rate: Any) -> optax.GradientTransformation:
        return optax.sgd(rate, momentum=config.momentum)

    for problem, data in problems.items():
        for steps in config.few_steps:
            yield _regression(
                _MOMENTUM, problem, data, heavy_ball, steps=steps, config=config
            )
    yield from _validation(config, name, X, t)
    yield from _classification(config)
    yield from _networks(config, X, t)


def _regression(
    table: str,
    problem: str,
    data: tuple[jax.Array, jax.Array],
    optimizer: Callable[[Any], optax.GradientTransformation],
    *,
    steps: int,
    config: Config,
) -> Case:
    X, t = data
    loss = metalr.problems.least_squares(X, t)
    objective = metalr.Unrolled(loss, optimizer, jnp.zeros_like(X[0]), steps=steps)
    # Momentum is stable up to 2(1 + momentum)/λ_max.
    stretch = 1.0 + config.momentum if table == _MOMENTUM else 1.0
    high = stretch * config.reach / _largest_eigenvalue(X)
    return Case(table, problem, objective, high)


def _largest_eigenvalue(X: jax.Array) -> float:
    return float(2.0 / X.shape[0] * jnp.linalg.norm(X, 2) ** 2)


def _validation(
    config: Config, name: str, X: jax.Array, t: jax.Array
) -> Iterator[Case]:
    """Training on one half of the rows, judged on the other; and the textbook case."""
    half = X.shape[0] // 2
    one = jnp.ones((1, 1), config.dtype)
    halves = (X[:half], t[:half]), metalr.problems.least_squares(X[half:], t[half:])
    textbook = (one, one[0]), metalr.problems.least_squares(one, 0.5 * one[0])
    high = config.reach / _largest_eigenvalue(X[:half])
    settings = (("X = 1, target ½", textbook, 1.0), (f"{name}, halves", halves, high))
    for problem, (train, judge), end in settings:
        for steps in config.few_steps:
            objective = metalr.Unrolled(
                metalr.problems.least_squares(*train),
                optax.sgd,
                jnp.zeros_like(train[0][0]),
                steps=steps,
                outer_loss=lambda w, hyper, judge=judge: judge(w, hyper, None),
            )
            yield Case(_VALIDATION, problem, objective, end)


def _classification(config: Config) -> Iterator[Case]:
    X, t, description = load_regression(
        config.classes, seed=config.seed, dtype=config.dtype
    )
    rows, signs = _three_examples(config.dtype)
    problems = {
        "three made up": (rows, signs, 5.0),
        description["name"]: (X, jnp.sign(t), 2.0),
    }
    for problem, (inputs, labels, high) in problems.items():
        for steps in config.few_steps:
            objective = metalr.Unrolled(
                _logistic_loss(inputs, labels),
                optax.sgd,
                jnp.zeros_like(inputs[0]),
                steps=steps,
            )
            yield Case(_LOGISTIC, problem, objective, high)


def _three_examples(dtype: str) -> tuple[jax.Array, jax.Array]:
    """Separable examples whose first step overshoots: L_2 is not convex."""
    first, second = jax.random.key(7), jax.random.key(107)
    rows = 3.0 * jax.random.normal(first, (3, 2), dtype)
    return rows, jnp.sign(jax.random.normal(second, (3,), dtype))


def _logistic_loss(X: jax.Array, labels: jax.Array) -> Callable[..., jax.Array]:
    def loss(w: jax.Array, hyper: Any, batch: Any) -> jax.Array:
        del hyper, batch
        return jnp.mean(jax.nn.softplus(-labels * (X @ w)))

    return loss


def _networks(config: Config, X: jax.Array, t: jax.Array) -> Iterator[Case]:
    """One hidden layer of tanh on a few rows of the data."""
    rows = min(config.network_samples, X.shape[0])
    X, t = X[:rows], t[:rows]
    keys = jax.random.split(jax.random.key(config.seed), 2)
    shape = (X.shape[1], config.hidden)
    params = {
        "in": jax.random.normal(keys[0], shape, X.dtype) / np.sqrt(X.shape[1]),
        "bias": jnp.zeros(config.hidden, X.dtype),
        "out": jax.random.normal(keys[1], (config.hidden,), X.dtype),
    }

    def loss(p: dict[str, jax.Array], hyper: Any, batch: Any) -> jax.Array:
        del hyper, batch
        return jnp.mean((jnp.tanh(X @ p["in"] + p["bias"]) @ p["out"] - t) ** 2)

    problem = f"{config.hidden} hidden, {rows} rows"
    for steps in config.few_steps:
        objective = metalr.Unrolled(loss, optax.sgd, params, steps=steps)
        yield Case(_NETWORK, problem, objective, 0.5)


def _curve(
    objective: metalr.Unrolled, rates: jax.Array
) -> tuple[np.ndarray, np.ndarray]:
    """Loss and curvature by autodiff, for the figure."""

    def at(rate: jax.Array) -> tuple[jax.Array, jax.Array]:
        def slope(x: jax.Array) -> jax.Array:
            return jax.jvp(objective, (x,), (jnp.ones_like(x),))[1]

        return objective(rate), jax.jvp(slope, (rate,), (jnp.ones_like(rate),))[1]

    losses, curvatures = jax.jit(jax.vmap(at))(rates)
    return np.asarray(losses), np.asarray(curvatures)


def _losses(axis: Any, records: Sequence[Record], floor: float | None = None) -> None:
    for index, record in enumerate(records):
        curve, color = record["curve"], f"C{index}"
        label = f"T = {record['T']}: {record['verdict']}"
        axis.plot(curve["eta"], curve["loss"], color=color, label=label)
        if record["witness"] is not None:
            at = (record["witness"], curve["witness_loss"])
            axis.plot(*at, "v", color=color, markersize=7)
    if floor is not None:
        axis.set(yscale="log", ylim=(floor, None))
    axis.set(xlabel="learning rate η", ylabel="$L_T(η)$")
    axis.legend(fontsize=7, title="▼ witness: $L'' < 0$", title_fontsize=7)


def _curvatures(axis: Any, records: Sequence[Record]) -> None:
    for index, record in enumerate(records):
        curve, color = record["curve"], f"C{index}"
        label = f"T = {record['T']}: {record['verdict']}"
        axis.plot(curve["eta"], curve["curvature"], color=color, label=label)
        if record["witness"] is not None:
            at = (record["witness"], record["curvature_there"])
            axis.plot(*at, "v", color=color, markersize=7)
    axis.axhline(0.0, color="black", linewidth=0.8)
    axis.set(xlabel="learning rate η", ylabel="$L_T''(η)$", yscale="symlog")
    axis.legend(fontsize=7, title="▼ witness: $L'' < 0$", title_fontsize=7)


if __name__ == "__main__":
    from experiments._command.cli import module_main

    raise SystemExit(module_main("convexity"))
