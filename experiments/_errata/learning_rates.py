"""Part 2 of the notes: the loss after t steps as a function of the learning rate."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import metalr
from experiments._errata.row import Row, descent, example, wide
from experiments._settings.source_notes import (
    printed_curvature,
    printed_loss,
    printed_residual,
    printed_slope,
)
from metalr import bias
from metalr.theory import Quadratic


def graph_of_two_steps() -> Row:
    """2.1.1: the derivative along the edges of the missing graph."""
    x, t, eta = 1.5, 3.0, 0.07
    w0, curvature = 0.0, 2.0 * x * x

    def slope(w: float) -> float:
        return 2.0 * x * (x * w - t)

    w1 = w0 - eta * slope(w0)
    w2 = w1 - eta * slope(w1)
    # η → w₁ → (w₂, ∇L₁ → w₂) and η → w₂; L₀ and L₁ are side outputs.
    through_w1 = (1.0 - eta * curvature) * -slope(w0)
    by_edges = slope(w2) * (through_w1 - slope(w1))
    return Row(
        "2.1.1",
        "missing",
        "–",
        "w₀→∇L₀; (w₀,∇L₀,η)→w₁; w₁→∇L₁; (w₁,∇L₁,η)→w₂→L₂: dL₂/dη along these edges, "
        "x = 1.5, η = 0.07",
        None,
        by_edges,
    )


def memory_forward() -> Row:
    """2.1.2: the run itself needs no more for more steps."""
    return Row(
        "2.1.2",
        "right",
        "forward propagation through t steps takes O(1): bytes a step",
        "bytes a step of the compiled run, without derivative",
        0.0,
        _bytes_per_step(lambda objective: objective),
    )


def memory_reverse() -> Row:
    """2.1.2: back-propagation keeps every state."""
    return Row(
        "2.1.2",
        "right",
        "back-propagation through t steps takes O(t): bytes a step, 64 float64 numbers",
        "bytes a step of the compiled program",
        8.0 * 64,
        _bytes_per_step(lambda objective: _slope(objective, metalr.Reverse())),
    )


def memory_forward_mode() -> Row:
    """2.1.2: forward-mode differentiation needs no more for more steps either."""
    return Row(
        "2.1.2",
        "missing",
        "–",
        "forward-mode differentiation is O(1) in t: bytes a step of the program",
        None,
        _bytes_per_step(lambda objective: _slope(objective, metalr.Forward())),
    )


def _slope(objective: metalr.Unrolled, engine: Any) -> Callable[[Any], Any]:
    return lambda rate: metalr.hypergradient(objective, rate, engine).grad


def _bytes_per_step(function: Callable[[metalr.Unrolled], Any]) -> float:
    X = jax.random.normal(jax.random.key(0), (8, 64))

    def temporary(steps: int) -> int:
        objective = descent(X, jnp.ones(8), jnp.zeros(64), steps=steps)
        return metalr.profiling.compiled(function(objective), 0.1).temp_bytes

    return (temporary(300) - temporary(200)) / 100


def one_step_loss() -> Row:
    """2.2.1: the loss after one step."""
    X, t, w0 = wide()
    a, K, n, eta = X @ w0 - t, X @ X.T, X.shape[0], 0.05
    return Row(
        "2.2.1",
        "right",
        "L₁ = ‖a − (2η/n)Ka‖²/n; 3 examples, 5 columns, η = 0.05",
        "the unroll",
        float(jnp.sum((a - 2.0 * eta / n * K @ a) ** 2) / n),
        float(descent(X, t, w0, steps=1)(eta)),
    )


def one_step_slope() -> Row:
    """2.2.2: the derivative of the loss after one step."""
    X, t, w0 = wide()
    a, K, n, eta = X @ w0 - t, X @ X.T, X.shape[0], 0.05
    return Row(
        "2.2.2",
        "right",
        "L₁' = −(4/n²)·aᵀ(I − (2η/n)K)Ka; the same",
        "jax.grad of the unroll",
        float(-4.0 / n**2 * a @ (K @ a - 2.0 * eta / n * K @ K @ a)),
        float(jax.grad(descent(X, t, w0, steps=1))(eta)),
    )


def one_step_curvature() -> Row:
    """2.2.2: the second derivative of the loss after one step."""
    X, t, w0 = wide()
    a, K, n = X @ w0 - t, X @ X.T, X.shape[0]
    return Row(
        "2.2.2",
        "right",
        "L₁'' = (8/n³)‖Ka‖²; the same",
        "jax.hessian of the unroll",
        float(8.0 / n**3 * (K @ a) @ (K @ a)),
        float(jax.hessian(descent(X, t, w0, steps=1))(0.05)),
    )


def one_step_strictly_convex() -> Row:
    """2.2.2: L₁'' > 0 needs Xᵀa ≠ 0."""
    X, t = jnp.array([[1.0], [1.0]]), jnp.array([-1.0, 1.0])
    curvature = jax.hessian(descent(X, t, jnp.zeros(1), steps=1))(0.05)
    return Row(
        "2.2.2",
        "loose",
        "L₁'' > 0: 1 if so, for X = (1; 1), t = (−1; 1)",
        "needs Xᵀa ≠ 0; here L₁'' = 0, L₁ is constant",
        1.0,
        float(curvature > 0.0),
    )


def one_step_rate() -> Row:
    """2.2.3: the optimal rate of one step."""
    X, t, w0 = wide()
    a, K, n = X @ w0 - t, X @ X.T, X.shape[0]
    learned = metalr.learn(
        descent(X, t, w0, steps=1), 0.01, outer_optimizer=metalr.Newton(), steps=50
    )
    return Row(
        "2.2.3",
        "right",
        "η* = (n/2)·aᵀKa/aᵀKKa (3 examples, 5 columns)",
        "learned by the hypergradient of one step",
        float(n / 2 * (a @ K @ a) / (a @ K @ K @ a)),
        float(learned.hyper),
    )


def one_step_condition() -> Row:
    """2.2.3: the formula needs Xᵀa ≠ 0."""
    X, t = jnp.array([[1.0], [1.0]]), jnp.array([-1.0, 1.0])
    exact = Quadratic.from_regression(X, t)
    return Row(
        "2.2.3",
        "loose",
        "one η* always: their number, for X = (1; 1), t = (−1; 1)",
        "needs Xᵀa ≠ 0; here L₁ is constant: eigenvalues that a rate acts on",
        1.0,
        float(exact.eigenvalues.size),
    )


def _equal_entries(steps: int) -> tuple[jax.Array, jax.Array, metalr.Unrolled]:
    """One example, x = (1, 1), t = 3, w₀ = 0: a = −3, K = 2, L_t = 9(1 − 4η)^{2t}."""
    X, t = example(1.0, 1.0)
    return X, t, descent(X, t, jnp.zeros(2), steps=steps)


def second_residual() -> Row:
    """2.3.1: where w₂ is written out, (I − M)² becomes I − M²."""
    X, t, _ = _equal_entries(2)
    w2 = bias.path(X, t, optax.sgd(0.1), steps=2)[2]
    return Row(
        "2.3.1",
        "wrong",
        "Xw₂ − t = a − ((2η/n)K)²a; x = (1, 1), η = 0.1",
        "(I − (2η/n)K)²a = a − 2(2η/n)Ka + ((2η/n)K)²a",
        float(printed_residual(X, -t, 0.1, 2)[0]),
        float((X @ w2 - t)[0]),
    )


def loss_after_t() -> Row:
    """2.3.1: the printed loss after t steps is wrong from t = 2."""
    X, t, objective = _equal_entries(2)
    return Row(
        "2.3.1",
        "wrong",
        "L_t = ‖a − ((2η/n)K)ᵗa‖²/n; x = (1, 1), η = 0.1, t = 2",
        "L_t = ‖(I − (2η/n)K)ᵗa‖²/n",
        float(printed_loss(X, -t, 0.1, 2)),
        float(objective(0.1)),
    )


def loss_is_no_double_well() -> Row:
    """2.3.1: the printed loss has two minima, the true one has one."""
    X, t, objective = _equal_entries(2)
    rates = jnp.linspace(-0.5, 0.7, 481)

    def minima(loss: Callable[[Any], Any]) -> float:
        values = jax.vmap(loss)(rates)
        inner = (values[1:-1] < values[:-2]) & (values[1:-1] < values[2:])
        return float(jnp.sum(inner))

    return Row(
        "2.3.1",
        "wrong",
        "the printed L₂ over η: number of minima (a double well, not convex)",
        "L₂ = 9(1 − 4η)⁴: number of minima",
        minima(lambda eta: printed_loss(X, -t, eta, 2)),
        minima(objective),
    )


def first_lines() -> Row:
    """2.3.2: the derivative starts from the printed loss and goes on with the true."""
    X, t, objective = _equal_entries(2)
    return Row(
        "2.3.2",
        "wrong",
        "its first line equals its second: d/dη of ‖a − ((2η/n)K)ᵗa‖²/n; x = (1, 1), "
        "η = 0.1, t = 2",
        "d/dη of ‖(I − (2η/n)K)ᵗa‖²/n, with which the derivation goes on",
        float(jax.grad(lambda eta: printed_loss(X, -t, eta, 2))(0.1)),
        float(jax.grad(objective)(0.1)),
    )


def first_derivative() -> Row:
    """2.3.2: the printed first derivative is right."""
    X, t, w0 = wide()
    return Row(
        "2.3.2",
        "right",
        "L_t' = −(4t/n²)·aᵀ(I − (2η/n)K)^{2t−1}Ka; 3 examples, t = 3, η = 0.05",
        "jax.grad of the unroll",
        float(printed_slope(X, X @ w0 - t, 0.05, 3)),
        float(jax.grad(descent(X, t, w0, steps=3))(0.05)),
    )


def second_derivative() -> Row:
    """2.3.2: the printed second derivative is right."""
    X, t, w0 = wide()
    return Row(
        "2.3.2",
        "right",
        "L_t'' = (8t(2t−1)/n³)·aᵀ(I − (2η/n)K)^{2t−2}K²a; the same",
        "jax.hessian of the unroll",
        float(printed_curvature(X, X @ w0 - t, 0.05, 3)),
        float(jax.hessian(descent(X, t, w0, steps=3))(0.05)),
    )


def not_strictly_convex() -> Row:
    """2.3.2: L_t'' > 0 is false: it vanishes at ¼ here."""
    _, _, objective = _equal_entries(2)
    curvatures = jax.vmap(jax.hessian(objective))(jnp.linspace(0.0, 0.5, 65))
    return Row(
        "2.3.2",
        "wrong",
        "L_t'' > 0; x = (1, 1), t = 2: of 65 rates on [0, ½], how many have L₂'' = 0",
        "η = ¼ has: L_t is convex always, strictly at all but such points",
        0.0,
        float(jnp.sum(curvatures == 0.0)),
    )


def optimal_for_every_t() -> Row:
    """2.1.3, 2.2.4, 2.3.3: unanswered; η* = ¼ for every t."""
    exact = Quadratic.from_regression(*example(1.0, 1.0))
    return Row(
        "2.1.3, 2.2.4, 2.3.3",
        "missing",
        "–",
        "x = (1, 1): η* = ¼ for every t (here 7), to w₁ = (1.5, 1.5) in one step",
        None,
        float(exact.optimal_rate(7)),
    )


ROWS: tuple[Callable[[], Row], ...] = (
    graph_of_two_steps,
    memory_forward,
    memory_reverse,
    memory_forward_mode,
    one_step_loss,
    one_step_slope,
    one_step_curvature,
    one_step_strictly_convex,
    one_step_rate,
    one_step_condition,
    second_residual,
    loss_after_t,
    loss_is_no_double_well,
    first_lines,
    first_derivative,
    second_derivative,
    not_strictly_convex,
    optimal_for_every_t,
)
