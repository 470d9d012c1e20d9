"""Each solver against the closed form on a small strongly convex bilevel quadratic."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metalr import bilevel
from metalr.theory.bilevel import BilevelQuadratic, Quadratic
from tests.helpers import assert_close

ROWS = 12


def rows(seed, noise):
    """Twelve quadratics in 3 + 2 variables; their mean is strongly convex."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: noise * rng.normal(size=(ROWS, *shape))
    symmetric = lambda M: 0.5 * (M + np.swapaxes(M, 1, 2))
    A = np.diag([1.0, 0.7, 0.5]) + symmetric(draw(3, 3))
    B = np.diag([1.0, 0.6]) + symmetric(draw(2, 2))
    C = 0.15 * rng.normal(size=(2, 3)) + draw(2, 3)
    a, b = rng.normal(size=3) + draw(3), rng.normal(size=2) + draw(2)
    return Quadratic(*map(jnp.array, (A, B, C, a, b)))


INNER, OUTER = rows(0, 0.2), rows(1, 0.2)
TRUTH = BilevelQuadratic(
    *(jax.tree.map(lambda x: x.mean(axis=0), part) for part in (INNER, OUTER))
)


def loss(z, x, batch):
    return jnp.mean(jax.vmap(lambda row: row(z, x))(batch))


def oracles(size=None):
    return bilevel.oracle(loss, INNER, size=size), bilevel.oracle(
        loss, OUTER, size=size
    )


RATES = {"inner_optimizer": optax.sgd(0.5), "outer_optimizer": optax.sgd(0.2)}
SOLVERS = {
    "SOBA": (bilevel.SOBA, {}),
    "SABA": (bilevel.SABA, {}),
    "StocBiO": (bilevel.StocBiO, {"neumann_rate": 0.5, "terms": 120}),
    "AmIGO": (bilevel.AmIGO, {"inner_steps": 3, "linear_steps": 3}),
    "F2SA": (bilevel.F2SA, {"penalty": 10.0}),
}


def made(name, size=None, **further):
    make, options = SOLVERS[name]
    return make(*oracles(size), **{**RATES, **options, **further})


def curve(solver, updates, gradient=TRUTH.gradient, key=0):
    """‖∇h‖ after each update, and the last state."""

    def step(state, _):
        state = solver.update(state)
        return state, jnp.linalg.norm(gradient(state.hyper))

    start = solver.init(jnp.zeros(3), jnp.zeros(2), key)
    return jax.jit(lambda state: jax.lax.scan(step, state, length=updates))(start)


@pytest.mark.parametrize("name", SOLVERS)
def test_full_batches_converge_linearly_to_the_closed_form(name):
    gradient = TRUTH.gradient
    if name == "F2SA":  # of the penalized problem
        gradient = lambda x: TRUTH.penalized_gradient(x, 10.0)
    state, norms = curve(made(name), 900, gradient)
    assert norms[-1] < 1e-12
    # As much is gained from 1e-3 to 1e-6 as from 1e-6 to 1e-9: a straight line in log.
    first, middle, last = (int(jnp.argmax(norms < 10.0**-k)) for k in (3, 6, 9))
    assert abs((last - middle) - (middle - first)) <= 0.1 * (last - first)
    if name != "F2SA":
        assert_close(state.hyper, TRUTH.minimizer(), rtol=1e-11)
        assert_close(state.params, TRUTH.solution(state.hyper), rtol=1e-11)


@pytest.mark.parametrize("name", ["SOBA", "StocBiO", "AmIGO", "F2SA"])
def test_minibatches_reach_a_noise_level_that_falls_with_the_rates(name):
    gradient = TRUTH.gradient
    if name == "F2SA":
        gradient = lambda x: TRUTH.penalized_gradient(x, 10.0)

    def level(factor):
        inner, outer = optax.sgd(0.4 / factor), optax.sgd(0.08 / factor)
        solver = made(name, 2, inner_optimizer=inner, outer_optimizer=outer)
        _, norms = curve(solver, 6000, gradient)
        return float(jnp.mean(norms[3000:] ** 2))

    # Stationary variance is in proportion to the rates; 4 times smaller ones give about
    # a quarter (within a factor of 2 at this length of the run), and never rounding.
    coarse, fine = level(1.0), level(4.0)
    assert 1e-8 < fine < 0.5 * coarse


def test_saba_has_no_noise_level():
    solver = made("SABA", 2, outer_optimizer=optax.sgd(0.05))
    state, norms = curve(solver, 6000)
    assert norms[-1] < 1e-10
    assert_close(state.hyper, TRUTH.minimizer(), rtol=1e-9)


