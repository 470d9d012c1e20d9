"""What `Unrolled` computes, how it composes, what it refuses."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metalr
from metalr.problems import least_squares
from metalr.theory import Quadratic
from tests.helpers import (
    OPTIMIZERS,
    assert_close,
    finite_difference,
    network,
    network_loss,
    python_loop,
    regression,
)

RATE = {"rate": 0.05}


def quadratic(steps, dtype=jnp.float64):
    X, t = (array.astype(dtype) for array in regression())
    start = jnp.zeros(X.shape[1], dtype)
    return metalr.Unrolled(least_squares(X, t), optax.sgd, start, steps=steps), X, t


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_value_and_gradient_are_those_of_a_python_loop_on_minibatches(name):
    steps = 7
    params, batches = network(steps)
    optimizer = OPTIMIZERS[name]
    objective = metalr.Unrolled(
        network_loss, optimizer, params, steps=steps, batches=batches
    )

    def by_hand(hyper):
        final, _ = python_loop(network_loss, optimizer, params, hyper, steps, batches)
        return network_loss(final, hyper, jax.tree.map(lambda b: b[-1], batches))

    value, grad = jax.jit(jax.value_and_grad(by_hand))({"rate": jnp.array(0.05)})
    assert_close(objective(RATE), value, rtol=1e-12)
    assert_close(jax.grad(objective)({"rate": jnp.array(0.05)}), grad, rtol=1e-9)
    assert_close(
        jax.grad(objective)({"rate": jnp.array(0.05)}),
        finite_difference(objective, RATE),
        rtol=1e-6,
    )


@pytest.mark.parametrize("steps", [0, 1, 7, 13])
def test_loss_and_derivatives_are_the_closed_form_after_all_updates(steps):
    objective, X, t = quadratic(steps)
    exact = Quadratic.from_regression(X, t)
    eta = jnp.array(0.3)
    assert_close(objective(eta), exact.loss(eta, steps), rtol=1e-12)
    assert_close(jax.grad(objective)(eta), exact.slope(eta, steps), rtol=1e-11)
    assert_close(jax.hessian(objective)(eta), exact.curvature(eta, steps), rtol=1e-11)


def test_every_composition_of_derivatives_gives_the_same_curvature():
    objective, X, t = quadratic(5)
    expected = Quadratic.from_regression(X, t).curvature(0.3, 5)
    eta = jnp.array(0.3)
    for second in (
        jax.grad(jax.grad(objective)),
        jax.jacfwd(jax.jacfwd(objective)),
        jax.jacfwd(jax.jacrev(objective)),
        jax.jit(jax.jacrev(jax.jacfwd(objective))),
    ):
        assert_close(second(eta), expected, rtol=1e-11)


def test_the_trajectory_is_the_loss_at_every_step():
    objective, X, t = quadratic(6)
    exact = Quadratic.from_regression(X, t)
    expected = jnp.array([exact.loss(0.3, s) for s in range(7)])
    assert_close(objective.trajectory(0.3), expected, rtol=1e-12)
    assert_close(objective.trajectory(0.3)[-1], objective(0.3), rtol=0)


def test_the_trajectory_sees_each_batch_and_ends_on_the_last():
    params, batches = network(3)
    optimizer = OPTIMIZERS["momentum"]
    objective = metalr.Unrolled(
        network_loss, optimizer, params, steps=3, batches=batches
    )
    _, losses = python_loop(network_loss, optimizer, params, RATE, 3, batches)
    trajectory = objective.trajectory(RATE)
    assert_close(trajectory[:-1], jnp.array(losses), rtol=1e-12)
    assert_close(trajectory[-1], objective(RATE), rtol=1e-14)


def test_no_steps_is_the_loss_at_the_start():
    objective, _, t = quadratic(0)
    assert_close(objective(0.3), jnp.mean(t**2), rtol=1e-15)
    assert_close(objective.final_params(0.3), jnp.zeros(8), rtol=0)
    assert objective.trajectory(0.3).shape == (1,)


def test_one_step_on_1_1_with_target_3_reaches_the_minimum_norm_solution():
    loss = least_squares(jnp.array([[1.0, 1.0]]), jnp.array([3.0]))
    objective = metalr.Unrolled(loss, optax.sgd, jnp.zeros(2), steps=1)
    assert_close(objective.final_params(0.25), jnp.array([1.5, 1.5]), rtol=0)


def learned_hypers():
    X, t = regression()

    def ridge(params, hyper, batch):
        return jnp.mean((X @ params - t) ** 2) + hyper["l2"] * jnp.sum(params**2)

    plain = least_squares(X, t)
    zeros, three = jnp.zeros(8), jnp.array([0.1, 0.2, 0.3])
    momentum = lambda h: optax.sgd(h["rate"], h["momentum"])
    decay = lambda h: optax.chain(optax.add_decayed_weights(h["decay"]), optax.sgd(0.2))
    vector = lambda rates: optax.chain(optax.stateless(lambda g, _: -rates * g))
    return {
        "momentum": (plain, momentum, zeros, {"rate": 0.2, "momentum": 0.7}),
        "weight decay": (plain, decay, jnp.ones(8), {"decay": 0.1}),
        "per-step rates": (plain, metalr.per_step(optax.sgd), zeros, three),
        "per-parameter rates": (plain, vector, zeros, jnp.linspace(0.1, 0.3, 8)),
        "l2": (ridge, lambda h: optax.sgd(0.2), zeros, {"l2": 0.1}),
        "start": (
            plain,
            lambda h: optax.sgd(h["rate"]),
            lambda h: h["start"],
            {"rate": 0.2, "start": jnp.linspace(-1.0, 1.0, 8)},
        ),
    }


@pytest.mark.parametrize("name", learned_hypers())
def test_gradients_of_every_kind_of_hyperparameter_match_finite_differences(name):
    loss, optimizer, params, hyper = learned_hypers()[name]
    hyper = jax.tree.map(jnp.asarray, hyper)
    objective = metalr.Unrolled(loss, optimizer, params, steps=3)
    expected = finite_difference(objective, hyper)
    for engine in (metalr.Reverse(), metalr.Forward(), metalr.Forward(chunk=3)):
        grad = metalr.hypergradient(objective, hyper, engine).grad
        assert_close(grad, expected, rtol=1e-7, atol=1e-9)


def test_an_outer_loss_is_evaluated_instead_of_the_inner_one():
    X, t = regression()
    outer = lambda params, hyper: jnp.sum(params**2) + hyper
    objective = metalr.Unrolled(
        least_squares(X, t), optax.sgd, jnp.zeros(8), steps=4, outer_loss=outer
    )
    final = objective.final_params(0.3)
    assert_close(objective(0.3), jnp.sum(final**2) + 0.3, rtol=1e-14)
    slope = metalr.hypergradient(objective, 0.3).grad
    assert_close(slope, finite_difference(objective, 0.3), rtol=1e-8)


def test_it_is_traced_once_for_all_values_of_hyper():
    X, t = regression()

    traces = []

    def loss(params, hyper, batch):
        traces.append(None)
        return jnp.mean((X @ params - t) ** 2)

    objective = metalr.Unrolled(loss, optax.sgd, jnp.zeros(8), steps=3)
    before = objective(0.1)
    once = len(traces)
    assert objective(jnp.array(0.2)) != before
    assert objective(np.float64(0.3)) != before
    assert len(traces) == once

    @jax.jit
    @chex.assert_max_traces(n=1)
    def compiled(hyper):
        return jax.grad(objective)(hyper)

    assert compiled(jnp.array(0.1)) != compiled(jnp.array(0.2))


def test_vmap_over_rates_and_over_tasks_equals_a_python_loop():
    objective, *_ = quadratic(4)
    rates = jnp.array([0.1, 0.2, 0.3])
    singles = jnp.stack([objective(rate) for rate in rates])
    assert_close(jax.vmap(objective)(rates), singles, rtol=1e-13)

    tasks = []
    for seed in range(3):
        loss = least_squares(*regression(seed=seed))
        tasks.append(metalr.Unrolled(loss, optax.sgd, jnp.zeros(8), steps=4))
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *tasks)
    together = jax.vmap(lambda task: task(0.3))(stacked)
    assert_close(together, jnp.stack([task(0.3) for task in tasks]), rtol=1e-13)


def test_float32_stays_float32():
    objective, *_ = quadratic(5, jnp.float32)
    for hyper in (0.3, jnp.array(0.3, jnp.float32), jnp.array(0.3, jnp.float64)):
        assert objective(hyper).dtype == jnp.float32
        assert objective.trajectory(hyper).dtype == jnp.float32
    grad = metalr.hypergradient(objective, jnp.array(0.3, jnp.float32)).grad
    assert grad.dtype == jnp.float32


@pytest.mark.parametrize("engine", [metalr.Reverse(), metalr.Forward()], ids=str)
def test_engines_are_right_in_float32_to_its_rounding(engine):
    objective, X, t = quadratic(7, jnp.float32)
    exact = Quadratic.from_regression(X.astype(float), t.astype(float))
    value, grad = metalr.hypergradient(objective, jnp.array(0.3, jnp.float32), engine)
    assert_close(value.astype(float), exact.loss(0.3, 7), rtol=1e-5)
    assert_close(grad.astype(float), exact.slope(0.3, 7), rtol=1e-4)


def test_a_diverged_run_is_a_result():
    X, t = regression(20, 8)  # no exact solution: the loss cannot stay at 0
    objective = metalr.Unrolled(least_squares(X, t), optax.sgd, jnp.zeros(8), steps=400)
    assert not jnp.isfinite(objective(1e3))


def test_optimizers_that_need_the_loss_value_receive_it():
    X, t = regression()
    objective = metalr.Unrolled(
        least_squares(X, t),
        optax.polyak_sgd,
        jnp.zeros(8),
        steps=3,
    )
    assert objective(1.0) < objective.trajectory(1.0)[0]


def bad_calls():
    X, t = regression()
    loss, zeros = least_squares(X, t), jnp.zeros(8)
    make = lambda **k: metalr.Unrolled(
        k.pop("loss", loss), k.pop("optimizer", optax.sgd), k.pop("params", zeros), **k
    )
    rows = jnp.zeros((3, 2), int)
    return {
        "steps = -1": lambda: make(steps=-1),
        "steps=4 needs a leading axis": lambda: make(steps=4, batches=rows),
        "sees no batch": lambda: make(steps=0, batches=rows[:0]),
        r"params\['a'\] = .* is str, no array": lambda: make(
            params={"a": "x"}, steps=1
        ),
        "params = .* is int64": lambda: make(params=jnp.zeros(3, int), steps=1),
        "must return a real scalar": lambda: make(loss=lambda p, h, b: p, steps=1),
        "loss returned float64": lambda: make(loss=lambda p, h, b: p * h, steps=1)(0.1),
        "hyper = 1 is int64": lambda: make(steps=1)(1),
        "hyper = True is bool": lambda: make(steps=1)(True),
        "hyper has no leaves": lambda: make(steps=1)({}),
        "outer_loss returned": lambda: make(steps=1, outer_loss=lambda p, h: p)(0.1),
        "leading axis of length 3": lambda: make(
            optimizer=metalr.per_step(optax.sgd), steps=3
        )(jnp.ones(4)),
    }


@pytest.mark.parametrize("message", bad_calls())
def test_bad_input_is_a_value_error_that_names_the_value(message):
    with pytest.raises(ValueError, match=message):
        bad_calls()[message]()
