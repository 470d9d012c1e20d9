"""Least squares from arrays: the loss, its standardization, and made-up problems."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, PRNGKeyArray

from .._types import Batch, Hyper, Matrix, Params, Scalar, Vector


class Standardization(NamedTuple):
    """The affine map that `standardize` applied: `(X - mean) / scale`, by columns.

    NumPy arrays in float64, whatever the dtype of the data.
    """

    mean: np.ndarray  # (d,)
    scale: np.ndarray  # (d,): standard deviation; 1 where a column is constant
    constant: np.ndarray  # (d,) bool: columns without information, which became zeros

    def __call__(self, X: Matrix) -> Float[Array, "n d"]:
        """Apply the recorded map, e.g. to validation data; in float64 on the host.

        Example:
            >>> import jax.numpy as jnp
            >>> from metalr.problems import regression
            >>> _, map_ = regression.standardize(jnp.array([[1.0], [3.0]]))
            >>> print(map_(jnp.array([[4.0]])))
            [[2.]]
        """
        host, dtype = _on_host(X)
        return jnp.asarray(self.on_host(host), jax.dtypes.canonicalize_dtype(dtype))

    def on_host(self, X: np.ndarray) -> np.ndarray:
        """The same in NumPy, float64 in and out."""
        return np.where(self.constant, 0.0, (X - self.mean) / self.scale)


def standardize(X: Matrix) -> tuple[Float[Array, "n d"], Standardization]:
    """Columns with mean 0 and standard deviation 1, and the map that made them so.

    Nothing in metalr standardizes silently: this is the one place. Centered and scaled
    in float64 on the host, and cast to the dtype of `X` at the end: a float32 mean of
    many rows would carry more error than a narrow column has spread. A column counts as
    constant where its deviation is at most half a unit in the last place (of its own
    dtype) of its largest magnitude, however many rows there are; it becomes zeros, and
    `Standardization.constant` says so.

    Args:
        X: inputs, one example a row; concrete, since the host computes.

    Returns:
        The columns in the dtype of `X`, and the `Standardization`.

    Raises:
        ValueError: if `X` is traced, is not a matrix with rows, or has a value that is
            not finite; the message names its column.

    Example:
        >>> import jax.numpy as jnp
        >>> from metalr.problems import regression
        >>> Z, map_ = regression.standardize(jnp.array([[1.0, 5.0], [3.0, 5.0]]))
        >>> print(Z[:, 0], Z[:, 1], map_.mean, map_.scale, map_.constant)
        [-1.  1.] [0. 0.] [2. 5.] [1. 1.] [False  True]
    """
    map_ = columns(X)
    return map_(X), map_


def columns(X: Matrix) -> Standardization:
    """The map of `standardize` alone, where it is applied elsewhere, e.g. on the host.

    Args:
        X: inputs, one example a row; concrete.

    Raises:
        ValueError: as `standardize`.

    Example:
        >>> import numpy as np
        >>> from metalr.problems import regression
        >>> print(regression.columns(np.array([[1.0], [3.0]])).mean)
        [2.]
    """
    host, dtype = _on_host(X)
    if host.ndim != 2 or host.shape[0] == 0:
        msg = f"X has shape {host.shape}: it must be (n, d) with n ≥ 1"
        raise ValueError(msg)
    bad = np.flatnonzero(~np.all(np.isfinite(host), axis=0))
    if bad.size:
        msg = (
            f"column {bad[0]} of X has a value that is not finite: remove or impute it"
        )
        raise ValueError(msg)
    magnitude = np.max(np.abs(host), axis=0)
    # In units of a power of two, so that no square overflows; from the first row, so
    # that equal values differ by exactly 0.
    unit = np.exp2(np.frexp(magnitude)[1] - 1.0)
    shifted = (host - host[0]) / unit
    shift = np.mean(shifted, axis=0)
    deviation = np.sqrt(np.mean((shifted - shift) ** 2, axis=0)) * unit
    constant = deviation <= 0.5 * float(jnp.finfo(dtype).eps) * magnitude
    mean = host[0] + shift * unit
    return Standardization(mean, np.where(constant, 1.0, deviation), constant)


def _on_host(X: Any) -> tuple[np.ndarray, Any]:
    """`X` in float64, and the float dtype that it came in."""
    if isinstance(X, Tracer):
        msg = "X is traced, but is standardized on the host: do it outside of jit"
        raise ValueError(msg)
    floats = jnp.issubdtype(jnp.result_type(X), jnp.floating)
    dtype = X.dtype if floats and hasattr(X, "dtype") else jnp.dtype(float)
    return np.asarray(X).astype(np.float64), dtype


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
