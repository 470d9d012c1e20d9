"""Accounting against what is known in closed form; planning within a limit."""

import dataclasses
import importlib
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

import metalr
from metalr import profiling
from metalr.hypergrad import facts
from metalr.problems import least_squares
from metalr.tasks import Each, Mean
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
        lambda steps: lambda h: jnp.sum(h**2),
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
    engines = [metalr.Reverse(), metalr.Mixed(), metalr.Reverse(checkpoints=2)]
    found = profiling.plan(
        objective, rates, memory_limit="1GB", measure=3, engines=engines
    )
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


def test_a_limit_that_is_met_exactly_fits():
    rates = jnp.full(64, 0.1)
    objective = large(64, metalr.per_step(optax.sgd))
    many, few = engines = [metalr.Reverse(checkpoints=n) for n in (10, 8)]
    for engine in (many, few):
        exact = profiling.memory(objective, rates, engine).temp_bytes
        found = profiling.plan(objective, rates, memory_limit=exact, engines=[engine])
        assert found.engine == engine
        assert found.temp_bytes == exact
    exact = profiling.memory(objective, rates, few).temp_bytes
    found = profiling.plan(objective, rates, memory_limit=exact, engines=engines)
    assert found.engine == few
    assert [c.engine for c in found.candidates if c.compiled] == [many, few]
    with pytest.raises(ValueError, match=f"the least is {exact} bytes"):
        profiling.plan(objective, rates, memory_limit=exact - 1, engines=engines)


def test_a_plan_compiles_a_few_programs_whatever_the_horizon(monkeypatch):
    compiled = []
    planning = importlib.import_module("metalr.profiling.plan")
    program_of = planning.program_of

    def counted(objective, hyper, engine):
        compiled.append(engine)
        return program_of(objective, hyper, engine)

    monkeypatch.setattr(planning, "program_of", counted)
    for steps in (50, 5000):
        compiled.clear()
        objective = large(steps, metalr.per_step(optax.sgd))
        limit = 24 * 8 * STATE
        found = profiling.plan(objective, jnp.full(steps, 0.1), memory_limit=limit)
        assert found.temp_bytes <= limit
        assert len(compiled) <= 3, compiled
        engines: list[Any] = [c.engine for c in found.candidates]
        states = {e.checkpoints for e in engines if isinstance(e, metalr.Mixed)}
        assert None in states
        assert len(states) > 2  # at every size that comes before the one chosen


@jax.custom_vjp
def back_only(x):
    return jnp.sin(x)


back_only.defvjp(lambda x: (jnp.sin(x), jnp.cos(x)), lambda cos, bar: (cos * bar,))


def test_a_plan_passes_over_engines_that_refuse():
    # F8: a custom_vjp has no forward rule.
    loss = lambda w, h, b: jnp.sum(back_only(w) ** 2)
    objective = metalr.Unrolled(loss, optax.sgd, jnp.ones(STATE), steps=30)
    free = profiling.plan(objective, 0.1, memory_limit="1GB")
    assert free.engine == metalr.Reverse()
    refused = {c.engine: c.note for c in free.candidates if c.note}
    assert "custom_vjp" in refused[metalr.Forward()]
    tight = profiling.plan(objective, 0.1, memory_limit=16 * 8 * STATE)
    assert isinstance(tight.engine, metalr.Reverse)
    assert tight.engine.checkpoints is not None
    exact = jax.grad(objective)(0.1)
    found = metalr.hypergradient(objective, 0.1, tight.engine)
    assert abs(found.grad - exact) <= 1e-12 * abs(exact)
    with pytest.raises(ValueError, match=r"every engine refuses.*custom_vjp"):
        profiling.plan(objective, 0.1, memory_limit="1GB", engines=[metalr.Forward()])


@dataclasses.dataclass(frozen=True)
class Frugal:
    """An engine of one's own: forward mode under another name and other claims."""

    price: float
    exact = True

    def __call__(self, objective, hyper):
        return metalr.Forward()(objective, hyper)

    def cost(self, objective, hyper):
        return self.price

    def kept_bytes(self, objective, hyper):
        return 0


