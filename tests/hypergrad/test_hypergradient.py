"""Engines against the closed form, each other, and their refusals."""

import jax
import jax.numpy as jnp
import optax
import pytest

import metalr
from metalr.problems import least_squares
from metalr.theory import Quadratic
from tests.helpers import assert_close, regression

ENGINES = [metalr.Reverse(), metalr.Forward(), metalr.Forward(chunk=1)]


def unrolled(steps, optimizer=optax.sgd, n=5):
    X, t = regression(n)
    objective = metalr.Unrolled(
        least_squares(X, t), optimizer, jnp.zeros(8), steps=steps
    )
    return objective, Quadratic.from_regression(X, t)


@pytest.mark.parametrize("engine", ENGINES, ids=str)
@pytest.mark.parametrize("steps", [1, 7, 12])
def test_hypergradient_matches_the_closed_form(engine, steps):
    objective, exact = unrolled(steps, n=20)  # a residual that no w removes
    edge = 2.0 / jnp.max(exact.eigenvalues)
    for fraction in (0.0, 0.4, 0.99):
        eta = fraction * edge
        value, grad = metalr.hypergradient(objective, eta, engine)
        assert_close(value, exact.loss(eta, steps), rtol=1e-12)
        assert_close(grad, exact.slope(eta, steps), rtol=1e-10)


@pytest.mark.parametrize("optimizer", [optax.sgd, optax.adam], ids=["sgd", "adam"])
@pytest.mark.parametrize("chunk", [None, 1, 2, 5, 100])
def test_forward_in_chunks_of_any_size_equals_reverse(optimizer, chunk):
    objective, _ = unrolled(5, metalr.per_step(optimizer))
    rates = jnp.linspace(0.05, 0.2, 5)
    expected = metalr.hypergradient(objective, rates)
    found = metalr.hypergradient(objective, rates, metalr.Forward(chunk))
    assert_close(found, expected, rtol=1e-10)


@pytest.mark.parametrize("engine", ENGINES, ids=str)
def test_the_gradient_can_be_batched_and_differentiated(engine):
    objective, exact = unrolled(4)
    slope = lambda eta: metalr.hypergradient(objective, eta, engine).grad
    etas = jnp.array([0.1, 0.3])
    expected = jax.vmap(lambda e: exact.curvature(e, 4))(etas)
    assert_close(jax.vmap(jax.jacfwd(slope))(etas), expected, rtol=1e-11)
    assert_close(jax.jit(jax.vmap(jax.grad(slope)))(etas), expected, rtol=1e-11)


def test_the_gradient_has_the_structure_of_hyper():
    make = lambda h: optax.sgd(h["rate"], h["momentum"][0])
    objective, _ = unrolled(3, make)
    hyper = {"rate": 0.1, "momentum": (0.9,)}
    for engine in ENGINES:
        grad = metalr.hypergradient(objective, hyper, engine).grad
        assert jax.tree.structure(grad) == jax.tree.structure(hyper)


def test_any_scalar_function_is_an_objective():
    value, grad = metalr.hypergradient(lambda h: jnp.sum(h**2), jnp.arange(3.0))
    assert_close((value, grad), (jnp.array(5.0), 2 * jnp.arange(3.0)), rtol=1e-15)


def independent_cases():
    X, t = regression()
    loss, zeros = least_squares(X, t), jnp.zeros(8)
    both = {"rate": 0.1, "momentum": 0.9}
    rate_only = lambda h: optax.sgd(h["rate"])
    stopped = lambda h: optax.sgd(jax.lax.stop_gradient(h))
    rounded = lambda h: optax.sgd(0.1 * jnp.round(h).astype(int))
    branch = lambda h: optax.sgd(jnp.where(h > 0.0, 0.1, 0.2))

    def unused_carry(h):
        sgd = optax.sgd(0.1)
        init = lambda params: (sgd.init(params), h)
        update = lambda g, s, p=None: (
            sgd.update(g, s[0], p)[0],
            (s[0], 0.9 * s[1] + h),
        )
        return optax.GradientTransformation(init, update)  # pyright: ignore[reportArgumentType]

    make = lambda optimizer: metalr.Unrolled(loss, optimizer, zeros, steps=3)
    return {
        "a leaf that nobody reads": (make(rate_only), both, r"hyper\['momentum'\]"),
        "the rate never reached the optimizer": (
            make(lambda h: optax.sgd(0.1)),
            0.1,
            "depend on hyper:",
        ),
        "stop_gradient": (make(stopped), 0.1, "depend on hyper:"),
        "only through an integer": (make(rounded), 0.1, "depend on hyper:"),
        "only through a comparison": (make(branch), 0.1, "depend on hyper:"),
        "carried along, never used": (make(unused_carry), 0.1, "depend on hyper:"),
        "no steps": (
            metalr.Unrolled(loss, optax.sgd, zeros, steps=0),
            0.1,
            "steps > 0",
        ),
    }


@pytest.mark.parametrize("name", independent_cases())
@pytest.mark.parametrize("engine", ENGINES[:2], ids=str)
def test_a_hyperparameter_without_effect_is_an_error_not_a_zero(name, engine):
    objective, hyper, message = independent_cases()[name]
    with pytest.raises(ValueError, match=message):
        metalr.hypergradient(objective, hyper, engine)


def test_a_derivative_that_happens_to_be_zero_is_not_an_error():
    loss = least_squares(jnp.array([[1.0, 1.0]]), jnp.array([3.0]))
    objective = metalr.Unrolled(loss, optax.sgd, jnp.zeros(2), steps=2)
    assert metalr.hypergradient(objective, 0.25).grad == 0.0
    # Through a loop, a branch and a nested call: dependence must still be seen.
    inner = jax.jit(lambda x: jax.lax.cond(x > 0.0, lambda: x, lambda: 2 * x))
    nested = lambda h: jax.lax.fori_loop(0, 3, lambda _, c: c * inner(h), 0.0)
    assert metalr.hypergradient(nested, 0.1).grad == 0.0
    late = lambda h: jax.lax.while_loop(
        lambda c: c[0] < 5.0, lambda c: (c[0] + 1.0, c[2], h), (0.0, 1.0, 1.0)
    )[1]
    assert metalr.hypergradient(late, 0.1, metalr.Forward()).grad == 1.0


@pytest.mark.parametrize("chunk", [0, -1, True])
def test_a_chunk_that_is_not_a_positive_int_is_refused(chunk):
    with pytest.raises(ValueError, match="chunk = "):
        metalr.Forward(chunk=chunk)


def test_engines_are_hashable_values():
    assert metalr.Forward(chunk=2) == metalr.Forward(chunk=2)
    assert len({metalr.Reverse(), metalr.Reverse(), metalr.Forward()}) == 2
    assert str(metalr.Forward(chunk=2)) == "Forward(chunk=2)"
