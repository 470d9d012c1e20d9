"""`check_hypergrad`: right derivatives pass, wrong ones are named, doubt is said."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings, strategies as st
from jax.tree_util import Partial

import metalr
from metalr.checking._closed import closed_form
from metalr.checking._differences import differentiate, shifts, slopes
from metalr.checking._inner import chosen_steps
from metalr.checking._inner_row import inner_row
from metalr.checking._precision import Precise, limited
from metalr.problems import least_squares
from metalr.theory import Quadratic

from ..helpers import assert_close, regression

FLOAT64 = np.dtype("float64")


def square(params, hyper, batch):
    return jnp.sum(params**2) / 3.0


@jax.custom_vjp
def wrong(params):
    """The sum of squares, with a derivative 10 % too large."""
    return jnp.sum(params**2)


wrong.defvjp(lambda w: (wrong(w), w), lambda w, g: (2.2 * w * g,))


def row(check, name) -> Any:
    exact = [row for row in check.rows if row.name == name]
    (found,) = exact or [row for row in check.rows if row.name.startswith(name)]
    return found


def momentum(h):
    return optax.sgd(h["rate"], h["momentum"])


def quadratic(optimizer=optax.sgd, steps=7, dtype=jnp.float64):
    X, t = (x.astype(dtype) for x in regression())
    return metalr.Unrolled(
        least_squares(X, t), optimizer, jnp.zeros(8, dtype), steps=steps
    )


# The parts: differences, closed forms.


@settings(max_examples=30, deadline=None)
@given(st.floats(0.05, 3.0), st.integers(1, 9))
def test_extrapolated_differences_are_right_within_their_own_error(x, degree):
    def function(shifts):
        return np.sin(x + shifts) + (x + shifts) ** degree

    found = differentiate(function, x, FLOAT64)
    exact = np.cos(x) + degree * x ** (degree - 1)
    assert abs(found.value - exact) <= found.error
    assert found.error < 1e-9 * max(abs(exact), x**degree / x, 1 / x)
    assert not found.kink


def test_a_kink_a_jump_and_noise_are_not_taken_for_derivatives():
    assert differentiate(np.abs, 1.0, FLOAT64).kink
    assert differentiate(lambda s: np.maximum(s, 0.01 * s), 1.0, FLOAT64).kink
    step = differentiate(lambda s: 1.0 * (s > 1e-12), 1.0, FLOAT64)
    assert step.error > abs(step.value) * 1e-2
    noise = np.random.default_rng(0)
    noisy = differentiate(lambda s: s + noise.normal(size=s.shape), 1.0, FLOAT64)
    assert noisy.error > 1e-2 * abs(noisy.value)


@pytest.mark.parametrize("steps", [1, 7, 60])  # the last beyond exact arithmetic
def test_the_closed_form_of_gradient_descent_is_that_of_the_theory(steps):
    closed = closed_form(quadratic(steps=steps), jnp.array(0.3))
    assert closed is not None
    assert ("Quadratic" in closed.how) == (steps == 60)
    exact = Quadratic.from_regression(*regression()).slope(0.3, steps)
    assert_close(closed.grad, np.asarray(exact), rtol=1e-9)


def test_the_closed_form_with_momentum_is_exact_in_both_numbers():
    hyper = {"rate": jnp.array(0.2), "momentum": jnp.array(0.5)}
    closed = closed_form(quadratic(momentum), hyper)
    exact = Quadratic.from_regression(*regression())
    grad = jax.grad(lambda h: exact.heavy_ball_loss(h["rate"], h["momentum"], 7))
    assert closed is not None
    assert_close(closed.grad, jax.tree.map(np.asarray, grad(hyper)), rtol=1e-11)


def test_there_is_no_closed_form_of_adam():
    assert closed_form(quadratic(optax.adam), jnp.array(0.3)) is None


# Right ones pass.


def test_with_momentum_all_ways_agree_to_rounding_and_the_table_says_so():
    hyper = {"rate": 0.2, "momentum": 0.9}
    check = metalr.check_hypergrad(quadratic(momentum), hyper)
    assert check.verdict == "agrees"
    names = [
        "Reverse()",
        "Reverse(checkpoints=4)",
        "Forward()",
        "Mixed()",
        "Reversible(",
        "closed form",
        "finite differences",
        "inner gradient",
    ]
    for name in names:
        assert row(check, name).status in ("agrees", "reference")
        assert name in str(check)
    for name in names[:4]:
        assert row(check, name).difference < 1e-12
        assert row(check, name).temp_bytes > 0
        assert row(check, name).seconds > 0.0
    assert row(check, "finite").difference < 1e-9
    assert "in float64" in check.precision


def test_engines_that_refuse_are_rows_and_biased_ones_are_not_judged():
    L = quadratic(lambda h: optax.adam(h["rate"]))
    engines = [metalr.Mixed(), metalr.Reversible(), metalr.Truncated(last=2)]
    check = metalr.check_hypergrad(L, {"rate": 0.1}, engines=engines)
    assert check.verdict == "agrees"
    assert row(check, "Reversible").status == "refused"
    assert "can't" in row(check, "Reversible").reason
    assert row(check, "Truncated").status == "biased"
    assert row(check, "Truncated").difference > 0.1


def test_an_engine_beyond_the_memory_limit_is_a_row():
    engines = [metalr.Forward(), metalr.Reverse()]
    L = quadratic(steps=500)
    check = metalr.check_hypergrad(L, 0.1, engines=engines, memory_limit="4kB")
    assert row(check, "Reverse").status == "out of memory"
    assert row(check, "Forward").status in ("agrees", "reference")
    assert check.verdict == "agrees"


def test_many_rates_are_checked_along_directions_and_leaves():
    def optimizer(h):
        return metalr.per_step(lambda e: optax.adam(e["rate"], e["b1"]))(h)

    hyper = {"rate": jnp.full(7, 0.1), "b1": jnp.full(7, 0.8)}
    check = metalr.check_hypergrad(
        quadratic(optimizer), hyper, engines=[metalr.Mixed()], random_directions=1
    )
    assert check.verdict == "agrees"
    assert "3 directions" in row(check, "finite differences").reason
    assert row(check, "finite differences").difference < 1e-8


def test_any_traceable_function_can_be_checked():
    check = metalr.check_hypergrad(lambda x: jnp.sin(x) * jnp.exp(x), 0.7)
    assert check.verdict == "agrees"
    exact = (np.sin(0.7) + np.cos(0.7)) * np.exp(0.7)
    assert_close(check.grad, np.asarray(exact), rtol=1e-14)


def test_in_float32_the_reference_is_float64_and_the_dtype_is_named():
    L = quadratic(optax.adam, steps=3, dtype=jnp.float32)
    engines = [metalr.Reverse(), metalr.Forward()]
    check = metalr.check_hypergrad(L, jnp.float32(0.1), engines=engines)
    assert check.verdict == "agrees"
    assert row(check, "Reverse() in float64").status == "reference"
    assert check.precision.startswith("float32 limits the agreement")
    assert 1e-9 < row(check, "Forward()").difference < 1e-4
    strict = metalr.check_hypergrad(
        L, jnp.float32(0.1), engines=engines[1:], rtol=1e-12
    )
    found = row(strict, "Forward()")
    roundings = 100.0 * 2.0**-23 * found.value / (0.1 * abs(float(strict.grad)))
    assert found.tolerance == pytest.approx(1e-12 + roundings, rel=1e-3)
    assert found.status == "agrees"
    assert strict.verdict == "agrees"


# One dtype is not assumed for params, loss and state.


def low_precision_runs():
    """Name, objective, hyper, the dtype that limits it, and how far."""
    w = jnp.array([1.0, -1.0, 0.5])
    X = np.random.default_rng(0).normal(size=(5, 3))  # float64
    wide = lambda w, h, b: jnp.sum(w.astype(jnp.float32) ** 2)
    fourth = lambda w, h, b: jnp.sum(w**4)
    cast = lambda w, h, b: jnp.sum(jnp.sin(w.astype(jnp.float32)) ** 2).astype(w.dtype)
    mu = lambda h: optax.adam(h, mu_dtype=jnp.float32)
    run = lambda loss, optimizer, w: metalr.Unrolled(loss, optimizer, w, steps=3)
    half = w.astype(jnp.bfloat16)
    data = lambda w, h, b: jnp.mean((X @ w - 1.0) ** 2)
    rate = jnp.float64(0.1)
    return [
        ("loss in float32", run(wide, optax.adam, half), rate, "bfloat16", 1e-2),
        (
            "bfloat16",
            run(fourth, optax.sgd, half),
            rate.astype(half.dtype),
            "bfloat16",
            0.02,
        ),
        (
            "data in float64",
            run(data, optax.sgd, w.astype(jnp.float32)),
            rate,
            "float32",
            1e-6,
        ),
        ("mu_dtype", run(fourth, mu, w), rate, "float32", 1e-6),
        ("cast", run(cast, optax.adam, w), rate, "float32", 1e-6),
    ]


@pytest.mark.parametrize(
    ("objective", "hyper", "dtype", "rtol"),
    [pytest.param(*run[1:], id=run[0]) for run in low_precision_runs()],
)
def test_what_limits_the_precision_is_named_and_no_right_engine_differs(
    objective, hyper, dtype, rtol
):
    engines = [metalr.Reverse(), metalr.Forward()]
    check = metalr.check_hypergrad(objective, hyper, engines=engines)
    assert check.verdict == "agrees"
    assert f"{dtype} limits" in check.precision
    assert limited(objective, hyper).dtype == np.dtype(dtype)
    for engine in engines:
        assert row(check, str(engine)).status in ("agrees", "reference")
        assert row(check, str(engine)).difference < rtol
    assert row(check, "inner").status == "agrees"


def test_a_derivative_lost_in_bfloat16_is_called_rounding_and_measured():
    """Summed in bfloat16 the derivative of Σ −η stays at −256: 256 + 1 is 256."""

    def stalled(objective, hyper):
        value, grad = metalr.Forward()(objective, hyper)
        low = jax.tree.leaves(objective)[0].dtype == jnp.bfloat16
        return metalr.HyperGradient(value, grad * 0.0 - 256.0 if low else grad)

    line = lambda p, h, b: p
    L = metalr.Unrolled(line, optax.sgd, jnp.bfloat16(0.0), steps=1000)
    check = metalr.check_hypergrad(L, 1e-3, engines=[stalled])
    found = check.rows[0]
    assert found.status == "rounding"
    assert found.difference == pytest.approx(0.744)
    assert "in float64 it agrees: bfloat16 limits" in found.reason
    assert float(check.grad) == pytest.approx(-1000.0, rel=1e-12)


def test_a_program_that_takes_no_other_dtype_is_checked_in_its_own():
    def loss(w, h, b):
        start = jnp.float32(0.0)
        return jax.lax.fori_loop(0, 2, lambda i, s: s + jnp.sum(w**4), start)

    L = metalr.Unrolled(loss, optax.sgd, jnp.ones(2, jnp.float32), steps=2)
    check = metalr.check_hypergrad(L, jnp.float32(0.01), engines=[metalr.Forward()])
    assert check.verdict == "agrees"
    assert "float32 limits it: it is fixed in the loss" in check.precision


def test_keys_in_the_batches_are_no_obstacle():
    keys = jax.random.split(jax.random.key(0), 4)

    def loss(w, h, key):
        return jnp.sum((w * jax.random.bernoulli(key, 0.5, (3,)) - 1.0) ** 2)

    L = metalr.Unrolled(loss, optax.sgd, jnp.zeros(3), steps=4, batches=keys)
    check = metalr.check_hypergrad(L, 0.1, engines=[metalr.Reverse(), metalr.Forward()])
    assert check.verdict == "agrees"
    mask = np.stack([jax.random.bernoulli(key, 0.5, (3,)) for key in keys])
    count = mask.sum(axis=0)  # w_i = 1 − (1 − 2η)^count, the last mask decides
    gone = (1 - 0.2) ** count
    exact = np.sum(mask[-1] * 2 * gone * count * -2.0 * (1 - 0.2) ** (count - 1.0))
    assert float(check.grad) == pytest.approx(exact, rel=1e-12)


def test_engines_that_a_custom_vjp_stops_are_rows_that_say_so():
    @jax.custom_vjp
    def sin(x):
        return jnp.sin(x)

    sin.defvjp(lambda x: (jnp.sin(x), jnp.cos(x)), lambda c, g: (c * g,))
    L = metalr.Unrolled(
        lambda w, h, b: jnp.sum(sin(w) ** 2), optax.sgd, jnp.ones(2), steps=3
    )
    check = metalr.check_hypergrad(L, 0.1, engines=[metalr.Reverse(), metalr.Forward()])
    assert check.verdict == "agrees"
    assert row(check, "Forward").status == "refused"
    assert "custom_vjp" in row(check, "Forward").reason
    assert row(check, "inner").status == "agrees"


# Wrong ones are named.


def off_by(error, function):
    """The function, with a derivative that is `error` of itself too large."""
    wrong = jax.custom_jvp(function)

    @wrong.defjvp
    def _(primals, tangents):
        value, slope = jax.jvp(function, primals, tangents)
        return value, slope * (1.0 + error)

    return wrong


@pytest.mark.parametrize("offset", [0.0, 1e3], ids=["value", "value ≫ gradient"])
def test_an_engine_off_by_twice_the_tolerance_differs(offset):
    """rtol is √eps = 1.5e-8; 100 roundings of the value are 2e-14 of it."""

    def broken(objective, hyper):
        value, grad = metalr.Reverse()(objective, hyper)
        return metalr.HyperGradient(value, grad * (1.0 + 3e-8))

    def near(objective, hyper):
        value, grad = metalr.Reverse()(objective, hyper)
        return metalr.HyperGradient(value, grad * (1.0 + 1e-8))

    f = lambda x: offset + jnp.sin(x)
    engines = [metalr.Forward(), broken, near]
    check = metalr.check_hypergrad(f, 0.7, engines=engines)
    assert [r.status for r in check.rows[:3]] == ["reference", "differs", "agrees"]


def test_a_wrong_rule_that_all_engines_share_is_called_just_above_the_tolerance():
    """Differences of a smooth function resolve 1e-12: rtol decides."""
    engines = [metalr.Reverse(), metalr.Forward()]
    for error, verdict in ((3e-8, "differs"), (5e-9, "agrees")):
        wrong = off_by(error, jnp.sin)
        check = metalr.check_hypergrad(lambda x, f=wrong: f(x), 0.7, engines=engines)
        assert check.verdict == verdict
        assert row(check, "finite").tolerance < 2e-8


@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_the_error_that_differences_claim_is_of_the_size_of_rounding(offset):
    """At the best step h ≈ 1/128 of a smooth function: a few eps · |f| / h."""
    found = differentiate(lambda s: offset + np.sin(0.7 + s), 1.0, FLOAT64)
    rounding = np.finfo(np.float64).eps * (offset + 1.0)
    assert abs(found.value - np.cos(0.7)) <= found.error
    assert found.error < 3e4 * rounding


def test_a_wrong_inner_rule_is_found_at_the_step_and_batch_where_it_acts():
    @jax.custom_vjp
    def late(w, batch):
        return jnp.sum(w**2) * batch

    def backward(saved, g):
        w, batch = saved
        return 2.0 * w * batch * g * jnp.where(batch == 3.0, 1.001, 1.0), None

    late.defvjp(lambda w, b: (late(w, b), (w, b)), backward)
    batches = jnp.ones(6).at[4].set(3.0)
    L = metalr.Unrolled(
        lambda w, h, b: late(w, b), optax.sgd, jnp.ones(2), steps=6, batches=batches
    )
    check = metalr.check_hypergrad(L, 0.1, engines=[metalr.Reverse()])
    found = row(check, "inner")
    assert (found.status, found.leaf) == ("differs", "params at step 4")
    assert found.difference == pytest.approx(1e-3, rel=1e-2)
    assert "of all 6 steps" in found.reason
    assert check.verdict == "differs"
    assert "params at step 4" in check.reason


def test_of_a_long_run_the_steps_looked_at_are_counted_and_reach_both_ends():
    steps = chosen_steps(1000, jax.random.key(0))
    assert steps.size == np.unique(steps).size == 256
    assert (steps[0], steps[-1]) == (0, 999)
    assert np.max(np.diff(steps)) < 60
    np.testing.assert_array_equal(chosen_steps(7, jax.random.key(0)), np.arange(7))


def test_a_wrong_derivative_rule_of_the_loss_is_found():
    L = metalr.Unrolled(lambda w, h, b: wrong(w), optax.sgd, jnp.ones(3), steps=3)
    engines = [metalr.Reverse(), metalr.Forward()]
    check = metalr.check_hypergrad(L, 0.1, engines=engines)
    assert check.verdict == "differs"
    # The custom rule has no forward mode; differences side with the closed form.
    assert row(check, "Forward").status == "refused"
    assert row(check, "Reverse").difference == pytest.approx(0.1, rel=1e-6)
    assert row(check, "closed form").status == "reference"
    assert row(check, "finite").status == "agrees"
    assert row(check, "inner").difference == pytest.approx(1 / 11, rel=1e-6)
    with pytest.raises(metalr.HypergradientError, match=r"differs: at .*reference"):
        metalr.check_hypergrad(L, 0.1, engines=engines, raise_on_mismatch=True)


def test_an_engine_that_is_off_in_one_leaf_is_named_with_the_leaf():
    def broken(objective, hyper):
        value, grad = metalr.Reverse()(objective, hyper)
        return metalr.HyperGradient(
            value, grad | {"momentum": 1.001 * grad["momentum"]}
        )

    hyper = {"rate": 0.2, "momentum": 0.5}
    L = quadratic(momentum)
    with pytest.raises(metalr.HypergradientError, match=r"broken.*hyper\['momentum'\]"):
        metalr.check_hypergrad(L, hyper, engines=[broken], raise_on_mismatch=True)
    check = metalr.check_hypergrad(L, hyper, engines=[broken, metalr.Forward()])
    assert check.verdict == "differs"
    found = [row for row in check.rows if "broken" in row.name]
    assert found[0].difference == pytest.approx(1e-3, rel=1e-6)
    # Differences confirm what the other engines say, not the first of them.
    assert row(check, "Forward").status == "agrees"
    assert row(check, "finite").status == "agrees"


def test_an_optimizer_that_ignores_the_rate_is_a_structural_error():
    L = quadratic(lambda h: optax.sgd(0.1))
    with pytest.raises(ValueError, match="does not depend on hyper"):
        metalr.check_hypergrad(L, 0.1)


def test_a_derivative_that_is_nan_where_the_value_is_not_is_not_finite():
    def loss(params, hyper, batch):
        return jnp.sum(params**2) + jnp.sqrt(jnp.sum((hyper * params * 0.0) ** 2))

    L = metalr.Unrolled(loss, optax.sgd, jnp.ones(2), steps=2)
    check = metalr.check_hypergrad(L, 0.1, engines=[metalr.Reverse()])
    assert check.verdict == "not finite"
    assert "metalr.diagnose" in check.reason
    with pytest.raises(metalr.HypergradientError, match="not finite"):
        metalr.check_hypergrad(
            L, 0.1, engines=[metalr.Reverse()], raise_on_mismatch=True
        )


@pytest.mark.filterwarnings("ignore:the optimizer stops a gradient")
def test_an_optimizer_that_stops_a_gradient_is_named_as_the_cause():
    """Of L-BFGS every engine gives 4.69; the run itself has the slope 6.09."""
    L = metalr.Unrolled(
        lambda w, s, b: jnp.sum((w - s) ** 4) + jnp.sum((w - s) ** 2),
        lambda s: optax.lbfgs(0.1, linesearch=None),
        jnp.array([1.0, -1.0]),
        steps=2,
    )
    check = metalr.check_hypergrad(L, 0.3, engines=[metalr.Forward()])
    assert check.verdict == "differs"
    assert "the optimizer stops a gradient (on the way to updates" in check.reason
    assert float(row(check, "finite").grad) == pytest.approx(6.0949975, rel=1e-6)


def test_a_stopped_gradient_in_the_loss_is_the_cause_and_no_fault_of_the_rule():
    """The hypergradient stops there too, as `jax.grad` of a written loop does."""

    def loss(w, h, b):
        return jnp.sum((w * jax.lax.stop_gradient(w) - h) ** 2)

    def written(h):
        w = jnp.ones(2)
        for _ in range(2):
            w = w - 0.1 * jax.grad(loss)(w, h, None)
        return jnp.sum((w - h) ** 2)

    L = metalr.Unrolled(
        loss,
        lambda h: optax.sgd(0.1),
        jnp.ones(2),
        steps=2,
        outer_loss=lambda w, h: jnp.sum((w - h) ** 2),
    )
    check = metalr.check_hypergrad(L, 0.3, engines=[metalr.Mixed()])
    assert float(row(check, "Mixed").grad) == pytest.approx(
        float(jax.grad(written)(0.3))
    )
    assert check.verdict == "differs"
    assert "derivatives of its own (stop_gradient)" in check.reason
    assert row(check, "inner").status == "inconclusive"
    assert "the loss stops a gradient" in row(check, "inner").reason


def test_a_stop_in_the_outer_loss_of_a_task_or_in_the_model_state_is_named():
    """First-order MAML and Reptile stop in the one, nnx.BatchNorm in the other."""
    stop = jax.lax.stop_gradient
    task = metalr.Unrolled(
        lambda w, h, b: (w - 1.0) ** 2,
        lambda h: optax.sgd(0.1),
        lambda h: h,
        steps=1,
        outer_loss=lambda w, h: (h + stop(w - h)) ** 2,
    )
    mean = metalr.tasks.Mean([task, task])
    check = metalr.check_hypergrad(mean, 0.3, engines=[metalr.Reverse()])
    assert check.verdict == "differs"
    assert "the outer loss has derivatives of its own (stop_gradient)" in check.reason
    carried = metalr.Unrolled(
        lambda w, h, b, state: ((w - 1.0) ** 2, stop(0.9 * state + w)),
        optax.sgd,
        0.0,
        steps=2,
        outer_loss=lambda w, h, state: (w + state) ** 2,
        model_state=jnp.array(0.0),
    )
    check = metalr.check_hypergrad(carried, 0.3, engines=[metalr.Reverse()])
    assert check.verdict == "differs"
    expected = "the model_state that the loss returns has derivatives of its own"
    assert expected in check.reason
    assert "the outer loss" not in check.reason


@jax.tree_util.register_pytree_node_class
class LateFault(metalr.Rollout):
    """Pulls back wrongly from step 3 on."""

    def pull_back(self, hyper, state, index, bar):
        bar, hyper_bar = super().pull_back(hyper, state, index, bar)
        factor = jnp.where(index < 3, 1.0, 1.0 + 1e-6)
        return bar, jax.tree.map(lambda x: factor * x, hyper_bar)


def test_any_run_is_checked_and_its_pull_back_step_by_step():
    step = lambda s, h, x: (jnp.sin(h * s) + 1.0, None)
    run = {"init": jnp.ones(2), "steps": 5, "value": lambda s, h: jnp.sum(s**2)}
    check = metalr.check_hypergrad(metalr.Rollout(step, **run), 0.7)
    assert check.verdict == "agrees"
    names = [r.name for r in check.rows if r.status in ("agrees", "reference")]
    for name in ("Reverse()", "Reverse(checkpoints=3)", "Forward()", "Mixed()"):
        assert name in names
    assert not any(r.role == "pull back" for r in check.rows)  # it is jax.vjp
    engines = [metalr.Reverse(), metalr.Mixed()]
    wrong = metalr.check_hypergrad(LateFault(step, **run), 0.7, engines=engines)
    found = row(wrong, "pull back")
    assert (found.status, found.leaf) == ("differs", "step 3")
    assert found.difference <= 1e-6
    assert row(wrong, "Mixed").status == "differs"


def test_a_mean_of_tasks_is_checked_in_each():
    tasks = [quadratic(steps=n) for n in (3, 3)]
    mean = metalr.tasks.Mean(tasks)
    check = metalr.check_hypergrad(mean, 0.2)
    assert check.verdict == "agrees"
    for name in ("Reverse()", "Each(engine=Mixed())"):
        assert row(check, name).status in ("agrees", "reference")
    exact = Quadratic.from_regression(*regression()).slope(0.2, 3)
    assert float(check.grad) == pytest.approx(float(exact), rel=1e-10)


@pytest.mark.parametrize(
    ("hyper", "reason"),
    [
        ({"rate": jnp.nan}, r"hyper\['rate'\] is not finite: pass a number"),
        ({"rate": 1e3}, "the run itself ends at .*metalr.diagnose"),
    ],
    ids=["nan", "diverged"],
)
def test_a_run_that_is_not_finite_has_a_verdict(hyper, reason):
    L = metalr.Unrolled(
        lambda w, h, b: jnp.sum(w**4),
        lambda h: optax.sgd(h["rate"]),
        jnp.ones(2),
        steps=9,
    )
    check = metalr.check_hypergrad(L, hyper, engines=[metalr.Reverse()])
    assert check.verdict == "not finite"
    assert re.search(reason, check.reason)
    assert check.rows[0].status == "not finite"
    with pytest.raises(metalr.HypergradientError, match="not finite"):
        metalr.check_hypergrad(
            L, hyper, engines=[metalr.Reverse()], raise_on_mismatch=True
        )


# Doubt is said.


def test_at_a_kink_and_in_chaos_differences_are_inconclusive():
    engines = [metalr.Reverse()]
    kinked = lambda x: jnp.sin(x) + jnp.abs(x - 1.0)
    check = metalr.check_hypergrad(kinked, 1.0, engines=engines)
    assert check.verdict == "inconclusive"
    assert "a kink" in row(check, "finite differences").reason

    def logistic_map(x):
        return jax.lax.fori_loop(0, 300, lambda _, y: 3.9 * y * (1.0 - y), x)

    chaotic = metalr.check_hypergrad(
        logistic_map, 0.3, engines=[metalr.Forward()], raise_on_mismatch=True
    )
    assert chaotic.verdict == "inconclusive"
    assert abs(float(chaotic.grad)) > 1e50
    assert "chaotic" in row(chaotic, "finite differences").reason


def test_in_chaos_an_engine_whose_run_ends_elsewhere_is_rounding_not_a_mistake():
    def logistic_map(x):
        return jax.lax.fori_loop(0, 300, lambda _, y: 3.9 * y * (1.0 - y), x)

    def elsewhere(objective, hyper):
        return metalr.Forward()(objective, hyper + 1e-15)

    engines = [metalr.Forward(), elsewhere]
    check = metalr.check_hypergrad(logistic_map, 0.3, engines=engines)
    assert check.verdict == "inconclusive"
    (found,) = [row for row in check.rows if "elsewhere" in row.name]
    assert found.status == "rounding"
    assert "ends at" in found.reason


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engines": []}, "engines is empty"),
        ({"rtol": 0.0}, "must be positive"),
        ({"random_directions": 0}, "random_directions"),
        ({"memory_limit": "much"}, "memory_limit"),
    ],
)
def test_bad_options_are_refused_before_anything_runs(options, message):
    with pytest.raises(ValueError, match=message):
        metalr.check_hypergrad(quadratic(), 0.1, **options)


# Float32, where the steps of differences cannot be small.


@pytest.mark.parametrize("kinks", [1, 30, 1000])
def test_kinks_between_the_steps_are_rarely_taken_for_a_derivative(kinks):
    """Two entries may agree by chance; the bends at the same steps tell."""
    random = np.random.default_rng(kinks)
    n, float32 = 2000, np.dtype("float32")
    place = random.uniform(-0.3, 0.3, (n, kinks))
    jump = 0.1 * random.normal(size=(n, kinks)) / np.sqrt(kinks)
    slope, level = random.normal(size=n), random.uniform(0.5, 2.0, n)

    def value(s):
        kinked = np.sum(jump * np.maximum(s - place, 0.0), axis=1)
        return np.float32(level + slope * s + kinked)

    found = slopes(np.stack([value(s) for s in shifts(float32)]), float32)
    exact = slope + np.sum(jump * (place < 0.0), axis=1)
    told = ~found.kink & (found.error <= 1e-2 * np.abs(found.value))
    beyond = np.abs(found.value - exact) > found.error + 3e-4 * np.abs(exact)
    assert np.mean(beyond[told]) < 0.05


ACTIVATIONS = {"relu": jax.nn.relu, "tanh": jnp.tanh}


def scaled(slope):
    """The identity, with this slope."""
    same = jax.custom_jvp(lambda x: x)
    same.defjvp(lambda primals, tangents: (primals[0], slope * tangents[0]))
    return same


def network_loss(name, slope):
    activation, rule = ACTIVATIONS[name], scaled(slope)

    def loss(data, params, hyper, batch):
        X, t = data
        hidden = activation(activation(X @ params["a"]) @ params["b"])
        return rule(jnp.mean((hidden @ params["c"] - t) ** 2))

    return loss


def row_of(loss, seed):
    """The row of a float32 network that is trained from a random start."""
    keys = jax.random.split(jax.random.key(seed), 5)
    normal = lambda i, *shape: jax.random.normal(keys[i], shape, jnp.float32)
    params = {"a": normal(0, 8, 16), "b": normal(1, 16, 16), "c": normal(2, 16, 3)}
    params = jax.tree.map(lambda w: w / len(w) ** 0.5, params)
    data = normal(3, 32, 8), normal(4, 32, 3)
    L = metalr.Unrolled(Partial(loss, data), optax.adam, params, steps=24)
    own = Precise(L, jnp.float32(0.01), np.dtype("float32"))
    rtol = float(np.sqrt(np.finfo(np.float32).eps))
    (found,) = inner_row(own, rtol, keys[0])
    return found


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_a_right_inner_gradient_in_float32_never_differs(name):
    loss = network_loss(name, 1.0)
    with jax.enable_x64(False):
        rows = [row_of(loss, seed) for seed in range(12)]
    assert {row.status for row in rows} <= {"agrees", "inconclusive"}
    if name == "tanh":
        assert {row.status for row in rows} == {"agrees"}


def test_an_inner_gradient_that_is_1_percent_off_in_float32_differs():
    loss = network_loss("tanh", 1.01)
    with jax.enable_x64(False):
        rows = [row_of(loss, seed) for seed in range(12)]
    assert {row.status for row in rows} == {"differs"}


def test_the_table_fits_a_terminal_and_says_all_of_it():
    def an_engine_with_a_name_that_has_no_room_in_a_column(objective, hyper):
        return metalr.Reverse()(objective, hyper)

    engines = [
        metalr.Reverse(),
        metalr.Reversible(),
        an_engine_with_a_name_that_has_no_room_in_a_column,
    ]
    L = quadratic(lambda h: optax.adam(h["rate"], h["b1"], h["b2"]), steps=2)
    hyper = {"rate": 0.1, "b1": 0.9, "b2": 0.99}
    check = metalr.check_hypergrad(L, hyper, engines=engines)
    lines = str(check).splitlines()
    wide = [line for line in lines if len(line) > 80]
    assert all("an_engine_with_a_name" in line for line in wide)  # one word
    said = " ".join(str(check).split())
    for row in check.rows:
        assert " ".join(row.reason.split()) in said
        assert row.name in said
    assert check.reason in said
    heads = lines[0]
    for row in check.rows[:2]:  # numbers stand below the ends of their heads
        (line,) = [line for line in lines if line.startswith(row.name)]
        if row.difference is not None:
            end = heads.index("difference") + len("difference")
            assert line[:end].endswith(f"{row.difference:.1e}")
