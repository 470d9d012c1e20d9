"""One set of hyperparameters for each step."""

import jax
import jax.numpy as jnp
import optax
import pytest

import metalr
from metalr.problems import least_squares
from tests.helpers import assert_close, regression

X, T = regression()


def test_constant_rates_are_the_constant_optimizer():
    rates = {"learning_rate": jnp.full(5, 0.1), "momentum": jnp.full(5, 0.8)}
    make = lambda h: optax.sgd(h["learning_rate"], h["momentum"])
    start = jnp.zeros(8)
    varied = metalr.Unrolled(least_squares(X, T), metalr.per_step(make), start, steps=5)
    constant = metalr.Unrolled(least_squares(X, T), make, start, steps=5)
    hyper = {"learning_rate": 0.1, "momentum": 0.8}
    assert_close(varied(rates), constant(hyper), rtol=1e-14)
    summed = jax.tree.map(jnp.sum, jax.grad(varied)(rates))
    floats = jax.tree.map(jnp.asarray, hyper)
    assert_close(summed, jax.grad(constant)(floats), rtol=1e-11)


def mixed(over, steps=5):
    make = lambda h: optax.sgd(h["learning_rate"], h["momentum"])
    return metalr.Unrolled(
        least_squares(X, T),
        metalr.per_step(make, over=over),
        jnp.zeros(8),
        steps=steps,
    )


RATES_ALONE = {"learning_rate": True, "momentum": False}


@pytest.mark.parametrize("engine", [metalr.Reverse(), metalr.Reverse(checkpoints=2)])
def test_per_step_rates_beside_a_shared_momentum(engine):
    """The shared leaf's derivative is the sum of those of its copies."""
    rates = jnp.linspace(0.05, 0.15, 5)
    shared = {"learning_rate": rates, "momentum": jnp.array(0.8)}
    copied = {"learning_rate": rates, "momentum": jnp.full(5, 0.8)}
    value, grad, *_ = metalr.hypergradient(mixed(RATES_ALONE), shared, engine)
    expected = metalr.hypergradient(mixed(True), copied)
    assert_close(value, expected.value, rtol=1e-14)
    summed = {**expected.grad, "momentum": jnp.sum(expected.grad["momentum"])}
    assert_close(grad, summed, rtol=1e-11)


def test_over_is_a_prefix_of_bools_and_only_marked_leaves_need_the_length():
    short = {"learning_rate": jnp.full(4, 0.1), "momentum": jnp.array(0.8)}
    with pytest.raises(ValueError, match=r"'learning_rate'\] has shape \(4,\)"):
        mixed(RATES_ALONE)(short)
    with pytest.raises(ValueError, match=r"over = .* is not a prefix of hyper"):
        mixed({"rate": True})(short)
    with pytest.raises(ValueError, match="over has the entry 1"):
        mixed({"learning_rate": 1, "momentum": False})


def test_the_last_rate_moves_only_the_last_step():
    objective = metalr.Unrolled(
        least_squares(X, T), metalr.per_step(optax.sgd), jnp.zeros(8), steps=4
    )
    rates = jnp.array([0.1, 0.2, 0.3, 0.4])
    other = rates.at[3].set(0.0)
    before, after = objective.trajectory(rates), objective.trajectory(other)
    assert_close(before[:-1], after[:-1], rtol=0)
    assert before[-1] != after[-1]


def test_partial_derivatives_on_a_constant_schedule_are_equal():
    # The residual is multiplied by (I − ηK) in every step, in any order.
    objective = metalr.Unrolled(
        least_squares(X, T), metalr.per_step(optax.sgd), jnp.zeros(8), steps=6
    )
    grad = jax.grad(objective)(jnp.full(6, 0.2))
    assert_close(grad, jnp.full(6, grad[0]), rtol=1e-12)


def test_an_update_past_the_end_is_nan_where_the_length_cannot_be_checked():
    wrapped = lambda h: metalr.per_step(optax.sgd)(h["rates"])
    objective = metalr.Unrolled(least_squares(X, T), wrapped, jnp.zeros(8), steps=4)
    assert jnp.isfinite(objective({"rates": jnp.full(4, 0.1)}))
    assert jnp.isnan(objective({"rates": jnp.full(3, 0.1)}))


def test_a_scalar_where_one_entry_a_step_is_needed_is_refused():
    objective = metalr.Unrolled(
        least_squares(X, T), metalr.per_step(optax.sgd), jnp.zeros(8), steps=4
    )
    with pytest.raises(ValueError, match=r"hyper has shape \(\)"):
        objective(0.1)
