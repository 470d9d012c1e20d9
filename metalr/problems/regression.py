"""Least squares from arrays: the loss, its standardization, and made-up problems."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .._types import Batch, Hyper, Matrix, Params, Scalar, Vector


class Standardization(NamedTuple):
    """The affine map that `standardize` applied: `(X - mean) / scale`."""

    mean: Float[Array, " d"]
    scale: Float[Array, " d"]  # standard deviation; 1 where a column is constant

    def __call__(self, X: Float[Array, "n d"]) -> Float[Array, "n d"]:
        """Apply the recorded map, e.g. to validation data."""
        return (X - self.mean) / self.scale


def standardize(X: Matrix) -> tuple[Float[Array, "n d"], Standardization]:
    """Columns with mean 0 and standard deviation 1, and the map that made them so.

    Nothing in metalr standardizes silently: this is the one place. A column whose
    deviation is below `n·eps` times its largest magnitude counts as constant: it is
    centered and left unscaled.

    Example:
        >>> import jax.numpy as jnp
        >>> from metalr.problems import regression
        >>> Z, map_ = regression.standardize(jnp.array([[1.0, 5.0], [3.0, 5.0]]))
        >>> print(Z[:, 0], Z[:, 1], map_.mean, map_.scale)
        [-1.  1.] [0. 0.] [2. 5.] [1. 1.]
    """
    X = jnp.asarray(X)
    mean, deviation = jnp.mean(X, axis=0), jnp.std(X, axis=0)
    tiny = X.shape[0] * jnp.finfo(X.dtype).eps * jnp.max(jnp.abs(X), axis=0)
    constant = deviation <= tiny
    map_ = Standardization(mean, jnp.where(constant, 1.0, deviation))
    return jnp.where(constant, 0.0, map_(X)), map_


class LeastSquares(NamedTuple):
    r"""The loss `‖Xw − t‖²/n`, as a pytree of its data.

    `loss(params, hyper, batch)`, with `params` the vector w. `batch` is None for all
    rows, or an integer array of row indices: then the mean is over those rows. Does
    not depend on `hyper`. As a pytree it is stacked over tasks by `vmap` and gives
    jitted code its data as arguments, not constants.
    """

    X: Float[Array, "n d"]
    t: Float[Array, " n"]

    def __call__(self, params: Params, hyper: Hyper, batch: Batch) -> Scalar:
        """Mean squared residual over the rows of the batch."""
        del hyper
        X, t = (self.X, self.t) if batch is None else (self.X[batch], self.t[batch])
        return jnp.mean((X @ params - t) ** 2)


def least_squares(X: Matrix, t: Vector) -> LeastSquares:
    r"""The inner loss of a linear regression, $\|Xw - t\|^2/n$.

    The factor is 1/n, without ½, so that the Hessian is $(2/n)X^\top X$, as in
    `metalr.theory.Quadratic`.

    Args:
        X: inputs, one example a row.
        t: targets.

    Raises:
        ValueError: if the shapes do not fit, or the dtypes are not one floating type.

    Example:
        >>> import jax.numpy as jnp, optax, metalr
        >>> loss = metalr.problems.least_squares(jnp.eye(2), jnp.array([1.0, 2.0]))
        >>> L = metalr.Unrolled(loss, optax.sgd, jnp.zeros(2), steps=1)
        >>> print(L(1.0), L.final_params(1.0))
        0.0 [1. 2.]
    """
    X, t = jnp.asarray(X), jnp.asarray(t)
    if X.ndim != 2 or t.shape != X.shape[:1]:
        msg = f"X {X.shape} and t {t.shape} do not fit: they must be (n, d) and (n,)"
        raise ValueError(msg)
    if X.dtype != t.dtype or not jnp.issubdtype(X.dtype, jnp.floating):
        msg = f"X is {X.dtype}, t is {t.dtype}: cast both to one floating dtype"
        raise ValueError(msg)
    return LeastSquares(X, t)


def with_spectrum(
    key: PRNGKeyArray,
    eigenvalues: Any,
    *,
    n: int,
    d: int | None = None,
    weights: Any = 1.0,
    minimum: float = 0.0,
) -> tuple[Float[Array, "n d"], Float[Array, " n"]]:
    r"""A regression with a prescribed spectrum, in random directions.

    $X = \sqrt{n/2}\,U\,\mathrm{diag}(\sqrt\lambda)\,V^\top$ with random orthonormal U
    and V; t so that a run from zero has the weights p and the minimum $L_\infty$:
    `Quadratic.from_regression` gives back `eigenvalues`, `weights` and `minimum`.

    Args:
        key: random key.
        eigenvalues: the k positive eigenvalues of $(2/n)X^\top X$.
        n: number of examples, at least k (more than k if `minimum` > 0).
        d: number of inputs, at least k; k by default.
        weights: the k weights p ≥ 0, or one for all.
        minimum: the loss that no w removes.

    Raises:
        ValueError: if a size or a value is out of range.
    """
    values = jnp.asarray(eigenvalues, float)
    k = values.size
    d = k if d is None else d
    if values.ndim != 1 or k == 0 or bool(jnp.any(values <= 0.0)):
        msg = f"eigenvalues = {eigenvalues!r} must be a list of positive numbers"
        raise ValueError(msg)
    p = jnp.broadcast_to(jnp.asarray(weights, float), (k,))
    if bool(jnp.any(p < 0.0)) or minimum < 0.0:
        msg = f"weights = {weights!r} and minimum = {minimum} must not be negative"
        raise ValueError(msg)
    extra = int(minimum > 0.0)
    if n < k + extra or d < k:
        msg = (
            f"n = {n} and d = {d} are too small for {k} eigenvalues: "
            f"n ≥ {k + extra} and d ≥ {k} are needed"
        )
        raise ValueError(msg)
    left, right = jax.random.split(key)
    U = jax.random.orthogonal(left, n)
    V = jax.random.orthogonal(right, d)[:, :k]
    X = jnp.sqrt(n / 2) * (U[:, :k] * jnp.sqrt(values)) @ V.T
    t = U[:, :k] @ jnp.sqrt(n * p) + extra * jnp.sqrt(n * minimum) * U[:, -1]
    return X, t
