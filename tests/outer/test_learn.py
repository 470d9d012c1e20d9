"""The outer loop meets the closed form, backs off, and says whether it converged."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metalr
from metalr.problems import least_squares, regression
from metalr.theory import Quadratic
from tests.helpers import assert_close

NEWTON = metalr.Newton()


def ill_conditioned(steps):
    """κ = 1000: the loss after 1000 steps still stands well above rounding."""
    values = jnp.geomspace(1e-3, 1.0, 6)
    X, t = regression.with_spectrum(jax.random.key(2), values, n=7, minimum=0.1)
    objective = metalr.Unrolled(
        least_squares(X, t), optax.sgd, jnp.zeros(6), steps=steps
    )
    return objective, Quadratic.from_regression(X, t)


@pytest.mark.parametrize("steps", [1, 2, 30, 1000])
def test_newton_meets_the_optimal_rate_from_any_stable_start(steps):
    objective, exact = ill_conditioned(steps)
    best = exact.optimal_rate(steps)
    edge = 2.0 / float(jnp.max(exact.eigenvalues))
    starts = jnp.array([1e-6, 1e-3, 0.5 * edge, float(best), edge * (1 - 1e-9)])
    learned = jax.vmap(
        lambda start: metalr.learn(
            objective, start, outer_optimizer=NEWTON, steps=100, log=True, rtol=1e-12
        )
    )(starts)
    assert np.all(learned.converged)
    assert_close(learned.hyper, jnp.full(5, best), rtol=1e-6)


@pytest.mark.parametrize(
    ("optimizer", "engine", "log"),
    [
        (optax.sgd(0.3), metalr.Reverse(), False),
        (optax.adam(0.1), metalr.Forward(), True),
        (optax.lbfgs(), metalr.Reverse(), True),
        (metalr.Newton(first_step=0.1), metalr.Forward(), False),
    ],
    ids=["sgd", "adam", "lbfgs", "newton"],
)
def test_any_outer_optimizer_and_engine_reach_the_optimum(optimizer, engine, log):
    objective, exact = ill_conditioned(3)
    learned = metalr.learn(
        objective,
        0.3,
        outer_optimizer=optimizer,
        steps=1000,
        engine=engine,
        log=log,
        rtol=1e-7,
    )
    assert learned.converged
    assert_close(learned.hyper, exact.optimal_rate(3), rtol=1e-5)


def test_the_history_has_a_row_for_each_outer_step_and_nan_after_the_stop():
    objective, exact = ill_conditioned(4)
    learned = metalr.learn(
        objective, 0.01, outer_optimizer=NEWTON, steps=60, log=True, rtol=1e-10
    )
    history, made = learned.history, int(learned.steps)
    assert 0 < made < 60
    assert_close(history.hyper[0], jnp.array(0.01), rtol=1e-14)
    assert_close(history.hyper[made], learned.hyper, rtol=1e-14)
    assert_close(history.value[made], learned.value, rtol=1e-14)
    expected = jnp.abs(
        history.hyper[:made]
        * jax.vmap(lambda e: exact.slope(e, 4))(history.hyper[:made])
    )
    assert_close(history.grad_norm[:made], expected, rtol=1e-8, atol=1e-12)
    for rows in history:
        assert rows.shape == (61,)
        assert np.all(np.isnan(rows[made + 1 :]))
        assert np.all(np.isfinite(rows[: made + 1]))


@pytest.mark.parametrize("optimizer", [optax.sgd(1e3), metalr.Newton(first_step=1e4)])
def test_a_diverged_inner_run_makes_the_loop_back_off(optimizer):
    objective, _ = ill_conditioned(200)
    learned = metalr.learn(objective, 0.5, outer_optimizer=optimizer, steps=40)
    made = int(learned.steps)
    for rows in learned.history:
        assert np.all(np.isfinite(rows[: made + 1]))
    assert np.any(np.diff(learned.history.hyper[: made + 1]) == 0.0)  # backed off
    assert learned.hyper != 0.5  # and went on


def test_a_start_that_has_diverged_is_returned_as_it_is():
    objective, _ = ill_conditioned(200)
    learned = metalr.learn(objective, 1e6, outer_optimizer=optax.sgd(0.1), steps=5)
    assert learned.hyper == 1e6
    assert not learned.converged
    assert learned.steps == 0


def test_a_pytree_is_learned_with_the_logarithm_of_some_leaves():
    X, t = regression.with_spectrum(
        jax.random.key(2), [0.1, 0.5, 1.0], n=4, minimum=0.1
    )
    make = lambda h: optax.sgd(h["rate"], h["momentum"])
    objective = metalr.Unrolled(least_squares(X, t), make, jnp.zeros(3), steps=5)
    learned = metalr.learn(
        objective,
        {"rate": 0.1, "momentum": 0.0},
        outer_optimizer=optax.lbfgs(),
        steps=100,
        log={"rate": True, "momentum": False},
        rtol=1e-6,
    )
    assert learned.converged
    grad = jax.grad(objective)(learned.hyper)
    assert optax.tree.norm(grad) < 1e-4 * objective({"rate": 0.1, "momentum": 0.0})


def test_it_runs_under_jit():
    objective, exact = ill_conditioned(3)

    @jax.jit
    def run(start):
        return metalr.learn(
            objective, start, outer_optimizer=NEWTON, steps=50, log=True
        ).hyper

    assert_close(run(jnp.array(0.1)), exact.optimal_rate(3), rtol=1e-6)


def test_float32_converges_to_its_resolution():
    X, t = regression.with_spectrum(jax.random.key(2), [0.1, 0.4, 1.0], n=4)
    X, t = X.astype(jnp.float32), t.astype(jnp.float32)
    start = jnp.zeros(3, jnp.float32)
    objective = metalr.Unrolled(least_squares(X, t), optax.sgd, start, steps=5)
    learned = metalr.learn(
        objective, jnp.float32(0.01), outer_optimizer=NEWTON, steps=100, log=True
    )
    best = Quadratic.from_regression(X, t).optimal_rate(5)
    assert learned.hyper.dtype == jnp.float32
    assert learned.converged
    assert_close(learned.hyper, best, rtol=1e-4)


def bad_calls():
    objective, _ = ill_conditioned(2)
    learn = lambda hyper, **k: metalr.learn(
        objective, hyper, **{"outer_optimizer": NEWTON, "steps": 3, **k}
    )
    return {
        "must be positive": lambda: learn(-0.1, log=True),
        "steps = -1": lambda: learn(0.1, steps=-1),
        "rtol = -1": lambda: learn(0.1, rtol=-1.0),
        "Newton learns one scalar": lambda: learn({"a": 0.1, "b": 0.2}),
        "not a prefix": lambda: learn(0.1, log={"rate": True}),
        "first_step": lambda: metalr.Newton(first_step=0.0),
        "does not depend on hyper": lambda: metalr.learn(
            lambda h: jnp.array(1.0), 0.1, outer_optimizer=NEWTON, steps=2
        ),
    }


@pytest.mark.parametrize("message", bad_calls())
def test_bad_input_is_a_value_error_that_says_what_to_do(message):
    with pytest.raises(ValueError, match=message):
        bad_calls()[message]()
