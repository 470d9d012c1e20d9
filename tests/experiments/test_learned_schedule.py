"""Learned schedules: the recipe against plain optax, and the rows of the experiment."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metalr
from experiments import learned_schedule as experiment
from experiments._command.config import validate
from tests.helpers import assert_close


def config(**options):
    base = {"steps": 12, "batch": 8, "hidden": 6, "data": {"samples": 60}, "tests": 2}
    small = {"outer_steps": 2, "tasks": 2, "knots": 3, "checkpoints": 4}
    chosen = {"experiment": "learned_schedule", **base, **small, **options}
    return validate(experiment.Config, chosen)


def by_hand(problem, start, noise, hyper, *, batch):
    """The recipe as one scan over plain optax: no metalr."""
    keep, n = problem.keep, len(problem.labels)

    def loss(w, rows, key):
        mask = jax.random.bernoulli(key, keep, (batch, w["b"].size)) / keep
        hidden = jnp.maximum(problem.inputs[rows] @ w["W"] + w["b"], 0.0) * mask
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
    hidden = jnp.maximum(problem.held_inputs @ w["W"] + w["b"], 0.0)
    return cross_entropy(hidden @ w["V"] + w["c"], problem.held_labels)


def test_value_and_gradient_are_those_of_plain_optax():
    chosen = config(dtype="float64")
    problem = experiment._problem(chosen, chosen.images())
    key = jax.random.key(2)
    start, noise = jax.random.split(key)
    objective = experiment.unrolled(chosen, problem, "sgd", key)
    rates = 0.1 + 0.01 * jnp.arange(12.0)
    hyper = {"rate": rates, "momentum": 1.0 - rates}
    first = experiment.init(start, problem, 6)
    hand = lambda hyper: by_hand(problem, first, noise, hyper, batch=8)
    value, grad = jax.value_and_grad(hand)(hyper)
    found = metalr.hypergradient(objective, hyper)
    assert_close(found.value, value, rtol=1e-12)
    for name in ("rate", "momentum"):
        assert_close(found.grad[name], grad[name], rtol=1e-9, atol=1e-13)


def test_plain_optax_is_nan_through_adam_and_the_guard_is_not():
    chosen = config()
    problem = experiment._problem(chosen, chosen.images())
    hyper = experiment.shaped(chosen, "constant", 0.01, 0.9)
    norm = lambda guarded: experiment.hypergradient_norm(
        chosen, problem, "adam", hyper, guarded=guarded
    )
    assert np.isnan(norm(False))
    assert np.isfinite(norm(True))


def test_knots_are_joined_by_straight_lines():
    z = {"log_rate": jnp.log(jnp.array([1e-2, 1.0])), "logit_momentum": jnp.zeros(2)}
    found = experiment.schedule(z, steps=3)
    assert_close(found["rate"], jnp.array([0.01, 0.1, 1.0]), rtol=1e-12)
    assert_close(found["momentum"], jnp.full(3, 0.5), rtol=1e-12)
    chosen = config(dtype="float64")
    constant = experiment.shaped(chosen, "constant", 0.03, 0.8)
    again = experiment.schedule(experiment.knots(chosen, constant), steps=12)
    jax.tree.map(lambda a, b: assert_close(a, b, rtol=1e-12), again, constant)
    cosine = experiment.shaped(chosen, "cosine", 1.0, 0.8)["rate"]
    decay = jax.vmap(optax.cosine_decay_schedule(1.0, 12))(jnp.arange(12))
    assert_close(cosine, decay, rtol=1e-12)


@pytest.mark.slow
def test_every_row_is_there():
    chosen = config(methods=["sgd"])
    records = list(experiment.run(chosen))
    assert len(records) == experiment.size(chosen) == 3
    for record in records:
        assert np.isfinite(record["validation_loss"])
        assert len(record["rates"]) == len(record["momenta"]) == 12
    assert "learned" in experiment.headline(records)
    assert set(experiment.figures(records)) == {"learned_schedule"}
