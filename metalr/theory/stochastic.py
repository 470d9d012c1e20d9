"""Stochastic gradient descent on a linear regression, exact in expectation."""

from typing import NamedTuple

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
    the gradient of their mean squared residual. The residual of row j is
    $z_j^\top v$, where $v = (c, 1)$ and c are coordinates of what a run can change of
    the residuals: $Xw - t = Uc + \rho$, with U the singular directions of X. A step on
    row j multiplies v by $A_j = I - 2\eta g_jz_j^\top$, so that $M = E[vv^\top]$ obeys

    $$M' = \frac1{bn}\sum_j A_jMA_j^\top + \Bigl(1-\frac1b\Bigr)\bar AM\bar A^\top,
      \qquad \bar A = \frac1n\sum_j A_j.$$

    The loss is $E[L_T] = \frac1n\sum_j z_j^\top Mz_j$, a sum of squares: exact
    whatever the T, and, where X interpolates (ρ of the size of rounding counts as 0),
    to a relative accuracy however small it becomes. $n\,r^2$ operations and numbers for
    a step, $r = \min(n, d) + 1$. Unlike the loss of full gradient descent it need not
    be convex in η.

    Differentiable in all arrays and the rate, any order and mode (the coordinates are
    held fixed: no decomposition is differentiated); reverse mode keeps a matrix r × r
    for each step.

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


class _Coordinates(NamedTuple):
    """Row j has the residual `rows[j] @ v`; a step on it moves v along `inputs[j]`."""

    rows: Array  # z (n, r)
    inputs: Array  # g (n, r)
    start: Array  # v (r,)


@jax.jit
def _expected_loss(
    X: Array, residual: Array, rates: Array, batch_size: Array
) -> Scalar:
    rows, inputs, start = _coordinates(X, residual)
    identity = jnp.eye(start.size, dtype=rows.dtype)
    mean = inputs.T @ rows / len(rows)

    @jax.checkpoint
    def step(M: Array, rate: Array) -> tuple[Array, None]:
        # A_j M A_jᵀ one factor after the other: no difference of large squares.
        left = M - 2.0 * rate * inputs[:, :, None] * (rows @ M)[:, None, :]
        moved = jnp.einsum("jik,jk->ji", left, rows)
        single = left - 2.0 * rate * moved[:, :, None] * inputs[:, None, :]
        drift = identity - 2.0 * rate * mean
        alone = jnp.mean(single, axis=0) / batch_size
        return alone + (1.0 - 1.0 / batch_size) * (drift @ M @ drift.T), None

    M = jax.lax.scan(step, jnp.outer(start, start), rates)[0]
    return jnp.mean(jnp.einsum("ji,ik,jk->j", rows, M, rows))


def _coordinates(X: Array, residual: Array) -> _Coordinates:
    """Of orthonormal directions, fixed where X is differentiated: any basis will do."""
    n, d = X.shape
    left, singular, right = jnp.linalg.svd(
        jax.lax.stop_gradient(X), full_matrices=False
    )
    tolerance = 10.0 * max(n, d) * jnp.finfo(X.dtype).eps
    active = singular > tolerance * jnp.max(singular, initial=0.0)
    along = left.T @ jax.lax.stop_gradient(residual)
    start = jnp.where(active, along, 0.0)
    if d <= n:  # c = Σ Vᵀ (w − its limit)
        sizes = jnp.where(active, singular, 1.0)
        rows, inputs = X @ (right.T / sizes), X @ (right.T * sizes)
    else:  # c = Uᵀ X (w − its limit): w alone has directions that no residual sees
        rows, inputs = left, X @ (X.T @ left)
    outside = residual - rows @ start
    small = jnp.linalg.norm(outside) <= tolerance * jnp.linalg.norm(residual)
    return _Coordinates(
        rows=jnp.concatenate([rows, _without(outside, small)[:, None]], axis=1),
        inputs=jnp.pad(_without(inputs, ~active), ((0, 0), (0, 1))),
        start=jnp.append(start, 1.0),
    )


def _without(array: Array, rounding: Array) -> Array:
    """Zeros for what is only rounding, with the derivatives that the array has."""
    return array - jax.lax.stop_gradient(jnp.where(rounding, array, 0.0))