def test_falling_rates_take_sobas_noise_below_its_level():
    fall = lambda rate: optax.sgd(lambda t: rate / jnp.sqrt(1.0 + t / 20.0))
    options = {"inner_optimizer": fall(0.4), "outer_optimizer": fall(0.2)}
    _, constant = curve(made("SOBA", 2), 6000)
    _, falling = curve(made("SOBA", 2, **options), 6000)
    tail = lambda norms: float(jnp.mean(norms[5000:] ** 2))
    assert tail(falling) < 0.2 * tail(constant)


def test_the_bias_of_f2sa_is_that_of_its_penalty_and_falls_as_one_over_it():
    errors = []
    for penalty in (10.0, 20.0, 40.0):
        state, _ = curve(made("F2SA", penalty=penalty), 900)
        assert jnp.linalg.norm(TRUTH.penalized_gradient(state.hyper, penalty)) < 1e-10
        errors.append(float(jnp.linalg.norm(TRUTH.gradient(state.hyper))))
    assert errors[-1] > 1e-3  # a bias, not rounding
    # λ · error is a constant to first order in 1/λ.
    np.testing.assert_allclose(np.divide(errors[1:], errors[:-1]), 0.5, rtol=0.1)


def test_stocbio_keeps_the_bias_of_its_neumann_series():
    _, short = curve(made("StocBiO", terms=2), 900)
    _, long = curve(made("StocBiO", terms=8), 900)
    assert short[-1] > 5.0 * long[-1] > 5e-6


def test_memory_of_saba_is_one_entry_for_each_minibatch():
    state = made("SABA", 2).init(jnp.zeros(3), jnp.zeros(2))
    table = state.memory.inner.entries
    assert [x.shape for x in table] == [(6, 3), (6, 3), (6, 2)]
    assert int(state.calls) == 4 * 6


def test_pytrees_projection_and_calls():
    inner = bilevel.oracle(lambda z, x, _: jnp.sum((z["a"] - x["b"]) ** 2))
    outer = bilevel.oracle(lambda z, x, _: jnp.sum((z["a"] - 2.0) ** 2))
    box = lambda x: jax.tree.map(lambda h: jnp.clip(h, 0.0, 1.0), x)
    for make, options in SOLVERS.values():
        solver = make(
            inner,
            outer,
            inner_optimizer=optax.sgd(0.2),
            outer_optimizer=optax.sgd(0.05),
            project=box,
            **options,
        )
        start = {"a": jnp.zeros(2)}, {"b": jnp.full(2, -3.0)}
        state = solver.init(*start)
        assert_close(state.hyper, {"b": jnp.zeros(2)}, rtol=0)
        step = lambda state, _, solver=solver: (solver.update(state), None)
        state, _ = jax.lax.scan(step, state, length=100)
        assert_close(state.hyper, {"b": jnp.ones(2)}, rtol=0)  # at the bound
        assert int(state.updates) == 100


def test_one_key_gives_one_run_and_another_key_another():
    solver = made("SOBA", 2)
    ends = [curve(solver, 5, key=key)[0].hyper for key in (0, 0, 1)]
    assert jnp.array_equal(ends[0], ends[1])
    assert not jnp.array_equal(ends[0], ends[2])


@pytest.mark.parametrize("name", SOLVERS)
def test_an_update_keeps_the_form_of_the_state(name):
    """Float32 among float64 data: what a scan's carry needs."""
    solver = made(name, 2)
    state = solver.init(jnp.zeros(3, "float32"), jnp.zeros(2, "float32"))
    before, after = (jax.eval_shape(f, state) for f in (lambda s: s, solver.update))
    assert before == after
    assert after.hyper.dtype == "float32"


def test_runs_of_several_keys_go_at_once():
    solver = made("SOBA", 2)
    start = lambda key: solver.init(jnp.zeros(3), jnp.zeros(2), key)
    run = lambda key: (
        jax.lax.fori_loop(0, 3, lambda _, state: solver.update(state), start(key)).hyper
    )
    keys = jax.random.split(jax.random.key(0), 2)
    assert_close(jax.vmap(run)(keys)[1], run(keys[1]), rtol=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bilevel.oracle(loss, INNER, size=5), "size = 5 does not divide"),
        (lambda: bilevel.oracle(loss, None, size=5), "without data"),
        (lambda: bilevel.oracle(3), "must be a function"),
        (lambda: bilevel.SOBA(loss, loss, **RATES), "must be a bilevel.Oracle"),
        (lambda: made("SOBA", outer_optimizer=0.1), "must be an optax optimizer"),
        (lambda: made("F2SA", penalty=0.0), "penalty = 0.0 must be positive"),
        (lambda: made("StocBiO", neumann_rate=-1.0), "must be positive"),
        (lambda: made("AmIGO", linear_steps=0), "linear_steps = 0"),
        (lambda: made("SOBA").init(jnp.zeros(3), 1), "hyper"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