def silent(objective, hyper):
    """One that says nothing of itself."""
    return metalr.Forward()(objective, hyper)


def test_an_engine_of_ones_own_is_planned_by_what_it_says():
    def chosen(*engines):
        return profiling.plan(large(8), 0.1, memory_limit="1GB", engines=engines).engine

    assert chosen(metalr.Forward(), Frugal(1.0)) == Frugal(1.0)
    assert chosen(metalr.Forward(), Frugal(9.0)) == metalr.Forward()
    assert chosen(silent, metalr.Reverse()) == metalr.Reverse()
    assert chosen(silent) == silent
    assert profiling.memory(large(8), 0.1, Frugal(1.0)).predicted_bytes is not None
    assert profiling.memory(large(8), 0.1, silent).predicted_bytes is None
    assert facts.is_exact(Frugal(1.0), large(8))


def momentum(steps):
    loss = lambda params, hyper, batch: jnp.sum(params**2)
    sgd = lambda h: optax.sgd(h, 0.9)
    return metalr.Unrolled(loss, sgd, jnp.ones(STATE), steps=steps)


@pytest.mark.parametrize(
    "engine",
    [
        metalr.Forward(),
        metalr.Reverse(),
        metalr.Mixed(),
        metalr.Mixed(checkpoints=8),
        metalr.Truncated(last=20),
        metalr.Reversible(),
        metalr.EvolutionStrategies(0.01, 4, 0),
    ],
    ids=str,
)
def test_what_an_engine_says_that_it_keeps_is_not_more_than_it_needs(engine):
    objective = momentum(60)
    kept = facts.kept_bytes(engine, objective, jnp.asarray(0.1))
    assert kept is not None
    assert 0 < kept <= profiling.memory(objective, 0.1, engine).temp_bytes
    assert facts.cost(engine, objective, jnp.asarray(0.1)) > 1.0


def test_reversible_keeps_bits_in_proportion_to_the_steps():
    engine = metalr.Reversible()
    kept = [
        engine.kept_bytes(momentum(steps), jnp.asarray(0.1)) for steps in (100, 1000)
    ]
    assert kept[0] == math.ceil(100 * math.log2(1 / 0.9) / 8) * STATE
    assert abs(kept[1] / kept[0] - 10.0) < 0.1


def test_a_sweep_costs_the_steps_that_it_runs_and_no_less_than_keeping_all():
    rate, objective = jnp.asarray(0.1), quadratic(1000)
    # T = 1000 with 62 places takes 1935 steps and one for the end (forward_steps).
    sweep = facts.cost(metalr.Reverse(checkpoints=62), objective, rate)
    assert sweep == 1936 / 1000 + facts.PULL_BACK
    whole = facts.cost(metalr.Mixed(), objective, rate)
    assert whole == facts.cost(metalr.Reverse(checkpoints=1000), objective, rate)
    assert whole == facts.cost(metalr.Mixed(checkpoints=1000), objective, rate)
    many = jnp.zeros(10)
    assert facts.cost(metalr.Forward(), objective, many) == 1 + 10 * facts.TANGENT
    chunked = facts.cost(metalr.Forward(chunk=4), objective, many)
    assert chunked == 3 * (1 + 4 * facts.TANGENT)


def test_truncated_is_exact_where_it_leaves_nothing_out():
    assert facts.is_exact(metalr.Truncated(last=5), quadratic(5))
    assert not facts.is_exact(metalr.Truncated(last=4), quadratic(5))
    assert not facts.is_exact(metalr.Implicit(), quadratic(5))
    assert not facts.is_exact(metalr.EvolutionStrategies(0.1, 2, 0), quadratic(5))


