"""Learned schedules: the recipe against plain optax, and the rows of the experiment."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metalr
from experiments import learned_schedule as experiment
from experiments._command.config import ConfigError, validate
from experiments._learned_schedule import by_hand, recipe
from experiments._learned_schedule.held_against import (
    Case,
    gradient_norm,
    of_steps,
    tuned,
)
from tests.helpers import assert_close

SIZES = recipe.Sizes(steps=12, batch=8, hidden=6, checkpoints=4)
Z = {"log_rate": jnp.array([-2.0, -2.5, -4.0]), "logit_momentum": jnp.array([2.0] * 3)}


def config(**options):
    base = {"steps": 12, "batch": 8, "hidden": 6, "data": {"samples": 60}, "tests": 2}
    small = {"outer_steps": 2, "tasks": 2, "knots": 3, "checkpoints": 4}
    chosen = {"experiment": "learned_schedule", **base, **small, **options}
    return validate(experiment.Config, chosen)


@pytest.fixture
def problem():
    return experiment.arrays(config(dtype="float64"))[0]


def plain_optax(problem, start, noise, hyper, *, batch):
    """The recipe with SGD as one scan over plain optax: no metalr."""
    keep, n = problem.keep, len(problem.labels)

    def loss(w, rows, key):
        mask = jax.random.bernoulli(key, keep, (batch, w["b"].size)) / keep
        hidden = jnp.tanh(problem.inputs[rows] @ w["W"] + w["b"]) * mask
        return cross_entropy(hidden @ w["V"] + w["c"], problem.labels[rows])

    def cross_entropy(scores, labels):
        picked = jnp.take_along_axis(jax.nn.log_softmax(scores), labels[:, None], 1)
        return -jnp.mean(picked)

    def step(carry, x):
        w, trace = carry
        index, rate, momentum = x
        drawn, dropped = jax.random.split(jax.random.fold_in(noise, index))
        rows = jax.random.randint(drawn, (batch,), 0, n)
        optimizer = optax.sgd(rate, momentum=momentum)
        updates, trace = optimizer.update(jax.grad(loss)(w, rows, dropped), trace)
        return (jax.tree.map(jnp.add, w, updates), trace), None

    trace = optax.sgd(0.1, momentum=0.9).init(start)
    xs = (jnp.arange(len(hyper["rate"])), hyper["rate"], hyper["momentum"])
    w = jax.lax.scan(step, (start, trace), xs)[0][0]
    hidden = jnp.tanh(problem.held_inputs @ w["W"] + w["b"])
    return cross_entropy(hidden @ w["V"] + w["c"], problem.held_labels)


def test_value_and_gradient_are_those_of_plain_optax(problem):
    key = jax.random.key(2)
    start, noise = jax.random.split(key)
    objective = recipe.unrolled(problem, "sgd", SIZES, key)
    rates = 0.1 + 0.01 * jnp.arange(12.0)
    hyper = {"rate": rates, "momentum": 1.0 - rates}
    first = recipe.init(start, problem, 6)
    hand = lambda hyper: plain_optax(problem, first, noise, hyper, batch=8)
    value, grad = jax.value_and_grad(hand)(hyper)
    found = metalr.hypergradient(objective, hyper)
    assert_close(found.value, value, rtol=1e-12)
    for name in ("rate", "momentum"):
        assert_close(found.grad[name], grad[name], rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("method", ["adam", "sgd"])
def test_an_outer_step_is_the_one_written_by_hand(problem, method):
    keys = jax.random.split(jax.random.key(3), 2)
    mean = recipe.objective(problem, method, SIZES, keys)
    found = metalr.hypergradient(mean, Z)
    value, grad = by_hand.hypergradient(problem, method, SIZES, keys, Z)
    assert_close(found.value, value, rtol=1e-12)
    for name in Z:
        assert_close(found.grad[name], grad[name], rtol=1e-8, atol=1e-12)
        assert np.all(np.abs(grad[name][:2]) > 1e-6)


def test_plain_optax_is_nan_through_adam_and_the_guard_is_not(problem):
    case = Case(problem, "adam", SIZES)
    hyper = of_steps(12, "constant", jnp.array(0.01), 0.9)
    norm = lambda guarded: gradient_norm(
        case, hyper, jax.random.key(1), guarded=guarded
    )
    assert np.isnan(norm(False))
    assert np.isfinite(norm(True))


def test_knots_are_joined_by_straight_lines():
    z = {"log_rate": jnp.log(jnp.array([1e-2, 1.0])), "logit_momentum": jnp.zeros(2)}
    found = recipe.schedule(jnp.array([0.0, 0.5, 1.0]), z)
    assert_close(found["rate"], jnp.array([0.01, 0.505, 1.0]), rtol=1e-12)
    assert_close(found["momentum"], jnp.full(3, 0.5), rtol=1e-12)


def test_learning_starts_at_the_schedule_that_was_tuned():
    rate, momentum, done = jnp.array(0.03), jnp.array(0.8), jnp.linspace(0.0, 1.0, 12)
    for shape in ("constant", "cosine"):
        z = experiment.knots(config(knots=12), shape, rate, momentum)
        found = recipe.schedule(done, z)
        assert_close(found["momentum"], jnp.full(12, 0.8), rtol=1e-12)
        end = 0.5 * (1 + jnp.cos(jnp.pi * done)) if shape == "cosine" else 1.0
        assert_close(found["rate"], 0.03 * end * jnp.ones(12), rtol=1e-12, atol=3.1e-5)
    decay = jax.vmap(optax.cosine_decay_schedule(0.03, 12))(jnp.arange(12))
    cosine = of_steps(12, "cosine", rate, momentum)
    assert_close(cosine["rate"], decay, rtol=1e-12)


def test_the_best_of_the_grid_is_at_least_as_good_as_that_of_half_of_it(problem):
    case, keys = Case(problem, "sgd", SIZES), jax.random.split(jax.random.key(5), 2)
    best, half = tuned(case, "constant", 5 * 3 * 2, keys)
    rates = jnp.logspace(-2.0, 0.0, 5)
    assert np.any(np.isclose(best[0], rates))
    assert np.any(np.isclose(half[0], rates[::2]))
    mean = metalr.tasks.Mean.of(
        lambda key: recipe.unrolled(problem, "sgd", SIZES, key), keys
    )
    value = lambda point: mean(of_steps(12, "constant", *point))
    others = [value((rate, 0.9)) for rate in rates]
    assert value(best) <= min(others) + 1e-12
    assert value(best) <= value(half)


def test_the_noise_of_a_mean_is_that_of_its_runs(problem):
    case, keys = Case(problem, "sgd", SIZES), jax.random.split(jax.random.key(5), 3)
    found = experiment.signal(case, Z, keys, 4)
    one = lambda key: recipe.objective(problem, "sgd", SIZES, key[None])
    grads = [metalr.hypergradient(one(key), Z).grad["log_rate"] for key in keys]
    assert_close(found["log_rate"], np.linalg.norm(np.mean(grads, 0)), rtol=1e-9)
    noise = np.linalg.norm(np.std(grads, axis=0)) / 2
    assert_close(found["log_rate_noise"], noise, rtol=1e-9)


def test_a_wrong_key_is_named():
    with pytest.raises(ConfigError, match="knot = 10: unknown key"):
        config(knot=10)


@pytest.mark.slow
def test_every_row_is_there():
    chosen = config(methods=["sgd"])
    records = list(experiment.run(chosen))
    assert len(records) == experiment.size(chosen) == 6
    *others, price = records
    schedules = [record for record in others if "schedule" in record]
    assert [row["start"] for row in others if "start" in row] == ["constant", "cosine"]
    for record in schedules:
        assert np.isfinite(record["validation_loss"])
        assert len(record["rates"]) == len(record["momenta"]) == 12
    assert price["value_difference"] < 1e-6
    assert price["gradient_difference"] < 1e-4  # float32
    assert "learned" in experiment.headline(records)
    assert set(experiment.figures(records)) == {"learned_schedule"}
