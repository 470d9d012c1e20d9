r"""Where optimizers end on least squares, in closed form.

An underdetermined regression `Xw = t` has many solutions; the optimizer and its start
choose one. Whatever moves along combinations of gradients, `Xᵀα`, stays in `w₀ + row
space of X` and can only end at the solution nearest to `w₀`; whatever rescales
coordinates leaves it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._types import ScalarLike
from ._checks import check_not_negative, check_positive

_NEWTON_STEPS = 200
"""Ceiling for the dual of `entropic_limit`; quadratic convergence needs about ten."""

_TELLING = 1e-2
"""Change of log w in a Newton step: at a boundary it is 1 in every step."""


class RowSpace(NamedTuple):
    """The singular value decomposition of `X`, null directions set to zero."""

    left: Float[Array, "n k"]  # U: an orthonormal basis of the range of X
    inverse: Float[Array, " k"]  # 1/σ, 0 in null directions
    right: Float[Array, "d k"]  # V: an orthonormal basis of the row space

    def solve(self, residual: Float[Array, " n"]) -> Float[Array, " d"]:
        """`X⁺ r`: the shortest w of least `‖Xw − r‖`."""
        return self.right @ (self.inverse * (self.left.T @ residual))

    def outside(self, w: Float[Array, " d"]) -> Float[Array, " d"]:
        """The part of `w` orthogonal to the row space: what no gradient changes."""
        return w - self.right @ (self.right.T @ w)


def row_space(X: Float[Array, "n d"]) -> RowSpace:
    """Range and row space of `X`, by its singular value decomposition.

    A singular value of at most `max(n, d)·eps` times the largest counts as zero. Can be
    traced: the rank is not a shape.
    """
    left, singular, right = jnp.linalg.svd(X, full_matrices=False)
    tolerance = max(X.shape) * jnp.finfo(X.dtype).eps
    active = singular > tolerance * jnp.max(singular, initial=0.0)
    inverse = jnp.where(active, 1.0 / jnp.where(active, singular, 1.0), 0.0)
    return RowSpace(left * active, inverse, right.T * active)


def min_norm_solution(
    X: Float[Array, "n d"],
    t: Float[Array, " n"],
    w0: Float[Array, " d"] | None = None,
) -> Float[Array, " d"]:
    r"""The solution of `Xw = t` nearest to `w0`: $w_0 + X^+(t - Xw_0)$.

    Any shape and rank. Where `Xw = t` has no solution, the nearest among the
    minimizers of $\|Xw - t\|$. For `w0` = 0 and full row rank it is
    $X^\top(XX^\top)^{-1}t$. Gradient descent and SGD end here whenever they converge.
    Differentiable in `t` and `w0`, not in `X` (its rank is decided by rounding).

    Args:
        X: inputs, one example a row.
        t: targets.
        w0: the point to be near; zeros by default.

    Raises:
        ValueError: if the shapes do not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> from metalr.theory.implicit_bias import min_norm_solution
        >>> w = min_norm_solution(jnp.array([[1.0, 2.0]]), jnp.array([3.0]))
        >>> print([f"{entry:.3f}" for entry in w])
        ['0.600', '1.200']
    """
    w0 = start(X, t, w0)
    return w0 + row_space(X).solve(t - X @ w0)


def momentum_limit(
    X: Float[Array, "n d"],
    t: Float[Array, " n"],
    momentum: ScalarLike,
    *,
    w0: Float[Array, " d"] | None = None,
    delta0: Float[Array, " d"] | None = None,
) -> Float[Array, " d"]:
    r"""Where heavy-ball momentum ends, if it converges.

    $$\delta_{s+1} = \alpha\delta_s - \eta\nabla L(w_s),\quad w_{s+1} = w_s +
      \delta_{s+1} \quad\Rightarrow\quad w_\infty = X^+t + P_{\mathrm{null}}
      \Bigl(w_0 + \frac{\alpha}{1-\alpha}\,\delta_0\Bigr)$$

    Gradients never touch the null space of X: there, a first velocity decays
    geometrically and its sum is the drift. `optax.trace` keeps $-\delta/\eta$.

    Args:
        X: inputs, one example a row.
        t: targets.
        momentum: α in [0, 1).
        w0: start; zeros by default.
        delta0: first velocity; zeros by default.

    Raises:
        ValueError: if the shapes do not fit, or a concrete momentum is not in [0, 1).

    Example:
        >>> import jax.numpy as jnp
        >>> from metalr.theory.implicit_bias import momentum_limit
        >>> X, t = jnp.array([[1.0, 0.0]]), jnp.array([3.0])
        >>> print(momentum_limit(X, t, 0.5, delta0=jnp.array([0.0, 2.0])))
        [3. 2.]
    """
    w0 = start(X, t, w0)
    check_not_negative("momentum", momentum)
    check_positive("1 − momentum", 1.0 - momentum)
    delta0 = jnp.zeros_like(w0) if delta0 is None else start(X, t, delta0)
    space = row_space(X)
    drift = momentum / (1.0 - momentum) * delta0
    return space.solve(t) + space.outside(w0 + drift)


def preconditioned_limit(
    X: Float[Array, "n d"],
    t: Float[Array, " n"],
    preconditioner: Float[Array, " d"] | Float[Array, "d d"],
    *,
    w0: Float[Array, " d"] | None = None,
) -> Float[Array, " d"]:
    r"""Where $w \leftarrow w - \eta D\nabla L(w)$ ends, D fixed and positive definite.

    $$w_0 + DX^\top(XDX^\top)^{-1}(t - Xw_0)$$

    the solution nearest to `w0` in the norm $\|v\|^2 = v^\top D^{-1}v$; the inverse is
    a pseudoinverse where X lacks full row rank. D = 1 is `min_norm_solution`.

    Args:
        X: inputs, one example a row.
        t: targets.
        preconditioner: D, or its diagonal.
        w0: start; zeros by default.

    Raises:
        ValueError: if the shapes do not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> from metalr.theory.implicit_bias import preconditioned_limit
        >>> X, t = jnp.array([[1.0, 2.0]]), jnp.array([3.0])
        >>> w = preconditioned_limit(X, t, jnp.array([1.0, 0.5]))
        >>> print([f"{entry:.3f}" for entry in w])
        ['1.000', '1.000']

    References:
        Gunasekar et al. (2018), Characterizing implicit bias in terms of optimization
        geometry.
    """
    w0 = start(X, t, w0)
    if preconditioner.shape[0] != w0.size or preconditioner.shape[-1] != w0.size:
        msg = (
            f"preconditioner {preconditioner.shape} does not fit w0 {w0.shape}: "
            "pass (d,) for a diagonal or (d, d)"
        )
        raise ValueError(msg)
    if preconditioner.ndim == 1:
        root = jnp.diag(jnp.sqrt(preconditioner))
    else:
        root = jnp.linalg.cholesky(preconditioner)
    return w0 + root @ row_space(X @ root).solve(t - X @ w0)


def sign_limit(
    x: Float[Array, " d"], t: ScalarLike, *, w0: Float[Array, " d"] | None = None
) -> Float[Array, " d"]:
    r"""Where sign-like methods end on one example: the nearest solution in max-norm.

    $$w_0 + (t - x^\top w_0)\,\mathrm{sign}(x)/\|x\|_1$$

    The gradients of one example are multiples of x, so a method that divides each
    coordinate by a history of its own magnitudes moves along sign(x): sign descent,
    Lion without decay, Adam, RMSProp and AdaGrad from an empty accumulator, as
    ε → 0. It is the minimum-norm solution iff all non-zero |xᵢ| are equal.

    Args:
        x: the example.
        t: its target.
        w0: start; zeros by default.

    Example:
        >>> import jax.numpy as jnp
        >>> from metalr.theory.implicit_bias import sign_limit
        >>> print(sign_limit(jnp.array([1.0, 2.0]), 3.0))
        [1. 1.]
    """
    w0 = jnp.zeros_like(x) if w0 is None else w0
    return w0 + (t - x @ w0) * jnp.sign(x) / jnp.sum(jnp.abs(x))


def entropic_invariant(
    X: Float[Array, "n d"], w: Float[Array, " d"], w0: Float[Array, " d"]
) -> Float[Array, " d"]:
    r"""What entropic mirror descent cannot change: log(w/w₀) outside the row space.

    Exponentiated gradient, $w \leftarrow w\,e^{-\eta\nabla L(w)}$ by coordinate, adds
    multiples of the rows of X to log w: this vector is 0 at every step.

    Args:
        X: inputs, one example a row.
        w: any iterate, positive.
        w0: the start, positive.

    Returns:
        The part of log(w/w₀) orthogonal to the row space of X.

    Raises:
        ValueError: if a concrete `w` or `w0` is not positive.

    Example:
        >>> import jax.numpy as jnp
        >>> from metalr.theory.implicit_bias import entropic_invariant
        >>> X, w = jnp.array([[1.0, 2.0]]), jnp.exp(jnp.array([0.3, 0.6]))
        >>> print(bool(jnp.all(abs(entropic_invariant(X, w, jnp.ones(2))) < 1e-6)))
        True
    """
    check_positive("w", w)
    check_positive("w0", w0)
    return row_space(X).outside(jnp.log(w / w0))


def entropic_limit(
    X: Float[Array, "n d"], t: Float[Array, " n"], w0: Float[Array, " d"]
) -> Float[Array, " d"]:
    r"""Where entropic mirror descent ends: the positive solution nearest in entropy.

    $$w = w_0\,e^{X^\top\nu}, \qquad Xw = t,$$

    which minimizes $\sum w\log(w/w_0) - w + w_0$ over the positive solutions. ν by
    damped Newton steps on the convex dual $\sum w_0e^{X^\top\nu} - t^\top\nu$.

    Args:
        X: inputs, one example a row.
        t: targets for which a positive solution exists.
        w0: the start, positive.

    Returns:
        The limit; nan where no positive solution exists, or it is at the boundary (an
        entry 0: ν is infinite), or so near to it that rounding does not tell.

    Raises:
        ValueError: if the shapes do not fit, or a concrete `w0` is not positive.

    Example:
        >>> import jax.numpy as jnp
        >>> from metalr.theory.implicit_bias import entropic_limit
        >>> w = entropic_limit(jnp.array([[1.0, 2.0]]), jnp.array([3.0]), jnp.ones(2))
        >>> print([f"{entry:.3f}" for entry in w])
        ['1.000', '1.000']

    References:
        Beck, Teboulle (2003), Mirror descent and nonlinear projected subgradient
        methods. Gunasekar et al. (2018).
    """
    w0 = start(X, t, w0)
    check_positive("w0", w0)
    rank = jnp.sum(row_space(X).inverse > 0.0)

    def newton(nu: Array) -> tuple[Array, Array, Array]:
        """Newton's step of the dual; whether ν is the minimum; whether it can be."""
        w = w0 * jnp.exp(X.T @ nu)
        slope = X @ w - t
        space = row_space(X * jnp.sqrt(w))
        direction = -space.left @ (space.inverse**2 * (space.left.T @ slope))
        logs = X.T @ direction  # how far log w is from the minimum
        # What the rounding of the slope leaves open of log w.
        doubt = jnp.abs((X.T @ space.left) * space.inverse**2) @ (
            jnp.abs(space.left).T @ (jnp.abs(X) @ w + jnp.abs(t))
        )
        eps = jnp.finfo(w.dtype).eps
        small = jnp.linalg.norm(slope) <= 100 * eps * (1.0 + jnp.linalg.norm(t))
        inside = (jnp.max(eps * doubt) < _TELLING) & (
            jnp.sum(space.inverse > 0.0) == rank
        )
        return direction, small & inside & (jnp.max(jnp.abs(logs)) < _TELLING), inside

    def going(carry: tuple[Array, Array, Array, Array]) -> Array:
        step, _, settled, inside = carry
        return (step < _NEWTON_STEPS) & ~settled & inside

    def move(
        carry: tuple[Array, Array, Array, Array],
    ) -> tuple[Array, Array, Array, Array]:
        step, nu, _, _ = carry
        direction, _, _ = newton(nu)
        # While no exponent moves by more than 1 the dual decreases in every step.
        nu = nu + direction / jnp.maximum(1.0, jnp.max(jnp.abs(X.T @ direction)))
        return step + 1, nu, *newton(nu)[1:]

    nu = jnp.zeros_like(t)
    first = (jnp.zeros((), jnp.int32), nu, *newton(nu)[1:])
    _, nu, settled, _ = jax.lax.while_loop(going, move, first)
    return jnp.where(settled, w0 * jnp.exp(X.T @ nu), jnp.nan)


def start(
    X: Float[Array, "n d"], t: Float[Array, " n"], w0: Float[Array, " d"] | None
) -> Float[Array, " d"]:
    """`w0`, or zeros of its shape and dtype.

    Raises:
        ValueError: if the shapes do not fit, or `X` has no row or column.
    """
    w0 = jnp.zeros(X.shape[1:], X.dtype) if w0 is None else w0
    if X.ndim != 2 or 0 in X.shape or t.shape != X.shape[:1] or w0.shape != X.shape[1:]:
        msg = (
            f"X {X.shape}, t {t.shape}, w0 {w0.shape} do not fit: they must be "
            "(n, d), (n,) and (d,), with n ≥ 1 and d ≥ 1"
        )
        raise ValueError(msg)
    return w0
