r"""Gradient descent on a quadratic, in closed form in the learning rate.

Linear regression with `X` (n × d), targets `t`, loss `‖Xw − t‖²/n`, start `w₀`. With
`a = Xw₀ − t` and `(λᵢ, uᵢ)` the eigenpairs of `(2/n)XXᵀ`, each `uᵢᵀa` is multiplied by
`1 − ηλᵢ` in every step: the loss is a sum of powers, whatever T is.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from .._types import Matrix, Scalar, ScalarLike, Vector
from . import momentum as _momentum, schedules as _schedules
from ._checks import check_steps
from ._directions import Directions
from ._power import signed_power
from .global_rates import Momentum, Optimum, Spectrum, momentum_optima

_BISECTIONS = 120
"""Halvings of the bracket: past the resolution of float64 for any condition number."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Quadratic:
    r"""The spectrum of a quadratic and the start of a run on it.

    $$L_T(\eta) = L_\infty + \sum_i p_i (1 - \eta\lambda_i)^{2T}$$

    A pytree, so it passes through `jit` and `vmap` and can be differentiated in its
    arrays. Make it with `from_regression`, or directly from a spectrum.

    Attributes:
        eigenvalues: λ > 0, of the Hessian; *active* are those along which the start is
            not yet optimal.
        weights: $p_i = (u_i^\top a)^2/n \ge 0$, the part of the loss at the start that
            lies along each; 0 where it is not active. Many runs on one X share their
            eigenvalues so.
        minimum: $L_\infty = \min_w L$, 0 where `t` is in the range of `X`.

    Example:
        >>> import jax.numpy as jnp
        >>> from metalr.theory import Quadratic
        >>> q = Quadratic.from_regression(jnp.array([[1.0, 1.0]]), jnp.array([3.0]))
        >>> print(f"{q.loss(0.1, 1):.4f}", q.optimal_rate(7))
        3.2400 0.25
    """

    eigenvalues: Float[Array, " k"]
    weights: Float[Array, " k"]
    minimum: Float[Array, ""] | float = 0.0

    @classmethod
    def from_regression(
        cls,
        X: Matrix,
        t: Vector,
        w0: Float[Array | np.ndarray, " d"] | None = None,
    ) -> "Quadratic":
        r"""Spectrum and start of $\|Xw - t\|^2/n$, for any shape and rank of `X`.

        From a singular value decomposition of `X` (the Gram matrix would square its
        condition number). With `tol = 10·max(n, d)·eps` (of the dtype), a direction is
        inactive, and left out, if its singular value is at most `tol` times the largest
        (so λ at most `tol²` times the largest λ), or if $|u_i^\top a|$ is at most
        `tol·‖a‖`: the start is optimal along it. The part of `a` outside the
        range of `X` becomes `minimum`, 0 where it is below `tol·‖a‖`.

        Args:
            X: inputs, one example a row.
            t: targets.
            w0: start of the run; zeros by default.

        Raises:
            ValueError: if the shapes do not fit, a value is not finite, or the arrays
                are traced (the number of active eigenvalues is data).
        """
        X, t, w0 = _regression_arrays(X, t, w0)
        directions = Directions.of(X)
        weights, minimum = directions.project(np.asarray(t)[None], np.asarray(w0)[None])
        active = weights[0] > 0.0
        return cls(
            eigenvalues=jnp.asarray(directions.eigenvalues[active]),
            weights=jnp.asarray(weights[0, active]),
            minimum=jnp.asarray(minimum[0]),
        )

    def loss(self, eta: ScalarLike, steps: int) -> Scalar:
        r"""Loss after `steps` steps of gradient descent, in closed form.

        $$L_T(\eta) = L_\infty + \sum_i p_i (1 - \eta\lambda_i)^{2T}$$

        One pass over the spectrum, whatever `steps` is. The power is taken through its
        logarithm, so that at T = 10⁶ the relative error is some hundred eps rather
        than T·eps. Differentiable in `eta` and the spectrum, any order and mode.

        Args:
            eta: learning rate, in units of one over an eigenvalue.
            steps: number of updates T ≥ 0.

        Returns:
            $L_T(\eta)$; inf where the power overflows.

        Raises:
            ValueError: if `steps` is not an int ≥ 0.

        References:
            Goh (2017), Why momentum really works, for the spectral form.
        """
        check_steps(steps, least=0)
        return self.minimum + self._sum(eta, 0, 2 * steps)

    def slope(self, eta: ScalarLike, steps: int) -> Scalar:
        r"""First derivative, $L_T' = -2T\sum_i p_i\lambda_i(1-\eta\lambda_i)^{2T-1}$.

        Equal to $-(4T/n^2)\,a^\top(I - \tfrac{2\eta}{n}K)^{2T-1}Ka$. Same cost,
        derivatives and errors as `loss`.
        """
        check_steps(steps, least=0)
        if steps == 0:
            return jnp.zeros_like(self._sum(eta, 0, 0))
        return -2.0 * steps * self._sum(eta, 1, 2 * steps - 1)

    def curvature(self, eta: ScalarLike, steps: int) -> Scalar:
        r"""Second derivative, $2T(2T-1)\sum_i p_i\lambda_i^2(1-\eta\lambda_i)^{2T-2}$.

        Never negative: $L_T$ is convex in the learning rate for every T, strictly
        unless it vanishes at a point (a single active eigenvalue, at its reciprocal) or
        $X^\top a = 0$. Same cost, derivatives and errors as `loss`.
        """
        check_steps(steps, least=0)
        if steps == 0:
            return jnp.zeros_like(self._sum(eta, 0, 0))
        return 2.0 * steps * (2 * steps - 1) * self._sum(eta, 2, 2 * steps - 2)

    def optimal_rate(self, steps: int) -> Scalar:
        r"""The learning rate $\eta^*_T$ that minimizes $L_T$.

        For one step, $\eta^*_1 = \sum p\lambda / \sum p\lambda^2
        = \tfrac{n}{2}\,a^\top Ka / a^\top KKa$. For more, the root of $L_T'$, unique in
        $[1/\lambda_{\max}, 1/\lambda_{\min}]$, found by bisection of

        $$\log\sum_{\eta\lambda<1} p\lambda(1-\eta\lambda)^{2T-1}
        - \log\sum_{\eta\lambda>1} p\lambda(\eta\lambda-1)^{2T-1},$$

        which decreases in η and neither under- nor overflows: accurate to a few eps at
        T = 10⁶. With a single active eigenvalue the answer is $1/\lambda$ for every T.
        Differentiable in the spectrum, by the implicit function theorem (where at least
        two eigenvalues differ). 120 passes over the spectrum, whatever T is.

        Args:
            steps: number of updates T ≥ 1.

        Raises:
            ValueError: if `steps` is not an int ≥ 1, or there is no active eigenvalue
                ($X^\top a = 0$: the start is optimal, $L_T$ is constant, every rate
                is as good).
        """
        check_steps(steps, least=1)
        self._check_active()
        weighted = self.weights * self.eigenvalues
        if steps == 1:
            return jnp.sum(weighted) / jnp.sum(weighted * self.eigenvalues)
        if self.eigenvalues.size == 1:
            return jnp.where(weighted[0] > 0.0, 1.0 / self.eigenvalues[0], jnp.nan)
        return _balance(weighted, self.eigenvalues, 2 * steps - 1)

    def momentum_optimum(
        self, momentum: float, steps: int, *, method: Momentum = "heavy_ball"
    ) -> Optimum:
        r"""The rate with the least loss after T steps with momentum, of many minima.

        The global minimum of `heavy_ball_loss` or `nesterov_loss` over η, and how many
        local ones there are. On the host, from a grid that resolves every oscillation:
        see `metalr.theory.global_rates.momentum_optima`. Not to be differentiated.

        Args:
            momentum: α in [0, 1).
            steps: number of updates T ≥ 1.
            method: "heavy_ball" or "nesterov".

        Returns:
            `Optimum(rate, minima)`.

        Raises:
            ValueError: if an argument is out of range, or there is no active
                eigenvalue, as for `optimal_rate`.

        Example:
            >>> import jax.numpy as jnp
            >>> from metalr.theory import Quadratic
            >>> q = Quadratic(eigenvalues=jnp.ones(1), weights=jnp.ones(1))
            >>> print(q.momentum_optimum(0.5, 3).minima)
            3
        """
        self._check_active()
        eigenvalues, weights = np.asarray(self.eigenvalues), np.asarray(self.weights)
        order = np.argsort(eigenvalues)
        run = Spectrum(
            eigenvalues[order], weights[None, order], np.asarray(self.minimum)[None]
        )
        found = momentum_optima(
            run, method, np.array([momentum], eigenvalues.dtype), steps
        )
        return Optimum(found.rate[0], found.minima[0])

    def asymptotic_rate(self) -> Scalar:
        r"""$2/(\lambda_{\min}+\lambda_{\max})$, the limit of $\eta^*_T$ as T grows.

        Over the active spectrum.

        Raises:
            ValueError: if there is no active eigenvalue, as for `optimal_rate`.
        """
        low, high = self._range()
        return 2.0 / (low + high)

    def optimal_schedule(self, steps: int) -> Float[Array, " steps"]:
        r"""The T rates, one a step, that minimize the loss after T steps.

        Reciprocals of the Ritz values, in Leja order: see
        `metalr.theory.schedules.optimal_schedule`. The loss is that of T steps of
        conjugate gradients; with as many steps as active eigenvalues it is `minimum`.

        Args:
            steps: number of rates T ≥ 1, at most the number of active eigenvalues.

        Raises:
            ValueError: if `steps` is not an int ≥ 1 or exceeds the active eigenvalues,
                or there are none.
        """
        self._check_active()
        eigenvalues, weights = self.eigenvalues, self.weights
        if not isinstance(weights, Tracer):  # under trace no shape can depend on them
            active = np.asarray(weights) > 0.0
            eigenvalues, weights = eigenvalues[active], weights[active]
        return _schedules.optimal_schedule(eigenvalues, weights, steps)

    def schedule_loss(self, rates: Float[Array, " steps"]) -> Scalar:
        r"""Loss after a step for each rate, one learning rate a step.

        $$L_\infty + \sum_i p_i\prod_s(1-\eta_s\lambda_i)^2$$

        Differentiable in the rates and the spectrum; see
        `metalr.theory.schedules.schedule_excess`. Its Hessian on a constant schedule is
        `metalr.theory.schedules.constant_schedule_hessian`.

        Args:
            rates: one learning rate a step.
        """
        return self.minimum + _schedules.schedule_excess(
            self.eigenvalues, self.weights, jnp.asarray(rates)
        )

    def chebyshev_schedule(self, steps: int) -> Float[Array, " steps"]:
        r"""The T rates with the least worst case over the range of active eigenvalues.

        See `metalr.theory.schedules.chebyshev_schedule`; each error shrinks at least by
        `chebyshev_factor` there.

        Args:
            steps: number of rates T ≥ 1.

        Raises:
            ValueError: if `steps` is not an int ≥ 1, or there is no active eigenvalue.
        """
        low, high = self._range()
        return _schedules.chebyshev_schedule(low, high, steps)

    def heavy_ball_loss(
        self, eta: ScalarLike, momentum: ScalarLike, steps: int
    ) -> Scalar:
        r"""Loss after T steps with momentum from rest, $L_\infty + \sum p\,c_T^2$.

        The run of `optax.sgd(eta, momentum)`. With $c_T(\eta\lambda)$ of
        `metalr.theory.momentum.heavy_ball_factor`: log₂T passes over the spectrum,
        stable at T = 10⁶, differentiable in all arguments. Not convex in η for
        T ≥ 2 in general: see `two_step_convexity_margin` and `heavy_ball_minimizers`
        there.

        Args:
            eta: learning rate.
            momentum: α; 0 is gradient descent.
            steps: number of updates T ≥ 0.

        Raises:
            ValueError: if `steps` is not an int ≥ 0.
        """
        u = jnp.asarray(eta) * self.eigenvalues
        factors = _momentum.heavy_ball_factor(u, momentum, steps)
        return self.minimum + jnp.sum(self.weights * factors**2)

    def nesterov_loss(
        self,
        eta: ScalarLike,
        momentum: ScalarLike,
        steps: int,
        *,
        at: str = "lookahead",
    ) -> Scalar:
        r"""Loss after T steps of Nesterov's momentum from rest.

        The run of `optax.sgd(eta, momentum, nesterov=True)`, whose parameters are the
        points where gradients are taken (`at="lookahead"`); `at="iterate"` is the other
        of Nesterov's two sequences. See `metalr.theory.momentum.nesterov_factor`; cost,
        derivatives and errors as `heavy_ball_loss`.
        """
        u = jnp.asarray(eta) * self.eigenvalues
        factors = _momentum.nesterov_factor(u, momentum, steps, at=at)
        return self.minimum + jnp.sum(self.weights * factors**2)

    def _sum(self, eta: ScalarLike, order: int, power: int) -> Scalar:
        factors = signed_power(jnp.asarray(eta) * self.eigenvalues, power)
        return jnp.sum(self.weights * self.eigenvalues**order * factors)

    def _range(self) -> tuple[Scalar, Scalar]:
        """The least and the greatest active eigenvalue."""
        self._check_active()
        active = self.weights > 0.0
        least = jnp.min(jnp.where(active, self.eigenvalues, jnp.inf))
        return least, jnp.max(jnp.where(active, self.eigenvalues, 0.0))

    def _check_active(self) -> None:
        traced = isinstance(self.weights, Tracer)
        if self.eigenvalues.size == 0 or not (
            traced or bool(np.any(np.asarray(self.weights) > 0))
        ):
            msg = (
                "no active eigenvalue: Xᵀ(Xw₀ − t) = 0, the start is already optimal, "
                "L_T(η) is constant and every rate is as good as another; choose "
                "another w0"
            )
            raise ValueError(msg)


