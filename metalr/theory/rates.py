r"""Constant learning rates on a quadratic: two eigenvalues, many steps, divergence."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from .._types import Scalar, ScalarLike
from ._checks import check_steps


def two_eigenvalue_rate(
    eigenvalues: Float[Array, " 2"], weights: Float[Array, " 2"], steps: int
) -> Scalar:
    r"""The best constant rate for T steps where two eigenvalues are active.

    $$\eta^*_T = \frac{1 + s}{\lambda_2 + s\lambda_1}, \qquad
      s = \Bigl(\frac{p_1\lambda_1}{p_2\lambda_2}\Bigr)^{1/(2T-1)}$$

    Symmetric in the two; tends to $2/(\lambda_1+\lambda_2)$. Stable for any T,
    differentiable in both arrays.

    Args:
        eigenvalues: λ₁, λ₂ > 0.
        weights: p₁, p₂ > 0.
        steps: number of updates T ≥ 1.

    Raises:
        ValueError: if `steps` is not an int ≥ 1, or there are not two of each.

    Example:
        >>> import jax.numpy as jnp
        >>> from metalr.theory import rates
        >>> rate = rates.two_eigenvalue_rate(jnp.array([1.0, 3.0]), jnp.ones(2), 1)
        >>> print(f"{rate:.4f}")
        0.4000
    """
    check_steps(steps, least=1)
    (low, high), (p_low, p_high) = eigenvalues, weights
    s = jnp.exp((jnp.log(p_low * low) - jnp.log(p_high * high)) / (2 * steps - 1))
    return (1.0 + s) / (high + s * low)


def asymptotic_factor(eigenvalues: Float[Array, " active"]) -> Scalar:
    r"""Error per step at the best constant rate, in the end: $ρ = (κ-1)/(κ+1)$.

    κ = λ_max/λ_min over the active spectrum. $(L_T(\eta^*_T)/L_0)^{1/2T}$ (with the
    minimum subtracted from both) never decreases with T and tends to ρ.

    Args:
        eigenvalues: active λ > 0.

    Example:
        >>> import jax.numpy as jnp
        >>> from metalr.theory import rates
        >>> print(rates.asymptotic_factor(jnp.array([1.0, 3.0])))
        0.5
    """
    low, high = jnp.min(eigenvalues), jnp.max(eigenvalues)
    return (high - low) / (high + low)


def newton_contraction(steps: int) -> float:
    r"""Error left by a Newton step on $L_T' = 0$, one active λ: $(2T-2)/(2T-1)$.

    There $L_T' \propto -(1-\eta\lambda)^{2T-1}$ has a multiple root, so that Newton's
    method converges linearly, with exactly this factor from any start. With several
    eigenvalues it converges from any start as well ($L_T'$ is concave, then
    convex), quadratically in the end, but at first no faster.

    Args:
        steps: number of inner updates T ≥ 1.

    Raises:
        ValueError: if `steps` is not an int ≥ 1.

    Example:
        >>> from metalr.theory import rates
        >>> rates.newton_contraction(1), round(rates.newton_contraction(10), 3)
        (0.0, 0.947)
    """
    check_steps(steps, least=1)
    return (2 * steps - 2) / (2 * steps - 1)


def growth_per_step(eigenvalues: Float[Array, " active"], eta: ScalarLike) -> Scalar:
    r"""Growth of log L a step, in the end: $2\max_i\log|1-\eta\lambda_i|$.

    Positive beyond $\eta = 2/\lambda_{\max}$, where the hypergradient explodes: there
    $\log|L_T'|$ grows by this a step as well (plus $\log(1 + 1/T)$, which fades).
    Differentiable in `eta` wherever one eigenvalue decides.

    Args:
        eigenvalues: active λ.
        eta: learning rate.

    Example:
        >>> import jax.numpy as jnp
        >>> from metalr.theory import rates
        >>> print(f"{rates.growth_per_step(jnp.array([1.0, 2.0]), 1.25):.4f}")
        0.8109

    References:
        Metz et al. (2019), Understanding and correcting pathologies in the training of
        learned optimizers.
    """
    return 2.0 * jnp.max(jnp.log(jnp.abs(1.0 - jnp.asarray(eta) * eigenvalues)))
