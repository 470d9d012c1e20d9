"""The learned rule: the same written by hand, and what its experiment yields."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metalr
from experiments import learned_optimizer as experiment
from experiments._command.config import ConfigError, validate
from experiments._command.experiment import kept_in
from experiments._learned_optimizer import by_hand, by_windows
from experiments._learned_optimizer.problems import Family, draw, problems
from experiments._learned_optimizer.rule import first_rule, update_rule
from tests.helpers import assert_close

FAMILY = Family(condition=100.0, noise=2.0, start=3.0, steps=6, dtype="float64")


def config(**options):
    base = {"dimension": 3, "held_out": [5], "steps": 6, "windows": [2], "tasks": 2}
    small = {"rounds": 2, "hidden": 4, "pairs": 2, "adam_rates": 3, "tests": 2}
    chosen = {"experiment": "learned_optimizer", **base, **small, **options}
    return validate(experiment.Config, chosen)


@pytest.fixture
def moving(key):
    """A rule that moves."""
    theta = first_rule(key, 4, jnp.float64)
    theta["V"] += 0.3 * jax.random.normal(jax.random.key(6), theta["V"].shape)
    return theta


def test_the_rule_and_its_gradient_are_those_written_by_hand(moving):
    keys = jax.random.split(jax.random.key(5), 2)
    mean = metalr.tasks.Mean.of(problems(FAMILY, 3, update_rule), keys)
    found = metalr.hypergradient(mean, moving)
    value, grad = by_hand.hypergradient(FAMILY, 3, keys, moving)
    assert_close(found.value, value, rtol=1e-12)
    jax.tree.map(
        lambda a, b: assert_close(a, b, rtol=1e-9, atol=1e-12), found.grad, grad
    )
    assert optax.tree.norm(grad) > 1e-2


def test_the_problems_have_the_spectrum_and_the_start_that_is_asked_for():
    root, start, _ = jax.vmap(lambda key: draw(FAMILY, 3, key))(
        jax.random.split(jax.random.key(0), 4000)
    )
    values = np.linalg.eigvalsh(root[0].T @ root[0])
    assert_close(values, np.array([0.01, 0.1, 1.0]), rtol=1e-12)
    losses = 0.5 * np.sum(np.einsum("kij,kj->ki", root, start) ** 2, axis=1)
    expected = 0.5 * 3 * 3.0**2  # of each axis: half the square of a deviation of 3
    assert abs(losses.mean() - expected) < 4 * losses.std() / 4000**0.5


def test_a_new_rule_does_not_move_and_adam_stands_in_its_place():
    theta = first_rule(jax.random.key(0), 4, jnp.float64)
    for optimizer, hyper in ((update_rule, theta), (optax.adam, 0.0)):
        objective = problems(FAMILY, 3, optimizer)(jax.random.key(1))
        outer: Any = objective.outer_loss
        start = outer(objective.params, hyper)
        assert_close(objective(hyper), start, rtol=1e-14)


@pytest.mark.parametrize("way", ["truncated", "pes"])
def test_a_loop_by_windows_is_the_same_in_two_parts(moving, way):
    plan = by_windows.Plan(way, window=2, tasks=2, sigma=0.1, pairs=2)
    make = problems(FAMILY, 3, update_rule)
    loop = by_windows.loop(make, plan, optax.adam(1e-2), jax.random.key(3))
    whole = loop(moving, steps=3)
    first = loop(moving, steps=1)
    rest = loop(first.hyper, steps=2, state=first.state)
    jax.tree.map(np.testing.assert_array_equal, rest.hyper, whole.hyper)
    assert np.isnan(whole.history.value[0])
    both = [*first.history.value[1:], *rest.history.value[1:]]
    np.testing.assert_array_equal(both, whole.history.value[1:])


def test_one_truncated_window_of_the_whole_run_is_a_step_of_the_full_unroll(moving):
    plan = by_windows.Plan("truncated", window=6, tasks=2, sigma=0.1, pairs=2)
    make, key = problems(FAMILY, 3, update_rule), jax.random.key(3)
    found = by_windows.loop(make, plan, optax.sgd(1e-2), key)(moving, steps=1)
    drawn = jax.random.split(jax.random.fold_in(key, 0))[0]
    value, grad = by_hand.hypergradient(FAMILY, 3, jax.random.split(drawn, 2), moving)
    assert_close(found.value, value, rtol=1e-12)
    stepped = jax.tree.map(lambda w, g: w - 1e-2 * g, moving, grad)
    assert_close(found.hyper, stepped, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_every_row_is_there_and_training_helps(tmp_path):
    chosen = config(rounds=30)
    with kept_in(tmp_path):
        records = list(experiment.run(chosen))
        again = list(experiment.run(chosen))  # from their checkpoints
    assert len(records) == experiment.size(chosen) == 6
    *rows, price = records
    assert again[:-1] == rows
    assert {row["held_out"] for row in rows} == {"another size"}
    for row in rows:
        assert np.isfinite(row["mean_loss"])
        assert len(row["curve"]) == 6
    full = next(row for row in rows if row["way"] == "full")
    assert full["meta_training"][-1] < full["meta_training"][0]
    assert price["value_difference"] < 1e-6
    assert price["gradient_difference"] < 1e-4  # float32
    assert "full" in experiment.headline(records)
    assert set(experiment.figures(records)) == {"learned_optimizer"}


def test_windows_that_do_not_divide_the_steps_are_refused():
    with pytest.raises(ConfigError, match="windows: 4 must divide steps = 6"):
        config(windows=[4])


def test_a_wrong_key_is_named():
    with pytest.raises(ConfigError, match="round = 10: unknown key"):
        config(round=10)
