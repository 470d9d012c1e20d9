"""Nested scans and the binomial sweep: the same numbers, fewer states."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings, strategies as st

import metalr
from metalr.hypergrad.binomial import forward_steps, schedule
from metalr.runs.checkpointing import branching
from tests.helpers import OPTIMIZERS, assert_close, network, network_loss


@functools.cache
def fewest_steps(length, places):
    """Forward steps to reverse a chain, by trying every place for the next state."""
    if length == 1:
        return 0
    if places == 1:
        return length * (length - 1) // 2
    return min(
        ahead + fewest_steps(length - ahead, places - 1) + fewest_steps(ahead, places)
        for ahead in range(1, length)
    )


@pytest.mark.parametrize("checkpoints", [0, 1, 2, 3, 7])
def test_the_schedule_runs_the_fewest_steps_and_finds_every_state(checkpoints):
    for steps in range(1, 41):
        plan = schedule(steps, checkpoints)
        least = fewest_steps(steps, checkpoints + 1)
        assert forward_steps(steps, checkpoints) == least
        assert plan.advance.sum() + plan.rest.sum() == least
        stored = {-1: 0}
        for i in range(steps):
            position = stored[plan.source[i]]
            assert position == plan.position[i]
            for j in range(plan.first[i], plan.first[i + 1]):
                position += plan.advance[j]
                assert 0 <= plan.slot[j] < checkpoints
                stored[plan.slot[j]] = position
            assert position + plan.rest[i] == steps - 1 - i


def test_two_root_t_states_cost_at_most_one_further_run():
    for steps in (10, 100, 997, 1000, 10**4, 10**6):
        assert forward_steps(steps, round(2 * steps**0.5)) <= 2 * steps


@settings(max_examples=100, deadline=None)
@given(st.integers(2, 10**5), st.integers(1, 2000))
def test_the_branching_covers_all_steps_with_about_the_states_asked_for(steps, n):
    factors = branching(steps, n)
    assert math.prod(factors) >= steps
    least = min(m * steps ** (1 / m) for m in range(1, 15))
    assert sum(factors) <= max(n, math.ceil(least)) + 2 * len(factors)


def test_the_branching_is_the_shallowest_that_fits():
    assert branching(100, 100) == [100]
    assert branching(100, 99) == branching(100, 20) == [10, 10]
    assert branching(1000, 63) == [32, 32]  # 2√1000 = 63.2
    assert branching(1000, 62) == [10, 10, 10]
    assert branching(1000, 1) == [3, 3, 3, 3, 3, 3, 2]  # round(log 1000) levels


def counted(steps, engine, microbatch=None):
    """Executions of the inner loss while a hypergradient is computed."""
    calls = []

    def loss(params, hyper, batch):
        jax.debug.callback(lambda: calls.append(None))
        return jnp.sum((params - 1.0) ** 2)

    objective = metalr.Unrolled(loss, optax.sgd, jnp.zeros(2), steps=steps)
    jax.block_until_ready(metalr.hypergradient(objective, 0.1, engine))
    jax.effects_barrier()
    return len(calls)


@pytest.mark.parametrize(("steps", "checkpoints"), [(1, 3), (7, 1), (11, 3), (13, 40)])
def test_the_sweep_runs_as_many_steps_as_its_formula_says(steps, checkpoints):
    # Beyond the formula: the last step, the outer loss, one linearization a step.
    expected = forward_steps(steps, checkpoints) + 2 + steps
    assert counted(steps, metalr.Reverse(checkpoints=checkpoints)) == expected


BOUNDED = [
    metalr.Reverse(checkpoints=1),
    metalr.Reverse(checkpoints=3),
    metalr.Mixed(),
    metalr.Mixed(checkpoints=100),
]


@pytest.mark.parametrize("name", ["sgd", "momentum", "adam", "chain"])
def test_every_engine_gives_the_gradient_of_plain_reverse_on_minibatches(name):
    params, batches = network(11)
    objective = metalr.Unrolled(
        network_loss, OPTIMIZERS[name], params, steps=11, batches=batches
    )
    expected = metalr.hypergradient(objective, {"rate": 0.05})
    for engine in BOUNDED[1:3]:
        found = metalr.hypergradient(objective, {"rate": 0.05}, engine)
        assert_close(found, expected, rtol=1e-10)


def rich(steps, dtype=jnp.float64, **options):
    """Learned: per-step rates, momentum, an L2 strength, the start, the outer loss."""
    params, batches = network(steps)
    cast = lambda tree: jax.tree.map(lambda x: x.astype(dtype), tree)

    def loss(params, hyper, batch):
        squares = sum(jnp.sum(p**2) for p in jax.tree.leaves(params))
        return network_loss(params, hyper, batch) + hyper["l2"] * squares

    def outer_loss(params, hyper):
        return network_loss(params, hyper, jax.tree.map(lambda b: b[0], cast(batches)))

    def optimizer(h):
        rates = metalr.per_step(lambda rate: optax.sgd(rate, h["momentum"]))
        return rates(h["rates"])

    hyper = {
        "rates": jnp.linspace(0.02, 0.1, steps, dtype=dtype),
        "momentum": jnp.asarray(0.8, dtype),
        "l2": jnp.asarray(0.01, dtype),
        "start": cast(params),
    }
    objective = metalr.Unrolled(
        loss,
        optimizer,
        lambda h: h["start"],
        steps=steps,
        batches=cast(batches),
        outer_loss=outer_loss,
        **options,
    )
    return objective, hyper


@pytest.mark.parametrize("engine", BOUNDED, ids=str)
def test_every_kind_of_hyperparameter_is_covered(engine):
    objective, hyper = rich(7)
    expected = metalr.hypergradient(objective, hyper)
    found = metalr.hypergradient(objective, hyper, engine)
    assert_close(found, expected, rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("engine", BOUNDED[1:3], ids=str)
def test_engines_are_right_in_float32_to_its_rounding(engine):
    expected = metalr.hypergradient(*rich(7))
    found = metalr.hypergradient(*rich(7, jnp.float32), engine)
    assert jax.tree.leaves(found.grad)[0].dtype == jnp.float32
    wide = jax.tree.map(lambda x: x.astype(jnp.float64), found)
    assert_close(wide, expected, rtol=1e-3, atol=1e-5)


def waves(steps, start=(0.3, 1.1), **options):
    """A small program that is quadratic nowhere."""
    loss = lambda params, hyper, batch: jnp.sum(jnp.cos(params))
    start = jnp.asarray(start)
    return metalr.Unrolled(loss, optax.adam, start, steps=steps, **options)


@pytest.mark.parametrize("engine", BOUNDED[1:3], ids=str)
def test_the_gradient_is_batched_over_hyper_and_tasks_and_differentiated(engine):
    slope = lambda rate: metalr.hypergradient(waves(5), rate, engine).grad
    plain, rates = jax.grad(waves(5)), jnp.array([0.01, 0.05])
    second = jax.jit(jax.vmap(jax.jacfwd(slope)))(rates)
    assert_close(second, jax.vmap(jax.jacfwd(plain))(rates), rtol=1e-9)

    tasks = jnp.array([[0.3, 1.1], [-0.7, 2.0]])
    found = jax.vmap(lambda p: metalr.hypergradient(waves(5, p), 0.05, engine).grad)
    expected = jax.vmap(lambda p: jax.grad(waves(5, p))(0.05))
    assert_close(found(tasks), expected(tasks), rtol=1e-10)


def test_mixed_with_all_states_can_be_differentiated_in_reverse_mode_too():
    slope = lambda h: metalr.hypergradient(waves(4), h, metalr.Mixed()).grad
    assert_close(jax.grad(slope)(0.05), jax.hessian(waves(4))(0.05), rtol=1e-10)


def test_optimizers_that_use_the_loss_value_are_reversed_through_it():
    """Polyak's rate, scaling · ℓ/‖∇ℓ‖², below its cap of 1000."""
    params, batches = network(4)

    def polyak(scaling, seen=lambda value: value):
        inner = optax.polyak_sgd(1e3, scaling=scaling)

        def update(updates, state, params=None, *, value, **extra):
            return inner.update(updates, state, params, value=seen(value), **extra)

        made: Any = optax.GradientTransformationExtraArgs
        return made(inner.init, update)

    def objective(seen):
        optimizer = lambda scaling: polyak(scaling, seen)
        return metalr.Unrolled(
            network_loss, optimizer, params, steps=4, batches=batches
        )

    expected = metalr.hypergradient(objective(lambda value: value), 0.05)
    for engine in (metalr.Reverse(checkpoints=2), metalr.Mixed()):
        found = metalr.hypergradient(objective(lambda value: value), 0.05, engine)
        assert_close(found, expected, rtol=1e-10)
    dropped = metalr.hypergradient(objective(jax.lax.stop_gradient), 0.05)
    assert abs(dropped.grad / expected.grad - 1.0) > 1e-3


