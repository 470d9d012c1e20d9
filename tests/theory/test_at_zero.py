"""Derivatives at η = 0 on a network, against autodiff through the unroll."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import metalr
from metalr.theory import at_zero

KEYS = jax.random.split(jax.random.key(0), 5)
INPUTS, TARGETS = jax.random.normal(KEYS[0], (6, 3)), jax.random.normal(KEYS[1], (6,))
PARAMS = {
    "first": jax.random.normal(KEYS[2], (3, 4)),
    "second": jax.random.normal(KEYS[3], (4,)),
}


def network(params, hyper, batch):
    return jnp.mean(
        (jnp.tanh(INPUTS @ params["first"]) @ params["second"] - TARGETS) ** 2
    )


def validation(params, hyper):
    shifted = jnp.tanh((INPUTS + 0.5) @ params["first"]) @ params["second"]
    return jnp.mean(jnp.cos(shifted - TARGETS))


def unrolled(optimizer, steps, outer_loss):
    return metalr.Unrolled(
        network, optimizer, PARAMS, steps=steps, outer_loss=outer_loss
    )


@pytest.mark.parametrize("outer_loss", [None, validation])
@pytest.mark.parametrize("momentum", [0.7, 1.0])
@pytest.mark.parametrize("steps", [1, 6])
def test_momentum_has_its_slope_and_curvature(momentum, steps, outer_loss):
    optimizer = lambda rate: optax.sgd(rate, momentum)
    L = unrolled(optimizer, steps, outer_loss)
    found = at_zero.heavy_ball(network, PARAMS, momentum, steps, outer_loss=outer_loss)
    slope, curvature = jax.jvp(jax.grad(L), (0.0,), (1.0,))
    np.testing.assert_allclose(found.slope, slope, rtol=1e-12)
    np.testing.assert_allclose(found.curvature, curvature, rtol=1e-12)


def test_gradient_descent_has_the_published_formulas():
    g = jax.grad(network)(PARAMS, None, None)
    flat, unravel = ravel_pytree(g)
    start = ravel_pytree(PARAMS)[0]
    H = jax.hessian(lambda w: network(unravel(w), None, None))(start)
    found = at_zero.gradient_descent(network, PARAMS, 9)
    np.testing.assert_allclose(found.slope, -9 * flat @ flat, rtol=1e-12)
    np.testing.assert_allclose(found.curvature, 9 * 17 * flat @ H @ flat, rtol=1e-11)


def test_momentum_reaches_as_far_as_its_geometric_sums():
    slope = lambda a: at_zero.heavy_ball(network, PARAMS, a, 8).slope
    reach = sum((1 - 0.6**s) / (1 - 0.6) for s in range(1, 9))
    np.testing.assert_allclose(slope(0.6) / slope(0.0), reach / 8, rtol=1e-13)


@pytest.mark.parametrize("outer_loss", [None, validation])
@pytest.mark.parametrize("eps", [0.0, 1e-2])
def test_adam_moves_by_signs(eps, outer_loss):
    L = unrolled(lambda rate: optax.adam(rate, eps=eps), 5, outer_loss)
    found = at_zero.adam_slope(network, PARAMS, 5, eps=eps, outer_loss=outer_loss)
    np.testing.assert_allclose(found, jax.grad(L)(0.0), rtol=1e-12)
    if eps == 0.0 and outer_loss is None:
        g = ravel_pytree(jax.grad(network)(PARAMS, None, None))[0]
        np.testing.assert_allclose(found, -5 * jnp.sum(jnp.abs(g)), rtol=1e-12)


@pytest.mark.parametrize("outer_loss", [None, validation])
@pytest.mark.parametrize(("accumulator", "eps"), [(0.0, 0.0), (0.1, 1e-7)])
def test_adagrad_slows_down_by_roots(accumulator, eps, outer_loss):
    optimizer = lambda rate: optax.adagrad(rate, accumulator, eps)
    L = unrolled(optimizer, 5, outer_loss)
    options = {"initial_accumulator_value": accumulator, "eps": eps}
    found = at_zero.adagrad_slope(network, PARAMS, 5, outer_loss=outer_loss, **options)
    np.testing.assert_allclose(found, jax.grad(L)(0.0), rtol=1e-12)
    if eps == 0.0 and outer_loss is None:
        g = ravel_pytree(jax.grad(network)(PARAMS, None, None))[0]
        expected = -jnp.sum(jnp.abs(g)) * sum(s**-0.5 for s in range(1, 6))
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_a_coordinate_without_gradient_counts_nothing():
    loss = lambda w, h, b: 0.5 * w[0] ** 2
    start = jnp.array([-2.0, 7.0])
    assert at_zero.adam_slope(loss, start, 3) == -6.0
    assert jnp.isfinite(at_zero.adagrad_slope(loss, start, 3))


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="steps = -1"):
        at_zero.adam_slope(network, PARAMS, -1)
