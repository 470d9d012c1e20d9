"""Finite differences of an objective along coordinates or random directions."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .._checks import path_name
from .._types import Hyper
from ..hypergrad.hypergradient import as_pytree
from ._differences import Slope, differentiate
from ._precision import Precise

MOST_COORDINATES = 6
"""Numbers that are varied one by one; more are varied along directions."""

_MOST_LEAVES = 8


class Direction(NamedTuple):
    """A way to move hyper; entries are of the size of what they move."""

    name: str
    tangent: Hyper  # numpy, float64
    place: int | None = None  # the coordinate in the raveled hyper, if it is one


def directions(hyper: Hyper, key: Array, count: int) -> list[Direction]:
    """Every coordinate, or `count` random directions and one for each leaf (of 8)."""
    leaves, structure = jax.tree.flatten(jax.tree.map(_float64, hyper))
    paths = [p for p, _ in jax.tree_util.tree_leaves_with_path(hyper)]
    scales = [_scale(leaf) for leaf in leaves]
    size = sum(leaf.size for leaf in leaves)
    if size <= MOST_COORDINATES:
        found, place = [], 0
        for i, leaf in enumerate(leaves):
            for j in range(leaf.size):
                parts = [np.zeros_like(x) for x in leaves]
                entry = abs(leaf.ravel()[j]) or scales[i]
                parts[i] = np.where(np.arange(leaf.size) == j, entry, 0.0).reshape(
                    leaf.shape
                )
                where = f"[{j}]" if leaf.size > 1 else ""
                name = path_name("hyper", paths[i]) + where
                found.append(Direction(name, structure.unflatten(parts), place + j))
            place += leaf.size
        return found
    random = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
    drawn = [
        (
            f"random direction {k}",
            [_drawn(random, x, s) for x, s in _with(leaves, scales)],
        )
        for k in range(count)
    ]
    for i in range(len(leaves) if 1 < len(leaves) <= _MOST_LEAVES else 0):
        parts = [np.zeros_like(x) for x in leaves]
        parts[i] = _drawn(random, leaves[i], scales[i])
        drawn.append((f"within {path_name('hyper', paths[i])}", parts))
    return [Direction(name, structure.unflatten(parts)) for name, parts in drawn]


def differences(precise: Precise, along: list[Direction]) -> list[Slope]:
    """The slope along each direction, run after run in constant memory."""
    objective, hyper, dtype = precise

    def values(tangent: Hyper, shifts: np.ndarray) -> np.ndarray:
        tangent = jax.tree.map(lambda t, h: jnp.asarray(t, h.dtype), tangent, hyper)
        return np.asarray(_values(as_pytree(objective), hyper, tangent, shifts))

    return [
        differentiate(lambda s, d=d: values(d.tangent, s), 1.0, dtype) for d in along
    ]


@jax.jit
def _values(objective: Any, hyper: Hyper, tangent: Hyper, shifts: Array) -> Array:
    def moved(shift: Array) -> Array:
        along = lambda h, t: h + shift.astype(h.dtype) * t
        return objective(jax.tree.map(along, hyper, tangent))

    return jax.lax.map(moved, shifts)


def along_product(grad: Hyper, tangent: Hyper) -> float:
    """Derivative along a direction, from the gradient."""
    pairs = zip(jax.tree.leaves(grad), jax.tree.leaves(tangent), strict=True)
    return float(sum(np.sum(_float64(g) * t) for g, t in pairs))


def _with(leaves: list[np.ndarray], scales: list[float]) -> Any:
    return zip(leaves, scales, strict=True)


def _float64(leaf: Any) -> np.ndarray:
    return np.asarray(leaf, np.float64)


def _scale(leaf: Any) -> float:
    """Root mean square; 1 where all is 0."""
    return math.sqrt(float(np.mean(_float64(leaf) ** 2))) or 1.0


def _drawn(random: np.random.Generator, leaf: np.ndarray, scale: float) -> np.ndarray:
    """Entries of the size of the leaf's own, so that no sign is changed."""
    size = np.where(leaf != 0.0, np.abs(leaf), scale)
    return size * random.uniform(-1.0, 1.0, leaf.shape)
