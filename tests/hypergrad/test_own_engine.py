"""An engine of one's own: four lines that work wherever an engine does."""

import jax
import jax.numpy as jnp
import optax
import pytest

import metalr
from metalr import profiling
from metalr.tasks import Each, Mean
from tests.helpers import assert_close


def reptile(objective, hyper):
    """The field of Nichol et al. (2018): the way that the run goes, backwards."""
    run = objective.run(hyper)
    way = jax.tree.map(lambda h, w: h - w, hyper, run.state.params)
    return metalr.HyperGradient(run.value, way)


def task(target):
    loss = jax.tree_util.Partial(lambda t, p, h, b: 0.5 * (p - t) ** 2, target)
    return metalr.Unrolled(loss, rate, identity, steps=2)


def rate(hyper):
    return optax.sgd(0.25)


def identity(hyper):
    return hyper


def test_it_works_in_hypergradient_each_learn_and_plan():
    # w_2 − c = (3/4)² (θ − c), so that the way is (1 − 9/16)(θ − c).
    found = metalr.hypergradient(task(jnp.array(3.0)), 1.0, reptile)
    assert_close(found.grad, jnp.array((1 - 0.75**2) * (1.0 - 3.0)), rtol=1e-14)

    targets = jnp.array([1.0, 2.0, 6.0])
    mean = Mean.of(task, targets)
    each = metalr.hypergradient(mean, 1.0, Each(reptile))
    assert_close(each.grads, (1 - 0.75**2) * (1.0 - targets), rtol=1e-14)

    learned = metalr.learn(
        mean, 0.0, outer_optimizer=optax.sgd(1.0), steps=100, engine=Each(reptile)
    )
    assert_close(learned.hyper, jnp.mean(targets), rtol=1e-5)  # stops at rtol 1e-6

    plan = profiling.plan(
        task(jnp.array(3.0)), 1.0, memory_limit="1MiB", engines=[reptile]
    )
    assert plan.engine is reptile


def test_its_run_comes_with_it():
    result, run = metalr.hypergradient_and_run(task(jnp.array(3.0)), 1.0, reptile)
    assert_close(1.0 - run.state.params, result.grad, rtol=1e-14)
    with pytest.raises(ValueError, match=r"or metalr\.Rollout, not"):
        metalr.hypergradient_and_run(lambda h: h**2, 1.0, reptile)
