"""What the source notes define: their image, their filter, their AdaGrad."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

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
