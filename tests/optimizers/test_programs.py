"""What runs a program inside an update runs it still, guarded: solvers, shards, …"""

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.sharding import AxisType, PartitionSpec

import metalr
from metalr._programs.equations import equations
from metalr.optimizers._rewrite import ENTERED, guarded
from tests.helpers import assert_close, finite_difference

A = jnp.array([[2.0, 0.3], [0.3, 1.0]])
sparse = jax.scipy.sparse.linalg


def unrolled(direction):
    """Three steps along −h·direction(g), on ½wᵀAw."""
    optimizer = lambda h: optax.stateless(lambda g, w: -h * direction(g))
    return metalr.Unrolled(
        lambda w, h, b: 0.5 * w @ A @ w, optimizer, jnp.ones(2), steps=3
    )


@pytest.mark.parametrize("solver", [sparse.cg, sparse.gmres, sparse.bicgstab])
def test_newton_steps_by_an_iterative_solver_have_their_closed_form(solver):
    # w ← (1 − h)w: L = (1 − h)⁶ L_0 with L_0 = 1.8, L' = −6(1 − h)⁵ L_0.
    L = unrolled(lambda g: solver(lambda u: A @ u, g)[0])
    for derivative in (jax.grad, jax.jacfwd):
        assert_close(derivative(L)(0.5), -0.3375, rtol=1e-10)


MESH = jax.make_mesh((1,), ("i",), axis_types=(AxisType.Auto,))


@jax.custom_jvp
def root(x):
    return jnp.sqrt(x)


@root.defjvp
def _(primals, tangents):
    out = root(*primals)
    return out, tangents[0] * 0.5 / out


def over_devices(g):
    total = lambda g: g / (0.1 + jnp.sqrt(jax.lax.psum(jnp.sum(g**2), "i")))
    specs = PartitionSpec("i")
    return jax.shard_map(total, mesh=MESH, in_specs=specs, out_specs=specs)(g)


DIRECTIONS = {
    "solve": lambda g: jnp.linalg.solve(A + jnp.sqrt(g @ g) * jnp.eye(2), g),
    "slogdet": lambda g: g * jnp.linalg.slogdet(A + jnp.outer(g, g))[1],
    "over devices": over_devices,
    "checkpoint with an array of its own": jax.checkpoint(
        lambda g: jnp.array([0.5, 1.0]) * g / jnp.sqrt(1.0 + jnp.sum(root(g**2)))
    ),
    "a root found by iteration": lambda g: jax.lax.custom_root(
        lambda y: y**3 + y - g,
        g,
        lambda f, y: jax.lax.fori_loop(
            0, 20, lambda _, y: y - f(y) / (3 * y**2 + 1), y
        ),
        lambda f, y: y / f(jnp.ones_like(y)),
    ),
}


@pytest.mark.parametrize("name", DIRECTIONS)
def test_what_runs_a_program_runs_it_still(name):
    L = unrolled(DIRECTIONS[name])
    rate = jnp.array(0.3)
    for derivative in (jax.grad, jax.jacfwd):
        expected = finite_difference(L, rate)
        assert_close(derivative(L)(rate), expected, rtol=1e-7)


DEAD = {
    "over devices": over_devices,
    "checkpoint": jax.checkpoint(lambda g: g / (0.1 + jnp.sqrt(jnp.sum(g**2)))),
    "linear solve": lambda g: jnp.linalg.solve(jnp.eye(2), g) * jnp.sqrt(jnp.sum(g**2)),
}


@pytest.mark.parametrize("name", DEAD)
def test_a_pole_inside_is_guarded(name):
    gradient = jax.grad(lambda s: jnp.sum(guarded(DEAD[name])(s * jnp.ones(2))))(0.0)
    assert jnp.isfinite(gradient)


def test_pinned_names_of_what_runs_programs():
    # Names of primitives are JAX's own: where one drifts, its programs go unguarded.
    x = jnp.ones(2)
    functions = [
        jax.jit(jnp.sqrt),
        jax.checkpoint(jnp.sqrt),
        root,
        jax.nn.relu,
        over_devices,
        lambda x: jax.lax.scan(lambda c, _: (c, None), x, None, 2),
        lambda x: jax.lax.while_loop(lambda c: c[0] < 0.0, jnp.sqrt, x),
        lambda x: jax.lax.cond(x[0] > 0.0, jnp.sqrt, jnp.sin, x),
        lambda x: jnp.linalg.solve(A, x),
        lambda x: sparse.cg(lambda u: A @ u, x),
    ]
    for function in functions:
        for eqn in equations(jax.make_jaxpr(function)(x).jaxpr):
            leaves = jax.tree.leaves(eqn.params, is_leaf=is_program)
            if any(map(is_program, leaves)):
                assert eqn.primitive.name in ENTERED


def is_program(leaf):
    return isinstance(leaf, ClosedJaxpr | Jaxpr)


def test_a_program_that_is_not_run_as_it_stands_is_left_alone():
    # `reduce` applies its program between entries; it is kept, without a guard.
    product = lambda x: jax.lax.reduce(x, 1.0, lambda a, b: a / (1.0 / b), (0,))
    x = jnp.array([2.0, 3.0])
    assert guarded(lambda x: product(x) + jnp.sqrt(x[0]))(x) == product(x) + jnp.sqrt(
        2.0
    )
