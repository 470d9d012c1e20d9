"""Where is L'' smallest? A search by ordinary floating point: it proves nothing."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

_POINTS = 257
_ZOOMS = 4


class Found(NamedTuple):
    """Candidates for a refutation, the smallest curvature first."""

    at: np.ndarray
    curvature: np.ndarray
    chords: list[tuple[float, float, float]]  # (a, m, b), m the exact midpoint


def search(objective: Callable[[Any], jax.Array], low: float, high: float) -> Found:
    """L and L'' on a grid, refined around the smallest L''."""
    dtype = jnp.result_type(float)

    def second(rate: jax.Array) -> tuple[jax.Array, jax.Array]:
        def slope(x: jax.Array) -> jax.Array:
            return jax.jvp(objective, (x,), (jnp.ones_like(x),))[1]

        return objective(rate), jax.jvp(slope, (rate,), (jnp.ones_like(rate),))[1]

    try:
        jax.eval_shape(second, jax.ShapeDtypeStruct((), dtype))
    except (TypeError, NotImplementedError):  # no such derivative: then chords alone
        second = lambda rate: (objective(rate), jnp.full_like(rate, jnp.inf))
    on_grid = jax.jit(jax.vmap(second))
    left, right = low, high
    points, curvatures = [], []
    chords: list[tuple[float, float, float]] = []
    for _ in range(_ZOOMS):
        grid = _grid(left, right, dtype)
        values, curvature = (np.asarray(x, float) for x in on_grid(grid.astype(dtype)))
        chords += _chords(grid, values)
        points.append(grid)
        curvatures.append(np.where(np.isnan(curvature), np.inf, curvature))
        best = int(np.argmin(curvatures[-1]))
        reach = 4.0 * (right - left) / (_POINTS - 1)
        left, right = max(low, grid[best] - reach), min(high, grid[best] + reach)
        if not right - left > 1e-13 * (abs(left) + abs(right)):
            break
    order = np.argsort(np.concatenate(curvatures), kind="stable")
    return Found(
        np.concatenate(points)[order], np.concatenate(curvatures)[order], chords
    )


def _grid(left: float, right: float, dtype: Any) -> np.ndarray:
    """The ends, and between them multiples of a power of two: exact midpoints."""
    step = 2.0 ** np.ceil(np.log2((right - left) / (_POINTS - 3)))
    inside = np.arange(np.ceil(left / step), np.floor(right / step) + 1) * step
    padding = np.full(max(_POINTS - 1 - inside.size, 1), right)
    grid = np.concatenate([[left], inside, padding])[:_POINTS]
    return np.clip(grid.astype(dtype).astype(np.float64), left, right)


def _chords(grid: np.ndarray, values: np.ndarray) -> list[tuple[float, float, float]]:
    """Neighbors whose middle lies above the chord, the worst first."""
    with np.errstate(invalid="ignore", over="ignore"):
        excess = 2.0 * values[1:-1] - values[:-2] - values[2:]
    even = grid[:-2] + grid[2:] == 2.0 * grid[1:-1]
    excess = np.where(
        even & (grid[:-2] < grid[1:-1]) & np.isfinite(excess), excess, -1.0
    )
    worst = [int(i) for i in np.argsort(-excess)[:4] if excess[i] > 0.0]
    return [(float(grid[i]), float(grid[i + 1]), float(grid[i + 2])) for i in worst]