@pytest.mark.parametrize(
    ("steps", "checkpoints"), [(1, 1), (13, 1), (13, 8), (16, 100)]
)
def test_nested_scans_change_no_bit_of_losses_and_keep_every_derivative(
    steps, checkpoints
):
    plain, hyper = rich(steps)
    nested, _ = rich(steps, checkpoints=checkpoints)
    assert_close(nested(hyper), plain(hyper), rtol=0)
    assert_close(nested.trajectory(hyper), plain.trajectory(hyper), rtol=0)
    assert_close(nested.final_params(hyper), plain.final_params(hyper), rtol=0)
    expected = jax.grad(plain)(hyper)
    assert_close(jax.grad(nested)(hyper), expected, rtol=1e-10, atol=1e-15)


def test_nested_scans_keep_second_derivatives_and_batching():
    plain, nested, rate = waves(7), waves(7, checkpoints=5), jnp.array(0.03)
    tangent = (jnp.ones_like(rate),)
    expected = jax.jvp(plain, (rate,), tangent)
    assert_close(jax.jvp(nested, (rate,), tangent), expected, rtol=1e-11)
    expected = jax.hessian(plain)(rate)
    assert_close(jax.hessian(nested)(rate), expected, rtol=1e-9)
    assert_close(jax.grad(jax.grad(nested))(rate), expected, rtol=1e-9)
    rates = jnp.array([0.01, 0.03])
    batched = jax.vmap(jax.grad(nested))(rates)
    assert_close(batched, jax.vmap(jax.grad(plain))(rates), rtol=1e-10)