def test_a_mean_of_tasks_is_measured_and_planned():
    X, t = regression(6, 2000)
    tasks = [
        metalr.Unrolled(
            least_squares(X, t + i),
            metalr.per_step(optax.sgd),
            jnp.zeros(2000),
            steps=32,
        )
        for i in range(3)
    ]
    mean, rates = Mean(tasks), jnp.full(32, 0.1)
    state = 3 * 8 * 2000
    engine = Each(metalr.Mixed())
    found = profiling.memory(mean, rates, engine)
    assert found.state_bytes == 3 * (8 * 2000 + 4)
    assert found.predicted_bytes is not None
    assert abs(found.temp_bytes - found.predicted_bytes) <= 3 * state
    tight = profiling.plan(mean, rates, memory_limit=20 * state)
    assert isinstance(tight.engine, Each)
    assert tight.engine.engine.checkpoints is not None
    assert tight.temp_bytes <= 20 * state
    gradient = metalr.hypergradient(mean, rates, tight.engine).grad
    assert jnp.allclose(gradient, jax.grad(mean)(rates), rtol=1e-10)
    free = profiling.plan(Mean(tasks), rates, memory_limit="1GB")
    assert free.engine == metalr.Reverse()


@pytest.mark.parametrize("measure", [None, 4])
def test_a_reparametrized_run_is_planned_by_what_is_within(measure):
    """Ten rates of two numbers: forward mode would take ten tangents, not two."""
    X, t = regression(6, 2000)
    make = metalr.per_step(optax.sgd)
    L = metalr.Unrolled(least_squares(X, t), make, jnp.zeros(2000), steps=10)
    line = lambda z: jnp.exp(z[0] + z[1] * jnp.linspace(0.0, 1.0, 10))
    z, state = jnp.array([-3.0, 0.1]), 8 * 2000
    curve = metalr.reparametrized(L, line)
    engine = metalr.Reverse(checkpoints=4)
    inside, outside = (
        facts.kept_bytes(engine, *at) for at in ((L, line(z)), (curve, z))
    )
    assert inside == outside
    assert facts.cost(metalr.Forward(), curve, z) == 1.0 + 10 * facts.TANGENT
    options = {"memory_limit": 12 * state, "measure": measure}
    found = profiling.plan(curve, z, engines=[metalr.Reverse(), engine], **options)
    assert found.engine == engine
    assert found.temp_bytes <= 12 * state
    assert profiling.memory(curve, z, engine).temp_bytes == found.temp_bytes
    assert profiling.memory(curve, z, engine).predicted_bytes is not None


def test_a_reparametrized_mean_is_planned_task_by_task():
    X, t = regression(6, 2000)
    tasks = [
        metalr.Unrolled(least_squares(X, t + i), optax.sgd, jnp.zeros(2000), steps=10)
        for i in range(2)
    ]
    mean = metalr.reparametrized(Mean(tasks), lambda z: jnp.exp(jnp.sum(z)))
    engines = [metalr.Reverse(), Each(metalr.Reverse(checkpoints=2))]
    options = {"memory_limit": 9 * 2 * 8 * 2000, "engines": engines}
    found = profiling.plan(mean, jnp.full(3, -1.0), **options)
    assert found.engine == engines[1]
    free = profiling.plan(mean, jnp.full(3, -1.0), memory_limit="1GB")
    assert free.engine == metalr.Forward()  # one tangent within, not three


def test_a_rollout_is_measured_and_planned_like_any_run():
    def step(state, hyper, x):
        return state - hyper * jnp.sin(state) + x, None

    def end(state, hyper):
        return jnp.sum(state**2)

    start, inputs = jnp.ones(STATE), jnp.zeros(40)
    rollout = metalr.Rollout(step, start, steps=40, value=end, inputs=inputs)
    found = profiling.memory(rollout, 0.1, metalr.Mixed())
    assert found.state_bytes == 8 * STATE
    assert found.predicted_bytes is not None
    assert abs(found.temp_bytes - found.predicted_bytes) <= found.state_bytes
    limit = 8 * 8 * STATE
    assert profiling.plan(rollout, 0.1, memory_limit=limit).engine == metalr.Forward()
    half = rollout.continued(rollout.run(0.1).state, 20)
    assert profiling.memory(half, 0.1, None).state_bytes == 8 * STATE


def test_any_scalar_function_can_be_planned():
    found = profiling.plan(lambda h: jnp.sum(h**2), 0.1, memory_limit="1MB")
    assert found.engine == metalr.Forward()


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
