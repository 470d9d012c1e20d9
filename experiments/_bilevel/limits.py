r"""What each method converges to, in closed form: not always a zero of ∇h.

All are $D(x) = \nabla_x f(z, x) - C_g\, v$ at some z and with some v. That of h has
$z = z^*$ and $v = A_g^{-1}\nabla_z f$. A Neumann series of Q terms, and as well Q
warm-started unrolled steps at their fixed point, have $z = z^*$ and

$$v_Q = \alpha\sum_{q<Q}(I - \alpha A_g)^q\,\nabla_z f.$$

T steps from $z_0 = 0$ end at $z_T = z^* - (I - \alpha A_g)^T z^*$; unrolled, v is $v_T$
there, and by the implicit function theorem the solution.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax.numpy as jnp
from jaxtyping import Array, Float

from metalr.theory.bilevel import BilevelQuadratic

Gradient: TypeAlias = Callable[[Float[Array, " x"]], Float[Array, " x"]]


class Limit(NamedTuple):
    """What is 0 where a method ends."""

    says: str
    gradient: Gradient


def limit(
    name: str,
    truth: BilevelQuadratic,
    *,
    rate: float,
    terms: int,
    steps: int,
    penalty: float,
) -> Limit:
    """That of a method with its numbers.

    Args:
        name: of a solver or an outer loop.
        truth: the problem.
        rate: α, of inner steps and of the series.
        terms: Q of StocBiO.
        steps: T of the outer loops.
        penalty: λ of F2SA.
    """

    def series(x: Array, z: Array, many: int) -> Array:
        return _direction(truth, x, z, _neumann(truth, x, z, rate, many))

    def shortened(x: Array) -> Array:
        end = truth.solution(x)
        return end - _shrunk(truth, rate, steps) @ end

    def solved(x: Array) -> Array:
        z = shortened(x)
        v = jnp.linalg.solve(truth.inner.A, _outer_slope(truth, x, z))
        return _direction(truth, x, z, v)

    at_minimum = truth.solution
    known: dict[str, Limit] = {
        "StocBiO": Limit(
            f"its {terms} terms of the Neumann series",
            lambda x: series(x, at_minimum(x), terms),
        ),
        "F2SA": Limit(
            "its penalized problem", lambda x: truth.penalized_gradient(x, penalty)
        ),
        "unrolled, cold": Limit(
            f"the loss after {steps} steps", lambda x: series(x, shortened(x), steps)
        ),
        "unrolled, warm": Limit(
            f"{steps} terms of the Neumann series",
            lambda x: series(x, at_minimum(x), steps),
        ),
        "implicit, cold": Limit(f"the theorem at w after {steps} steps", solved),
    }
    return known.get(name, Limit("h", truth.gradient))


def _outer_slope(truth: BilevelQuadratic, x: Array, z: Array) -> Array:
    """∇_z f."""
    f = truth.outer
    return f.A @ z + f.C.T @ x + f.a


def _direction(truth: BilevelQuadratic, x: Array, z: Array, v: Array) -> Array:
    """∇_x f − C_g v."""
    f = truth.outer
    return f.B @ x + f.C @ z + f.b - truth.inner.C @ v


def _neumann(
    truth: BilevelQuadratic, x: Array, z: Array, rate: float, terms: int
) -> Array:
    """The geometric sum, $A^{-1}(I - (I - αA)^Q)$ applied to ∇_z f."""
    slope = _outer_slope(truth, x, z)
    rest = slope - _shrunk(truth, rate, terms) @ slope
    return jnp.linalg.solve(truth.inner.A, rest)


def _shrunk(truth: BilevelQuadratic, rate: float, steps: int) -> Array:
    """(I − αA)^T."""
    A = truth.inner.A
    return jnp.linalg.matrix_power(jnp.eye(len(A)) - rate * A, steps)
