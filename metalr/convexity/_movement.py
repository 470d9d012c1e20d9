"""Primitives that move entries and compute none: reshape, slice, gather."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from .._programs.equations import bind
from . import _series
from ._exact import Exact
from ._interval import Interval
from ._run import NotCoveredError, Rule, Run, Truth, Value, shape_of
from ._series import Series


def _movement(eqn: Any, operands: list[Value], run: Run) -> Value:
    """Entries are moved, none is computed: JAX says where each goes.

    The primitive runs on the numbers 1, 2, … of the entries; 0 is what fills a place
    past the end.
    """
    name = eqn.primitive.name
    count = {"concatenate": len(operands), "stack": len(operands), "pad": 2}.get(
        name, 1
    )
    moved, indices = operands[:count], operands[count:]
    if any(not isinstance(index, np.ndarray) for index in indices):
        msg = f"the primitive `{name}` at a place that depends on the hyperparameter"
        raise NotCoveredError(msg)
    if any(isinstance(value, Truth) for value in moved):
        msg = f"the primitive `{name}` on a comparison that is not decided"
        raise NotCoveredError(msg)
    results = [_moved(name, moved, p, run) for p in _places(eqn, indices, count)]
    return results if eqn.primitive.multiple_results else results[0]


def _moved(name: str, operands: list[Any], places: np.ndarray, run: Run) -> Value:
    if np.any(places == 0):
        msg = f"the primitive `{name}` past the end of an array"
        raise NotCoveredError(msg)
    if all(isinstance(value, np.ndarray) for value in operands):
        flat = np.concatenate([np.ravel(value) for value in operands])
        return np.asarray(flat[places - 1])
    series = [run.series(value) for value in operands]
    if len(series) == 1:
        return _series.moved(
            series[0], lambda x: x.reshape(x.shape[0], -1)[:, places - 1]
        )
    return _gathered(series, places)


def _places(eqn: Any, indices: list[Any], count: int) -> list[np.ndarray]:
    """For each output, the numbers of the entries that it has."""
    name, shape = eqn.primitive.name, shape_of(eqn.outvars[0])
    first = shape_of(eqn.invars[0])
    in_order = np.arange(1, 1 + int(np.prod(first))).reshape(first)
    if name == "squeeze" or (name == "reshape" and eqn.params["dimensions"] is None):
        return [in_order.reshape(shape)]
    if name == "transpose":
        return [in_order.transpose(eqn.params["permutation"])]
    if name == "broadcast_in_dim":
        sizes = [1] * len(shape)
        for axis, size in zip(eqn.params["broadcast_dimensions"], first, strict=True):
            sizes[axis] = size
        return [np.broadcast_to(in_order.reshape(sizes), shape)]
    shapes = [shape_of(atom) for atom in eqn.invars[:count]]
    params = dict(eqn.params)
    if "fill_value" in params:
        params["fill_value"] = 0
    numbers, start = [], 1
    for shape in shapes:
        size = int(np.prod(shape))
        numbers.append(jnp.arange(start, start + size, dtype=jnp.int32).reshape(shape))
        start += size
    positions = [
        jnp.asarray(index, atom.aval.dtype)
        for index, atom in zip(indices, eqn.invars[count:], strict=True)
    ]
    return [np.asarray(out) for out in bind(eqn, [*numbers, *positions], params)]


def _gathered(series: list[Series], places: np.ndarray) -> Series:
    """Entries of several series: each is moved into place, the rest masked by 0."""
    total: Series | None = None
    start = 1
    for a in series:
        size = int(np.prod(a[0].shape[1:]))
        if size == 0:
            continue
        inside = (places >= start) & (places < start + size)
        local = np.where(inside, places - start, 0)
        picked = _series.moved(
            a, lambda x, local=local: x.reshape(x.shape[0], -1)[:, local]
        )
        if isinstance(picked[0], Interval):
            part = [
                Interval(np.where(inside, c.lo, 0.0), np.where(inside, c.hi, 0.0))
                for c in picked
            ]
        else:
            mask = Exact.lift(inside.astype(np.float64))
            part = [c * mask for c in picked]
        total = part if total is None else _series.add(total, part)
        start += size
    assert total is not None
    return total


_NAMES = (
    "broadcast_in_dim",
    "concatenate",
    "copy",
    "copy_p",
    "dynamic_slice",
    "gather",
    "pad",
    "reshape",
    "rev",
    "slice",
    "split",
    "squeeze",
    "stack",
    "transpose",
    "unstack",
)

MOVEMENTS: dict[str, Rule] = dict.fromkeys(_NAMES, _movement)
