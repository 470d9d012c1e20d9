"""Means over tasks: those of the tasks one by one, on one device and on four."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metalr
from experiments.meta_learning import pooled
from metalr.problems import least_squares
from metalr.tasks import Each, Mean, stack
from metalr.theory import Quadratic
from tests.helpers import assert_close, finite_difference, regression

HYPER = {"rate": 0.3, "momentum": 0.5}
ENGINES = [
    metalr.Reverse(),
    metalr.Forward(),
    metalr.Reverse(checkpoints=2),
    metalr.Truncated(last=2),
    metalr.Reversible(min_momentum=0.45),
]


def optimizer(hyper):
    return optax.sgd(hyper["rate"], hyper["momentum"])


def problem(seed, make=optimizer, steps=5):
    X, t = regression(4, 3, seed=seed)
    return metalr.Unrolled(least_squares(X, t), make, jnp.zeros(3), steps=steps)


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


def test_random_engines_pass_as_pytrees(tasks):
    engine = metalr.EvolutionStrategies(0.01, 4, 0)
    found = metalr.hypergradient(Mean(stack(tasks)), HYPER, Each(engine))
    alone = [metalr.hypergradient(task, HYPER, engine) for task in tasks]
    average = jax.tree.map(lambda *x: sum(x) / 3, *(a.grad for a in alone))
    assert_close(found.grad, average, rtol=1e-9)


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
    with pytest.raises(ValueError, match=r"objectives\[1\].steps"):
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


def test_one_device_with_a_mesh_is_one_device_without(tasks):
    mesh = jax.make_mesh((1,), ("tasks",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = Mean(stack(tasks), mesh)
    np.testing.assert_array_equal(
        spread.values(HYPER), Mean(stack(tasks)).values(HYPER)
    )


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
