"""Slow, obvious references, and the comparisons that tests use."""

import itertools
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

import metalr
from metalr.problems import least_squares


def assert_close(actual: Any, expected: Any, *, rtol: float, atol: float = 0.0) -> None:
    """Leaf by leaf; structures must agree."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(e), rtol=rtol, atol=atol)


def assert_near(actual: Any, expected: Any, *, rtol: float, atol: float = 0.0) -> None:
    """Leaf by leaf, to the size of the leaf's largest entry; shapes and dtypes too."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert jnp.shape(a) == jnp.shape(e)
        assert jnp.result_type(a) == jnp.result_type(e)
        error = jnp.max(jnp.abs(a - e), initial=0.0)
        bound = rtol * jnp.max(jnp.abs(e), initial=0.0) + atol
        assert error <= bound, f"{a} and {e} differ by {error}"


def finite_difference(function: Any, hyper: Any) -> Any:
    """Central differences in float64; error about eps^(2/3) of the function's scale."""
    flat, unravel = ravel_pytree(hyper)
    step = float(np.finfo(np.float64).eps) ** (1 / 3)

    def slope(index: int) -> float:
        shift = step * jnp.zeros_like(flat).at[index].set(1.0)
        up, down = function(unravel(flat + shift)), function(unravel(flat - shift))
        return float((up - down) / (2 * step))

    return unravel(jnp.array([slope(index) for index in range(flat.size)]))


def python_loop(loss, optimizer, params, hyper, steps, batches=None):
    """The run as one would write it without scan: a Python loop over optax updates."""
    tx = optax.with_extra_args_support(optimizer(hyper))
    state = tx.init(params)
    losses = []
    for step in range(steps):
        batch = jax.tree.map(lambda b, step=step: b[step], batches)
        value, grads = jax.value_and_grad(loss)(params, hyper, batch)
        losses.append(value)
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params, losses


def regression(n: int = 5, d: int = 8, seed: int = 0) -> tuple[jax.Array, jax.Array]:
    """A small random regression, overparametrized by default."""
    rng = np.random.default_rng(seed)
    X = jnp.array(rng.normal(size=(n, d)) / np.sqrt(d))
    return X, jnp.array(rng.normal(size=n))


def normal_regression(
    seed: int = 0, n: int = 7, d: int = 4
) -> tuple[np.ndarray, np.ndarray]:
    """A regression with standard normal entries, in NumPy."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)), rng.normal(size=n)


def mean_square(X, t, w) -> float:
    return float(np.mean((X @ w - t) ** 2))


def descend(X, t, rates, momentum=0.0, nesterov=False) -> float:
    """Loss after a step with each rate, from zero, as optax's sgd would."""
    w, trace = np.zeros(X.shape[1]), np.zeros(X.shape[1])
    for rate in rates:
        g = 2.0 / len(t) * X.T @ (X @ w - t)
        trace = g + momentum * trace
        w = w - rate * (g + momentum * trace if nesterov else trace)
    return mean_square(X, t, w)


def cgls(X, t, steps: int) -> float:
    """Loss after `steps` of conjugate gradients on the normal equations, from zero."""
    w = np.zeros(X.shape[1])
    r = t - X @ w
    s = X.T @ r
    p, gamma = s.copy(), s @ s
    for _ in range(steps):
        q = X @ p
        alpha = gamma / (q @ q)
        w, r = w + alpha * p, r - alpha * q
        s = X.T @ r
        p, gamma = s + s @ s / gamma * p, s @ s
    return mean_square(X, t, w)


def sgd_by_enumeration(X, t, rates, batch_size=1) -> float:
    """Mean loss over all ways to draw rows, with replacement, in each step."""
    n = len(t)
    draws = list(itertools.product(range(n), repeat=batch_size))
    losses = []
    for path in itertools.product(draws, repeat=len(rates)):
        w = np.zeros(X.shape[1])
        for rate, rows in zip(rates, path, strict=True):
            A, b = X[list(rows)], t[list(rows)]
            w = w - rate * 2.0 / batch_size * A.T @ (A @ w - b)
        losses.append(mean_square(X, t, w))
    return float(np.mean(losses))


def exact_heavy_ball(u, momentum, steps: int) -> float:
    """c_T(u) in rational arithmetic: no rounding before the last."""
    u, alpha = Fraction(u), Fraction(momentum)
    before, now = Fraction(1), Fraction(1)
    for _ in range(steps):
        before, now = now, (1 + alpha - u) * now - alpha * before
    return float(now)


OPTIMIZERS = {
    "sgd": lambda h: optax.sgd(h["rate"]),
    "momentum": lambda h: optax.sgd(h["rate"], momentum=0.9),
    "nesterov": lambda h: optax.sgd(h["rate"], momentum=0.9, nesterov=True),
    "adam": lambda h: optax.adam(h["rate"]),
    "rmsprop": lambda h: optax.rmsprop(h["rate"]),
    "adagrad": lambda h: optax.adagrad(h["rate"]),
    "chain": lambda h: optax.chain(
        optax.clip_by_global_norm(0.5),
        optax.add_decayed_weights(0.1),
        optax.sgd(h["rate"]),
    ),
}


def network_loss(params, hyper, batch):
    """Of a tanh network with one hidden layer."""
    x, y = batch
    hidden = jnp.tanh(x @ params["in"] + params["bias"])
    return jnp.mean((hidden @ params["out"] - y) ** 2)


def network(steps):
    """Parameters, and a batch for each step."""
    keys = jax.random.split(jax.random.key(1), 5)
    params = {
        "in": 0.5 * jax.random.normal(keys[0], (3, 4)),
        "bias": 0.1 * jax.random.normal(keys[1], (4,)),
        "out": jax.random.normal(keys[2], (4,)),
    }
    batches = (
        jax.random.normal(keys[3], (steps, 6, 3)),
        jax.random.normal(keys[4], (steps, 6)),
    )
    return params, batches


HEAVY_BALL = {"rate": 0.3, "momentum": 0.5}


def heavy_ball(hyper):
    return optax.sgd(hyper["rate"], hyper["momentum"])


def heavy_ball_task(seed, make=heavy_ball, steps=5):
    """A regression of its own for each seed."""
    X, t = regression(4, 3, seed=seed)
    return metalr.Unrolled(least_squares(X, t), make, jnp.zeros(3), steps=steps)
