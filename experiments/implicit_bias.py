r"""Question: which solution does an optimizer choose when many fit the data?

Least squares with fewer examples than parameters, from zero, each optimizer run until
it interpolates: on one example in the plane, and on real data.
Claim: SGD, momentum and Nesterov end at the minimum-norm solution and never leave the
row space; methods that rescale coordinates do not. On one example x they end at
t·sign(x)/‖x‖₁: the minimum norm for x = (1, 1), another point for (1, 2).
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from pydantic import PositiveFloat, PositiveInt

from experiments._command.experiment import ConfigError, Record
from experiments._report.style import panels
from experiments._settings.data import (
    BundledData,
    RegressionConfig,
    RegressionData,
    on_host,
)
from experiments._settings.source_notes import lagged_adagrad
from metalr import bias
from metalr.problems import regression
from metalr.theory import implicit_bias as theory

Name = Literal[
    "sgd",
    "momentum",
    "nesterov",
    "adagrad",
    "adagrad_lagged",
    "rmsprop",
    "adam",
    "adamw",
    "lion",
    "sign",
]
_GRADIENT = ("sgd", "momentum", "nesterov")
_SIGN = ("adagrad", "rmsprop", "adam", "lion", "sign")
_ALL: tuple[Name, ...] = (*_GRADIENT, "adagrad", "adagrad_lagged", *_SIGN[1:3])
_ALL = (*_ALL, "adamw", "lion", "sign")


class Config(RegressionConfig):
    """Options of this experiment."""

    experiment: Literal["implicit_bias"] = "implicit_bias"
    optimizers: tuple[Name, ...] = _ALL
    examples: tuple[tuple[float, ...], ...] = ((1.0, 1.0), (1.0, 2.0))  # with `target`
    target: float = 3.0
    data: RegressionData = BundledData(name="digits")
    train: PositiveInt = 20  # examples to fit; the others are the test set
    degree: PositiveInt = 1  # products of up to so many columns become columns
    rtol: PositiveFloat = 1e-6  # residual, relative to its start, that interpolates
    max_steps: PositiveInt = 200_000
    half_life: PositiveInt = 4000  # steps, of the rate of sign, lion and rmsprop
    rate: PositiveFloat = 0.01  # of the methods that rescale; adagrad: ten times


class Problem(NamedTuple):
    """A training set and a test set, both as the training set is standardized."""

    X: jax.Array
    t: jax.Array
    X_test: jax.Array
    t_test: jax.Array


def size(config: Config) -> int:
    """Records that `run` yields."""
    names = [name for name in config.optimizers if name != "adagrad_lagged"]
    return len(config.examples) * len(config.optimizers) + len(names)


def run(config: Config) -> Iterator[Record]:
    """Yield one record for each problem and optimizer."""
    problem = _problem(config)
    for example in config.examples:
        if not any(example):
            msg = f"examples: {list(example)} is zero: every w fits it as well"
            raise ConfigError(msg)
        x = jnp.asarray(example, config.dtype)
        for name in config.optimizers:
            yield _on_example(config, name, x)
    n, d = problem.X.shape
    title = (
        f"{getattr(config.data, 'name', config.data.kind)}: {n} examples, {d} columns"
    )
    largest = float(jnp.linalg.norm(problem.X, 2) ** 2) * 2.0 / n
    for name in config.optimizers:
        if name != "adagrad_lagged":  # its first step, g₀·η/ε, is of no use here
            yield _on_data(config, name, problem, largest, title)


def headline(records: Sequence[Record]) -> str:
    """How far from the minimum norm each optimizer ends, on the real data."""
    last = [record for record in records if record["table"] == records[-1]["table"]]
    parts = [f"{r['optimizer']} {r['excess_norm']:.2g}" for r in last if r["converged"]]
    return f"norm above the least: {', '.join(parts)}"


def figures(records: Sequence[Record]) -> dict[str, Figure]:
    """The runs in the plane, with the solution line; the norm of w over steps."""
    plane = [r for r in records if r.get("path") and len(r["x"]) == 2]
    examples = list(dict.fromkeys(tuple(r["x"]) for r in plane))
    figure, axes = panels(len(examples) + 1, height=3.9)
    names = list(dict.fromkeys(r["optimizer"] for r in records))
    colors = {name: f"C{i % 7}" for i, name in enumerate(names)}
    dashes = {name: "-" if i < 7 else "--" for i, name in enumerate(names)}
    for axis, x in zip(axes, examples, strict=False):
        runs = [r for r in plane if tuple(r["x"]) == x]
        _draw_plane(axis, x, runs, colors, dashes)
    for r in (r for r in records if "curve" in r):
        norm = np.array(r["curve"]["norm"]) / r["curve"]["min_norm"]
        name = r["optimizer"]
        axes[-1].plot(
            r["curve"]["steps"], norm, dashes[name], color=colors[name], label=name
        )
        axes[-1].set_title(r["table"], fontsize=9)
    axes[-1].axhline(1.0, color="black", linestyle=":", linewidth=1)
    axes[-1].set(xscale="log", xlabel="step", ylabel="‖w‖ / ‖minimum-norm solution‖")
    handles, labels = {}, []
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    labels = list(handles)
    figure.legend(
        [handles[label] for label in labels],
        labels,
        loc="outside lower center",
        ncols=6,
        fontsize=8,
    )
    return {"implicit_bias": figure}


def _draw_plane(
    axis: Any,
    x: tuple[float, ...],
    runs: Sequence[Record],
    colors: dict[str, str],
    dashes: dict[str, str],
) -> None:
    target = runs[0]["line"]["target"]
    ends = np.array([-4.0, 7.0])
    axis.plot(ends, (target - x[0] * ends) / x[1], color="0.6", label="xᵀw = t")
    for width, r in zip(np.linspace(6.0, 1.2, len(runs)), runs, strict=True):
        name, points = r["optimizer"], np.array(r["path"])
        style = {"color": colors[name], "label": name, "linewidth": width}
        axis.plot(*points.T, dashes[name], **style)  # thinner on top: runs coincide
        axis.plot(*r["w"], "o", color=colors[name], markersize=4)
    square = sum(v * v for v in x)
    nearest = [target * v / square for v in x]
    axis.plot(*nearest, "*", color="black", markersize=10, label="minimum norm")
    axis.set(xlabel="$w_1$", ylabel="$w_2$", xlim=(-0.3, 2.1), ylim=(-0.3, 2.1))
    axis.set_title(f"x = ({x[0]:g}, {x[1]:g}); dots: where each ends", fontsize=9)
    axis.set_aspect("equal")


def _on_example(config: Config, name: Name, x: jax.Array) -> Record:
    X, t = x[None], jnp.asarray([config.target], x.dtype)
    optimizer = _optimizer(name, config, 2.0 * float(x @ x), toy=True)
    found = bias.limit(X, t, optimizer, rtol=config.rtol, max_steps=config.max_steps)
    prediction = None
    if name in _GRADIENT:
        prediction = theory.min_norm_solution(X, t)
    elif name in _SIGN:
        prediction = theory.sign_limit(x, config.target)
    path = bias.path(X, t, optimizer, steps=400)
    label = ", ".join(f"{v:g}" for v in x.tolist())
    return {
        "table": f"x = ({label}), t = {config.target:g}",
        **_row(name, found),
        "end": ", ".join(f"{v:.3f}" for v in found.params.tolist()),
        "distance_to_prediction": None
        if prediction is None
        else float(jnp.linalg.norm(found.params - prediction)),
        "x": x.tolist(),
        "w": found.params.tolist(),
        "line": {"target": config.target},
        "path": path.tolist(),
    }


def _on_data(
    config: Config, name: Name, problem: Problem, largest: float, title: str
) -> Record:
    optimizer = _optimizer(name, config, largest, toy=False)

    def until(steps: int) -> bias.Limit:
        return bias.limit(
            problem.X, problem.t, optimizer, rtol=config.rtol, max_steps=steps
        )

    found = until(config.max_steps)
    steps = np.unique(np.geomspace(1, max(int(found.steps), 1), 16).astype(int))
    norms = [float(jnp.linalg.norm(until(int(s)).params)) for s in steps]
    error = problem.X_test @ found.params - problem.t_test
    nearest = bias.min_norm_solution(problem.X, problem.t)
    best = problem.X_test @ nearest - problem.t_test
    scale = jnp.var(problem.t_test)
    return {
        "table": title,
        **_row(name, found),
        "test_error": float(jnp.mean(error**2) / scale),
        "test_error_of_min_norm": float(jnp.mean(best**2) / scale),
        "curve": {
            "steps": steps.tolist(),
            "norm": norms,
            "min_norm": float(jnp.linalg.norm(nearest)),
        },
    }


def _row(name: str, found: bias.Limit) -> dict[str, Any]:
    return {
        "optimizer": name,
        "converged": bool(found.converged),
        "steps": int(found.steps),
        "residual": float(found.residual),
        "rate": float(found.rate),
        "row_space_residual": float(found.row_space_residual),
        "distance_to_min_norm": float(found.distance_to_min_norm),
        "excess_norm": float(found.excess_norm),
    }


def _optimizer(
    name: Name, config: Config, largest: float, *, toy: bool
) -> optax.GradientTransformation:
    """Gradient methods at 1/λ_max (half of it on one example: not in one step)."""
    rate = 5.0 * config.rate if toy else config.rate
    decayed = optax.exponential_decay(rate, 50 if toy else config.half_life, 0.5)
    gradient_rate = (0.5 if toy else 1.0) / largest
    if name in _GRADIENT:
        momentum = None if name == "sgd" else 0.9
        return optax.sgd(gradient_rate, momentum, nesterov=name == "nesterov")
    # The definition: from an empty accumulator, with ε → 0.
    exact = optax.adagrad(10.0 * rate, initial_accumulator_value=0.0, eps=0.0)
    # The notes' first step, η/ε = 1; what follows moves along one direction, so that
    # a larger rate changes the time and not the end.
    later = optax.join_schedules(
        [optax.constant_schedule(1e-4), optax.constant_schedule(1.0)], [1]
    )
    return {
        "adagrad": exact,
        "adagrad_lagged": lagged_adagrad(later, eps=1e-4),
        "rmsprop": optax.rmsprop(decayed),
        "adam": optax.adam(rate),
        "adamw": optax.adamw(rate),
        "lion": optax.lion(decayed, weight_decay=0.0),
        "sign": optax.sign_sgd(decayed),
    }[name]


def _problem(config: Config) -> Problem:
    X, t, _ = on_host(config.data, seed=config.seed)
    if config.train >= len(t):
        msg = f"train = {config.train}: keep some of {len(t)} rows for testing"
        raise ConfigError(msg)
    products = [
        np.prod(X[:, list(columns)], axis=1)
        for degree in range(1, config.degree + 1)
        for columns in itertools.combinations_with_replacement(
            range(X.shape[1]), degree
        )
    ]
    X = np.stack(products, axis=1)
    if config.train >= X.shape[1]:
        msg = (
            f"train = {config.train} examples for {X.shape[1]} columns: at most one "
            "solution. Lower train or raise degree"
        )
        raise ConfigError(msg)
    order = np.random.default_rng(config.seed).permutation(len(t))
    train, test = order[: config.train], order[config.train :]
    if np.all(t[train] == t[train][0]):
        msg = f"the {config.train} targets drawn for training are equal: raise train"
        raise ConfigError(msg)
    standardize, mean = regression.columns(X[train]), np.mean(t[train])
    arrays = (
        standardize.on_host(X[train]),
        t[train] - mean,
        standardize.on_host(X[test]),
        t[test] - mean,
    )
    return Problem(*(jnp.asarray(array, config.dtype) for array in arrays))


if __name__ == "__main__":
    from experiments._command.cli import module_main

    raise SystemExit(module_main("implicit_bias"))
