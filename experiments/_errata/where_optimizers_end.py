"""Part 1 of the notes: which solution an optimizer ends at."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

import metalr
from experiments._errata.row import Row, example, wide
from experiments._settings.source_notes import (
    FIRST_ITERATE,
    SECOND_GRADIENT,
    SECOND_ITERATE,
    lagged_adagrad,
    printed_accumulator,
)
from metalr import bias
from metalr.theory import implicit_bias as theory


def _exact_adagrad(rate: float = 0.5) -> optax.GradientTransformation:
    return optax.adagrad(rate, initial_accumulator_value=0.0, eps=0.0)


def minimum_norm() -> Row:
    """1.1.1: SGD from zero ends at the minimum-norm solution."""
    X, t, _ = wide()
    found = bias.limit(X, t, optax.sgd(0.1), rows="cyclic")
    return Row(
        "1.1.1",
        "right",
        "SGD from w₀ = 0 ends at Xᵀ(XXᵀ)⁻¹t (norm, 3 examples, 5 columns)",
        "it does: every iterate is Xᵀα",
        float(jnp.linalg.norm(X.T @ jnp.linalg.solve(X @ X.T, t))),
        float(jnp.linalg.norm(found.params)),
    )


def constant_is_a_matrix() -> Row:
    """1.1.1: xⱼᵀxⱼ, called a constant, is a matrix."""
    X, _ = example(1.0, 2.0)
    return Row(
        "1.1.1",
        "loose",
        "1 − xⱼᵀxⱼ, which multiplies w, is called a constant: numbers that it holds",
        "it is the matrix I − xⱼᵀxⱼ, of 2 columns here; the proof needs only that "
        "every step adds a multiple of xⱼᵀ",
        1.0,
        float((jnp.eye(2) - X.T @ X).size),
    )


def full_row_rank() -> Row:
    """1.1.1: the formula needs full row rank."""
    X = jnp.array([[1.0, 2.0], [1.0, 2.0]])
    return Row(
        "1.1.1",
        "loose",
        "the solution is Xᵀ(XXᵀ)⁻¹t, whatever X: the rank it needs for two examples",
        "the same example twice has rank 1; X⁺t is where SGD ends, for any rank",
        float(X.shape[0]),
        float(jnp.linalg.matrix_rank(X)),
    )


def start_off_zero() -> Row:
    """1.1.1: from w₀ ≠ 0, of which they do not speak, the limit is another."""
    X, t, w0 = wide()
    found = bias.limit(X, t, optax.sgd(0.1), w0=w0)
    return Row(
        "1.1.1",
        "missing",
        "– (w₀ = 0 is stated)",
        "from w₀ SGD ends at w₀ + X⁺(t − Xw₀): its norm, from a random w₀",
        None,
        float(jnp.linalg.norm(found.params)),
    )


def half_n_diverges() -> Row:
    """1.1.1: η = n/2, which simplifies their proof, diverges unless ‖x‖² ≤ 2."""
    X, t = example(1.0, 2.0)
    w = bias.path(X, t, optax.sgd(0.5), steps=20)[20]
    return Row(
        "1.1.1",
        "loose",
        "η = n/2, called unrealistic and chosen to simplify; |xw − t| after 20 steps, "
        "if it converged as the proof needs",
        "the residual grows by ‖x‖² − 1 = 4 a step: η = n/2 needs ‖xᵢ‖² ≤ 2",
        0.0,
        float(jnp.abs(X @ w - t)[0]),
    )


def momentum_right() -> Row:
    """1.1.2: momentum from rest ends at the minimum norm too."""
    X, t, _ = wide()
    found = bias.limit(X, t, optax.sgd(0.1, momentum=0.9))
    return Row(
        "1.1.2",
        "right",
        "momentum from w₀ = 0, δ₀ = 0 ends at the minimum-norm solution (its norm)",
        "it does, if it converges",
        float(jnp.linalg.norm(bias.min_norm_solution(X, t))),
        float(jnp.linalg.norm(found.params)),
    )


def momentum_drift() -> Row:
    """1.1.2: a first velocity, of which they do not speak, drifts."""
    X, t, _ = wide()
    delta0, eta, alpha = jnp.ones(5), 0.1, 0.9
    optimizer = optax.sgd(eta, momentum=alpha)
    state = optax.tree.set(optimizer.init(jnp.zeros(5)), trace=-delta0 / eta)
    found = bias.limit(X, t, optimizer, opt_state=state)
    return Row(
        "1.1.2",
        "missing",
        "– (w₀ = 0 and δ₀ = 0 are stated)",
        "with δ₀ it ends at X⁺t + P_null(w₀ + α/(1−α)·δ₀): distance to minimum norm "
        "for δ₀ = 1, α = 0.9",
        None,
        float(found.distance_to_min_norm),
    )


def adagrad_conclusion() -> Row:
    """1.2.1: AdaGrad need not find the minimum norm: right."""
    X, t = example(1.0, 2.0)
    found = bias.limit(X, t, _exact_adagrad())
    best = float(jnp.linalg.norm(bias.min_norm_solution(X, t)))
    return Row(
        "1.2.1",
        "right",
        "AdaGrad need not end at minimum norm: excess norm of t·sign(x)/‖x‖₁",
        "it ends at (1, 1), norm √2 against √1.8",
        float(jnp.linalg.norm(theory.sign_limit(X[0], 3.0))) - best,
        float(found.excess_norm),
    )


def adagrad_accumulator() -> Row:
    """1.2.1: the rate and ε do not belong into the sum of squared gradients."""
    X, t = example(1.0, 2.0)
    eta, eps = 2e-4, 1e-4
    optimizer, w0 = lagged_adagrad(eta, eps), jnp.zeros(2)
    gradient = jax.grad(metalr.problems.least_squares(X, t))(w0, None, None)
    _, state = optimizer.update(gradient, optimizer.init(w0))
    return Row(
        "1.2.1",
        "wrong",
        "G₁ = (2η/(εn))²·(9, 36): first entry for η = 2ε (theirs, η = ε, hides it)",
        "G₁ = (2/n)²·(9, 36): squared gradients know neither η nor ε",
        float(printed_accumulator(eta, eps, n=1)[0]),
        float(optax.tree.get(state, "sum_of_squares")[0]),
    )


def adagrad_gradient() -> Row:
    """1.2.1: a factor 2 is dropped in the second gradient."""
    X, t = example(1.0, 2.0)
    loss = metalr.problems.least_squares(X, t)
    gradient = jax.grad(loss)(jnp.array([6.0, 12.0]), None, None)
    return Row(
        "1.2.1",
        "wrong",
        "the gradient at (6, 12) is (27, 54): first entry",
        "(54, 108): a factor 2 is dropped",
        SECOND_GRADIENT[0],
        float(gradient[0]),
    )


def adagrad_iterate() -> Row:
    """1.2.1: the second iterate of the notes' own variant."""
    X, t = example(1.0, 2.0)
    w = bias.path(X, t, lagged_adagrad(1e-4, 1e-4), steps=2)
    return Row(
        "1.2.1",
        "wrong",
        "W₂ = (5.99955, 11.99955): first entry",
        "(5.9991, 11.9991), by the notes' own rule",
        SECOND_ITERATE[0],
        float(w[2, 0]),
    )


