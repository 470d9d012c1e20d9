"""The learned rule: the same written by hand, and what its experiment yields."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metalr
from experiments import learned_optimizer as experiment
from experiments._command.config import ConfigError, validate
from tests.helpers import assert_close


def config(**options):
    base = {"dimension": 3, "held_out": [5], "steps": 6, "windows": [2], "tasks": 2}
    small = {"rounds": 2, "hidden": 4, "pairs": 2, "adam_rates": 3, "tests": 2}
    chosen = {"experiment": "learned_optimizer", **base, **small, **options}
    return validate(experiment.Config, chosen)


def by_hand(theta, root, start, key, steps, noise):
    """The recipe in plain JAX: one scan, no metalr and no optax."""

    def step(state, index):
        w, averages, square = state
        drawn = noise * jax.random.normal(jax.random.fold_in(key, index), w.shape)
        g = root.T @ (root @ w + drawn)
        averages = [
            decay * a + (1 - decay) * g
            for decay, a in zip((0.5, 0.9, 0.99), averages, strict=True)
        ]
        square = 0.99 * square + 0.01 * g * g
        scaled = [x / jnp.sqrt(jnp.mean(x**2) + 1e-12) for x in (g, *averages)]
        time = jnp.tanh(index / jnp.array([3.0, 10.0, 30.0, 100.0]))
        features = [*scaled, averages[1] / jnp.sqrt(square + 1e-12)]
        features = jnp.stack([*features, *(jnp.full_like(w, t) for t in time)])
        hidden = jnp.maximum(theta["W"].T @ features + theta["b"][:, None], 0)
        direction, size = theta["V"].T @ hidden + theta["c"][:, None]
        w = w + 0.1 * direction * jnp.exp(size)
        return (w, averages, square), 0.5 * jnp.sum((root @ w) ** 2)

    zero = jnp.zeros_like(start)
    losses = jax.lax.scan(step, (start, [zero] * 3, zero), jnp.arange(steps))[1]
    return jnp.mean(losses)


def test_the_rule_and_its_gradient_are_those_written_by_hand():
    chosen = config(dtype="float64")
    key, theta_key, more = jax.random.split(jax.random.key(5), 3)
    theta = experiment.first_rule(theta_key, 4, jnp.float64)
    theta["V"] += 0.3 * jax.random.normal(more, theta["V"].shape)
    objective = experiment.problems(chosen, 3, experiment.update_rule)(key)
    axes, _, noise = jax.random.split(key, 3)
    Q = jnp.linalg.qr(jax.random.normal(axes, (3, 3)))[0]
    root = jnp.sqrt(jnp.array([1.0, 0.1, 0.01]))[:, None] * Q
    hand = lambda theta: by_hand(theta, root, objective.params, noise, 6, chosen.noise)
    value, grad = jax.value_and_grad(hand)(theta)
    found = metalr.hypergradient(objective, theta)
    assert_close(found.value, value, rtol=1e-12)
    jax.tree.map(
        lambda a, b: assert_close(a, b, rtol=1e-9, atol=1e-12), found.grad, grad
    )


def test_a_new_rule_does_not_move_and_adam_stands_in_its_place():
    chosen = config(dtype="float64")
    theta = experiment.first_rule(jax.random.key(0), 4, jnp.float64)
    for optimizer, hyper in ((experiment.update_rule, theta), (optax.adam, 0.0)):
        objective = experiment.problems(chosen, 3, optimizer)(jax.random.key(1))
        start = objective.outer_loss(objective.params, hyper)
        assert_close(objective(hyper), start, rtol=1e-14)


@pytest.mark.slow
def test_every_row_is_there_and_training_helps():
    chosen = config(rounds=30)
    records = list(experiment.run(chosen))
    assert len(records) == experiment.size(chosen) == 5
    assert {record["held_out"] for record in records} == {"another size"}
    for record in records:
        assert np.isfinite(record["mean_loss"])
        assert len(record["curve"]) == 6
    full = next(record for record in records if record["way"] == "full")
    assert full["meta_training"][-1] < full["meta_training"][0]
    assert "full" in experiment.headline(records)
    assert set(experiment.figures(records)) == {"learned_optimizer"}


def test_windows_that_do_not_divide_the_steps_are_refused():
    with pytest.raises(ConfigError, match="windows: 4 must divide steps = 6"):
        config(windows=[4])
