"""SABA: SOBA with SAGA's variance reduction of all its directions."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from .._types import Hyper, Params, PyTree
from .oracle import (
    InnerProducts,
    Oracle,
    OuterGradients,
    outer_gradients,
    products,
)
from .soba import together
from .solver import Solver, State, begin, draw, moves


class Table(NamedTuple):
    """The last derivatives of each minibatch, and their mean."""

    entries: PyTree  # leaves lead with an axis of the number of minibatches
    mean: PyTree


class Memory(NamedTuple):
    """One table for each function."""

    inner: Table  # of InnerProducts
    outer: Table  # of OuterGradients


def SABA(
    inner: Oracle | Any,
    outer: Oracle | Any,
    *,
    inner_optimizer: optax.GradientTransformation | Any,
    outer_optimizer: optax.GradientTransformation | Any,
    linear_optimizer: optax.GradientTransformation | Any | None = None,
    project: Any = None,
) -> Solver:
    r"""The stochastic average bilevel algorithm: `SOBA` without its noise level.

    Each of the five minibatch derivatives $\phi_i$ in SOBA's directions is replaced by
    SAGA's estimate

    $$\phi_i(u) - \phi_i(u_i) + \frac1n \sum_k \phi_k(u_k)$$

    with $u_i$ the point (z, v, x) at which minibatch i was last seen. Unbiased, and its
    variance goes to 0 with the directions: with constant rates it converges linearly on
    strongly convex problems.

    Memory: two gradients in params and one in hyper for each inner minibatch, one of
    each for each outer one: larger minibatches make it smaller. `init` makes one pass
    over both functions (it is counted in `state.calls`); an update costs SOBA's 4.

    Args:
        inner: g, a mean of finitely many minibatches, strongly convex in its params.
        outer: f, likewise.
        inner_optimizer: of params, and of the adjoint (with a state of its own).
        outer_optimizer: of hyper.
        linear_optimizer: of the adjoint, where it is another one.
        project: None, or the projection of hyper onto a feasible set.

    Returns:
        `Solver(init, update)`: see `SOBA`.

    Raises:
        ValueError: as `SOBA`.

    References:
        Dagréou, Ablin, Vaiter, Moreau (2022), A framework for bilevel optimization that
        enables stochastic and global variance reduction algorithms. Defazio, Bach,
        Lacoste-Julien (2014), SAGA.
    """
    options = inner_optimizer, outer_optimizer, linear_optimizer, project
    by = moves(inner, outer, *options)

    def init(params: Params, hyper: Hyper, key: Any = 0) -> State:
        passes = 3 * inner.minibatches + outer.minibatches
        state = begin(by, params, hyper, key, passes)
        z, x, v = state.params, state.hyper, state.adjoint
        memory = Memory(
            _table(lambda i: products(inner, z, x, v, i), inner.minibatches),
            _table(lambda j: outer_gradients(outer, z, x, j), outer.minibatches),
        )
        return state._replace(memory=memory)

    def update(state: State) -> State:
        key, for_inner, for_outer = jax.random.split(state.key, 3)
        i, j = draw(inner, for_inner), draw(outer, for_outer)
        z, x, v = state.params, state.hyper, state.adjoint
        inside, inner_table = _reduced(
            state.memory.inner, i, products(inner, z, x, v, i), inner.minibatches
        )
        outside, outer_table = _reduced(
            state.memory.outer, j, outer_gradients(outer, z, x, j), outer.minibatches
        )
        after = together(by, state, InnerProducts(*inside), OuterGradients(*outside))
        return after._replace(key=key, memory=Memory(inner_table, outer_table))

    return Solver(init, update)


def _table(at: Any, count: int) -> Table:
    entries = jax.lax.map(at, jnp.arange(count))
    return Table(entries, jax.tree.map(lambda x: jnp.mean(x, axis=0), entries))


def _reduced(table: Table, index: Array, new: PyTree, count: int) -> tuple[Any, Table]:
    """SAGA's estimate, and the table with the new entry."""
    change = jax.tree.map(lambda rows, x: x - rows[index], table.entries, new)
    estimate = optax.tree.add(table.mean, change)
    entries = jax.tree.map(lambda rows, x: rows.at[index].set(x), table.entries, new)
    mean = optax.tree.add_scale(table.mean, 1.0 / count, change)
    return estimate, Table(entries, mean)
