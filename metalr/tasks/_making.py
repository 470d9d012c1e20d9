"""All tasks of a function of a key, made in one traced call."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jaxtyping import Array

from .._programs.dataflow import propagate
from .._types import PyTree
from ..hypergrad.hypergradient import as_pytree


def made_of_keys(
    make: Callable[[Any], Any], keys: PyTree
) -> tuple[Any, tuple[bool, ...], int]:
    """The objectives of all keys as one, which of its leaves they share, how many.

    A leaf is shared where no path in the traced program joins it to the key.

    Raises:
        ValueError: if the leaves of `keys` have no common first axis.
    """
    flat, keys_structure = jax.tree.flatten(keys)
    flat = [leaf if hasattr(leaf, "dtype") else jnp.asarray(leaf) for leaf in flat]
    sizes = {leaf.shape[:1] for leaf in flat}
    if len(sizes) != 1 or sizes in ({()}, {(0,)}):
        msg = (
            "keys must lead with one common axis of tasks, but the first axes of "
            f"its leaves are {sorted(sizes)}: jax.random.split(key, tasks)"
        )
        raise ValueError(msg)
    made: list[Any] = []

    def leaves_of(*key: Array) -> list[Array]:
        objective = make(jax.tree.unflatten(keys_structure, key))
        made.append(jax.tree.structure(as_pytree(objective)))
        return [jnp.asarray(leaf) for leaf in jax.tree.leaves(objective)]

    first = [leaf[0] for leaf in flat]
    program = jax.make_jaxpr(leaves_of)(*first)
    facts = [frozenset({0})] * len(first)
    reached = propagate(program.jaxpr, facts, lambda _, known: known)
    shared = tuple(not known for known in reached)
    leaves = _evaluate(program, first, flat, shared)
    return jax.tree.unflatten(made[0], leaves), shared, sizes.pop()[0]


def _evaluate(
    program: ClosedJaxpr, first: list, every: list, shared: tuple[bool, ...]
) -> list[Any]:
    """The outputs of `program`: of the first key where shared, else of every key."""

    def outputs(consts: list, key: list, wanted: bool) -> list[Any]:
        made = jaxpr_as_fun(ClosedJaxpr(program.jaxpr, consts))(*key)
        pairs = zip(made, shared, strict=True)
        return [leaf for leaf, same in pairs if same is wanted]

    # The constants are arguments, so that no copy of them is made in the program.
    common = iter(jax.jit(outputs, static_argnums=2)(program.consts, first, True))
    batched = jax.vmap(lambda consts, key: outputs(consts, key, False), (None, 0))
    own = iter(jax.jit(batched)(program.consts, every))
    captured = list(zip(program.jaxpr.constvars, program.consts, strict=True))
    leaves = [next(common) if same else next(own) for same in shared]
    # What `make` passes through untouched is the very array that it captured.
    return [
        next((const for place, const in captured if place is var), leaf)
        for var, leaf in zip(program.jaxpr.outvars, leaves, strict=True)
    ]