def _balance(
    weighted: Float[Array, " k"], eigenvalues: Float[Array, " k"], odd: int
) -> Scalar:
    """The rate at which the terms below and above 1/λ of the slope balance."""
    active = weighted > 0.0
    log_weights = jnp.log(jnp.where(active, weighted, 1.0))
    low = 1.0 / jnp.max(jnp.where(active, eigenvalues, 0.0))
    high = 1.0 / jnp.min(jnp.where(active, eigenvalues, jnp.inf))
    just_below_1 = 1.0 - 0.5 * float(jnp.finfo(eigenvalues.dtype).eps)

    def imbalance(eta: Scalar) -> Scalar:
        reduced = eta * eigenvalues
        above = reduced > 1.0
        # Both branches of a `where` are differentiated: keep both arguments valid.
        log_above = jnp.log(jnp.where(above, reduced, 2.0) - 1.0)
        log_below = jnp.log1p(-jnp.minimum(reduced, just_below_1))
        exponents = log_weights + odd * jnp.where(above, log_above, log_below)
        left = jax.nn.logsumexp(exponents, where=active & ~above)
        right = jax.nn.logsumexp(exponents, where=active & above)
        return left - right

    def bisect(f, low):
        def halve(_: Any, ends: tuple[Scalar, Scalar]) -> tuple[Scalar, Scalar]:
            low, high = ends
            middle = jnp.sqrt(low) * jnp.sqrt(high)
            left = f(middle) > 0.0
            return jnp.where(left, middle, low), jnp.where(left, high, middle)

        low, up = jax.lax.fori_loop(0, _BISECTIONS, halve, (low, high))
        return jnp.sqrt(low) * jnp.sqrt(up)

    root = jax.lax.custom_root(
        imbalance, low, bisect, lambda g, y: y / g(jnp.ones_like(y))
    )
    return jnp.where(jnp.any(active), root, jnp.nan)


def _regression_arrays(
    X: Any, t: Any, w0: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    if any(isinstance(array, Tracer) for array in (X, t, w0)):
        msg = (
            "from_regression needs concrete arrays (how many eigenvalues are active is "
            "data): call it outside jit, vmap and grad, and pass the Quadratic in"
        )
        raise ValueError(msg)
    X, t = jnp.asarray(X), jnp.asarray(t)
    w0 = jnp.zeros(X.shape[1:], X.dtype) if w0 is None else jnp.asarray(w0)
    if X.ndim != 2 or 0 in X.shape or t.shape != X.shape[:1] or w0.shape != X.shape[1:]:
        msg = (
            f"X {X.shape}, t {t.shape}, w0 {w0.shape} do not fit: they must be "
            "(n, d), (n,) and (d,), with n ≥ 1 and d ≥ 1"
        )
        raise ValueError(msg)
    dtype = jnp.result_type(X, t, w0, float)
    X, t, w0 = (jnp.asarray(array, dtype) for array in (X, t, w0))
    for name, array in (("X", X), ("t", t), ("w0", w0)):
        if not bool(jnp.all(jnp.isfinite(array))):
            msg = f"{name} has a value that is not finite: remove or impute it"
            raise ValueError(msg)
    return X, t, w0
