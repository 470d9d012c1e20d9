"""One update of each solver in plain JAX: what metalr's are held against.

The same minibatches from the same keys, at constant rates, on the simulated quadratics.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from experiments._bilevel.quadratics import Rows, loss
from experiments._bilevel.solvers import Settings


class Data(NamedTuple):
    """Minibatches of both functions: leaves lead with an axis of them."""

    inner: Rows
    outer: Rows


class Point(NamedTuple):
    """Parameters, hyperparameters, adjoint; a key; what else there is."""

    z: jax.Array
    x: jax.Array
    v: jax.Array
    key: jax.Array
    memory: Any = None


Update: TypeAlias = Callable[[Data, Settings, Point], Point]

by_z = jax.grad(loss)
by_both = jax.grad(loss, argnums=(0, 1))


def rows_of(data: Rows, index: Any) -> Rows:
    """A minibatch."""
    return jax.tree.map(lambda leaf: leaf[index], data)


def some(data: Rows, key: jax.Array, shape: tuple[int, ...] = ()) -> jax.Array:
    """Indices of minibatches."""
    return jax.random.randint(key, shape, 0, len(data.a))


def three(data: Rows, point: Point, index: Any) -> tuple:
    """∇_z g, ∇²_zz g v, ∇²_xz g v of a minibatch."""
    along = lambda z, x: by_z(z, x, rows_of(data, index))
    slope, pull_back = jax.vjp(along, point.z, point.x)
    return (slope, *pull_back(point.v))


def descend(slope: Any, start: jax.Array, draws: Any, rate: float) -> jax.Array:
    """A step for each of the draws."""
    step = lambda z, drawn: (z - rate * slope(z, drawn), None)
    return jax.lax.scan(step, start, draws)[0]


def cross(data: Rows, z: Any, x: Any, v: Any, index: Any) -> jax.Array:
    """∇²_xz g v of a minibatch."""
    along = lambda x: by_z(z, x, rows_of(data, index))
    return jax.vjp(along, x)[1](v)[0]


def hessian(data: Rows, z: Any, x: Any, v: Any, index: Any) -> jax.Array:
    """∇²_zz g v of a minibatch."""
    along = lambda z: by_z(z, x, rows_of(data, index))
    return jax.jvp(along, (z,), (v,))[1]


def soba(data: Data, settings: Settings, point: Point) -> Point:
    """One step of all three variables."""
    z, x, v, key, _ = point
    key, for_inner, for_outer = jax.random.split(key, 3)
    slope, product, mixed = three(data.inner, point, some(data.inner, for_inner))
    others = rows_of(data.outer, some(data.outer, for_outer))
    f_z, f_x = by_both(z, x, others)
    return Point(
        z - settings.inner * slope,
        x - settings.outer * (f_x - mixed),
        v - settings.inner * (product - f_z),
        key,
    )


def saba(data: Data, settings: Settings, point: Point) -> Point:
    """SOBA with the estimates of SAGA: new − old of the minibatch + mean of all."""
    z, x, v, key, memory = point
    key, for_inner, for_outer = jax.random.split(key, 3)
    i, j = some(data.inner, for_inner), some(data.outer, for_outer)
    new = three(data.inner, point, i), by_both(z, x, rows_of(data.outer, j))
    estimates, tables = [], []
    for (table, mean), found, at in zip(memory, new, (i, j), strict=True):
        change = jax.tree.map(lambda t, n, at=at: n - t[at], table, found)
        estimates.append(jax.tree.map(jnp.add, mean, change))
        put = lambda t, n, at=at: t.at[at].set(n)
        share = lambda m, c, t: m + c / len(t)
        moved = jax.tree.map(share, mean, change, table)
        tables.append((jax.tree.map(put, table, found), moved))
    (slope, product, mixed), (f_z, f_x) = estimates
    return Point(
        z - settings.inner * slope,
        x - settings.outer * (f_x - mixed),
        v - settings.inner * (product - f_z),
        key,
        tuple(tables),
    )


def tables_at(data: Data, point: Point) -> tuple:
    """SABA's memory at a point, one minibatch after the other, and its means."""
    inner = jax.lax.map(
        lambda i: three(data.inner, point, i), jnp.arange(len(data.inner.a))
    )
    outer = jax.lax.map(
        lambda j: by_both(point.z, point.x, rows_of(data.outer, j)),
        jnp.arange(len(data.outer.a)),
    )
    means = lambda table: jax.tree.map(lambda leaf: leaf.mean(0), table)
    return (inner, means(inner)), (outer, means(outer))


