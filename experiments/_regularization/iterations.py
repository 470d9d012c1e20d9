"""The comparison of Grazzi et al. (2020): errors of hypergradients by iterations."""

from typing import Any

import jax.numpy as jnp
import optax

import metalr
from experiments._command.experiment import Record
from experiments._regularization.problem import Problem, exact_hypergradient, make
from experiments._settings.beside import difference


def error(gradient: Any, problem: Problem, eta: Any) -> float:
    """Relative to the exact hypergradient."""
    return difference(gradient, exact_hypergradient(problem, eta))


def errors_at(problem: Problem, eta: Any, count: int, *, rate: float) -> Record:
    """By t steps of gradient descent, and t products in the linear solve."""
    engines = {
        "unrolled": metalr.Reverse(),
        "neumann": metalr.Implicit("neumann", iterations=count, rate=rate),
        "cg": metalr.Implicit("cg", iterations=count, rtol=0.0),
    }
    run = make(problem, count, optax.sgd(rate), jnp.zeros_like(eta))
    errors = {
        name: error(metalr.hypergradient(run, eta, engine).grad, problem, eta)
        for name, engine in engines.items()
    }
    table = "error of the hypergradient by t steps and t products"
    return {"table": table, "t": count, **errors}
