"""Means over tasks: those of the tasks one by one, on one device and on four."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType

import metalr
from metalr.problems import least_squares
from metalr.profiling import compiled
from metalr.tasks import Each, Mean, stack
from metalr.theory import Quadratic
from tests.helpers import (
    HEAVY_BALL as HYPER,
    assert_close,
    finite_difference,
    heavy_ball as optimizer,
    heavy_ball_task as problem,
    regression,
)

ENGINES = [
    metalr.Reverse(),
    metalr.Forward(),
    metalr.Reverse(checkpoints=2),
    metalr.Truncated(last=2),
    metalr.Reversible(min_momentum=0.45),
]


def pooled(spectra):
    """The mean of quadratics: all their eigenvalues, p divided by their number."""
    eigenvalues = jnp.concatenate([q.eigenvalues for q in spectra])
    weights = jnp.concatenate([q.weights for q in spectra]) / len(spectra)
    order = jnp.argsort(eigenvalues)
    minimum = sum(float(q.minimum) for q in spectra) / len(spectra)
    return Quadratic(
        eigenvalues=eigenvalues[order], weights=weights[order], minimum=minimum
    )


@pytest.fixture(scope="module")
def tasks():
    return [problem(seed) for seed in range(3)]


def test_the_mean_and_its_derivatives_are_those_of_the_tasks_one_by_one(tasks):
    mean = Mean(stack(tasks))
    assert mean.count == 3
    alone = [task(HYPER) for task in tasks]
    assert_close(mean.values(HYPER), jnp.stack(alone), rtol=1e-13)
    assert_close(mean(HYPER), jnp.mean(jnp.stack(alone)), rtol=1e-13)
    slopes = [jax.grad(task)(HYPER) for task in tasks]
    average = jax.tree.map(lambda *x: sum(x) / 3, *slopes)
    assert_close(jax.grad(mean)(HYPER), average, rtol=1e-12)
    assert_close(jax.grad(mean)(HYPER), finite_difference(mean, HYPER), rtol=1e-7)


@pytest.mark.parametrize("engine", ENGINES, ids=str)
def test_every_engine_averages_over_tasks(tasks, engine):
    found = metalr.hypergradient(Mean(stack(tasks)), HYPER, Each(engine))
    alone = [metalr.hypergradient(task, HYPER, engine) for task in tasks]
    assert_close(found.values, jnp.stack([a.value for a in alone]), rtol=1e-12)
    for name in HYPER:
        each = jnp.stack([a.grad[name] for a in alone])
        assert_close(found.grads[name], each, rtol=1e-11)
        assert_close(found.grad[name], jnp.mean(each), rtol=1e-11)


def alone_with_own_noise(tasks, engine):
    """What every task gets by itself, with its number folded into the key."""
    return [
        metalr.hypergradient(
            task,
            HYPER,
            dataclasses.replace(engine, key=jax.random.fold_in(engine.key, i)),
        )
        for i, task in enumerate(tasks)
    ]


@pytest.mark.parametrize(
    "engine",
    [metalr.EvolutionStrategies(0.01, 4, 0), metalr.PersistentES(0.01, 4, 2, 0)],
    ids=["EvolutionStrategies", "PersistentES"],
)
def test_every_task_has_noise_of_its_own_and_passes_on_its_error(tasks, engine):
    found = metalr.hypergradient(Mean(tasks), HYPER, Each(engine))
    alone = alone_with_own_noise(tasks, engine)
    for name in HYPER:
        each = jnp.stack([a.grad[name] for a in alone])
        errors = jnp.stack([a.standard_error[name] for a in alone])
        assert_close(found.grads[name], each, rtol=1e-9)
        assert_close(found.standard_error[name], errors, rtol=1e-8)
        assert_close(found.grad[name], jnp.mean(each), rtol=1e-9)
    assert_close(found.smoothed, jnp.stack([a.smoothed for a in alone]), rtol=1e-12)


def test_noise_over_equal_tasks_averages_out():
    # F12: the deviation over 64 tasks is that of 64 draws, within four of its errors.
    loss = lambda p, h, b: 0.5 * p**2
    task = metalr.Unrolled(loss, optax.sgd, 1.0, steps=4)
    mean = Mean(jax.tree.map(lambda x: jnp.stack([x] * 64), task))
    found = metalr.hypergradient(mean, 0.3, Each(metalr.PersistentES(0.05, 1, 1, 0)))
    draws = metalr.hypergradient(task, 0.3, metalr.PersistentES(0.05, 4096, 1, 7))
    deviation = draws.standard_error * 4096**0.5
    assert 0.5 < found.grads.std() / deviation < 1.5


def test_measurements_of_the_engine_are_passed_on():
    def outer(params, hyper):
        return jnp.sum(params**2)

    def ridge(target):
        loss = jax.tree_util.Partial(ridge_loss, jnp.asarray(target))
        return metalr.Unrolled(
            loss, lambda h: optax.sgd(0.2), jnp.zeros(2), steps=9, outer_loss=outer
        )

    objectives = [ridge([1.0, 2.0]), ridge([3.0, -1.0])]
    outers = dataclasses.replace(objectives[1], outer_loss=objectives[0].outer_loss)
    objectives[1] = dataclasses.replace(outers, optimizer=objectives[0].optimizer)
    found = metalr.hypergradient(Mean(objectives), 0.5, Each(metalr.Implicit()))
    alone = [metalr.hypergradient(o, 0.5, metalr.Implicit()) for o in objectives]
    expected = jnp.stack([a.stationarity for a in alone])
    assert_close(found.stationarity, expected, rtol=1e-10)
    assert found.linear_residual.shape == (2,)
    with pytest.raises(AttributeError):
        _ = found.standard_error


def ridge_loss(target, params, hyper, batch):
    return jnp.sum((params - target) ** 2) + hyper * jnp.sum(params**2)


def make_task(key):
    """A task of a key: its targets are its own, inputs and start are everyone's."""
    t = jax.random.normal(key, (4,))
    return metalr.Unrolled(least_squares(INPUTS, t), optimizer, START, steps=5)