def stocbio(data: Data, settings: Settings, point: Point) -> Point:
    """Inner steps; a Neumann series with a fresh minibatch in each factor."""
    z, x, v, key, _ = point
    key, *keys = jax.random.split(key, 5)
    draws = some(data.inner, keys[0], (settings.steps,))
    slope = lambda z, i: by_z(z, x, rows_of(data.inner, i))
    z = descend(slope, z, draws, settings.inner)
    f_z, f_x = by_both(z, x, rows_of(data.outer, some(data.outer, keys[1])))

    def term(carry: tuple, i: jax.Array) -> tuple[tuple, None]:
        total, power = carry
        power = power - settings.inner * hessian(data.inner, z, x, power, i)
        return (total + power, power), None

    draws = some(data.inner, keys[2], (settings.steps - 1,))
    total = jax.lax.scan(term, (f_z, f_z), draws)[0][0]
    mixed = cross(data.inner, z, x, settings.inner * total, some(data.inner, keys[3]))
    rate = settings.often * settings.outer
    return Point(z, x - rate * (f_x - mixed), v, key)


def amigo(data: Data, settings: Settings, point: Point) -> Point:
    """Inner steps, and as many for the adjoint, from where it was."""
    z, x, v, key, _ = point
    key, *keys = jax.random.split(key, 5)
    draws = some(data.inner, keys[0], (settings.steps,))
    slope = lambda z, i: by_z(z, x, rows_of(data.inner, i))
    z = descend(slope, z, draws, settings.inner)
    f_z, f_x = by_both(z, x, rows_of(data.outer, some(data.outer, keys[1])))
    draws = some(data.inner, keys[2], (settings.steps,))
    residual = lambda v, i: hessian(data.inner, z, x, v, i) - f_z
    v = descend(residual, v, draws, settings.inner)
    mixed = cross(data.inner, z, x, v, some(data.inner, keys[3]))
    rate = settings.often * settings.outer
    return Point(z, x - rate * (f_x - mixed), v, key)


def f2sa(data: Data, settings: Settings, point: Point) -> Point:
    """First derivatives alone: v is the minimum of the penalized problem."""
    z, x, y, key, _ = point
    key, *keys = jax.random.split(key, 5)
    many = (settings.steps,)
    slope = lambda z, i: by_z(z, x, rows_of(data.inner, i))
    z = descend(slope, z, some(data.inner, keys[0], many), settings.inner)

    def penalized(y: Any, drawn: tuple) -> Any:
        i, j = drawn
        return slope(y, i) + by_z(y, x, rows_of(data.outer, j)) / settings.penalty

    draws = some(data.inner, keys[1], many), some(data.outer, keys[2], many)
    y = descend(penalized, y, draws, settings.inner)
    for_i, for_j = jax.random.split(keys[3])
    batch = rows_of(data.inner, some(data.inner, for_i))
    others = rows_of(data.outer, some(data.outer, for_j))
    by_x = jax.grad(loss, argnums=1)
    above = by_x(y, x, batch) - by_x(z, x, batch)
    rate = settings.often * settings.outer / settings.penalty
    return Point(z, x - rate * (by_x(y, x, others) + settings.penalty * above), y, key)


UPDATES: dict[str, Update] = {
    "SOBA": soba,
    "SABA": saba,
    "StocBiO": stocbio,
    "AmIGO": amigo,
    "F2SA": f2sa,
}


def updated(
    name: str,
    data: Data,
    settings: Settings,
    zeros: jax.Array,
    key: jax.Array,
    count: int,
) -> Point:
    """So many updates, from 0."""
    update = UPDATES[name]
    start = Point(zeros, zeros, zeros, key)
    if name == "SABA":
        start = start._replace(memory=tables_at(data, start))
    again = lambda _, point: update(data, settings, point)
    return jax.lax.fori_loop(0, count, again, start)
