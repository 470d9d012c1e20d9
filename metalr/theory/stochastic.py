r"""Stochastic gradient descent on a linear regression, exact in expectation."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._types import Scalar, ScalarLike
from ._checks import check_steps


def sgd_expected_loss(
    X: Float[Array, "n d"],
    t: Float[Array, " n"],
    eta: ScalarLike | Float[Array, " steps"],
    steps: int,
    *,
    w0: Float[Array, " d"] | None = None,
    batch_size: int = 1,
) -> Scalar:
    r"""Expected loss of T steps of SGD, over all ways to draw the examples.

    Each step draws `batch_size` rows b of n, uniformly *with replacement*, and takes
    the gradient of their mean squared residual. With $v = (w - w_0, 1)$ the residual of
    row j is $z_j^\top v$, linear in v, and the second moment $M = E[vv^\top]$ obeys

    $$M' = \bar B M\bar B^\top + \frac{4\eta^2}{b}\Bigl(\frac1n\sum_j
      (z_j^\top Mz_j)\,x_jx_j^\top - GMG^\top\Bigr), \qquad \bar B = I - 2\eta G, \quad
      G = \frac1n\sum_j x_jz_j^\top.$$

    The loss is $E[L_T] = \frac1n\sum_j z_j^\top Mz_j$: exact, whatever the T, at
    $n\,r^2$ operations a step, $r = \min(n, d) + 1$. Unlike the loss of full gradient
    descent it need not be convex in η.

    Differentiable in all arrays and the rate, any order and mode; reverse mode keeps a
    matrix r × r for each step.

    Args:
        X: inputs, one example a row.
        t: targets.
        eta: learning rate, or one for each step.
        steps: number of updates T ≥ 0.
        w0: start; zeros by default.
        batch_size: rows drawn for a step.

    Returns:
        The expected mean squared residual over all n rows after T steps.

    Raises:
        ValueError: if `steps` or `batch_size` is not a count, or the shapes do not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> from metalr.theory import stochastic
        >>> X, t = jnp.eye(2), jnp.array([1.0, 1.0])
        >>> print(stochastic.sgd_expected_loss(X, t, 0.5, 1))
        0.5

    References:
        Bach, Moulines (2013), Non-strongly-convex smooth stochastic approximation with
        convergence rate O(1/n), for the operator.
    """
    check_steps(steps, least=0)
    check_steps(batch_size, least=1, name="batch_size")
    rates = jnp.asarray(eta)
    n, d = X.shape
    w0 = jnp.zeros((d,), X.dtype) if w0 is None else w0
    if t.shape != (n,) or w0.shape != (d,) or rates.shape not in {(), (steps,)}:
        msg = (
            f"X {X.shape}, t {t.shape}, w0 {w0.shape}, eta {rates.shape} do not fit: "
            f"they must be (n, d), (n,), (d,) and () or ({steps},)"
        )
        raise ValueError(msg)
    residual = X @ w0 - t
    each = jnp.broadcast_to(rates.astype(residual.dtype), (steps,))
    return _expected_loss(X, residual, each, jnp.asarray(batch_size, each.dtype))


@jax.jit
def _expected_loss(
    X: Array, residual: Array, rates: Array, batch_size: Array
) -> Scalar:
    n, d = X.shape
    if d > n:  # w − w₀ stays in the row space: n coordinates tell all
        X = jnp.linalg.qr(X.T, mode="r").T
    inputs = jnp.pad(X, ((0, 0), (0, 1)))  # (x_j, 0)
    rows = jnp.concatenate([X, residual[:, None]], axis=1)  # z_j
    mean = inputs.T @ rows / n
    identity = jnp.eye(rows.shape[1], dtype=rows.dtype)

    def squares(M: Array) -> Array:
        return jnp.einsum("ji,ik,jk->j", rows, M, rows)

    def step(M: Array, rate: Array) -> tuple[Array, None]:
        drift = identity - 2.0 * rate * mean
        single = jnp.einsum("j,ji,jk->ik", squares(M), inputs, inputs) / n
        spread = single - mean @ M @ mean.T
        return drift @ M @ drift.T + 4.0 * rate**2 / batch_size * spread, None

    start = jnp.zeros_like(identity).at[-1, -1].set(1.0)
    return jnp.mean(squares(jax.lax.scan(step, start, rates)[0]))
