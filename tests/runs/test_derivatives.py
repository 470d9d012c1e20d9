"""`Unrolled.derivatives`: the curve of the run with its two derivatives."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metalr
from metalr.problems import least_squares
from metalr.theory import Quadratic

from ..helpers import assert_close, regression


def tanh_loss(params, hyper, batch):
    """Not a quadratic, sees its batch."""
    residual = jnp.tanh(batch @ params["w"]) + params["b"] - 0.3
    return jnp.mean(residual**2)


def tanh_objective(optimizer, steps=5, **options):
    rng = np.random.default_rng(1)
    batches = jnp.array(rng.normal(size=(steps, 4, 3)))
    params = {"w": jnp.array([0.3, -0.2, 0.5]), "b": jnp.array(0.1)}
    return metalr.Unrolled(
        tanh_loss, optimizer, params, steps=steps, batches=batches, **options
    )


@pytest.mark.parametrize("relative", [0.3, 0.99, 1.2])  # the last beyond the edge
def test_the_curve_on_a_quadratic_is_the_closed_form_at_every_step(relative):
    X, t = regression()
    exact = Quadratic.from_regression(X, t)
    eta = relative * 2.0 / jnp.max(exact.eigenvalues)
    L = metalr.Unrolled(least_squares(X, t), optax.sgd, jnp.zeros(X.shape[1]), steps=17)
    found = L.derivatives(eta)
    for order, kind in enumerate(("loss", "slope", "curvature")):
        closed = jnp.array([getattr(exact, kind)(eta, s) for s in range(18)])
        scale = float(jnp.max(jnp.abs(closed)))
        assert_close(found[order], closed, rtol=1e-10, atol=1e-14 * scale)


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda h: optax.adam(jnp.exp(h)),
        lambda h: optax.sgd(jnp.exp(h), momentum=0.9, nesterov=True),
    ],
    ids=["adam", "nesterov"],
)
def test_with_batches_a_log_rate_and_any_optimizer_it_is_what_jax_makes_of_trajectory(
    optimizer,
):
    L = tanh_objective(optimizer)
    at, step = jnp.array(-2.0), 6e-6
    found = L.derivatives(at)
    assert_close(found.values, L.trajectory(at), rtol=1e-14)
    assert_close(found.slopes, jax.jacrev(L.trajectory)(at), rtol=1e-11, atol=1e-14)
    up, down = L.derivatives(at + step).slopes, L.derivatives(at - step).slopes
    assert_close(found.curvatures, (up - down) / (2 * step), rtol=1e-7, atol=1e-9)


def test_a_pytree_with_one_scalar_is_a_scalar_and_jit_and_vmap_agree():
    L = tanh_objective(lambda h: optax.sgd(h["rate"]))
    rates = jnp.array([0.1, 0.3])
    apart = [L.derivatives({"rate": rate}) for rate in rates]
    together = jax.jit(jax.vmap(L.derivatives))({"rate": rates})
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *apart)
    assert_close(together, stacked, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize(
    "hyper", [{"a": 0.1, "b": 0.2}, jnp.array([0.1]), jnp.array([0.1, 0.2])]
)
def test_several_hyperparameters_are_refused_with_a_remedy(hyper):
    L = tanh_objective(lambda h: optax.sgd(jax.tree.leaves(h)[0]))
    with pytest.raises(ValueError, match=r"must be one scalar: use jax\.jacfwd"):
        L.derivatives(hyper)


def test_the_last_slope_is_the_hypergradient_and_zero_steps_is_the_start():
    L = tanh_objective(optax.sgd)
    grad = metalr.hypergradient(L, 0.2).grad
    assert_close(L.derivatives(0.2).slopes[-1], grad, rtol=1e-13)
    X, t = regression()
    start = metalr.Unrolled(least_squares(X, t), optax.sgd, jnp.zeros(8), steps=0)
    values, slopes, curvatures = start.derivatives(0.2)
    assert values.shape == slopes.shape == curvatures.shape == (1,)
    assert slopes[0] == curvatures[0] == 0.0


def test_float32_stays_float32_and_one_compilation_serves_all_rates():
    X, t = (x.astype(jnp.float32) for x in regression())
    loss, start = least_squares(X, t), jnp.zeros(8, jnp.float32)
    L = metalr.Unrolled(loss, optax.sgd, start, steps=6)

    @chex.assert_max_traces(n=1)
    def slopes(rate):
        return L.derivatives(rate).slopes

    exact = Quadratic.from_regression(X, t)
    for rate in (0.1, 0.4):
        found = jax.jit(slopes)(jnp.float32(rate))
        assert found.dtype == jnp.float32
        closed = jnp.array([exact.slope(rate, s) for s in range(7)])
        assert_close(found, closed, rtol=1e-4, atol=1e-5)


def test_memory_does_not_grow_with_the_number_of_steps_but_for_the_result():
    X, t = regression(n=20, d=200)

    def temp_bytes(steps):
        L = metalr.Unrolled(least_squares(X, t), optax.sgd, jnp.zeros(200), steps=steps)
        compiled = jax.jit(L.derivatives).lower(jnp.array(0.1)).compile()
        accounting: Any = compiled.memory_analysis()
        return accounting.temp_size_in_bytes

    # Three numbers a step, and room for XLA's copies of them; a state is 1600 bytes.
    assert temp_bytes(1000) - temp_bytes(100) < 900 * 8 * 20
