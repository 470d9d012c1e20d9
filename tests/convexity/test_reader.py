"""What is read of a program: every primitive on the list rightly, no other at all."""

from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import Primitive
from jax.interpreters import batching
from jax.sharding import PartitionSpec

import metalr
from metalr._programs.equations import equations
from metalr.convexity import _degree, _taylor, check, exact_slope
from metalr.convexity._interpret import _CONTROL
from metalr.convexity._rules import RULES

v = jnp.array([0.3, -1.1, 0.7])
A = jnp.array(np.random.default_rng(1).normal(size=(2, 3)))


@jax.custom_vjp
def own_rule(x):
    return x**2 + x


own_rule.defvjp(lambda x: (x**2 + x, None), lambda _, t: (0.0 * t,))


def guarded(x):
    root: Any = lambda updates, _: jnp.sqrt(updates)
    optimizer = metalr.guard(optax.stateless(root))
    return optimizer.update(x, optimizer.init(x))[0]


def nan(x):
    return x != x  # noqa: PLR0124


# Functions of a number in [−1, 1], made so that each primitive on the list occurs.
PIECES = {
    "arithmetic": lambda x: (x - 0.3) * (x + 2.0) / 3.0 - (-x),
    "powers": lambda x: x**3 + jnp.square(x) + (3.0 + x) ** -2 + (3.0 + x) ** 1.7,
    "quotient": lambda x: (1.0 + x) / (2.0 + x**2),
    "functions": lambda x: jnp.exp(-x) + jnp.expm1(x) + jnp.log(3.0 + x),
    "more functions": lambda x: jnp.log1p(x**2) + jnp.tanh(2.0 * x) * jnp.cosh(x),
    "waves": lambda x: jnp.sin(3.0 * x + 1.0) - jnp.cos(5.0 * x**2) + jnp.sinh(x),
    "roots": lambda x: jnp.sqrt(2.0 + x) + jax.lax.rsqrt(3.0 + x),
    "logistic": lambda x: jax.nn.sigmoid(3.0 * x) + jax.nn.softplus(-2.0 * x),
    "max": lambda x: jnp.maximum(x, 5.0) + jnp.minimum(x**2, 2.0 + x),
    "largest": lambda x: jnp.max(jnp.stack([x, x**2 + 3.0, x - 1.0]) * 0.5),
    "smallest": lambda x: jnp.min(jnp.exp(x * A) + jnp.array([0.0, 9.0, 18.0]), 1)[1],
    "clip": lambda x: jnp.clip(x, -3.0, 2.0) * jax.lax.clamp(0.0, x + 5.0, 9.0),
    "abs": lambda x: jnp.abs(x - 5.0) * jnp.sign(x + 4.0),
    "where": lambda x: jnp.where((x < 4) & (x > -4) | ~(x == 7), x**2, jnp.exp(x)),
    "compare": lambda x: jnp.where((x <= 4) & (x >= -4) & (x != 9), x, x**3),
    "finite": lambda x: jnp.where(jnp.isfinite(x), x, 0.0) + jnp.where(nan(x), 1.0, x),
    "dot": lambda x: jnp.sum((A @ (x * v + 1.0)) ** 2) + (x * v) @ (x * v),
    "sums": lambda x: jnp.sum(jnp.cumsum(jnp.stack([x, x**2, x]))) + jnp.mean(x * A),
    "cumsum": lambda x: jnp.sum(jax.lax.cumsum(jnp.exp(x * A), 1, reverse=True) ** 2),
    "movement": lambda x: jnp.concatenate([x * v[1:], v[:1]])[::-1] @ v + (x * A)[1, 2],
    "pieces": lambda x: sum(jnp.unstack(jnp.split(x * v[:2], 2)[0] + jnp.copy(x))),
    "shapes": lambda x: jnp.pad(x * A, 1, constant_values=2.0).T.reshape(-1)[7] ** 2,
    "index": lambda x: (x**2 * v)[jnp.array([2, 0])] @ jnp.ones(2),
    "slice": lambda x: jax.lax.dynamic_slice(x * v, (jnp.array(1),), (2,)).sum(),
    "float32": lambda x: (
        jax.lax.convert_element_type(0.5 * x, float) + jnp.array(True) + A[0, 0]
    ),
    "precision": lambda x: jax.lax.reduce_precision(x * 0.5, 11, 52),
    "barrier": lambda x: sum(jax.lax.optimization_barrier((x, x**2))),
    "device": lambda x: jax.device_put(x) * jax.device_put(x),
    "name": lambda x: checkpoint_name(x, "x") ** 2,
    "stop": lambda x: jax.lax.stop_gradient(x) * x,
    "gradient": lambda x: jax.grad(lambda y: y**3 * jnp.sum(y * v) + x * y)(x),
    "jit": jax.jit(jax.checkpoint(lambda x: x**2 - x)),
    "rules": lambda x: own_rule(x) + jax.nn.relu(x + 4.0) + jnp.logaddexp(x, 2.0 * x),
    "guarded": lambda x: guarded(x + 2.0),
    "scan": lambda x: jax.lax.fori_loop(0, 4, lambda i, y: y - x * 0.7 * y + i, 1.0),
    "rows": lambda x: jax.lax.scan(lambda y, a: (y * x + a, None), x, v, reverse=True)[
        0
    ],
    "while": lambda x: jax.lax.while_loop(
        lambda c: c[0] < 3, lambda c: (c[0] + 1, c[1] * x + 1.0), (0, x)
    )[1],
    "cond": lambda x: jax.lax.cond(v[0] > 0, lambda y: y**2, lambda y: y, x),
    "random": lambda x: (
        x * jax.random.uniform(jax.random.key(3))
        + jnp.sum(
            jnp.where(jax.random.bernoulli(jax.random.key(1), 0.5, (3,)), x**2, v)
        )
    ),
    "associative": lambda x: jnp.sum(jax.lax.associative_scan(jnp.multiply, x + v)),
    "whole numbers": lambda x: x * (jnp.arange(4)[::-1].cumsum()[2] // 2),
}


def trace(function):
    return jax.make_jaxpr(function)(jax.ShapeDtypeStruct((), float))


def test_every_primitive_on_the_list_occurs_in_the_pieces():
    seen = {
        eqn.primitive.name
        for function in PIECES.values()
        for eqn in equations(trace(function).jaxpr)
    }
    other_names = {"copy_p"}  # of `copy`, in other releases of JAX
    assert set(RULES) | set(_CONTROL) <= seen | other_names
    assert {"jit", "custom_jvp_call", "custom_vjp_call", "guarded"} <= seen


def composed(seed):
    """Two or three pieces, one inside of another, with numbers of their own."""
    rng = np.random.default_rng(seed)
    first, second, third = (PIECES[name] for name in rng.choice([*PIECES], 3))
    a, b, c = rng.normal(size=3)

    def function(x):
        inner = jnp.tanh(second(0.3 * x)) if seed % 2 else jnp.clip(0.1 * x, -9.0, 9.0)
        return a * first(inner) + b * third(x) * x + c * x**2

    return function


SUBJECTS = {
    **PIECES,
    **{f"composed {seed}": composed(seed) for seed in range(20)},
}


@pytest.mark.parametrize("name", SUBJECTS)
def test_what_is_read_is_what_jax_computes(name):
    function = SUBJECTS[name]
    program = trace(function)
    rng = np.random.default_rng(0)
    low = rng.uniform(-1.0, 0.9, 8)
    high = low + rng.choice([1e-9, 1e-3, 0.1], 8)
    middle = 0.5 * low + 0.5 * high
    points = np.concatenate([low, high, middle])
    values = np.asarray(jax.jit(jax.vmap(function))(jnp.asarray(points)))
    value, second = _taylor.enclosed(program, points)
    slack = 1e-11 * (1.0 + np.abs(values))  # of the evaluation's own rounding
    assert np.all(value.lo - slack <= values)
    assert np.all(values <= value.hi + slack)
    assert np.all(np.isfinite(second.lo)), "read, but to no use"
    # L'' over a box has the second difference of its ends and middle, whatever JAX's
    # derivative rules say.
    over_box, _, kinks = _taylor.enclosed_curvature(program, low, high, middle, 5)
    wide = high - low > 1e-2
    left, right, center = np.split(values, 3)
    difference = 4.0 * (left + right - 2.0 * center)[wide] / (high - low)[wide] ** 2
    assert not kinks
    assert np.all(over_box.lo[wide] - 1e-8 <= difference)
    assert np.all(difference <= over_box.hi[wide] + 1e-8)
    ((degree,),) = _degree.degrees(program, [(1.0,)])
    if degree < 30:
        coefficients = _taylor.exact(program, 0.0, None, 1e7)
        assert len(coefficients) <= degree + 1
        read = [
            float(sum(c * Fraction(float(x)) ** k for k, c in enumerate(coefficients)))
            for x in points
        ]
        np.testing.assert_allclose(read, values, atol=1e-11)


@pytest.mark.parametrize("seed", range(8))
def test_a_verdict_on_a_random_program_is_that_of_its_values(seed):
    function = composed(100 + seed)
    report = check(function, -1.0, 1.0, budget=256)
    run = jax.jit(jax.vmap(function))
    if report.verdict == "certified":
        grid = run(jnp.linspace(-1.0, 1.0, 401))
        assert float(jnp.min(grid[2:] + grid[:-2] - 2.0 * grid[1:-1])) > -1e-11
    elif report.verdict == "refuted":
        reach = jnp.array([-1e-3, 0.0, 1e-3])
        below, at, above = run(float(report.witness) + reach)
        assert below + above - 2.0 * at < 1e-11


mesh = jax.make_mesh((1,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))


def per_device(x):
    spec = PartitionSpec()
    square = jax.shard_map(lambda u: -(u**2), mesh=mesh, in_specs=spec, out_specs=spec)
    return square(x)


NOT_READ = {
    "convert_element_type": lambda x: x.astype(jnp.int32).astype(float),
    "conversion to bool": lambda x: x.astype(bool).astype(float) + x**2,
    "conversion to complex": lambda x: jnp.real(jnp.exp(1j * x)),
    "reduce": lambda x: jax.lax.reduce(
        x * jnp.ones(2), -jnp.ones(()), lambda a, b: a * b * 1.0, (0,)
    ),
    "reduce_window": lambda x: jnp.sum(
        jax.lax.reduce_window(x * v, 0.0, lambda a, b: a * b - b, (2,), (1,), "VALID")
    ),
    "reduce_prod": lambda x: jnp.prod(x * v),
    "shard_map": per_device,
    "custom_linear_solve": lambda x: jax.scipy.sparse.linalg.cg(
        lambda u: u * (3.0 + x), v
    )[0].sum(),
    "lu": lambda x: jnp.linalg.solve(jnp.eye(2) * (3.0 + x), v[:2]).sum(),
    "pure_callback": lambda x: jax.pure_callback(
        lambda y: y, jax.ShapeDtypeStruct((), float), x
    ),
    "scatter-add": lambda x: jnp.zeros(3).at[1].add(x**2).sum(),
    "dynamic_update_slice": lambda x: jax.lax.dynamic_update_slice(
        v, x * jnp.ones(2), (1,)
    ).sum(),
    "sort": lambda x: jnp.sort(x * v)[0],
    "top_k": lambda x: jax.lax.top_k(x * v, 2)[0].sum(),
    "argmax": lambda x: x**2 + jnp.argmax(jnp.stack([x, 0.5])),
    "floor": lambda x: jnp.floor(3.0 * x) + x**2,
    "round": lambda x: jnp.round(3.0 * x) + x**2,
    "rem": lambda x: x % 0.3,
    "erf_inv": lambda x: x**2 * jax.random.normal(jax.random.key(0)) + jnp.exp(x),
    "atan2": lambda x: jnp.arctan2(x, 2.0),
    "conv_general_dilated": lambda x: jnp.exp(jnp.convolve(x * v, v).sum()),
    "fft": lambda x: jnp.abs(jnp.fft.fft(v + 0j)).sum() * jnp.exp(x),
    "cumprod": lambda x: jnp.cumprod(jnp.exp(x * v))[2],
    "pow": lambda x: (2.0 + x) ** x,
    "a branch": lambda x: jax.lax.switch(
        jnp.where(x > 0.5, 1, 0), [lambda y: y, lambda y: y**2], x
    ),
    "a loop": lambda x: jax.lax.while_loop(lambda y: y < 5.0, lambda y: y + 1 + x, x),
    "stacks": lambda x: jax.lax.scan(lambda c, _: (c * x, c), x, None, 3)[1].sum(),
    "a place": lambda x: v[jnp.where(x > 0.5, 1, 0)] * x,
    "past the end": lambda x: (
        jnp.exp(x) * (x * v).at[7].get(mode="fill", fill_value=1.0)
    ),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", NOT_READ)
def test_what_is_not_on_the_list_is_undecided_by_name(name):
    report = check(NOT_READ[name], 0.0, 1.0, budget=8)
    assert report.verdict == "undecided"
    assert report.reason.startswith("not covered")
    if name in {eqn.primitive.name for eqn in equations(trace(NOT_READ[name]).jaxpr)}:
        assert name in report.reason or "conversion" in report.reason
    # The same reader, asked for a derivative: none, and nothing raised.
    assert exact_slope(NOT_READ[name], 0.25, dtype=float, work=1e6) is None


def test_a_primitive_of_ones_own_is_not_read():
    mine = Primitive("mine")
    mine.def_impl(lambda x, jaxpr: x)
    mine.def_abstract_eval(lambda x, jaxpr: x)
    batching.primitive_batchers[mine] = lambda a, d, **k: (
        mine.bind(*a, **k),
        d[0],
    )
    inner = trace(lambda x: x)
    report = check(lambda x: mine.bind(x, jaxpr=inner), 0.0, 1.0)
    assert "the primitive `mine`" in report.reason
    assert report.verdict == "undecided"


def test_the_mean_over_a_mesh_of_tasks_is_undecided_and_has_no_closed_form():
    loss = lambda w, hyper, batch: 0.5 * jnp.sum(w**2)
    L = metalr.Unrolled(loss, optax.sgd, jnp.ones(2), steps=2)
    stacked = jax.tree.map(lambda x: jnp.stack([x] * 2), L)
    mean = metalr.tasks.Mean(stacked, jax.make_mesh((1,), ("tasks",)))
    report = check(mean, 0.0, 1.0)
    assert report.verdict == "undecided"
    assert "shard_map" in report.reason
    assert exact_slope(mean, 0.25, dtype=float, work=1e6) is None