@pytest.mark.parametrize("microbatch", [1, 4, 6, 100])  # of 6 examples
def test_microbatches_of_any_size_give_the_gradient_of_the_whole_batch(microbatch):
    params, batches = network(3)
    objective = metalr.Unrolled(
        network_loss, OPTIMIZERS["momentum"], params, steps=3, batches=batches
    )
    expected = metalr.hypergradient(objective, {"rate": 0.05})
    parted = dataclasses.replace(objective, microbatch=microbatch)
    engines = (metalr.Reverse(), metalr.Reverse(checkpoints=1), metalr.Forward())
    for engine in (*engines, metalr.Mixed()):
        found = metalr.hypergradient(parted, {"rate": 0.05}, engine)
        assert_close(found, expected, rtol=1e-11)


def temporary_bytes(objective, hyper, engine):
    run = jax.jit(lambda h: metalr.hypergradient(objective, h, engine))
    accounting: Any = run.lower(hyper).compile().memory_analysis()
    return accounting.temp_size_in_bytes


def test_memory_follows_the_states_that_were_asked_for():
    # State large against everything else: 20 000 weights and a scalar rate.
    start, steps = jnp.ones(20_000), 60
    loss = lambda params, hyper, batch: jnp.sum(jnp.cos(params))
    objective = metalr.Unrolled(loss, optax.sgd, start, steps=steps)
    state, rate = start.nbytes, jnp.array(0.1)
    sizes = {
        n: temporary_bytes(objective, rate, metalr.Reverse(checkpoints=n)) / state
        for n in (2, 8, 32)
    }
    for n, size in sizes.items():
        assert n < size < n + 8, sizes
    assert temporary_bytes(objective, rate, metalr.Reverse()) > steps * state
    assert temporary_bytes(objective, rate, metalr.Forward()) < 8 * state
    mixed = temporary_bytes(objective, rate, metalr.Mixed()) / state
    assert steps < mixed < steps + 8
    nested = metalr.Unrolled(loss, optax.sgd, start, steps=steps, checkpoints=16)
    assert temporary_bytes(nested, rate, metalr.Reverse()) < 25 * state


@pytest.mark.slow
def test_ten_thousand_steps_in_fourteen_states():
    loss = lambda params, hyper, batch: 0.5 * params**2
    make = lambda steps: metalr.Unrolled(
        loss, metalr.per_step(optax.sgd), 1.0, steps=steps
    )
    steps = 10_007  # a prime
    rates = 1e-4 * jnp.linspace(0.5, 1.5, steps)
    found = metalr.hypergradient(make(steps), rates, metalr.Reverse(checkpoints=14))
    value = 0.5 * jnp.prod((1.0 - rates) ** 2)
    assert_close(found.value, value, rtol=1e-11)
    assert_close(found.grad, -2.0 * value / (1.0 - rates), rtol=1e-11)


def bad_calls():
    params, batches = network(2)
    make = lambda **options: metalr.Unrolled(
        network_loss, OPTIMIZERS["sgd"], params, steps=2, **options
    )
    ragged = (batches[0], batches[1][:, :4])
    square = lambda h: jnp.sum(h**2)
    hyper = {"rate": 0.1}
    return {
        "checkpoints = 0": lambda: metalr.Reverse(checkpoints=0),
        "microbatch = -1": lambda: make(batches=batches, microbatch=-1),
        "checkpoints = True": lambda: make(batches=batches, checkpoints=True),
        "needs batches": lambda: make(microbatch=2),
        "needs a metalr.Unrolled": lambda: metalr.hypergradient(
            square, 0.1, metalr.Reverse(checkpoints=2)
        ),
        "number of examples": lambda: make(batches=ragged, microbatch=2)(hyper),
    }


@pytest.mark.parametrize("message", bad_calls())
def test_bad_options_are_value_errors_that_name_the_value(message):
    with pytest.raises(ValueError, match=message):
        bad_calls()[message]()


def test_engines_print_what_was_set():
    assert str(metalr.Reverse(checkpoints=32)) == "Reverse(checkpoints=32)"
    assert str(metalr.Reverse()) == "Reverse()"
    assert np.unique([hash(e) for e in BOUNDED]).size == len(BOUNDED)
