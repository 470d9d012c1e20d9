"""Checks of what the user passes, shared by everything that takes hyper or params."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ._types import PyTree


def path_name(name: str, path: tuple[Any, ...]) -> str:
    """The leaf at `path` as the user would write it, e.g. `hyper['momentum']`."""
    return name + jax.tree_util.keystr(path)


def float_leaves(tree: PyTree, name: str) -> PyTree:
    """The same pytree with array leaves, after checking that all are real floats.

    Raises:
        ValueError: if there is no leaf, or one is not a real floating-point number.
    """
    if _is_strong_float(tree):  # one array: the most frequent, and nothing to copy
        return tree
    leaves, structure = jax.tree.flatten(tree)
    if not leaves:
        msg = f"{name} has no leaves ({tree!r}): pass at least one floating-point array"
        raise ValueError(msg)
    if all(map(_is_strong_float, leaves)):
        return jax.tree.unflatten(structure, leaves)

    def check(path: tuple[Any, ...], leaf: Any) -> jax.Array:
        try:
            array = jnp.asarray(leaf)
        except TypeError:
            array = None
        if array is None or not jnp.issubdtype(array.dtype, jnp.floating):
            kind = type(leaf).__name__ if array is None else array.dtype
            msg = (
                f"{path_name(name, path)} = {leaf!r} is {kind}, which has no "
                "derivative: pass a real floating-point number (0.1, not an integer)"
            )
            raise ValueError(msg)
        return jnp.asarray(array, array.dtype)  # not weakly typed: one compilation

    return jax.tree_util.tree_map_with_path(check, tree)


def _is_strong_float(leaf: Any) -> bool:
    """Whether a leaf is a float array already, with a dtype of its own."""
    return (
        isinstance(leaf, jax.Array)
        and not leaf.aval.weak_type
        and _is_floating(leaf.dtype)
    )


@functools.cache
def _is_floating(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.floating)


def one_dtype(tree: PyTree, name: str) -> jnp.dtype:
    """The dtype that all leaves share.

    Raises:
        ValueError: if two leaves differ, naming both.
    """
    (first_path, first), *rest = jax.tree_util.tree_leaves_with_path(tree)
    for path, leaf in rest:
        if leaf.dtype != first.dtype:
            msg = (
                f"{name} must share one dtype, but {path_name(name, first_path)} is "
                f"{first.dtype} and {path_name(name, path)} is {leaf.dtype}: "
                "cast them with jax.tree.map(lambda x: x.astype(dtype), ...)"
            )
            raise ValueError(msg)
    return first.dtype


def leading_axis(batches: PyTree, steps: int, *, name: str = "batches") -> None:
    """Check that there is one batch for each update.

    Raises:
        ValueError: if there is no step, or a leaf's leading axis has another length.
    """
    if steps == 0:
        msg = f"steps=0 sees no batch: pass {name}=None"
        raise ValueError(msg)
    for path, leaf in jax.tree_util.tree_leaves_with_path(batches):
        if leaf.ndim == 0 or leaf.shape[0] != steps:
            msg = (
                f"{path_name(name, path)} has shape {leaf.shape}; steps={steps} "
                "needs a leading axis of that length, one entry for each update: "
                f"slice or repeat the {name}"
            )
            raise ValueError(msg)


def int_at_least(value: Any, name: str, least: int, *, note: str = "") -> int:
    """A count as a Python int: NumPy's integers are accepted, bools are not.

    Args:
        value: what the user passed.
        name: what the user calls it.
        least: the smallest that is allowed.
        note: how the message ends, e.g. ": it counts updates".

    Raises:
        ValueError: if it is not an int, or smaller than `least`.
    """
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or value < least:
        msg = f"{name} = {value!r} must be an int ≥ {least}{note}"
        raise ValueError(msg)
    return int(value)


def positive_int(value: Any, name: str) -> int | None:
    """An option that is a count or None.

    Raises:
        ValueError: if it is neither None nor an int of at least 1.
    """
    if value is None:
        return None
    return int_at_least(value, name, 1, note=", or None")


def random_key(key: Any) -> Any:
    """A typed key of an int seed, a typed key, or an old-style key.

    Raises:
        ValueError: if it is none of them, or several.
    """
    if isinstance(key, bool) or not (isinstance(key, int) or hasattr(key, "dtype")):
        typed = None
    elif isinstance(key, int):
        typed = jax.random.key(key)
    elif jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        typed = key
    else:
        old = key.dtype == jnp.uint32 and key.ndim == 1
        typed = jax.random.wrap_key_data(key) if old else None
    if typed is None or typed.shape != ():
        msg = f"key = {key!r} must be one random key, jax.random.key(0), or an int seed"
        raise ValueError(msg)
    return typed


def expand_prefix(prefix: PyTree, tree: PyTree, name: str) -> PyTree:
    """One array for each leaf of `tree`, of its shape and dtype, made from a prefix.

    Raises:
        ValueError: if `prefix` is not a prefix of `tree`, or a leaf does not broadcast.
    """

    def expand(value: Any, part: PyTree) -> PyTree:
        return jax.tree.map(
            lambda leaf: jnp.broadcast_to(jnp.asarray(value, leaf.dtype), leaf.shape),
            part,
        )

    try:
        return jax.tree.map(expand, prefix, tree)
    except (ValueError, TypeError) as error:
        msg = f"{name} = {prefix!r} is not a prefix of hyper: {error}"
        raise ValueError(msg) from error
