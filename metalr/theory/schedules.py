r"""A learning rate for each step of gradient descent on a quadratic.

T rates multiply the error along an eigenvalue λ by $\prod_s (1 - \eta_s\lambda)$: any
polynomial of degree T that is 1 at 0 and has real roots. So the best schedule is as
good as T steps of conjugate gradients.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._types import Scalar, ScalarLike
from ._checks import check_steps
from ._power import signed_power


@jax.jit
def schedule_excess(
    eigenvalues: Float[Array, " active"],
    weights: Float[Array, " active"],
    rates: Float[Array, " steps"],
) -> Scalar:
    r"""What is left above the minimum, $\sum_i p_i\prod_s(1-\eta_s\lambda_i)^2$.

    One pass over the rates, in their order, in constant memory; reverse mode keeps the
    T partial products. They can overflow where the result does not: see `leja_order`.
    Differentiable in all arguments, any order and mode, also where a factor is 0.

    Args:
        eigenvalues: active λ.
        weights: p.
        rates: one learning rate a step.

    Example:
        >>> import jax.numpy as jnp
        >>> from metalr.theory import schedules
        >>> spectrum, weights = jnp.array([1.0, 4.0]), jnp.array([1.0, 1.0])
        >>> print(schedules.schedule_excess(spectrum, weights, jnp.array([0.25, 1.0])))
        0.0
    """

    def step(product: jax.Array, rate: jax.Array) -> tuple[jax.Array, None]:
        return product * (1.0 - rate * eigenvalues), None

    start = jnp.ones_like(eigenvalues, jnp.result_type(eigenvalues, rates))
    return jnp.sum(weights * jax.lax.scan(step, start, rates)[0] ** 2)


def optimal_schedule(
    eigenvalues: Float[Array, " active"], weights: Float[Array, " active"], steps: int
) -> Float[Array, " steps"]:
    r"""The T rates with the least loss: reciprocals of the Ritz values, in Leja order.

    The polynomial $q(\lambda) = \prod_s(1-\eta_s\lambda)$ that minimizes
    $\sum p\,q^2$ subject to $q(0) = 1$ is orthogonal to all lower degrees in the
    measure pλ; its roots are the Ritz values of Lanczos started at $\sqrt{p\lambda}$
    (for a regression: Krylov start $X^\top a$). The loss is that of T steps of
    conjugate gradients. Any order of the steps has the same loss in exact arithmetic;
    `leja_order` says why this one is returned.

    Lanczos with full reorthogonalization, twice: T² k operations and T k memory for k
    eigenvalues. Where the Krylov space ends early (equal eigenvalues) it is continued
    in a new direction: the loss is already 0. Can be jitted; differentiable in
    both arrays where the eigenvalues are distinct, in both modes.

    The rates are exact to some eps times the condition number of the Ritz values: the
    long steps carry the most rounding. On an ill-conditioned spectrum no floating
    rates realize the optimum for large T: `rounding_floor` tells.

    Args:
        eigenvalues: active λ > 0.
        weights: p > 0.
        steps: number of rates T ≥ 1, at most the number of eigenvalues.

    Raises:
        ValueError: if `steps` is not an int ≥ 1, or exceeds the number of eigenvalues.

    Example:
        >>> import jax.numpy as jnp
        >>> from metalr.theory import schedules
        >>> spectrum, weights = jnp.array([1.0, 4.0]), jnp.array([1.0, 1.0])
        >>> rates = schedules.optimal_schedule(spectrum, weights, 2)
        >>> print([round(float(rate), 4) for rate in rates])
        [0.25, 1.0]

    References:
        Hestenes, Stiefel (1952), Methods of conjugate gradients for solving linear
        systems. Golub, Meurant (2010), Matrices, moments and quadrature.
    """
    check_steps(steps, least=1)
    if steps > eigenvalues.size:
        msg = (
            f"steps = {steps} exceeds the {eigenvalues.size} active eigenvalues: with "
            f"as many steps the excess loss is 0, nothing is left for more; ask for at "
            f"most {eigenvalues.size}"
        )
        raise ValueError(msg)
    # Divided by its largest eigenvalue the spectrum has no units.
    unit = jnp.max(eigenvalues)
    ritz = jnp.linalg.eigvalsh(
        _lanczos(eigenvalues / unit, jnp.sqrt(weights * eigenvalues / unit), steps)
    )
    return 1.0 / (unit * ritz[leja_order(ritz)])


def chebyshev_schedule(
    low: ScalarLike, high: ScalarLike, steps: int
) -> Float[Array, " steps"]:
    r"""The T rates with the least worst case over a spectrum in [low, high].

    Reciprocals of the Chebyshev nodes
    $\tfrac{\text{high}+\text{low}}2 + \tfrac{\text{high}-\text{low}}2
    \cos\tfrac{(2s-1)\pi}{2T}$, in the order of `leja_order`. The error along every
    eigenvalue shrinks at least by `chebyshev_factor`. Differentiable in `low` and
    `high`. Costs T² operations, for the order.

    Args:
        low: least eigenvalue, > 0.
        high: greatest eigenvalue.
        steps: number of rates T ≥ 1.

    Raises:
        ValueError: if `steps` is not an int ≥ 1.

    Example:
        >>> from metalr.theory import schedules
        >>> print([f"{rate:.4f}" for rate in schedules.chebyshev_schedule(1.0, 3.0, 2)])
        ['0.3694', '0.7735']

    References:
        Young (1953), On Richardson's method for solving linear systems.
    """
    check_steps(steps, least=1)
    angles = (2.0 * jnp.arange(1, steps + 1) - 1.0) * (jnp.pi / (2.0 * steps))
    # Half-angle form: relative accuracy also next to a tiny `low`.
    nodes = low * jnp.sin(angles / 2.0) ** 2 + high * jnp.cos(angles / 2.0) ** 2
    return 1.0 / nodes[leja_order(nodes)]


def chebyshev_factor(low: ScalarLike, high: ScalarLike, steps: int) -> Scalar:
    r"""The worst case of `chebyshev_schedule`, $1/T_T\bigl((κ+1)/(κ-1)\bigr)$.

    $T_T$ is the Chebyshev polynomial of the first kind, $κ = \text{high}/\text{low}$:
    the largest $|\prod_s(1-\eta_s\lambda)|$ over [low, high], and no T rates have a
    smaller one. Computed through the logarithm: stable for any T. Differentiable in
    `low` < `high`; 0 where they are equal. Arguments and errors as there.

    Example:
        >>> from metalr.theory import schedules
        >>> print(f"{schedules.chebyshev_factor(1.0, 3.0, 2):.6f}")
        0.142857
    """
    check_steps(steps, least=1)
    # T_T(cosh z) = cosh Tz, and tanh(z/2) = √(low/high).
    exponent = 2.0 * steps * jnp.arctanh(jnp.sqrt(jnp.asarray(low, float) / high))
    return 2.0 * jnp.exp(-exponent) / (1.0 + jnp.exp(-2.0 * exponent))


def rounding_floor(
    eigenvalues: Float[Array, " active"],
    weights: Float[Array, " active"],
    rates: Float[Array, " steps"],
) -> Scalar:
    r"""The excess loss that a schedule owes to its rates being rounded to their dtype.

    $$\epsilon^2\sum_i p_i\Bigl(\sum_s \eta_s\lambda_i
      \prod_{r\ne s}|1-\eta_r\lambda_i|\Bigr)^2$$

    A relative change ε of each rate moves the loss to this size, whatever the order of
    the steps and the arithmetic: a property of the numbers that hold the rates. An
    `optimal_schedule` is as good as conjugate gradients where this is far below the
    excess loss. It grows fast with T on an ill-conditioned spectrum; where it is too
    large, ask for fewer steps and run the schedule repeatedly.

    Memory T k.

    Args:
        eigenvalues: active λ.
        weights: p.
        rates: one learning rate a step.

    Example:
        >>> import jax.numpy as jnp
        >>> from metalr.theory import schedules
        >>> spectrum, weights = jnp.array([1.0, 4.0]), jnp.array([1.0, 1.0])
        >>> floor = schedules.rounding_floor(spectrum, weights, jnp.array([0.25, 1.0]))
        >>> bool(floor < 1e-12)
        True
    """
    reduced = rates[:, None] * eigenvalues
    factors = jnp.abs(1.0 - reduced)
    one = jnp.ones_like(factors[:1])
    before = jnp.cumprod(jnp.concatenate([one, factors[:-1]]), axis=0)
    after = jnp.cumprod(jnp.concatenate([one, factors[:0:-1]]), axis=0)[::-1]
    spread = jnp.sum(reduced * before * after, axis=0)
    return jnp.finfo(rates.dtype).eps ** 2 * jnp.sum(weights * spread**2)


def constant_schedule_hessian(
    eigenvalues: Float[Array, " active"],
    weights: Float[Array, " active"],
    eta: ScalarLike,
    steps: int,
) -> Float[Array, "steps steps"]:
    r"""Hessian in the T rates where all are equal to η, $A(4\cdot 11^\top - 2I)$.

    $$A = \sum_i p_i\lambda_i^2(1-\eta\lambda_i)^{2T-2}$$

    Its eigenvalues are $A(4T-2)$ along the constant direction and $-2A$, T − 1 times:
    no constant schedule is a minimum for T ≥ 2 (unless A = 0). At $\eta^*_T$ the
    gradient is 0 too: a strict saddle, where gradient descent on a schedule that starts
    constant ends, since all its partial derivatives stay equal.

    Args:
        eigenvalues: active λ.
        weights: p.
        eta: the common rate.
        steps: number of rates T ≥ 1.

    Raises:
        ValueError: if `steps` is not an int ≥ 1.

    Example:
        >>> import jax.numpy as jnp
        >>> from metalr.theory import schedules
        >>> one = jnp.array([1.0])
        >>> print(schedules.constant_schedule_hessian(one, one, 0.0, 2))
        [[2. 4.]
         [4. 2.]]
    """
    check_steps(steps, least=1)
    factors = signed_power(jnp.asarray(eta) * eigenvalues, 2 * steps - 2)
    size = jnp.sum(weights * eigenvalues**2 * factors)
    return size * (4.0 * jnp.ones((steps, steps)) - 2.0 * jnp.eye(steps))


@jax.jit
def leja_order(nodes: Float[Array, " steps"]) -> Array:
    r"""Indices that put the roots of a polynomial in Leja order.

    First the largest in magnitude, then always the node whose distances to those
    already taken have the largest product. As an order of steps it starts with
    the shortest step and mixes long ones in. In exact arithmetic the order of the
    steps does not matter; in floating point it does, for the partial products
    $\prod_{s\le S}|1-\eta_s\lambda|$ and the rounding errors they multiply. With the
    long steps first, the components with large λ grow by $\prod\lambda/\theta_s$ before
    the short steps remove them, and lose their digits (or overflow). With the long
    steps last, the rounding errors of the earlier steps grow instead. In Leja order the
    products stay of the order of the final one. T² operations.

    Args:
        nodes: the roots (reciprocals of the rates); any order, repetitions allowed.

    Returns:
        A permutation of 0 … T − 1.

    Example:
        >>> import jax.numpy as jnp
        >>> from metalr.theory import schedules
        >>> print(schedules.leja_order(jnp.array([1.0, 2.0, 3.0, 4.0])))
        [3 0 1 2]

    References:
        Anderssen, Golub (1972), Richardson's non-stationary matrix iterative procedure.
        Reichel (1991), The application of Leja points to Richardson iteration and
        polynomial preconditioning.
    """
    nodes = jax.lax.stop_gradient(nodes)

    def log_distances(index: Array) -> Array:
        distances = jnp.abs(nodes - nodes[index])
        return jnp.log(jnp.maximum(distances, jnp.finfo(nodes.dtype).tiny))

    def take(state: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], Array]:
        scores, free = state
        index = jnp.argmax(jnp.where(free, scores, -jnp.inf))
        return (scores + log_distances(index), free.at[index].set(False)), index

    index = jnp.argmax(jnp.abs(nodes))
    state = log_distances(index), jnp.ones(nodes.shape, bool).at[index].set(False)
    rest = jax.lax.scan(take, state, length=nodes.size - 1)[1]
    return jnp.append(index, rest)


@functools.partial(jax.jit, static_argnames="steps")
def _lanczos(
    eigenvalues: Array, start: Array, steps: int
) -> Float[Array, "steps steps"]:
    """The tridiagonal matrix of `steps` Lanczos vectors of diag(eigenvalues)."""
    size = eigenvalues.size
    tolerance = size * jnp.finfo(eigenvalues.dtype).eps

    def orthogonal(vector: Array, basis: Array) -> Array:
        for _ in range(2):
            vector = vector - basis.T @ (basis @ vector)
        return vector

    def step(
        state: tuple[Array, Array], row: Array
    ) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        basis, vector = state
        basis = basis.at[row].set(vector)
        image = eigenvalues * vector
        residual = orthogonal(image, basis)
        beta = jnp.sqrt(jnp.sum(residual**2))
        # Where the Krylov space is exhausted, go on with what it lacks most.
        ended = beta <= tolerance
        lacking = 1.0 - jnp.sum(basis**2, axis=0)
        fresh = jnp.where(jnp.arange(size) == jnp.argmax(lacking), 1.0, 0.0)
        direction = jnp.where(ended, orthogonal(fresh, basis), residual)
        norm = jnp.sqrt(jnp.sum(direction**2))
        follower = direction / jnp.where(norm > 0.0, norm, 1.0)
        return (basis, follower), (vector @ image, jnp.where(ended, 0.0, beta))

    basis = jnp.zeros((steps, size), eigenvalues.dtype)
    unit = start / jnp.linalg.norm(start)
    diagonal, beside = jax.lax.scan(step, (basis, unit), jnp.arange(steps))[1]
    return jnp.diag(diagonal) + jnp.diag(beside[:-1], 1) + jnp.diag(beside[:-1], -1)
