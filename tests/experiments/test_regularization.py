"""Strengths of features: scikit-learn's minimum, by hand, and what warm starts do."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metalr
from experiments import regularization
from experiments._regularization.problem import exact_hypergradient, loss
from tests.helpers import assert_near

TINY = {"data": {"name": "breast_cancer", "samples": 120}, "outer_steps": 20}


@pytest.fixture(scope="module")
def problem():
    return regularization._problem(regularization.Config(**TINY))


ETA = jnp.linspace(-3.0, 0.5, 30)


def test_scikit_learns_minimum_is_stationary(problem: regularization.Problem):
    w = jnp.asarray(regularization.exact_minimum(problem, ETA))
    slope = jax.grad(loss, argnums=2)(*problem.train, w, ETA, None)
    assert float(jnp.linalg.norm(slope)) < 1e-9


def test_the_exact_hypergradient_is_the_difference_of_exact_losses(
    problem: regularization.Problem,
):
    def value(eta):
        w = regularization.exact_minimum(problem, eta)
        return float(regularization.logistic(*problem.validation, w, eta))

    way = jnp.cos(jnp.arange(30.0))
    ends = [value(ETA + sign * 1e-4 * way) for sign in (1.0, -1.0)]
    exact = exact_hypergradient(problem, ETA) @ np.asarray(way)
    np.testing.assert_allclose((ends[0] - ends[1]) / 2e-4, exact, rtol=1e-5)


def test_the_unrolled_hypergradient_is_the_hand_written_one(
    problem: regularization.Problem,
):
    def by_hand(eta):
        slope = jax.grad(lambda w: loss(*problem.train, w, eta, None))
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


@pytest.fixture(scope="module")
def records():
    config = regularization.Config(
        **TINY, methods=("cg", "unrolled"), iterations=(20, 200), timed_steps=2
    )
    rows = list(regularization.run(config))
    assert len(rows) == regularization.size(config)
    return rows


def test_cold_runs_end_at_the_exact_minimum_and_warm_ones_cost_less(records):
    by = {(r["method"], r["start"]): r for r in records if "strengths" in r}
    for method in ("cg", "unrolled"):
        cold, warm = (by[method, start] for start in ("cold", "warm"))
        assert cold["off_exact"] < 1e-8
        assert cold["validation_loss"] < cold["loss_at_start"]
        assert warm["inner_gradients"] < 0.2 * cold["inner_gradients"]
    # The theorem at a warm point is nearly right; a short unroll is biased.
    assert by["cg", "warm"]["hypergradient_error"] < 0.02
    assert by["unrolled", "cold"]["hypergradient_error"] < 1e-4
    assert by["unrolled", "warm"]["hypergradient_error"] > 0.02
    (figure,) = regularization.figures(records).values()
    assert len(figure.axes) == 3
    assert "validation loss" in regularization.headline(records)


def test_the_loops_written_by_hand_learn_the_same(records):
    rows = [r for r in records if "learned_difference" in r]
    assert len(rows) == 4
    assert all(r["learned_difference"] < 1e-9 for r in rows)


def test_neumann_by_hand_is_metalrs():
    config = regularization.Config(**TINY, timed_steps=2)
    problem = regularization._problem(config)
    row = regularization._beside(config, problem, "neumann", "warm")
    assert row["learned_difference"] < 1e-9


def test_conjugate_gradients_need_the_fewest_iterations(records):
    few, many = (r for r in records if "t" in r)
    for row in (few, many):
        assert row["cg"] <= row["neumann"]
        assert row["cg"] <= row["unrolled"]
    assert many["cg"] < few["cg"]
