r"""What common estimators of a hypergradient estimate, on a quadratic.

Each of them is the exact derivative of something, only not of $L_T$: its bias in
closed form.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._types import Scalar, ScalarLike
from ._checks import check_steps
from ._power import signed_power
from .quadratic import Quadratic


def truncated_slope(
    quadratic: Quadratic, eta: ScalarLike, steps: int, last: int
) -> Scalar:
    r"""The hypergradient of the last K of T steps: $(K/T)\,L_T'(\eta)$.

    Truncated back-propagation lets the derivative enter only through the rates of the
    last K steps. Without momentum and at a constant rate all T partial derivatives of
    the schedule are equal, so that its sign and its root are right, and its size short
    by K/T. K = 1 is $-g_T\cdot g_{T-1}$ of hypergradient descent. Neither holds with
    momentum, for a schedule, or for other losses. Cost and derivatives as
    `Quadratic.slope`.

    Args:
        quadratic: the spectrum and the start.
        eta: learning rate.
        steps: number of updates T ≥ 1.
        last: number of steps K that are differentiated, 0 ≤ K ≤ T.

    Raises:
        ValueError: if a count is not an int in its range.

    Example:
        >>> import jax.numpy as jnp
        >>> from metalr.theory import Quadratic, estimators
        >>> q = Quadratic.from_regression(jnp.array([[1.0, 1.0]]), jnp.array([3.0]))
        >>> ratio = estimators.truncated_slope(q, 0.1, 8, 2) / q.slope(0.1, 8)
        >>> print(f"{ratio:.2f}")
        0.25

    References:
        Shaban et al. (2019), Truncated back-propagation for bilevel optimization.
        Baydin et al. (2018), Online learning rate adaptation with hypergradient
        descent.
    """
    check_steps(steps, least=1)
    check_steps(last, least=0, name="last")
    if last > steps:
        msg = f"last = {last} exceeds steps = {steps}: there are no more to keep"
        raise ValueError(msg)
    return last / steps * quadratic.slope(eta, steps)


def smoothed_loss(
    quadratic: Quadratic, eta: ScalarLike, sigma: ScalarLike, steps: int
) -> Scalar:
    r"""What evolution strategies optimize: $E\,L_T(\eta + \sigma\varepsilon)$.

    $$L_\infty + \sum_i p_i\,E(1-\eta\lambda_i + \sigma\lambda_i\varepsilon)^{2T},
      \qquad \varepsilon\sim N(0, 1),$$

    one perturbation for the whole run. The moments $m_k = E(a + b\varepsilon)^k$ follow
    from Stein's recursion $m_k = a\,m_{k-1} + (k-1)b^2 m_{k-2}$, whose terms have one
    sign: stable for any T, in 2T passes over the spectrum. They grow like
    $(2T)^T$: inf soon. Differentiable in all arguments; the gradient in `eta` is
    the expectation of the evolution-strategies estimator.

    Args:
        quadratic: the spectrum and the start.
        eta: mean of the learning rate.
        sigma: standard deviation of the perturbation.
        steps: number of updates T ≥ 0.

    Raises:
        ValueError: if `steps` is not an int ≥ 0.

    Example:
        >>> import jax.numpy as jnp
        >>> from metalr.theory import Quadratic, estimators
        >>> q = Quadratic.from_regression(jnp.array([[1.0, 1.0]]), jnp.array([3.0]))
        >>> print(f"{estimators.smoothed_loss(q, 0.25, 0.1, 2):.4f}")
        0.6912

    References:
        Salimans et al. (2017), Evolution strategies as a scalable alternative to
        reinforcement learning. Metz et al. (2019), Understanding and correcting
        pathologies in the training of learned optimizers.
    """
    check_steps(steps, least=0)
    return _smoothed(quadratic, jnp.asarray(eta), jnp.asarray(sigma), steps)


def per_step_smoothed_loss(
    quadratic: Quadratic, eta: ScalarLike, sigma: ScalarLike, steps: int
) -> Scalar:
    r"""What is optimized with a new perturbation of the rate in each step.

    $$L_\infty + \sum_i p_i\bigl((1-\eta\lambda_i)^2 + \sigma^2\lambda_i^2\bigr)^T$$

    The steps are independent, so the expectation of the product is the product of
    expectations. Persistent evolution strategies with unrolls of one step estimate the
    gradient of this. One pass over the spectrum, through the logarithm, whatever T is.
    Differentiable in all arguments, any order and mode.

    Args:
        quadratic: the spectrum and the start.
        eta: mean of the learning rates.
        sigma: standard deviation of each perturbation.
        steps: number of updates T ≥ 0.

    Raises:
        ValueError: if `steps` is not an int ≥ 0.

    Example:
        >>> import jax.numpy as jnp
        >>> from metalr.theory import Quadratic, estimators
        >>> q = Quadratic.from_regression(jnp.array([[1.0, 1.0]]), jnp.array([3.0]))
        >>> print(f"{estimators.per_step_smoothed_loss(q, 0.25, 0.1, 2):.4f}")
        0.2304

    References:
        Vicol, Metz, Sohl-Dickstein (2021), Unbiased gradient estimation in unrolled
        computation graphs with persistent evolution strategies.
    """
    check_steps(steps, least=0)
    u = jnp.asarray(eta) * quadratic.eigenvalues
    variance = (jnp.asarray(sigma) * quadratic.eigenvalues) ** 2
    # (1 − u)² + s² = 1 − (u(2 − u) − s²)
    factors = signed_power(u * (2.0 - u) - variance, steps)
    return quadratic.minimum + jnp.sum(quadratic.weights * factors)


def neumann_sum(
    hessian: Float[Array, "d d"],
    vector: Float[Array, " d"],
    eta: ScalarLike,
    terms: int,
) -> Float[Array, " d"]:
    r"""T terms of the Neumann series of $H^{-1}v$: $\eta\sum_{s<T}(I-\eta H)^s v$.

    Unrolled differentiation of T gradient steps *started at the optimum* $w^*(\theta)$
    of the inner loss gives $\dot w_T = -\eta\sum_{s<T}(I-\eta H)^s B$,
    $B = \partial_\theta\nabla_w\ell$: this instead of $-H^{-1}B$, the implicit
    hypergradient. It falls short by $(I-\eta H)^T H^{-1}v$.

    By doubling, $S_{2k} = S_k + (I-\eta H)^k S_k$: 2·log₂T matrix products, stable for
    any T where $I - \eta H$ is a contraction, also for a singular H. Differentiable in
    all arguments, any order and mode.

    Args:
        hessian: H, of the inner loss at its optimum.
        vector: v.
        eta: learning rate of the inner steps.
        terms: number of terms T ≥ 0.

    Raises:
        ValueError: if `terms` is not an int ≥ 0.

    Example:
        >>> import jax.numpy as jnp
        >>> from metalr.theory import estimators
        >>> print(estimators.neumann_sum(2.0 * jnp.eye(1), jnp.ones(1), 0.25, 2))
        [0.375]

    References:
        Lorraine, Vicol, Duvenaud (2020), Optimizing millions of hyperparameters by
        implicit differentiation.
    """
    check_steps(terms, least=0, name="terms")
    identity = jnp.eye(hessian.shape[0], dtype=hessian.dtype)
    bits = jnp.array([bool(terms >> k & 1) for k in range(terms.bit_length())], bool)

    def double(
        state: tuple[Array, Array, Array], bit: Array
    ) -> tuple[tuple[Array, Array, Array], None]:
        power, partial, total = state
        total = jnp.where(bit, partial @ vector + power @ total, total)
        return (power @ power, partial + power @ partial, total), None

    start = identity - eta * hessian, eta * identity, jnp.zeros_like(vector)
    return jax.lax.scan(double, start, bits)[0][2]


@functools.partial(jax.jit, static_argnames="steps")
def _smoothed(quadratic: Quadratic, eta: Array, sigma: Array, steps: int) -> Scalar:
    a = 1.0 - eta * quadratic.eigenvalues
    variance = (sigma * quadratic.eigenvalues) ** 2

    def moment(pair: tuple[Array, Array], k: Array) -> tuple[tuple[Array, Array], None]:
        before, last = pair
        return (last, a * last + (k - 1.0) * variance * before), None

    orders = jnp.arange(1, 2 * steps + 1, dtype=a.dtype)
    start = jnp.zeros_like(a + variance), jnp.ones_like(a + variance)
    moments = jax.lax.scan(moment, start, orders)[0][1]
    return quadratic.minimum + jnp.sum(quadratic.weights * moments)
