"""Logistic regression with a strength for each feature, and its exact solutions."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

import metalr


class Problem(NamedTuple):
    """Inputs and targets ±1."""

    train: tuple[jax.Array, jax.Array]
    validation: tuple[jax.Array, jax.Array]


def strengths(eta: Any) -> Any:
    """Between 0.01 and 10, so that the condition number stays below 1400."""
    return 0.01 + 10.0 * jax.nn.sigmoid(eta)


def loss(X: Any, t: Any, w: Any, eta: Any, batch: Any) -> jax.Array:
    """g: the logistic loss and the penalty of each feature."""
    del batch
    return logistic(X, t, w, eta) + 0.5 * jnp.sum(strengths(eta) * w**2)


def logistic(X: Any, t: Any, w: Any, eta: Any) -> jax.Array:
    """The mean logistic loss, without penalty: the outer loss."""
    del eta
    return jnp.mean(jax.nn.softplus(-t * (X @ w)))


def make(problem: Problem, steps: int, optimizer: Any, start: Any) -> metalr.Unrolled:
    """The inner run from `start`."""
    return metalr.Unrolled(
        Partial(loss, *problem.train),
        lambda _: optimizer,
        start,
        steps=steps,
        outer_loss=Partial(logistic, *problem.validation),
    )


def exact_minimum(problem: Problem, eta: Any) -> np.ndarray:
    """Scikit-learn's minimum of g: strengths are put into the columns' scale."""
    from sklearn.linear_model import LogisticRegression

    X, t = (np.asarray(part, np.float64) for part in problem.train)
    scale = 1.0 / np.sqrt(np.asarray(strengths(eta), np.float64))
    model = LogisticRegression(
        C=1.0 / len(t),
        fit_intercept=False,
        solver="newton-cholesky",
        tol=1e-13,
        max_iter=1000,
    )
    return model.fit(X * scale, t).coef_[0] * scale


def exact_hypergradient(problem: Problem, eta: Any) -> np.ndarray:
    """By the implicit function theorem at that minimum, the Hessian solved densely."""
    w = jnp.asarray(exact_minimum(problem, eta))
    inner = lambda w, eta: loss(*problem.train, w, eta, None)
    adjoint = jnp.linalg.solve(
        jax.hessian(inner)(w, eta), jax.grad(logistic, 2)(*problem.validation, w, eta)
    )
    slope = jax.grad(lambda eta: jnp.sum(strengths(eta)))(eta)
    return np.asarray(-slope * w * adjoint)
