"""Question: when is a hypergradient to be believed, and how does one see that it isn't?

The same tanh network on digits, full batch, gradient descent, one learning rate: far
below the edge of stability, and far beyond it; and a regression beyond its edge, which
has a closed form. `metalr.diagnose` looks along each run, `metalr.check_hypergrad`
holds its engines against finite differences.
Claim: below the edge every way to the derivative agrees and nothing is found.
Beyond it the network stays finite but is chaotic: perturbations grow, the
hypergradient is orders of magnitude larger than any slope of the loss, the engines
differ as their runs do (rounding is amplified), and differences are inconclusive. The
regression grows as the closed form says, 2·log|1 − ηλ_max| a step.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from pydantic import PositiveFloat, PositiveInt

import metalr
from experiments._command.experiment import Record
from experiments._report.style import panels
from experiments._settings.data import (
    BundledData,
    RegressionConfig,
    RegressionData,
)
from metalr.theory import Quadratic


class Config(RegressionConfig):
    """Options of this experiment."""

    experiment: Literal["diagnose"] = "diagnose"
    steps: PositiveInt = 200  # T
    healthy_rate: PositiveFloat = 0.1
    chaotic_rate: PositiveFloat = 4.0
    units: PositiveInt = 16
    examples: PositiveInt = 256
    weights: PositiveFloat = 1.0  # deviation of the first weights, times 1/sqrt(inputs)
    data: RegressionData = BundledData()  # of the regression
    relative_rate: PositiveFloat = 1.1  # of the regression, in edges 2/λ_max
    iterations: PositiveInt = 8  # of Lanczos, a step
    curve: PositiveInt = 200  # points of L_T(η) around each rate


class Problem(NamedTuple):
    """One run to be looked at."""

    objective: metalr.Unrolled
    rate: float
    growth: float | None = None  # of the hypergradient a step, in closed form


def run(config: Config) -> Iterator[Record]:
    """For each problem its diagnosis, its findings, and each row of its check."""
    for problem_name, make in _PROBLEMS.items():
        problem = make(config)
        rate = jnp.asarray(problem.rate, config.dtype)
        found = metalr.diagnose(problem.objective, rate, iterations=config.iterations)
        check = metalr.check_hypergrad(problem.objective, rate)
        yield _summary(problem_name, problem, found, check, config)
        for finding in found.findings:
            yield {"table": f"{problem_name}: findings", **finding._asdict()}
        for row in check.rows:
            fields = row._asdict()
            for name in ("value", "grad"):
                if fields[name] is not None:
                    fields[name] = float(fields[name])
            yield {"table": f"{problem_name}: {check.verdict}", **fields}


def headline(records: Sequence[Record]) -> str:
    """What is said of each problem."""
    said = {
        record["problem"]: record["findings"] or "nothing found"
        for record in records
        if "findings" in record
    }
    return "; ".join(f"{problem}: {findings}" for problem, findings in said.items())


def figures(records: Sequence[Record]) -> dict[str, Figure]:
    """Loss, sharpness, growth and contributions of each run; L_T(η) around its rate."""
    shown = [record for record in records if "along" in record]
    figure, axes = panels(5, len(shown), height=2.9)
    for row, record in enumerate(shown):
        _row_of_panels(axes[5 * row : 5 * row + 5], record)
    return {"diagnose": figure}


def _row_of_panels(axes: Sequence[Any], record: Record) -> None:
    loss, sharp, growth, parts, curve = axes
    along = {name: np.array(values) for name, values in record["along"].items()}
    steps = np.arange(record["T"])
    loss.plot(along["losses"])
    loss.set(ylabel="inner loss")
    _scale(loss, along["losses"])
    loss.set_title(f"{record['problem']}, η = {record['rate']:.3g}", fontsize=9)
    sharp.plot(steps, along["sharpness"], label="sharpness")
    sharp.plot(steps, along["edge"], "--", label="edge 2/η")
    sharp.set(ylabel="largest eigenvalue")
    _scale(sharp, np.append(along["sharpness"], along["edge"]))
    growth.plot(along["tangent_norms"], label=r"$\|dw_s/d\eta\|$")
    growth.plot(np.abs(along["slopes"])[1:], label=r"$|dL_s/d\eta|$")
    growth.set(yscale="log", ylabel="size")
    rate = record["lyapunov"]
    growth.set_title(f"growth of a perturbation {rate:.3g} a step", fontsize=9)
    parts.plot(steps, np.abs(along["contributions"]), ".", markersize=3)
    parts.set(ylabel="|contribution| to the derivative")
    _scale(parts, np.abs(along["contributions"]))
    last = record["horizon_99"]
    if last is not None:
        parts.axvline(record["T"] - last, color="C1", linestyle="--")
        parts.set_title(f"99 % in the last {last} steps", fontsize=9)
    for panel in (loss, sharp, growth, parts):
        panel.set_xlabel("step s")
    for panel in (sharp, growth):
        panel.legend(fontsize=8)
    rates, values = np.array(record["curve"]["rate"]), record["curve"]["value"]
    curve.plot(rates, values, linewidth=1.0)
    curve.axvline(record["rate"], color="C1", linestyle="--")
    curve.set(xlabel="learning rate η", ylabel=f"loss after {record['T']} steps")
    curve.set_title(f"derivative {record['derivative']:.3g}", fontsize=9)
    if max(values) > 1e3 * min(values):
        curve.set_yscale("log")


def _scale(axes: Any, values: np.ndarray) -> None:
    """Logarithmic where the values span decades, else linear from 0."""
    values = values[np.isfinite(values) & (values > 0.0)]
    if values.size and values.max() > 30.0 * values.min():
        axes.set_yscale("log")
    else:
        axes.set_ylim(0.0, 1.1 * values.max(initial=1e-300))


def _summary(
    name: str,
    problem: Problem,
    found: metalr.Diagnosis,
    check: metalr.Check,
    config: Config,
) -> Record:
    rates = problem.rate * np.linspace(0.95, 1.05, config.curve)
    loss = jax.jit(lambda r: jax.lax.map(problem.objective, r))
    values = np.asarray(loss(jnp.asarray(rates, config.dtype)))
    along = ("losses", "slopes", "tangent_norms", "sharpness", "edge", "contributions")
    return {
        "table": "diagnosis",
        "problem": name,
        "T": problem.objective.steps,
        "rate": problem.rate,
        "loss": float(found.losses[-1]),
        "derivative": found.total,
        "steepest_chord": float(np.max(np.abs(np.diff(values) / np.diff(rates)))),
        "sharpness": float(found.sharpness[-1]),
        "edge": float(found.edge[-1]),
        "share_beyond": float(np.mean(found.sharpness > found.edge)),
        "lyapunov": found.lyapunov,
        "hypergradient_rate": found.hypergradient_rate,
        "closed_form_rate": problem.growth,
        "horizon_90": found.horizon_90,
        "horizon_99": found.horizon_99,
        "slope_peak": found.slope_peak,
        "findings": ", ".join(finding.kind for finding in found.findings),
        "check": check.verdict,
        "along": {name: getattr(found, name).tolist() for name in along},
        "curve": {"rate": rates.tolist(), "value": values.tolist()},
    }


def _network(config: Config, rate: float) -> Problem:
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    inputs = jnp.asarray(digits.images.reshape(-1, 64) / 16.0, config.dtype)
    inputs, labels = inputs[: config.examples], digits.target[: config.examples]

    def loss(params: Any, hyper: Any, batch: Any) -> jax.Array:
        del hyper, batch
        hidden = jnp.tanh(inputs @ params["in"] + params["bias"])
        logits = hidden @ params["out"]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return jnp.mean(losses)

    first, second = jax.random.split(jax.random.key(config.seed))
    scale = config.weights / math.sqrt(64)
    params = {
        "in": scale * jax.random.normal(first, (64, config.units), config.dtype),
        "bias": jnp.zeros(config.units, config.dtype),
        "out": jax.random.normal(second, (config.units, 10), config.dtype)
        / math.sqrt(config.units),
    }
    return Problem(metalr.Unrolled(loss, optax.sgd, params, steps=config.steps), rate)


def _regression(config: Config) -> Problem:
    X, t, _ = config.regression()
    sharpest = float(Quadratic.from_regression(X, t).eigenvalues[-1])
    rate = config.relative_rate * 2.0 / sharpest
    loss = metalr.problems.least_squares(X, t)
    start = jnp.zeros_like(X[0])
    return Problem(
        metalr.Unrolled(loss, optax.sgd, start, steps=config.steps),
        rate,
        2.0 * math.log(abs(1.0 - rate * sharpest)),
    )


_PROBLEMS: dict[str, Callable[[Config], Problem]] = {
    "network, healthy": lambda config: _network(config, config.healthy_rate),
    "network, chaotic": lambda config: _network(config, config.chaotic_rate),
    "regression beyond the edge": _regression,
}


if __name__ == "__main__":
    from experiments._command.cli import module_main

    raise SystemExit(module_main("diagnose"))
