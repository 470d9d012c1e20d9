r"""Question: how strongly should each feature be regularized?

Logistic regression with one L2 strength $s(\eta_j)$ for each feature, learned by the
loss on a validation set (the setting of hypertorch's example, Grazzi et al. 2020):

$$g(w, \eta) = \frac1n\sum_i \log\bigl(1 + e^{-t_i x_i w}\bigr)
  + \frac12\sum_j s(\eta_j)\, w_j^2, \qquad s(\eta) = 0.01 + 10\,\sigma(\eta)$$

between bounds: without them strengths go to 0 and to infinity, and no one rate serves.

The hypergradient by the implicit function theorem (conjugate gradients, a Neumann
series) or through the unroll; each inner run from scratch with many steps (cold), or
from where the last one ended with few (warm).
The truth: scikit-learn's exact minimum at the learned strengths, and the hypergradient
there with the Hessian solved densely.
Claim: warm starts reach the same validation loss at a fraction of the inner gradients
for the implicit engines; through few warm unrolled steps the gradient is biased and
less is gained. Where the inner run has converged its validation loss is that of the
exact minimum to 1e-8. By t steps of gradient descent and t products each (Grazzi et al.
2020; 20 newsgroups there, other data here, so that only the order is compared) the
hypergradients' errors have the published order: conjugate gradients, the Neumann
series (whose terms are too few along the least curvature, 0.01), the unroll.
Beside each loop the same in plain JAX.

`check_hypergrad` (30 features, T = 50) agrees to 3.5e-12, and `diagnose` finds nothing.
"""

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from pydantic import Field, PositiveFloat, PositiveInt

import metalr
from experiments._bilevel.warm import Outer, outer_loop
from experiments._command.experiment import ConfigError, Record
from experiments._regularization import by_hand
from experiments._regularization.figures import curves
from experiments._regularization.iterations import error, errors_at
from experiments._regularization.problem import (
    Problem,
    exact_minimum,
    logistic,
    make,
    strengths,
)
from experiments._settings.beside import difference, in_turns, statements
from experiments._settings.data import BundledData, RegressionConfig, RegressionData

MethodName: TypeAlias = Literal["cg", "neumann", "unrolled"]
Start: TypeAlias = Literal["cold", "warm"]


class Config(RegressionConfig):
    """Options of this experiment."""

    experiment: Literal["regularization"] = "regularization"
    data: RegressionData = BundledData(name="breast_cancer")
    methods: tuple[MethodName, ...] = get_args(MethodName)
    starts: tuple[Start, ...] = get_args(Start)
    validation: float = Field(0.5, gt=0.0, lt=1.0)
    start: float = -4.0  # η of each feature at first
    cold_steps: PositiveInt = 1000
    warm_steps: PositiveInt = 100
    products: PositiveInt = 20  # of cg
    terms: PositiveInt = 200  # of the Neumann series
    neumann_rate: PositiveFloat = 0.1  # below 2 / the largest curvature
    inner_rate: PositiveFloat = 0.1
    momentum: float = Field(0.95, ge=0.0, lt=1.0)
    outer_rate: PositiveFloat = 0.1  # of Adam
    outer_steps: PositiveInt = 100
    iterations: tuple[PositiveInt, ...] = (5, 10, 20, 50, 100, 200, 400, 1000)  # t
    timed_steps: PositiveInt = 10  # outer ones, beside hand-written JAX

    def eta(self, problem: Problem) -> jax.Array:
        """Where learning starts."""
        return jnp.full(problem.train[0].shape[1], self.start, self.dtype)


def size(config: Config) -> int:
    """Records that `run` yields."""
    pairs = len(config.methods) * len(config.starts)
    return 2 * pairs + len(config.iterations)


def run(config: Config) -> Iterator[Record]:
    """Yield what each method learns from each start, beside what is written by hand."""
    problem = _problem(config)
    for method in config.methods:
        for start in config.starts:
            yield _learned(config, problem, method, start)
    for count in config.iterations:
        yield errors_at(problem, config.eta(problem), count, rate=config.neumann_rate)
    for method in config.methods:
        for start in config.starts:
            yield _beside(config, problem, method, start)


def headline(records: Sequence[Record]) -> str:
    """The best validation loss, and how exact it is."""
    best = min(_learnings(records), key=lambda record: record["validation_loss"])
    return (
        f"{best['method']}, {best['start']}: validation loss "
        f"{best['loss_at_start']:.4f} → {best['validation_loss']:.4f} after "
        f"{best['inner_gradients']} inner gradients; off the exact one by "
        f"{best['off_exact']:.1e}"
    )


def figures(records: Sequence[Record]) -> dict[str, Figure]:
    """Validation loss, strengths, and errors of the hypergradient."""
    iterations = [record for record in records if "t" in record]
    return {"regularization": curves(_learnings(records), iterations)}


