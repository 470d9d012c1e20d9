"""Bilevel quadratics: minimum, adjoint and hypergradient in closed form."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from .._types import Scalar


class Quadratic(NamedTuple):
    r"""$\frac12 z^\top A z + \frac12 x^\top B x + x^\top C z + a^\top z + b^\top x$."""

    A: Float[Array, "z z"]
    B: Float[Array, "x x"]
    C: Float[Array, "x z"]
    a: Float[Array, " z"]
    b: Float[Array, " x"]

    def __call__(self, z: Float[Array, " z"], x: Float[Array, " x"]) -> Scalar:
        """Its value."""
        square = 0.5 * (z @ self.A @ z + x @ self.B @ x) + x @ self.C @ z
        return square + self.a @ z + self.b @ x


class BilevelQuadratic(NamedTuple):
    r"""$h(x) = f(z^*(x), x)$ with $z^*(x) = \arg\min_z g(z, x)$, both quadratic.

    $$z^* = -A_g^{-1}(C_g^\top x + a_g), \qquad
      v = A_g^{-1}(A_f z^* + C_f^\top x + a_f), \qquad
      \nabla h = B_f x + C_f z^* + b_f - C_g v$$

    A pytree; differentiable in its arrays.

    Example:
        >>> import jax.numpy as jnp
        >>> from metalr.theory import bilevel
        >>> one, zero = jnp.ones((1, 1)), jnp.zeros((1, 1))
        >>> g = bilevel.Quadratic(one, zero, -one, zero[0], zero[0])  # z* = x
        >>> f = bilevel.Quadratic(one, zero, zero, -one[0], zero[0])  # (z - 1)² / 2
        >>> problem = bilevel.BilevelQuadratic(g, f)
        >>> print(problem.gradient(jnp.array([3.0])), problem.minimizer())
        [2.] [1.]
    """

    inner: Quadratic
    outer: Quadratic

    def solution(self, x: Float[Array, " x"]) -> Float[Array, " z"]:
        """The inner minimum."""
        g = self.inner
        return -jnp.linalg.solve(g.A, g.C.T @ x + g.a)

    def value(self, x: Float[Array, " x"]) -> Scalar:
        """h(x)."""
        return self.outer(self.solution(x), x)

    def gradient(self, x: Float[Array, " x"]) -> Float[Array, " x"]:
        """∇h(x)."""
        f, z = self.outer, self.solution(x)
        v = jnp.linalg.solve(self.inner.A, f.A @ z + f.C.T @ x + f.a)
        return f.B @ x + f.C @ z + f.b - self.inner.C @ v

    def hessian(self) -> Float[Array, "x x"]:
        r"""$\nabla^2 h = B_f + C_f J + J^\top C_f^\top + J^\top A_f J$, J = dz*/dx."""
        f, J = self.outer, -jnp.linalg.solve(self.inner.A, self.inner.C.T)
        return f.B + f.C @ J + (f.C @ J).T + J.T @ f.A @ J

    def minimizer(self) -> Float[Array, " x"]:
        """Where ∇h is 0; the minimum if `hessian()` is positive definite."""
        at_zero = self.gradient(jnp.zeros_like(self.outer.b))
        return -jnp.linalg.solve(self.hessian(), at_zero)

    def penalized_gradient(
        self, x: Float[Array, " x"], penalty: float | Scalar
    ) -> Float[Array, " x"]:
        r"""The gradient of $\min_y f + \lambda(g - \min g)$: ∇h as λ → ∞."""
        g, f = self.inner, self.outer
        linear = f.C.T @ x + f.a + penalty * (g.C.T @ x + g.a)
        y = -jnp.linalg.solve(f.A + penalty * g.A, linear)
        return f.B @ x + f.C @ y + f.b + penalty * g.C @ (y - self.solution(x))
