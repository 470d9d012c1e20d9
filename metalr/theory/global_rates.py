r"""The best constant rate with momentum: the lowest of many local minima.

$L_T(\eta) = L_\infty + \sum_i p_i c_T(\eta\lambda_i)^2$ oscillates in η. Its global
minimum is found from a grid that resolves every oscillation of $c_T$: NumPy, on the
host, for many runs on one spectrum at once.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import numpy as np

from . import momentum as theory
from ._checks import check_steps

Momentum: TypeAlias = Literal["heavy_ball", "nesterov"]

_FACTORS: dict[str, Callable[..., jax.Array]] = {
    "heavy_ball": theory.heavy_ball_factor,
    "nesterov": theory.nesterov_factor,
}
_PER_OSCILLATION = 8
"""Grid points between two zeros of $c_T$ along the largest eigenvalue."""

_CANDIDATES = 4
"""Local minima, the lowest on the grid, that are located exactly."""

_REFINEMENTS = 60
_CHUNKS = (256, 4096, 32768)
"""Values of u that one compiled program takes: one compilation serves all data sets."""


class Optimum(NamedTuple):
    """Where each run's loss is least; leading axis: the runs. nan: nothing to learn."""

    rate: np.ndarray
    minima: np.ndarray  # local minima of L_T


class Spectrum(NamedTuple):
    """B runs on one spectrum: what `Quadratic` holds of each."""

    eigenvalues: Any  # (k,)
    weights: Any  # (B, k), 0 where a start is optimal
    minimum: Any  # (B,)


class Local(NamedTuple):
    """What the closed form says of a rate."""

    loss: Any
    slope: Any
    curvature: Any


def momentum_optima(
    runs: Spectrum, method: Momentum, momentum: np.ndarray, steps: int
) -> Optimum:
    r"""The global minimum of each run's loss, and how many local ones there are.

    Each term $c_T(\eta\lambda_i)^2$ falls up to the least zero of $c_T$, at $u \ge
    1/|c_T'(0)|$ since all zeros are real and positive, and rises beyond the greatest,
    $u \le (1+\sqrt\alpha)^2$ (Nesterov: 1): all minima lie between these, over
    $\lambda_{\max}$ and $\lambda_{\min}$. A sign change of the slope on the grid is a
    minimum; the lowest few are located by Newton's method, and the best is taken.
    Memory: 16 bytes for each of about $3T\log(\eta_{high}/\eta_{low})$ grid points and
    each eigenvalue.

    Args:
        runs: the runs.
        method: "heavy_ball" or "nesterov", from rest.
        momentum: α in [0, 1) of each run, (B,).
        steps: number of updates T ≥ 1.

    Returns:
        The rate of each run, nan where all its weights are 0, and its local minima.

    Raises:
        ValueError: if `method` is unknown, a momentum out of range, or `steps` no
            int ≥ 1.
    """
    check_steps(steps, least=1)
    if method not in _FACTORS:
        msg = f"method = {method!r} must be one of {', '.join(_FACTORS)}"
        raise ValueError(msg)
    if not np.all((momentum >= 0.0) & (momentum < 1.0)):
        msg = f"momentum = {momentum} must be in [0, 1)"
        raise ValueError(msg)
    rates = np.full(len(momentum), np.nan)
    minima = np.zeros(len(momentum), int)
    if runs.eigenvalues.size == 0:
        return Optimum(rates, minima)
    for value in np.unique(momentum):
        rows = np.flatnonzero(momentum == value)
        some = Spectrum(runs.eigenvalues, runs.weights[rows], runs.minimum[rows])
        key = (tuple(runs.eigenvalues.tolist()), str(runs.eigenvalues.dtype))
        table = _table(*key, method, float(value), steps)
        brackets, minima[rows] = _brackets(table, some.weights)
        located = _locate(some, brackets, method, float(value), steps)
        rates[rows] = np.where(minima[rows] > 0, located, np.nan)
    return Optimum(rates, minima)


def momentum_local(
    runs: Spectrum,
    method: Momentum,
    rates: np.ndarray,
    momentum: np.ndarray,
    steps: int,
) -> Local:
    """Loss, slope and curvature of each run (B,) at its rate, to any scale of rates.

    Of several rates a run, (B, K), with `momentum` (B, 1): arrays of that shape.
    """
    terms = _terms(
        rates[..., None] * runs.eigenvalues, momentum[..., None], method, steps
    )
    weights = runs.weights.reshape(len(rates), *(1,) * (rates.ndim - 1), -1)
    minimum = runs.minimum.reshape(len(rates), *(1,) * (rates.ndim - 1))
    with np.errstate(invalid="ignore"):  # an exploding run times a weight of 0
        value, slope, curvature = (np.sum(weights * x, axis=-1) for x in terms)
    return Local(minimum + value, slope / rates, curvature / rates**2)


class _Table(NamedTuple):
    """The terms of the loss on the grid, for any weights."""

    rates: np.ndarray  # (grid,)
    squares: np.ndarray  # (grid, k): c_T(ηλ)²
    slopes: np.ndarray  # (grid, k): η times its derivative in η


@functools.lru_cache(maxsize=2)
def _table(
    values: tuple[float, ...], dtype: str, method: Momentum, momentum: float, steps: int
) -> _Table:
    eigenvalues = np.asarray(values, dtype)
    rates = _grid(eigenvalues, method, momentum, steps).astype(dtype)
    u = rates[:, None] * eigenvalues
    squares, slopes, _ = _terms(u, np.asarray(momentum, dtype), method, steps)
    # Where the run explodes there is no minimum: any huge number will do.
    huge = np.sqrt(np.finfo(dtype).max)
    return _Table(
        rates,
        *(np.clip(np.nan_to_num(x, nan=huge), -huge, huge) for x in (squares, slopes)),
    )


