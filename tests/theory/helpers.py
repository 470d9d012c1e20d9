"""Slow, obvious references in NumPy for the closed forms; they have their own tests."""

import itertools

import numpy as np


def regression(seed: int = 0, n: int = 7, d: int = 4) -> tuple[np.ndarray, np.ndarray]:
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
    from fractions import Fraction

    u, alpha = Fraction(u), Fraction(momentum)
    before, now = Fraction(1), Fraction(1)
    for _ in range(steps):
        before, now = now, (1 + alpha - u) * now - alpha * before
    return float(now)
