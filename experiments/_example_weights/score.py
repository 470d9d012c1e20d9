r"""Truth by retraining: the linear datamodeling score.

The first-order prediction for leaving out S is $L(1) - \sum_{i\in S}\partial L/\partial
w_i$. The score is Spearman's correlation, over random S, of predicted against
retrained loss (the same start, the same order of batches). Engines that are exact
predict the same; the score measures how linear the run is.

Park et al. (2023), TRAK: attributing model behavior at scale (the score). Ilyas and
Engstrom (2025), MAGIC: near-optimal data attribution for deep learning.
"""

from typing import Any, NamedTuple

import numpy as np
from scipy.stats import rankdata


class Score(NamedTuple):
    """A correlation, its standard error over resampled subsets, and the slope."""

    value: float
    error: float
    slope: float  # of actual against predicted loss: 1 where the run is linear


def subsets(seed: int, n: int, fraction: float, count: int) -> np.ndarray:
    """(count, n) weights: 0 for a random `fraction` of the examples, 1 for the rest."""
    out = max(1, round(fraction * n))
    rng = np.random.default_rng(seed)
    weights = np.ones((count, n))
    for row in weights:
        row[rng.choice(n, out, replace=False)] = 0.0
    return weights


def predicted(value: Any, grad: Any, weights: np.ndarray) -> np.ndarray:
    """The loss at each row of weights, to first order around 1."""
    return float(value) + (weights - 1.0) @ np.asarray(grad, np.float64)


def score(
    guess: np.ndarray, truth: np.ndarray, *, seed: int = 0, resamples: int = 1000
) -> Score:
    """Spearman's correlation of two losses over subsets, with its bootstrap error.

    Resamples of one subset alone, which have no correlation, are left out; nan where
    all guesses, or all losses, are equal.
    """
    if np.ptp(guess) == 0.0 or np.ptp(truth) == 0.0:
        return Score(np.nan, np.nan, np.nan)
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, len(truth), (resamples, len(truth)))
    drawn = _spearman(guess[rows], truth[rows])
    centered = guess - guess.mean()
    slope = centered @ truth / (centered @ centered)
    return Score(
        float(_spearman(guess[None], truth[None])[0]),
        float(np.nanstd(drawn, ddof=1)),
        float(slope),
    )


def _spearman(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pearson's correlation of the ranks, row by row; ties share their mean rank."""
    a, b = (rankdata(x, axis=1) for x in (a, b))
    a, b = (x - x.mean(axis=1, keepdims=True) for x in (a, b))
    with np.errstate(invalid="ignore"):
        return np.sum(a * b, axis=1) / np.sqrt(
            np.sum(a**2, axis=1) * np.sum(b**2, axis=1)
        )


def ranked_above(scores: np.ndarray, wanted: np.ndarray) -> float:
    """The probability that a wanted example scores above another (area under ROC)."""
    ranks = rankdata(scores)
    ones = int(np.sum(wanted))
    zeros = len(wanted) - ones
    return float((np.sum(ranks[wanted]) - ones * (ones + 1) / 2) / (ones * zeros))