INPUTS, START = regression(4, 3)[0], jnp.zeros(3)


def test_tasks_made_of_keys_are_the_tasks_made_one_by_one():
    keys = jax.random.split(jax.random.key(0), 5)
    mean = Mean.of(make_task, keys)
    alone = jnp.stack([make_task(key)(HYPER) for key in keys])
    assert mean.count == 5
    assert_close(mean.values(HYPER), alone, rtol=1e-12)
    assert_close(mean.task(3)(HYPER), alone[3], rtol=1e-12)
    inside = jax.jit(lambda keys: Mean.of(make_task, keys)(HYPER))(keys)
    assert_close(inside, jnp.mean(alone), rtol=1e-12)
    weights = jnp.array([1.0, 2.0, 0.0, 4.0, 1.0])
    weighted = Mean.of(make_task, keys, weights=weights)
    assert_close(weighted(HYPER), weights @ alone / 8.0, rtol=1e-12)


def test_arrays_that_all_tasks_share_are_kept_once(tasks):
    keys = jax.random.split(jax.random.key(0), 5)
    mean = Mean.of(make_task, keys)
    assert any(leaf is INPUTS for leaf in jax.tree.leaves(mean))
    assert any(leaf is START for leaf in jax.tree.leaves(mean))
    sizes = sorted(leaf.size for leaf in jax.tree.leaves(mean))
    assert sizes == [3, 12, 5 * 4]
    # The start of these is equal in value alone: it was made anew for each.
    assert Mean(tasks).objective.params.shape == (3,)
    assert_close(Mean(tasks)(HYPER), Mean(stack(tasks))(HYPER), rtol=1e-13)
    # And the compiled program holds no copies: 8 bytes for each of those numbers.
    given = compiled(lambda mean: mean(HYPER), mean).argument_bytes
    assert given == 8 * sum(sizes)


def test_rollouts_are_tasks_too():
    def step(state, hyper, x):
        return state - hyper["rate"] * state**3, state

    def end(state, hyper):
        return jnp.sum(state**2) * hyper["momentum"]

    def make(start):
        return metalr.Rollout(step, start * jnp.ones(2), steps=4, value=end)

    starts = jnp.array([0.5, 1.0, 1.5])
    mean = Mean.of(make, starts)
    for same in (mean, Mean([make(start) for start in starts])):
        alone = jnp.stack([make(start)(HYPER) for start in starts])
        assert_close(same.values(HYPER), alone, rtol=1e-13)
        found = metalr.hypergradient(same, HYPER, Each(metalr.Mixed()))
        assert_close(found.grad, jax.grad(mean)(HYPER), rtol=1e-12)


def test_learning_sees_fresh_tasks_in_every_outer_step():
    # The mean of ‖w − t‖² after one step from 0 is (1 − 2η)² E‖t‖²: least at η = ½,
    # whatever the tasks are; their values differ from step to step.
    loss = lambda w, h, target: jnp.sum((w - target) ** 2)

    def make(key):
        target = jax.random.normal(key, (1, 3))
        return metalr.Unrolled(loss, optax.sgd, jnp.zeros(3), steps=1, batches=target)

    learned = metalr.learn(
        lambda key: Mean.of(make, jax.random.split(key, 8)),
        0.1,
        key=jax.random.key(3),
        outer_optimizer=optax.sgd(0.02),
        steps=60,
        engine=Each(metalr.Reverse(checkpoints=1)),
    )
    assert_close(learned.hyper, 0.5, rtol=1e-3)


def test_weights_are_of_the_mean_and_of_its_hypergradient(tasks):
    weights = [1, 0, 3]
    mean = Mean(tasks, weights=weights)
    first, _, last = [jax.grad(task)(HYPER) for task in tasks]
    expected = jax.tree.map(lambda a, b: (a + 3 * b) / 4, first, last)
    assert_close(jax.grad(mean)(HYPER), expected, rtol=1e-12)
    found = metalr.hypergradient(mean, HYPER, Each(metalr.Forward()))
    assert_close(found.grad, expected, rtol=1e-12)
    assert found.grads["rate"].shape == (3,)
    for wrong in ([1.0, 2.0], [1.0, -1.0, 1.0], [0.0, 0.0, 0.0], [1.0, jnp.nan, 1.0]):
        with pytest.raises(ValueError, match="weights"):
            Mean(tasks, weights=wrong)


