"""The singular directions of a regression, and the runs on it along them."""

import dataclasses
from typing import Any

import numpy as np

_SLACK = 10.0
"""Roundings beyond max(n, d)·eps that a projection of the residual may carry."""


@dataclasses.dataclass(frozen=True, eq=False)
class Directions:
    """A singular value decomposition of X, once for all runs; NumPy, on the host.

    Attributes:
        X: inputs (n, d).
        left: the singular directions in the range of X, (n, k).
        eigenvalues: of the Hessian along them, ascending.
        tolerance: what counts as rounding.
    """

    X: np.ndarray
    left: np.ndarray
    eigenvalues: np.ndarray
    tolerance: float

    @classmethod
    def of(cls, X: Any) -> "Directions":
        """Those whose singular value is above `10·max(n, d)·eps` times the largest."""
        X = np.asarray(X)
        left, singular, _ = np.linalg.svd(X, full_matrices=False)
        tolerance = _SLACK * max(X.shape) * float(np.finfo(X.dtype).eps)
        left = left[:, singular > tolerance * np.max(singular, initial=0.0)]
        # ‖Xᵀu‖² rather than σ²: exact where X is a single row.
        eigenvalues = 2.0 / len(X) * np.sum((X.T @ left) ** 2, axis=0)
        order = np.argsort(eigenvalues)
        return cls(X, left[:, order], eigenvalues[order], tolerance)

    def project(self, t: np.ndarray, w0: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Weights (B, k) and minima (B,) of runs from starts (B, d) to targets (B, n).

        What is of the size of rounding is 0: a weight (the start is optimal there), or
        the minimum (the targets are in the range of X).
        """
        a = w0 @ self.X.T - t
        along = a @ self.left
        outside = a - along @ self.left.T
        size = self.tolerance * np.linalg.norm(a, axis=1)
        weights = np.where(np.abs(along) > size[:, None], along**2 / len(self.X), 0.0)
        in_range = np.linalg.norm(outside, axis=1) <= size
        minimum = np.where(in_range, 0.0, np.mean(outside**2, axis=1))
        return weights.astype(self.X.dtype), minimum.astype(self.X.dtype)