def adagrad_definition() -> Row:
    """1.2.1: AdaGrad's accumulator includes the current gradient."""
    X, t = example(1.0, 2.0)
    w = bias.path(X, t, _exact_adagrad(1e-4), steps=1)
    return Row(
        "1.2.1",
        "wrong",
        "W₁ = (6, 12): first entry, with an accumulator that lags by one step",
        "AdaGrad includes the current gradient: W₁ = η·sign(x), η = 1e-4",
        FIRST_ITERATE[0],
        float(w[1, 0]),
    )


def adagrad_lagged_limit() -> Row:
    """1.2.1: the notes' variant ends at (−3, 3), AdaGrad at (1, 1)."""
    X, t = example(1.0, 2.0)
    # After the first step all move along (1, 1): the rate changes only the time.
    rate = optax.join_schedules(
        [optax.constant_schedule(1e-4), optax.constant_schedule(1.0)], [1]
    )
    lagged = bias.limit(X, t, lagged_adagrad(rate, 1e-4))
    exact = bias.limit(X, t, _exact_adagrad())
    return Row(
        "1.2.1",
        "wrong",
        "where the notes' AdaGrad ends: (−3, 3), first entry",
        "AdaGrad ends at (1, 1)",
        float(lagged.params[0]),
        float(exact.params[0]),
    )


def one_iterate_proves_nothing() -> Row:
    """1.2.1: an iterate off the row space says nothing about the limit."""
    X, t = example(1.0, 2.0)
    w0, alpha, eta = jnp.array([2.0, -1.0]), 0.5, 0.05
    optimizer = optax.sgd(eta, momentum=alpha)
    delta0 = -(1.0 - alpha) / alpha * w0  # drifts back exactly onto the row space
    state = optax.tree.set(optimizer.init(w0), trace=-delta0 / eta)
    first = bias.path(X, t, optimizer, steps=1, w0=w0, opt_state=state)[1]
    found = bias.limit(X, t, optimizer, w0=w0, opt_state=state)
    space = theory.row_space(X)
    return Row(
        "1.2.1",
        "wrong",
        "W₂ off the row space, so the limit is off it: here W₁ of a momentum run is "
        "off by",
        "and its limit, the minimum-norm solution, by",
        float(jnp.linalg.norm(space.outside(first))),
        float(jnp.linalg.norm(space.outside(found.params))),
    )


def adagrad_equal_entries() -> Row:
    """1.2.1: for x = (1, 1) AdaGrad does reach the minimum norm."""
    X, t = example(1.0, 1.0)
    found = bias.limit(X, t, _exact_adagrad())
    return Row(
        "1.2.1",
        "missing",
        "–",
        "for x = (1, 1) AdaGrad does reach the minimum norm: distance to it",
        None,
        float(found.distance_to_min_norm),
    )


ROWS: tuple[Callable[[], Row], ...] = (
    minimum_norm,
    constant_is_a_matrix,
    full_row_rank,
    start_off_zero,
    half_n_diverges,
    momentum_right,
    momentum_drift,
    adagrad_conclusion,
    adagrad_accumulator,
    adagrad_gradient,
    adagrad_iterate,
    adagrad_definition,
    adagrad_lagged_limit,
    one_iterate_proves_nothing,
    adagrad_equal_entries,
)
