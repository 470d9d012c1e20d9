"""What the source notes print: numbers, formulas, their image, filter and AdaGrad."""

from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

ScalarLike: TypeAlias = float | jax.Array

IMAGE = (
    (0, 1, 1, 0, 0),
    (0, 1, 1, 1, 0),
    (1, 1, 1, 1, 0),
    (0, 1, 1, 1, 0),
    (0, 0, 1, 0, 0),
)
"""Question 3.1: five rows of five pixels."""

LAPLACIAN = ((0, -1, 0), (-1, 4, -1), (0, -1, 0))
"""Question 3.1: the filter."""

OUTPUT_SHAPE = (5, 5)
"""Question 3.1: of the output."""

FIRST_ITERATE, SECOND_ITERATE = (6.0, 12.0), (5.99955, 11.99955)
"""Question 1.2.1: W₁ and W₂ of their AdaGrad."""

SECOND_GRADIENT = (27.0, 54.0)
"""Question 1.2.1: the gradient at W₁."""

NEURONS, PARAMETERS = 1_957_988, 52_444_644
"""Question 3.2: the totals; the connections, 999 407 616, are their own row."""


def printed_accumulator(eta: float, eps: float, *, n: int) -> jax.Array:
    r"""Question 1.2.1: $G_1 = (2\eta/(\epsilon n))^2\,(9, 36)$."""
    return (2.0 * eta / (eps * n)) ** 2 * jnp.array([9.0, 36.0])


def printed_residual(
    X: jax.Array, a: jax.Array, eta: ScalarLike, steps: int
) -> jax.Array:
    r"""Question 2.3.1: $Xw_t - t = a - ((2\eta/n)K)^t a$, where $a = Xw_0 - t$."""
    n = X.shape[0]
    power = jnp.linalg.matrix_power(2.0 * eta / n * X @ X.T, steps)
    return a - power @ a


def printed_loss(X: jax.Array, a: jax.Array, eta: ScalarLike, steps: int) -> jax.Array:
    r"""Question 2.3.1: $L_t = \|a - ((2\eta/n)K)^t a\|^2/n$."""
    return jnp.mean(printed_residual(X, a, eta, steps) ** 2)


def printed_slope(X: jax.Array, a: jax.Array, eta: ScalarLike, steps: int) -> jax.Array:
    r"""Question 2.3.2: $-(4t/n^2)\,a^\top(I - (2\eta/n)K)^{2t-1}Ka$."""
    n, K = X.shape[0], X @ X.T
    power = jnp.linalg.matrix_power(jnp.eye(n) - 2.0 * eta / n * K, 2 * steps - 1)
    return -4.0 * steps / n**2 * a @ power @ K @ a


def printed_curvature(
    X: jax.Array, a: jax.Array, eta: ScalarLike, steps: int
) -> jax.Array:
    r"""Question 2.3.2: $(8t(2t-1)/n^3)\,a^\top(I - (2\eta/n)K)^{2t-2}K^2a$."""
    n, K = X.shape[0], X @ X.T
    power = jnp.linalg.matrix_power(jnp.eye(n) - 2.0 * eta / n * K, 2 * steps - 2)
    return 8.0 * steps * (2 * steps - 1) / n**3 * a @ power @ K @ K @ a


class LaggedState(NamedTuple):
    """The squares of all gradients but the current one."""

    sum_of_squares: optax.Updates


def lagged_adagrad(
    learning_rate: optax.ScalarOrSchedule, eps: float
) -> optax.GradientTransformation:
    r"""The AdaGrad that the notes compute: its accumulator lags by one step.

    $$w_{s+1} = w_s - \frac{\eta}{\sqrt{G_s} + \epsilon}\,g_s, \qquad
      G_s = \sum_{r<s} g_r^2, \quad G_0 = 0$$

    so that the first step is $g_0\,\eta/\epsilon$. AdaGrad as it is defined includes
    the current gradient, and is
    `optax.adagrad(η, initial_accumulator_value=0.0, eps=0.0)`; optax has no lagged one.

    Args:
        learning_rate: η, or a schedule of it.
        eps: ε > 0.
    """

    def init(params: optax.Params) -> LaggedState:
        return LaggedState(optax.tree.zeros_like(params))

    def update(
        updates: optax.Updates, state: LaggedState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, LaggedState]:
        del params
        scaled = jax.tree.map(
            lambda g, total: g / (jnp.sqrt(total) + eps), updates, state.sum_of_squares
        )
        total = jax.tree.map(lambda g, t: t + g**2, updates, state.sum_of_squares)
        return scaled, LaggedState(total)

    scale = optax.scale_by_learning_rate(learning_rate)
    return optax.chain(optax.GradientTransformation(init, update), scale)  # type: ignore[arg-type]