def test_a_task_of_weight_0_is_left_out_even_if_it_diverged(tasks):
    far = dataclasses.replace(tasks[1], params=jnp.full(3, jnp.inf))
    found = metalr.hypergradient(
        Mean([tasks[0], far], weights=[1.0, 0.0]), HYPER, Each(metalr.Forward())
    )
    assert_close(found.grad, jax.grad(tasks[0])(HYPER), rtol=1e-12)


def test_what_a_closure_captured_of_its_key_is_refused():
    def make(key):
        t = jax.random.normal(key, (3,))
        loss = lambda w, h, b: jnp.sum((w - t) ** 2)
        return metalr.Unrolled(loss, optimizer, START, steps=2)

    with pytest.raises(ValueError, match=r"captured an array.*Partial"):
        Mean.of(make, jax.random.split(jax.random.key(0), 2))(HYPER)
    with pytest.raises(ValueError, match="keys must lead"):
        Mean.of(make_task, jax.random.key(0))


def test_a_mean_is_checked_like_any_objective(tasks):
    check = metalr.check_hypergrad(Mean(tasks), HYPER)
    assert check.verdict == "agrees"
    engines = [metalr.Reverse(), Each(metalr.Mixed())]
    check = metalr.check_hypergrad(Mean(tasks), HYPER, engines=engines)
    assert check.verdict == "agrees"


def test_the_rate_learned_for_a_distribution_is_the_optimum_of_the_pooled_spectrum():
    # A mean of quadratics is again Σ p(1 − ηλ)^{2T}: the spectra pooled, p over N.
    tasks = [problem(seed, optax.sgd, steps=4) for seed in range(3)]
    spectra = [Quadratic.from_regression(*regression(4, 3, seed=s)) for s in range(3)]
    exact = pooled(spectra)
    mean = Mean(stack(tasks))
    assert_close(mean(0.3), exact.loss(0.3, 4), rtol=1e-12)
    learned = metalr.learn(
        mean,
        0.01,
        outer_optimizer=metalr.Newton(),
        steps=60,
        log=True,
        rtol=1e-12,
        engine=Each(metalr.Forward()),
    )
    assert bool(learned.converged)
    assert_close(learned.hyper, exact.optimal_rate(4), rtol=1e-6)


def test_a_single_precision_task_stays_so():
    X, t = (jnp.asarray(a, jnp.float32) for a in regression(4, 3))
    task = metalr.Unrolled(
        least_squares(X, t), optax.sgd, jnp.zeros(3, jnp.float32), steps=3
    )
    found = metalr.hypergradient(
        Mean(stack([task, task])), jnp.float32(0.3), Each(metalr.Reverse())
    )
    assert found.grad.dtype == jnp.float32
    assert_close(found.grad, jax.grad(task)(jnp.float32(0.3)), rtol=1e-5)


def test_tasks_that_differ_in_more_than_arrays_are_refused_by_field(tasks):
    with pytest.raises(ValueError, match=r"objectives\[1\].steps.*per_step"):
        stack([tasks[0], problem(0, steps=6)])
    with pytest.raises(ValueError, match=r"objectives\[1\].optimizer"):
        stack([tasks[0], problem(0, optax.sgd)])
    X, t = regression(4, 3)
    closure = [
        metalr.Unrolled(
            lambda w, h, b, t=t: jnp.mean((X @ w - t) ** 2),
            optimizer,
            jnp.zeros(3),
            steps=5,
        )
        for _ in range(2)
    ]
    with pytest.raises(ValueError, match=r"objectives\[1\].loss.*closure"):
        stack(closure)
    with pytest.raises(ValueError, match="empty"):
        stack([])
    with pytest.raises(ValueError, match="one common axis"):
        Mean(tasks[0])
    with pytest.raises(ValueError, match=r"needs a metalr\.tasks\.Mean"):
        metalr.hypergradient(tasks[0], HYPER, Each(metalr.Forward()))
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    with pytest.raises(ValueError, match="'data'"):
        Mean(stack(tasks), mesh)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_one_device_with_a_mesh_is_one_device_without(tasks, kind):
    mesh = jax.make_mesh((1,), ("tasks",), axis_types=(kind,))
    spread, mean = Mean(tasks, mesh), Mean(tasks)
    np.testing.assert_array_equal(spread.values(HYPER), mean.values(HYPER))
    engine = Each(metalr.Reverse(checkpoints=2))
    found = metalr.hypergradient(spread, HYPER, engine)
    assert_close(found.grad, metalr.hypergradient(mean, HYPER, engine).grad, rtol=1e-12)


@pytest.mark.slow
def test_four_devices_give_the_results_of_one():
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.several_devices"],
        env=os.environ | flags,
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "the same results" in done.stdout
