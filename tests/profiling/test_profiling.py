"""Accounting against what is known in closed form; planning within a limit."""

import jax
import jax.numpy as jnp
import optax
import pytest

import metalr
from metalr import profiling
from metalr.problems import least_squares
from tests.helpers import regression

STATE = 20_000


def large(steps, optimizer=optax.sgd):
    """The state outweighs everything else: 20 000 weights, a scalar loss."""
    loss = lambda params, hyper, batch: jnp.sum(jnp.cos(params))
    return metalr.Unrolled(loss, optimizer, jnp.ones(STATE), steps=steps)


def quadratic(steps):
    X, t = regression(40, 200)
    return metalr.Unrolled(least_squares(X, t), optax.sgd, jnp.zeros(200), steps=steps)


def test_plain_reverse_grows_by_8d_bytes_a_step_on_a_quadratic():
    sizes = [
        profiling.memory(quadratic(steps), 0.1, metalr.Reverse()).temp_bytes
        for steps in (100, 200, 400)
    ]
    assert sizes[1] - sizes[0] == 100 * 8 * 200
    assert sizes[2] - sizes[1] == 200 * 8 * 200


def test_the_state_is_parameters_and_moments():
    found = profiling.memory(large(3, optax.adam), 0.1, None)
    assert found.state_bytes == 3 * 8 * STATE + 4  # and a counter
    assert found.argument_bytes >= 8 * STATE


@pytest.mark.parametrize(
    "engine",
    [
        None,
        metalr.Forward(),
        metalr.Reverse(),
        metalr.Reverse(checkpoints=8),
        metalr.Mixed(),
    ],
    ids=str,
)
def test_the_model_predicts_the_temporary_memory(engine):
    found = profiling.memory(large(40), 0.1, engine)
    assert found.predicted_bytes is not None
    # XLA reuses the buffers of a step somewhat differently in a short program.
    assert abs(found.temp_bytes - found.predicted_bytes) <= 2 * found.state_bytes


def test_the_exponents_of_growth_are_1_and_one_half_and_0():
    def root(steps):
        return metalr.Reverse(checkpoints=round(2 * steps**0.5))

    engines = [metalr.Reverse(), root, metalr.Forward()]
    table = profiling.growth(large, [16, 64, 256, 1024], 0.1, engines)
    assert abs(table.exponents["Reverse()"].value - 1.0) < 0.05
    assert abs(table.exponents["root"].value - 0.5) < 0.1
    assert abs(table.exponents["Forward()"].value) < 0.05


def test_an_engine_that_refuses_is_a_row_and_a_large_program_is_not_run():
    table = profiling.growth(
        lambda steps: lambda h: jnp.sum(h**2),  # pyright: ignore[reportArgumentType]
        [2],
        0.1,
        [metalr.Mixed()],
    )
    assert table.rows[0].temp_bytes is None
    assert table.rows[0].note.startswith("refused: ")
    table = profiling.growth(
        large, [50], 0.1, [metalr.Reverse()], repeats=1, memory_limit=1000
    )
    assert table.rows[0].note.startswith("not run: above")
    assert table.rows[0].seconds is None
    table = profiling.growth(
        large, [50], 0.1, [metalr.Forward()], repeats=1, longest=100
    )
    assert table.rows[0].note.startswith("not run: 1e+02 steps' worth")


def test_seconds_are_the_median_of_the_runs():
    found = profiling.timing(quadratic(5), 0.1, metalr.Forward(), repeats=3)
    assert len(found.runs) == 3
    assert found.seconds == sorted(found.runs)[1] > 0.0
    assert found.compile_seconds > 0.0


def test_the_plan_for_one_rate_is_forward_mode_and_for_many_a_sweep_that_fits():
    assert profiling.plan(large(30), 0.1, memory_limit="100MB").engine == (
        metalr.Forward()
    )
    objective = large(64, metalr.per_step(optax.sgd))
    rates = jnp.full(64, 0.1)
    state = 8 * STATE
    free = profiling.plan(objective, rates, memory_limit="1GB")
    assert free.engine == metalr.Reverse()
    tight = profiling.plan(objective, rates, memory_limit=24 * state)
    assert isinstance(tight.engine, metalr.Reverse)
    assert 8 <= (tight.engine.checkpoints or 0) <= 24
    assert tight.temp_bytes <= 24 * state
    assert tight.cost > free.cost
    found = profiling.memory(objective, rates, tight.engine)
    assert found.temp_bytes == tight.temp_bytes


def test_a_plan_that_cannot_be_kept_says_how_little_would_do():
    with pytest.raises(ValueError, match=r"the least is \d+ bytes \(.*\)"):
        profiling.plan(large(4), 0.1, memory_limit="1kB")


def test_costs_can_be_measured_on_a_shortened_problem():
    rates = jnp.full(12, 0.1)
    objective = large(12, metalr.per_step(optax.sgd))
    found = profiling.plan(objective, rates, memory_limit="1GB", measure=3)
    assert all(candidate.cost > 0.0 for candidate in found.candidates)


def test_planning_runs_nothing():
    calls = []

    def loss(params, hyper, batch):
        jax.debug.callback(lambda: calls.append(None))
        return jnp.sum(params**2)

    objective = metalr.Unrolled(loss, optax.sgd, jnp.ones(2), steps=3)
    profiling.plan(objective, 0.1, memory_limit="1GB")
    jax.effects_barrier()
    assert not calls


@pytest.mark.parametrize(
    ("text", "expected"),
    [("2GiB", 2 << 30), ("500 MB", 500_000_000), (1024, 1024), ("1.5k", 1500)],
)
def test_sizes_are_read_as_written(text, expected):
    assert profiling.parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "GiB", "-1GB", "2 parsecs", 0])
def test_sizes_that_are_none_are_refused(text):
    with pytest.raises(ValueError, match="memory_limit"):
        profiling.parse_bytes(text)
