"""Strengths of features: scikit-learn's minimum, by hand, and what warm starts do."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metalr
from experiments import regularization
from tests.helpers import assert_near

TINY = {"data": {"name": "breast_cancer", "samples": 120}, "outer_steps": 20}


@pytest.fixture(scope="module")
def problem():
    return regularization._problem(regularization.Config(**TINY))


ETA = jnp.linspace(-3.0, 0.5, 30)


def test_scikit_learns_minimum_is_stationary(problem: regularization.Problem):
    w = jnp.asarray(regularization.exact_minimum(problem, ETA))
    slope = jax.grad(regularization.loss, argnums=2)(*problem.train, w, ETA, None)
    assert float(jnp.linalg.norm(slope)) < 1e-9


def test_the_exact_hypergradient_is_the_difference_of_exact_losses(
    problem: regularization.Problem,
):
    def value(eta):
        w = regularization.exact_minimum(problem, eta)
        return float(regularization.logistic(*problem.validation, w, eta))

    way = jnp.cos(jnp.arange(30.0))
    ends = [value(ETA + sign * 1e-4 * way) for sign in (1.0, -1.0)]
    exact = regularization.exact_hypergradient(problem, ETA) @ np.asarray(way)
    np.testing.assert_allclose((ends[0] - ends[1]) / 2e-4, exact, rtol=1e-5)


def test_the_unrolled_hypergradient_is_the_hand_written_one(
    problem: regularization.Problem,
):
    def by_hand(eta):
        slope = jax.grad(lambda w: regularization.loss(*problem.train, w, eta, None))
        w = trace = jnp.zeros(30)
        for _ in range(8):
            trace = slope(w) + 0.9 * trace
            w = w - 0.3 * trace
        return regularization.logistic(*problem.validation, w, eta)

    run = regularization.make(problem, 8, optax.sgd(0.3, momentum=0.9), jnp.zeros(30))
    result = metalr.hypergradient(run, ETA)
    value, grad = jax.value_and_grad(by_hand)(ETA)
    assert_near(result.value, value, rtol=1e-13)
    assert_near(result.grad, grad, rtol=1e-11)


def test_cold_runs_end_at_the_exact_minimum_and_warm_ones_cost_less():
    config = regularization.Config(**TINY, methods=("cg", "unrolled"))
    records = {(r["method"], r["start"]): r for r in regularization.run(config)}
    assert len(records) == regularization.size(config)
    for method in ("cg", "unrolled"):
        cold, warm = (records[method, start] for start in ("cold", "warm"))
        assert cold["off_exact"] < 1e-8
        assert cold["validation_loss"] < cold["loss_at_start"]
        assert warm["inner_gradients"] < 0.2 * cold["inner_gradients"]
    # The theorem at a warm point is nearly right; a short unroll is biased.
    assert records["cg", "warm"]["hypergradient_error"] < 0.02
    assert records["unrolled", "cold"]["hypergradient_error"] < 1e-4
    assert records["unrolled", "warm"]["hypergradient_error"] > 0.02
    (figure,) = regularization.figures(list(records.values())).values()
    assert len(figure.axes) == 2
    assert "validation loss" in regularization.headline(list(records.values()))
