r"""Two made-up means of quadratics with prescribed spectra, and their closed form.

The simulated problem of the bilevel benchmark of Dagréou et al. (2022): row i of each
function has Hessians of rank one, $u_i u_i^\top$ with $E\,u u^\top$ of spectrum $[\mu,
L]$ (that in x has one eigenvalue 0), a cross term $r_i s_i^\top$ whose mean has
singular values from μ to `cross`, and normal linear terms.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from metalr.theory.bilevel import BilevelQuadratic, Quadratic


class Rows(NamedTuple):
    r"""Row i: $(u_i z)^2/2 + (w_i x)^2/2 + (r_i x)(s_i z) + a_i z + b_i x$."""

    u: Float[Array, "n z"]
    w: Float[Array, "n x"]
    r: Float[Array, "n x"]
    s: Float[Array, "n z"]
    a: Float[Array, "n z"]
    b: Float[Array, "n x"]


class Simulated(NamedTuple):
    """The rows of both functions, and the closed form of their means."""

    inner: Rows
    outer: Rows
    truth: BilevelQuadratic


def loss(z: Array, x: Array, rows: Rows) -> Array:
    """The mean over some rows."""
    squares = 0.5 * ((rows.u @ z) ** 2 + (rows.w @ x) ** 2)
    linear = rows.a @ z + rows.b @ x
    return jnp.mean(squares + (rows.r @ x) * (rows.s @ z) + linear)


def simulated(
    *, n: int, d: int, mu: float, L: float, cross: float, seed: int, dtype: str
) -> Simulated:
    """A problem whose h is strongly convex: drawn again until it is, 20 times at most.

    Raises:
        ValueError: if none of the draws is.
    """
    for trial in range(20):
        key = jax.random.fold_in(jax.random.key(seed), trial)
        for_inner, for_outer = jax.random.split(key)
        inner, outer = (
            _rows(part, n=n, d=d, mu=mu, L=L, cross=cross, dtype=dtype)
            for part in (for_inner, for_outer)
        )
        truth = BilevelQuadratic(_mean(inner), _mean(outer))
        if jnp.min(jnp.linalg.eigvalsh(truth.hessian())) > 0.0:
            return Simulated(inner, outer, truth)
    msg = f"h is not strongly convex in any of 20 draws: make cross = {cross} smaller"
    raise ValueError(msg)


def _rows(
    key: Array, *, n: int, d: int, mu: float, L: float, cross: float, dtype: str
) -> Rows:
    keys = jax.random.split(key, 9)
    normal = lambda key: jax.random.normal(key, (n, d), dtype)
    rotation = lambda key: jax.random.orthogonal(key, d, dtype=dtype)
    spectrum = jnp.geomspace(mu, L, d, dtype=dtype)
    flat = jnp.geomspace(mu, L, d - 1, dtype=dtype)
    by_x = jnp.concatenate([jnp.zeros(1, dtype), flat])

    def correlated(key: Array, eigenvalues: Array) -> Array:
        for_rotation, for_rows = jax.random.split(key)
        basis = rotation(for_rotation)
        return normal(for_rows) * jnp.sqrt(eigenvalues) @ basis.T

    common = normal(keys[2])
    singular = jnp.geomspace(mu, cross, d, dtype=dtype)
    return Rows(
        u=correlated(keys[0], spectrum),
        w=correlated(keys[1], by_x),
        r=common * singular @ rotation(keys[3]).T,
        s=common @ rotation(keys[4]).T,
        a=normal(keys[5]),
        b=normal(keys[6]),
    )


def _mean(rows: Rows) -> Quadratic:
    n = rows.a.shape[0]
    A, B = rows.u.T @ rows.u / n, rows.w.T @ rows.w / n
    return Quadratic(
        A, B, rows.r.T @ rows.s / n, rows.a.mean(axis=0), rows.b.mean(axis=0)
    )