def _terms(
    u: np.ndarray, momentum: np.ndarray, method: Momentum, steps: int
) -> tuple[np.ndarray, ...]:
    """$c_T(u)^2$, and u and u² times its derivatives, each in the shape of u."""
    flat = u.ravel()
    chunk = next((size for size in _CHUNKS if flat.size <= size), _CHUNKS[-1])
    padded = np.zeros((2, -(-flat.size // chunk) * chunk), u.dtype)
    padded[0, : flat.size] = flat
    padded[1, : flat.size] = np.broadcast_to(momentum, u.shape).ravel()
    parts = [
        _compiled_terms(*padded[:, begin : begin + chunk], method, steps)
        for begin in range(0, padded.shape[1], chunk)
    ]
    whole = (np.concatenate(part) for part in zip(*parts, strict=True))
    return tuple(part[: flat.size].reshape(u.shape) for part in whole)


@functools.partial(jax.jit, static_argnames=("method", "steps"))
def _compiled_terms(
    u: jax.Array, momentum: jax.Array, method: Momentum, steps: int
) -> tuple[jax.Array, ...]:
    def one(u: jax.Array, momentum: jax.Array) -> tuple[jax.Array, ...]:
        def squares(x: jax.Array) -> jax.Array:
            return _FACTORS[method](x, momentum, steps) ** 2

        def slope(x: jax.Array) -> tuple[jax.Array, jax.Array]:
            value, slope = jax.jvp(squares, (x,), (u,))
            return slope, value

        first, second, value = jax.jvp(slope, (u,), (u,), has_aux=True)
        return value, first, second

    return jax.vmap(one)(u, momentum)


def _grid(
    eigenvalues: np.ndarray, method: Momentum, momentum: float, steps: int
) -> np.ndarray:
    """Rates that resolve the oscillations: even in log η, and in their angle."""
    # −c_T'(0): how far T steps go along a constant gradient.
    counts = np.arange(1, steps + 1) + (method == "nesterov")
    reach = np.sum((1.0 - momentum**counts) / (1.0 - momentum))
    angles = np.linspace(0.0, np.pi, _PER_OSCILLATION * steps + 1)
    root = np.sqrt(momentum)
    if method == "heavy_ball":
        top = (1.0 + root) ** 2
        oscillating = 1.0 + momentum - 2.0 * root * np.cos(angles)
    else:
        top = 1.0
        oscillating = 1.0 - (2.0 * root / (1.0 + momentum) * np.cos(angles / 2.0)) ** 2
    low = 0.99 / (reach * eigenvalues[-1])
    high = 1.01 * top / eigenvalues[0]
    each = np.log(high / low) * _PER_OSCILLATION * steps / np.pi
    even = np.geomspace(low, high, int(each) + 64)
    inner = oscillating[oscillating > 0.0] / eigenvalues[-1]
    return np.unique(np.concatenate([even, inner[(inner > low) & (inner < high)]]))


def _brackets(table: _Table, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The lowest minima of each run between grid points, and how many it has."""
    slopes, values = weights @ table.slopes.T, weights @ table.squares.T
    falls_then_rises = (slopes[:, :-1] < 0.0) & (slopes[:, 1:] >= 0.0)
    lower_end = np.minimum(values[:, :-1], values[:, 1:])
    height = np.where(falls_then_rises, lower_end, np.inf)
    lowest = np.argsort(height, axis=1, kind="stable")[:, :_CANDIDATES]
    # A run with fewer minima than candidates has its lowest several times.
    known = np.take_along_axis(height, lowest, axis=1) < np.inf
    lowest = np.where(known, lowest, lowest[:, :1])
    return (
        np.stack([table.rates[lowest], table.rates[lowest + 1]], axis=-1),
        np.sum(falls_then_rises, axis=1),
    )


def _locate(
    runs: Spectrum,
    brackets: np.ndarray,
    method: Momentum,
    momentum: float,
    steps: int,
) -> np.ndarray:
    """The best of each run's bracketed minima, by Newton's method inside its bracket.

    To the rounding of the slope: where Newton leaves the bracket, it is halved.
    """
    low, high = brackets[..., 0].copy(), brackets[..., 1].copy()
    alphas = np.full((len(low), 1), momentum, low.dtype)
    rates = 0.5 * (low + high)
    for _ in range(_REFINEMENTS):
        here = momentum_local(runs, method, rates, alphas, steps)
        falls = here.slope < 0.0
        low, high = np.where(falls, rates, low), np.where(falls, high, rates)
        step = here.slope / np.where(here.curvature > 0.0, here.curvature, np.inf)
        newton, middle = rates - step, 0.5 * (low + high)
        usable = (here.curvature > 0.0) & (newton >= low) & (newton <= high)
        proposed = np.where(usable, newton, middle)
        settled = np.abs(proposed - rates) <= 2.0 * np.finfo(low.dtype).eps * rates
        rates = proposed
        if np.all(settled):
            break
    losses = momentum_local(runs, method, rates, alphas, steps).loss
    best = np.argmin(losses, axis=1)
    return np.take_along_axis(rates, best[:, None], axis=1)[:, 0]
