"""`metalr.guard`: the same run, derivatives that are finite and right."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metalr
from metalr._programs.dependence import independent_leaves
from tests.helpers import assert_close, finite_difference

ALIVE = jnp.array([1.0, 2.0, 0.0])
SIX = {
    "adam": optax.adam,
    "adamw": optax.adamw,
    "amsgrad": optax.amsgrad,
    "nadam": optax.nadam,
    "radam": lambda rate: optax.radam(rate, threshold=1.0),
    "lamb": optax.lamb,
}


def loss(params, hyper, batch):
    return jnp.sum(ALIVE * (params - 0.3) ** 2)


def unrolled(optimizer, **options):
    options = {"steps": 3, **options}
    return metalr.Unrolled(loss, optimizer, jnp.ones(3), **options)


def update_of(function):
    """A function of an array as the update of a transformation."""
    return optax.GradientTransformation(
        lambda params: optax.EmptyState(),
        lambda updates, state, params=None: (function(updates), state),
    )


def guarded(function):
    transformation = metalr.guard(update_of(function))
    return lambda x: transformation.update(x, optax.EmptyState())[0]


def every_second(function):
    return [
        jax.jacfwd(jax.jacfwd(function)),
        jax.jacfwd(jax.grad(function)),
        jax.grad(jax.grad(function)),
        jax.jit(jax.grad(jax.grad(function))),
    ]


@pytest.mark.parametrize("name", SIX)
def test_a_dead_coordinate_gives_nan_without_the_guard_only(name):
    plain, safe = (unrolled(SIX[name], guarded=g) for g in (False, True))
    rate = jnp.array(0.1)
    for derivative in (jax.jacfwd, jax.grad):
        assert np.isnan(derivative(plain)(rate))
        assert_close(derivative(safe)(rate), finite_difference(safe, rate), rtol=1e-7)
    assert_close(safe(rate), plain(rate), rtol=0.0)


def test_eps_root_changes_the_run_and_the_guard_does_not():
    rate = jnp.array(0.1)
    plain = unrolled(optax.adam, guarded=False)
    mended = unrolled(lambda h: optax.adam(h, eps_root=1e-8), guarded=False)
    assert np.isfinite(jax.grad(mended)(rate))
    assert mended(rate) != plain(rate)
    assert unrolled(optax.adam)(rate) == plain(rate)


ROOTS = {
    "sqrt": jnp.sqrt,
    "jit": jax.jit(jnp.sqrt),
    "checkpoint": jax.checkpoint(jnp.sqrt),
    "cond": lambda x: jax.lax.cond(x < 9.0, jnp.sqrt, jnp.sin, x),
    "switch": lambda x: jax.lax.switch(1, [jnp.sin, jnp.sqrt], x),
    "scan": lambda x: jax.lax.scan(lambda c, _: (jnp.sqrt(x), None), x, None, 2)[0],
    "power": lambda x: x**0.5,
    "logarithm": lambda x: jnp.exp(0.5 * jnp.log(x)),
    "reciprocal": lambda x: jnp.where(x > 0.0, 1.0 / jax.lax.rsqrt(x), 0.0),
    "selected": lambda x: jnp.where(x > 0.0, 2.0 * (x / jnp.sqrt(x)) / 2.0, 0.0),
    "negative power": lambda x: jnp.where(x > 0.0, x * x**-1 * jnp.sqrt(x), 0.0),
}


@jax.custom_jvp
def forward_root(x):
    return jnp.sqrt(x)


@forward_root.defjvp
def _(primals, tangents):
    root = forward_root(*primals)
    return root, tangents[0] * 0.5 / root


@jax.custom_vjp
def reverse_root(x):
    return jnp.sqrt(x)


reverse_root.defvjp(
    lambda x: (reverse_root(x), reverse_root(x)), lambda root, ct: (ct * (0.5 / root),)
)
ROOTS |= {"custom_jvp": forward_root, "custom_vjp": reverse_root}


@pytest.mark.parametrize("name", ROOTS)
def test_every_way_to_write_a_root_has_its_derivatives_and_0_at_0(name):
    function = guarded(ROOTS[name])
    root = lambda x: function(jnp.asarray(x))
    assert root(0.0) == 0.0
    assert jax.grad(root)(0.0) == 0.0
    assert_close(jax.grad(root)(4.0), 0.25, rtol=1e-14)
    both = every_second(root) if name != "custom_vjp" else [jax.grad(jax.grad(root))]
    for second in both:
        assert second(0.0) == 0.0
        assert_close(second(4.0), -1 / 32, rtol=1e-14)
    points = jnp.array([0.0, 4.0])
    assert_close(jax.vmap(jax.grad(root))(points), jnp.array([0.0, 0.25]), rtol=1e-14)


def test_forward_mode_passes_a_while_loop():
    step = lambda c: (c[0] + 1, jnp.sqrt(c[1]))
    root = guarded(lambda x: jax.lax.while_loop(lambda c: c[0] < 2, step, (0, x))[1])
    assert jax.jacfwd(root)(0.0) == 0.0
    assert_close(jax.jacfwd(root)(16.0), 1 / 32, rtol=1e-14)


def test_the_second_derivative_survives_a_scan_in_every_mode():
    # JAX drops custom_jvp rules from a scan that it linearizes; see `_poles`.
    root = guarded(jnp.sqrt)

    def function(x):
        return jax.lax.scan(lambda c, _: (root(c * x), None), 0.0 * x, None, 2)[0]

    for second in every_second(function):
        assert second(1.0) == 0.0


def test_a_norm_has_derivative_0_at_0_and_a_root_of_a_square_is_symmetric():
    norm = guarded(jnp.linalg.norm)
    assert_close(jax.grad(norm)(jnp.zeros(3)), jnp.zeros(3), rtol=0.0)
    assert_close(jax.hessian(norm)(jnp.zeros(3)), jnp.zeros((3, 3)), rtol=0.0)
    magnitude = guarded(lambda x: jnp.sqrt(x**2))
    assert jax.grad(magnitude)(0.0) == 0.0
    # x/(|x| + ε) has the derivative 1/ε at 0: Adam where the gradient crosses 0.
    ratio = guarded(lambda x: x / (jnp.sqrt(x**2) + 0.25))
    assert jax.grad(ratio)(0.0) == 4.0
    assert jax.grad(jax.grad(ratio))(0.0) == 0.0


def test_a_derivative_that_is_only_large_is_not_cut_off():
    quotient = guarded(lambda x: x / jnp.float32(1e-25))
    assert_close(jax.grad(quotient)(jnp.float32(1.0)), jnp.float32(1e25), rtol=1e-6)
    inverse = guarded(lambda x: jnp.float32(1e-25) / x)
    slope = jax.grad(inverse)(jnp.float32(1e-25))
    assert_close(slope, jnp.float32(-1e25), rtol=1e-6)


def test_nan_stays_nan():
    root = guarded(jnp.sqrt)
    assert np.isnan(jax.grad(root)(jnp.array(jnp.nan)))


def test_float32_stays_float32_and_finite():
    start = jnp.ones(3, jnp.float32)
    alive = ALIVE.astype(jnp.float32)
    objective = metalr.Unrolled(
        lambda p, h, b: jnp.sum(alive * (p - 0.3) ** 2), optax.adam, start, steps=3
    )
    grad = jax.grad(objective)(jnp.float32(0.1))
    assert grad.dtype == jnp.float32
    exact = jax.grad(unrolled(optax.adam))(jnp.array(0.1))
    assert_close(grad, exact.astype(jnp.float32), rtol=1e-4)


def test_an_update_without_a_pole_is_the_same_program():
    for guard in (True, False):
        objective = unrolled(lambda h: optax.sgd(h, momentum=0.9), guarded=guard)
        program = str(jax.make_jaxpr(objective)(0.1))
        assert "guarded" not in program
    assert "guarded" in str(jax.make_jaxpr(unrolled(optax.adam))(0.1))


def test_the_forward_program_is_the_same_text():
    texts = [
        jax.jit(unrolled(optax.adam, guarded=g)).lower(0.1).as_text()
        for g in (True, False)
    ]
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    "engine",
    [
        metalr.Forward(),
        metalr.Reverse(checkpoints=2),
        metalr.Mixed(),
        metalr.Truncated(3),
    ],
    ids=str,
)
def test_every_engine_passes_a_dead_coordinate(engine):
    objective = unrolled(optax.adam)
    expected = finite_difference(objective, jnp.array(0.1))
    found = metalr.hypergradient(objective, jnp.array(0.1), engine)
    assert_close(found.grad, expected, rtol=1e-7)


def masked(rate):
    labels = {"a": "adam", "b": "frozen"}
    parts: dict = {"adam": optax.adam(rate), "frozen": optax.set_to_zero()}
    return optax.multi_transform(parts, labels)


AWKWARD = {
    "per_step": (metalr.per_step(optax.adam), jnp.array([0.1, 0.2, 0.05])),
    "hyperparameters of the state": (
        lambda h: optax.inject_hyperparams(optax.adam)(learning_rate=h),
        jnp.array(0.1),
    ),
    "masked": (masked, jnp.array(0.1)),
    "a random key in the state": (
        lambda h: optax.chain(
            optax.add_noise(0.01, 0.5, key=jax.random.key(0)), optax.adam(h)
        ),
        jnp.array(0.1),
    ),
    "value": (lambda h: metalr.guard(optax.polyak_sgd)(1.0, h), jnp.array(0.7)),
    "a start that depends on hyper": (
        lambda h: optax.adagrad(0.1, initial_accumulator_value=h),
        jnp.array(0.2),
    ),
    "momentum": (lambda h: optax.adam(0.1, b1=h), jnp.array(0.8)),
}


@pytest.mark.parametrize("name", AWKWARD)
def test_awkward_optimizers_run_alike_and_differentiate(name):
    optimizer, hyper = AWKWARD[name]
    params = {"a": jnp.ones(3), "b": jnp.array(0.5)}

    def of_tree(params, hyper, batch):
        return loss(params["a"], hyper, batch) + params["b"] ** 2

    plain, safe = (
        metalr.Unrolled(of_tree, optimizer, params, steps=3, guarded=g)
        for g in (False, True)
    )
    assert safe(hyper) == plain(hyper)
    expected = finite_difference(safe, hyper)
    assert_close(jax.grad(safe)(hyper), expected, rtol=1e-6, atol=1e-9)


def test_value_fn_is_passed_on_as_a_function():
    linesearch = lambda h: optax.chain(
        optax.scale(-h),
        optax.scale_by_backtracking_linesearch(max_backtracking_steps=3),
    )
    plain, safe = (unrolled(linesearch, guarded=g) for g in (False, True))
    assert safe(0.3) == plain(0.3)
    slope = jax.jacfwd(safe)(0.3)
    assert_close(slope, finite_difference(safe, jnp.array(0.3)), rtol=1e-6)


def test_none_leaves_and_updates_outside_jit_pass_through():
    transformation = metalr.guard(optax.adam(0.1))
    params = {"a": jnp.ones(2), "none": None}
    state = transformation.init(params)
    updates, _ = transformation.update(params, state, params)
    plain = optax.adam(0.1)
    expected, _ = plain.update(params, plain.init(params), params)
    assert_close(updates, expected, rtol=0.0)


def test_a_hyperparameter_that_matters_is_still_seen_to_matter():
    objective = unrolled(lambda h: optax.adam(h["rate"], b1=h["b1"]))
    hyper = {"rate": jnp.array(0.1), "b1": jnp.array(0.9), "other": jnp.array(1.0)}
    assert independent_leaves(objective, hyper) == ["hyper['other']"]


def test_guarding_twice_is_guarding_once():
    once = metalr.guard(optax.adam(0.1))
    assert metalr.guard(once) is once


def test_what_is_no_optimizer_is_refused():
    with pytest.raises(ValueError, match="must be an optax"):
        metalr.guard(0.1)