def _learnings(records: Sequence[Record]) -> list[Record]:
    return [record for record in records if "off_exact" in record]


def _problem(config: Config) -> Problem:
    X, t, _ = config.regression()
    if len(np.unique(np.asarray(t))) != 2:
        msg = "data: a logistic regression needs a target of two values (two classes)"
        raise ConfigError(msg)
    signs = jnp.where(t > jnp.mean(t), 1.0, -1.0).astype(X.dtype)
    order = np.random.default_rng(config.seed).permutation(len(t))
    kept = int((1.0 - config.validation) * len(t))
    parts = (order[:kept], order[kept:])
    sides = [(X[rows], signs[rows]) for rows in parts]
    if any(len(np.unique(np.asarray(side[1]))) != 2 for side in sides):
        msg = f"validation = {config.validation} leaves one class alone on a side"
        raise ConfigError(msg)
    return Problem(*sides)


def _loop(
    config: Config, problem: Problem, method: str, start: str, steps: int
) -> tuple[Callable[[Any], Outer], int]:
    """The outer loop from η, and the gradients and products of one outer step."""
    warm = start == "warm"
    inner_steps = config.warm_steps if warm else config.cold_steps
    engine, products = _engine(config, method, inner_steps)
    optimizer = optax.sgd(config.inner_rate, momentum=config.momentum)

    def whole(eta: Any) -> Outer:
        return outer_loop(
            functools.partial(make, problem, inner_steps, optimizer),
            jnp.zeros_like(eta),
            eta,
            engine=engine,
            optimizer=optax.adam(config.outer_rate),
            steps=steps,
            warm=warm,
        )

    return whole, inner_steps + products


def _learned(config: Config, problem: Problem, method: str, start: str) -> Record:
    whole, each = _loop(config, problem, method, start, config.outer_steps)
    eta = config.eta(problem)
    compiled = jax.jit(whole).lower(eta).compile()
    begin = time.perf_counter()
    rows = jax.block_until_ready(compiled(eta))
    seconds = time.perf_counter() - begin
    last, value = rows.hyper[-1], float(rows.value[-1])
    validated = lambda w, eta: float(logistic(*problem.validation, w, eta))
    at_exact = validated(exact_minimum(problem, last), last)
    return {
        "table": "learned strengths, and the exact optimum there",
        "method": method,
        "start": start,
        "validation_loss": value,
        "exact_loss": at_exact,
        "off_exact": abs(value - at_exact) / at_exact,
        "hypergradient_error": error(rows.grad[-1], problem, last),
        "inner_gradients": each * config.outer_steps,
        "seconds": seconds,
        "loss_at_start": float(rows.value[0]),
        "exact_loss_at_start": validated(exact_minimum(problem, eta), eta),
        "strengths": strengths(last).tolist(),
        "curve": {
            "gradients": (each * np.arange(1, config.outer_steps + 1)).tolist(),
            "loss": rows.value.tolist(),
        },
    }


def _beside(config: Config, problem: Problem, method: str, start: str) -> Record:
    """The outer loop in plain JAX."""
    warm, count = start == "warm", config.timed_steps
    whole, _ = _loop(config, problem, method, start, count)
    numbers = by_hand.Numbers(
        config.warm_steps if warm else config.cold_steps,
        config.inner_rate,
        config.momentum,
        config.products,
        config.terms,
        config.neumann_rate,
    )
    gradient = by_hand.GRADIENTS[method]
    theirs = functools.partial(
        by_hand.learn,
        gradient,
        problem,
        numbers,
        rate=config.outer_rate,
        steps=count,
        warm=warm,
    )
    ours = jax.jit(lambda eta: whole(eta).hyper)
    turns = in_turns(ours, jax.jit(theirs), config.eta(problem), rounds=3)
    return {
        "table": f"beside hand-written JAX: {count} outer steps",
        "method": method,
        "start": start,
        "learned_difference": difference(turns.ours, turns.theirs),
        "milliseconds": 1e3 * turns.seconds / count,
        "milliseconds_by_hand": 1e3 * turns.seconds_by_hand / count,
        "cost_ratio": turns.seconds / turns.seconds_by_hand,
        "statements": statements(make, outer_loop),
        "statements_by_hand": statements(gradient, by_hand.learn, logistic, strengths),
    }


def _engine(config: Config, method: str, steps: int) -> tuple[Any, int]:
    """The engine, and the Hessian products that it takes in an outer step."""
    if method == "cg":
        engine = metalr.Implicit("cg", iterations=config.products, rtol=0.0)
        return engine, config.products
    if method == "neumann":
        terms = config.terms
        engine = metalr.Implicit("neumann", iterations=terms, rate=config.neumann_rate)
        return engine, terms
    return metalr.Reverse(), steps


if __name__ == "__main__":
    from experiments._command.cli import module_main

    raise SystemExit(module_main("regularization"))
