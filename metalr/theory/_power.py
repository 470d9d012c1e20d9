"""`(1 − u)ⁿ` for large n, accurate and differentiable at u = 1."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def signed_power(u: Float[Array, "*shape"], power: int) -> Float[Array, "*shape"]:
    """`(1 − u)^power` through its logarithm; `power` ≥ 0.

    Repeated multiplication loses `power` roundings; `exp(power · log|1 − u|)` loses as
    many as the exponent is large, which overflow bounds by about 700 in float64. The
    derivative is `−power · (1 − u)^(power − 1)`, to any order, also at u = 1. Overflow
    gives ±inf.
    """
    if power == 0:
        return jnp.ones_like(u)
    above = u > 1.0
    logarithm = jnp.where(
        above,
        jnp.log(jnp.where(above, u, 2.0) - 1.0),
        jnp.log1p(-jnp.where(above, 0.0, u)),
    )
    sign = jnp.where(above, -1.0, 1.0) if power % 2 else 1.0
    return sign * jnp.exp(power * logarithm)


@signed_power.defjvp
def _signed_power_jvp(power, primals, tangents):
    (u,), (du,) = primals, tangents
    value = signed_power(u, power)
    if power == 0:
        return value, jnp.zeros_like(value)
    return value, -power * signed_power(u, power - 1) * du
