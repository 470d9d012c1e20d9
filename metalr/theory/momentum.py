r"""Gradient descent with momentum on a quadratic, in closed form in the rate.

Along an eigenvalue λ, with $u = \eta\lambda$, the error of T steps from rest is its
start times a polynomial $c_T(u)$; the loss is $\sum_i p_i c_T(\eta\lambda_i)^2$.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._types import Scalar, ScalarLike
from ._checks import check_not_negative, check_steps


class Extremum(NamedTuple):
    """A place on the axis of learning rates, and the curvature of the loss there."""

    rate: Scalar
    curvature: Scalar


def heavy_ball_factor(
    u: Float[Array, "*shape"], momentum: ScalarLike, steps: int
) -> Float[Array, "*shape"]:
    r"""What T heavy-ball steps from rest make of an error, $c_T(u)$, $u = \eta\lambda$.

    $$c_{s+1} = (1 + \alpha - u)\,c_s - \alpha\,c_{s-1}, \quad c_0 = c_{-1} = 1,
      \qquad c_T = \alpha^{T/2}\bigl[U_T(x) - \sqrt\alpha\,U_{T-1}(x)\bigr], \quad
      x = \frac{1 + \alpha - u}{2\sqrt\alpha},$$

    with U the Chebyshev polynomials of the second kind. That form changes from cosines
    to exponentials at $x = \pm 1$ and ends at $\alpha = 0$; computed is the same
    polynomial as a power of the 2 × 2 matrix of a step, by about log₂T squarings, valid
    everywhere. Squared is the *change* of the matrix from the identity for as long as
    that is small, so that nothing is lost where $u$ and $1 - \alpha$ are tiny: the
    relative error is some eps times the number of time constants (or, for an
    oscillation, radians) in the run. At α = 0 it is $(1-u)^T$.

    Differentiable in `u` and `momentum`, any order and mode, also at double roots;
    memory of log₂T matrices in reverse mode.

    Args:
        u: learning rate times eigenvalue.
        momentum: α, any real number; stable for $|\alpha| < 1$, $0 < u < 2(1+\alpha)$.
        steps: number of updates T ≥ 0.

    Returns:
        $c_T(u)$; ±inf where it overflows.

    Raises:
        ValueError: if `steps` is not an int ≥ 0.

    Example:
        >>> import jax.numpy as jnp
        >>> from metalr.theory import momentum
        >>> print(f"{momentum.heavy_ball_factor(jnp.array(0.5), 0.25, 3):.4f}")
        -0.0312

    References:
        Polyak (1964), Some methods of speeding up the convergence of iteration methods.
        Goh (2017), Why momentum really works.
    """
    check_steps(steps, least=0)
    u = jnp.asarray(u, jnp.result_type(u, momentum, float))
    alpha = jnp.broadcast_to(jnp.asarray(momentum, u.dtype), u.shape)
    return _advance(u, alpha, jnp.ones_like(u), jnp.zeros_like(u), steps)


def nesterov_factor(
    u: Float[Array, "*shape"],
    momentum: ScalarLike,
    steps: int,
    *,
    at: str = "lookahead",
) -> Float[Array, "*shape"]:
    r"""What T steps of Nesterov's momentum make of an error.

    $$x_{s+1} = (1 - u)\,y_s, \qquad y_{s+1} = x_{s+1} + \alpha(x_{s+1} - x_s), \qquad
      x_0 = y_0 = 1$$

    `at="lookahead"` is $y_T$, the point where the next gradient would be taken; this is
    what `optax.sgd(..., nesterov=True)` holds as its parameters. `at="iterate"` is
    $x_T = (1-u)y_{T-1}$, e.g. $x_2 = (1-u)(1-(1+\alpha)u)$. The recursion is that of
    `heavy_ball_factor` with $\alpha(1-u)$ for α; computed, differentiable and accurate
    as there.

    Args:
        u: learning rate times eigenvalue.
        momentum: α.
        steps: number of updates T ≥ 0.
        at: `"lookahead"` or `"iterate"`.

    Raises:
        ValueError: if `steps` is not an int ≥ 0, or `at` is neither of the two.

    Example:
        >>> import jax.numpy as jnp
        >>> from metalr.theory import momentum
        >>> u = jnp.array(0.5)
        >>> print(momentum.nesterov_factor(u, 0.5, 2, at="iterate"))
        0.125

    References:
        Nesterov (1983), A method for solving the convex programming problem with
        convergence rate O(1/k²). Sutskever et al. (2013), On the importance of
        initialization and momentum in deep learning.
    """
    check_steps(steps, least=0)
    if at not in {"lookahead", "iterate"}:
        msg = f"at = {at!r} must be 'lookahead' (optax's parameters) or 'iterate'"
        raise ValueError(msg)
    u = jnp.asarray(u, jnp.result_type(u, momentum, float))
    if steps == 0:
        return jnp.ones_like(u)
    if at == "iterate":
        return (1.0 - u) * nesterov_factor(u, momentum, steps - 1)
    change = -(1.0 + jnp.asarray(momentum, u.dtype)) * u  # of the first step
    return _advance(u, momentum * (1.0 - u), 1.0 + change, change, steps - 1)


def heavy_ball_minimizers(
    eigenvalue: ScalarLike, momentum: ScalarLike, steps: int
) -> Float[Array, " steps"]:
    r"""The T learning rates at which heavy ball solves a single eigenvalue exactly.

    With one active λ the loss $p\,c_T(\eta\lambda)^2$ is 0 at the zeros of $c_T$: there
    are exactly T, all simple, real and positive, if α > 0. So $L_T$ has T global minima
    and is not convex for T ≥ 2. They are 1/λ times the eigenvalues of the tridiagonal
    matrix with $1, 1+\alpha, …, 1+\alpha$ on its diagonal and $\sqrt\alpha$ beside it,
    whose characteristic polynomial $c_T$ is.

    Costs T³ and memory T². Differentiable in both arguments for α > 0.

    Args:
        eigenvalue: λ > 0.
        momentum: α ≥ 0; at α = 0 all T rates coincide in 1/λ.
        steps: number of updates T ≥ 1.

    Returns:
        The rates, ascending.

    Raises:
        ValueError: if `steps` is not an int ≥ 1, or `momentum` is negative.

    Example:
        >>> from metalr.theory import momentum
        >>> rates = momentum.heavy_ball_minimizers(2.0, 0.5, 2)
        >>> print([round(float(rate), 4) for rate in rates])
        [0.25, 1.0]
    """
    check_steps(steps, least=1)
    check_not_negative("momentum", momentum)
    alpha = jnp.asarray(momentum, float)
    if steps == 1:
        return jnp.ones((1,), alpha.dtype) / eigenvalue
    diagonal = jnp.where(jnp.arange(steps) == 0, 1.0, 1.0 + alpha)
    beside = jnp.full((steps - 1,), jnp.sqrt(alpha))
    jacobi = jnp.diag(diagonal) + jnp.diag(beside, 1) + jnp.diag(beside, -1)
    return jnp.linalg.eigvalsh(jacobi) / eigenvalue


def two_step_convexity_margin(
    eigenvalues: Float[Array, " active"],
    weights: Float[Array, " active"],
    momentum: ScalarLike,
) -> Scalar:
    r"""Whether two heavy-ball steps give a convex $L_2(\eta)$: iff this is ≥ 0.

    $$3(2+\alpha)^2\Bigl(1 - \frac{S_3^2}{S_2 S_4}\Bigr) - \alpha(\alpha+4), \qquad
      S_k = \sum_i p_i\lambda_i^k$$

    The exact criterion: $L_2''$ is the parabola
    $12 S_4\eta^2 - 12(2+\alpha)S_3\eta + (2(2+\alpha)^2 + 4)S_2$, and the margin has
    the sign of minus its discriminant. The bracket is computed as a variance of the λ
    with weights pλ², without cancellation. Differentiable in all arguments.

    Args:
        eigenvalues: active λ > 0.
        weights: p > 0.
        momentum: α.

    Raises:
        ValueError: if there is no eigenvalue.

    Example:
        >>> import jax.numpy as jnp
        >>> from metalr.theory import momentum
        >>> spread, p = jnp.array([1.0, 2.0]), jnp.array([1.0, 1.0])
        >>> print(momentum.two_step_convexity_margin(spread, p, 0.1) > 0)
        True
        >>> print(momentum.two_step_convexity_margin(spread, p, 0.9) > 0)
        False
    """
    second, mean, spread, _ = _moments(eigenvalues, weights)
    ratio = spread / (spread + second * mean**2)
    return 3.0 * (2.0 + momentum) ** 2 * ratio - momentum * (momentum + 4.0)


def two_step_least_curvature(
    eigenvalues: Float[Array, " active"],
    weights: Float[Array, " active"],
    momentum: ScalarLike,
) -> Extremum:
    r"""Where two heavy-ball steps have the least $L_2''(\eta)$, and its value.

    The vertex $\eta = (2+\alpha)S_3/2S_4$ of the parabola in
    `two_step_convexity_margin`. Negative there is a witness that $L_2$ is not convex.
    Differentiable in all arguments; errors as there.

    Example:
        >>> import jax.numpy as jnp
        >>> from metalr.theory import momentum
        >>> one = jnp.array([2.0]), jnp.array([1.0])
        >>> rate, curvature = momentum.two_step_least_curvature(*one, 0.5)
        >>> print(rate, curvature)
        0.625 -9.0
    """
    second, mean, spread, _ = _moments(eigenvalues, weights)
    third, fourth = second * mean, spread + second * mean**2
    rate = (2.0 + momentum) * third / (2.0 * fourth)
    margin = two_step_convexity_margin(eigenvalues, weights, momentum)
    return Extremum(rate, second * margin)


def _moments(
    eigenvalues: Array, weights: Array
) -> tuple[Scalar, Scalar, Scalar, Scalar]:
    """`S₂`, `S₃/S₂`, `S₄ − S₃²/S₂`, `S₄`."""
    if eigenvalues.size == 0:
        msg = "no eigenvalue: the loss is constant in the learning rate; choose a start"
        raise ValueError(msg)
    q = weights * eigenvalues**2
    second = jnp.sum(q)
    mean = jnp.sum(q * eigenvalues) / second
    spread = jnp.sum(q * (eigenvalues - mean) ** 2)
    return second, mean, spread, spread + second * mean**2


@functools.partial(jax.jit, static_argnames="steps")
def _advance(
    u: jax.Array, beta: jax.Array, error: jax.Array, change: jax.Array, steps: int
) -> jax.Array:
    r"""The error after `steps` of `change ← β·change − u·error; error += change`.

    For $u > 1 + β$ the errors alternate in sign: $(-1)^s$ times them obey the same
    recursion with $2(1+β) - u$, which is the small one there.
    """
    if steps == 0:
        return error
    bits = jnp.array([bool(steps >> k & 1) for k in range(steps.bit_length())])
    alternating = u > 1.0 + beta
    u = jnp.where(alternating, 2.0 * (1.0 + beta) - u, u)
    change = jnp.where(alternating, 2.0 * error - change, change)
    sign = jnp.where(alternating, -1.0, 1.0) if steps % 2 else 1.0
    # One step is I + N; what a step changes may be tiny against 1.
    N = jnp.stack(
        [jnp.stack([-u, beta], axis=-1), jnp.stack([-u, beta - 1.0], axis=-1)], axis=-2
    )
    identity = jnp.eye(2, dtype=N.dtype)
    zero = jnp.zeros(u.shape, N.dtype)
    start = _Doubling(
        N,
        jnp.ones((*u.shape, 1, 1), bool),
        _Scaled(identity + N, zero),
        _Scaled(jnp.stack([error, change], axis=-1), zero),
    )

    def double(state: _Doubling, bit: jax.Array) -> tuple[_Doubling, None]:
        N, near, power, vector = state
        # (I + N)v as v + Nv keeps what v loses slowly.
        moved = jnp.where(
            near[..., 0],
            vector.mantissa + _apply(N, vector.mantissa),
            _apply(power.mantissa, vector.mantissa),
        )
        exponent = jnp.where(near[..., 0, 0], 0.0, power.exponent)
        moved = _rescale(moved, vector.exponent + exponent)
        vector = jax.tree.map(lambda new, old: jnp.where(bit, new, old), moved, vector)
        twice = 2.0 * N + N @ N
        squared = power.mantissa @ power.mantissa
        square = jnp.where(near, identity + twice, squared)
        near = near & _near_identity(twice)
        return _Doubling(
            jnp.where(near, twice, 0.0), near, _rescale(square, 2.0 * exponent), vector
        ), None

    mantissa, exponent = jax.lax.scan(double, start, bits)[0].vector
    return sign * mantissa[..., 0] * _power_of_two(exponent)


class _Scaled(NamedTuple):
    """`mantissa · 2^exponent`, so that neither end of the range is met on the way."""

    mantissa: jax.Array
    exponent: jax.Array


class _Doubling(NamedTuple):
    change: jax.Array  # N: (I + N) is the power, while it is near 1; 0 afterwards
    near: jax.Array
    power: _Scaled
    vector: _Scaled


def _near_identity(N: jax.Array) -> jax.Array:
    """Whether the spectral radius of I + N is of order 1, so that N tells it best."""
    trace = N[..., 0, 0] + N[..., 1, 1]
    determinant = N[..., 0, 0] * N[..., 1, 1] - N[..., 0, 1] * N[..., 1, 0]
    # Between the square of the radius and a quarter of it.
    size = jnp.maximum((1.0 + trace / 2.0) ** 2, jnp.abs(1.0 + trace + determinant))
    return ((size > 0.1) & (size < 10.0))[..., None, None]


def _apply(matrix: jax.Array, vector: jax.Array) -> jax.Array:
    return jnp.einsum("...ij,...j->...i", matrix, vector)


def _rescale(array: jax.Array, exponent: jax.Array) -> _Scaled:
    """Move an exact power of two from the array's largest entry to the exponent."""
    axes = tuple(range(exponent.ndim, array.ndim))
    largest = jnp.max(jnp.abs(jax.lax.stop_gradient(array)), axis=axes)
    shift = jnp.where(largest > 0.0, jnp.frexp(largest)[1], 0).astype(array.dtype)
    factor = jnp.expand_dims(_power_of_two(-shift), axes)
    return _Scaled(array * factor, exponent + shift)


def _power_of_two(exponent: jax.Array) -> jax.Array:
    """`2^exponent`, in two factors: 2^-1074 is subnormal, 2^1100 is inf."""
    exponent = jnp.clip(exponent, -4000.0, 4000.0)
    half = jnp.floor(exponent / 2.0)
    return jnp.exp2(half) * jnp.exp2(exponent - half)
