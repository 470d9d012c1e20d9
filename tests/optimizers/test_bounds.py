"""Bounds of the values of a program: they hold, and they tell harmless poles."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metalr
from metalr.optimizers._bounds import ANY, Bounds, bounds, invariant, of_constant

LOW, HIGH = -0.75, 1.5
INSIDE = Bounds(LOW, HIGH)

FUNCTIONS = {
    "abs": jnp.abs,
    "add": lambda x: x + x[::-1],
    "clip": lambda x: jnp.clip(x, -0.25, 0.5),
    "concatenate": lambda x: jnp.concatenate([x, 3.0 - x]),
    "cond": lambda x: jax.lax.cond(x[0] > 0.0, jnp.exp, jnp.sin, x),
    "cos": lambda x: jnp.cos(3.0 * x),
    "cube": lambda x: x**3,
    "cumsum": lambda x: jnp.cumsum(x**2),
    "div": lambda x: x / (2.0 + x[::-1]),
    "div by less than 0": lambda x: x / (x[::-1] - 2.0),
    "exp": jnp.exp,
    "jit": jax.jit(lambda x: 1.0 - x),
    "log1p": jnp.log1p,
    "logistic": jax.nn.sigmoid,
    "max": lambda x: jnp.maximum(x, 0.25),
    "min": lambda x: jnp.minimum(x, 0.25),
    "mul": lambda x: x * x[::-1],
    "negative power": lambda x: (x + 1.0) ** -3,
    "pad": lambda x: jnp.pad(x, 1, constant_values=7.0),
    "power": lambda x: (0.5 * x + 0.5) ** (x + 1.0),
    "round trip": lambda x: x.astype("float32").astype("float64"),
    "rsqrt": lambda x: jax.lax.rsqrt(x + 1.0),
    "sign": jnp.sign,
    "softplus": jax.nn.softplus,
    "sqrt": lambda x: jnp.sqrt(jnp.abs(x)),
    "square": lambda x: x * x,
    "sum": jnp.sum,
    "tanh": jnp.tanh,
    "update": lambda x: x.at[2:4].set(9.0),
    "where": lambda x: jnp.where(x > 0.0, x, 2.0),
    "counter": lambda x: jnp.arange(8) + 1,
    "to int": lambda x: x.astype(int),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_bounds_hold_at_random_points(name):
    function = FUNCTIONS[name]
    (found,) = bounds(jax.make_jaxpr(function)(jnp.ones(8)), [INSIDE])
    points = np.random.default_rng(0).uniform(LOW, HIGH, (200, 8))
    points[0], points[1] = LOW, HIGH
    values = np.asarray(jax.vmap(function)(jnp.asarray(points)))
    values = values[~np.isnan(values)]
    assert found.low <= values.min()
    assert values.max() <= found.high


def test_what_is_bounded_is_bounded():
    # Against a table of infinite bounds, which would pass the test above.
    of = lambda f: bounds(jax.make_jaxpr(f)(1.0), [INSIDE])[0]
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12)  # 64 ulps
    close(of(lambda x: x * x), (0.0, 2.25))
    close(of(lambda x: (x + 1.0) / 2.0), (0.125, 1.25))
    close(of(lambda x: 1.0 - 0.9 ** (2.0 + x)), (1.0 - 0.9**1.25, 1.0))
    close(of(lambda x: jnp.sqrt(x) + 1e-8), (1e-8, math.sqrt(1.5) + 1e-8))
    close(of(lambda x: jnp.maximum(jnp.exp(x), 1.0)), (1.0, math.exp(1.5)))


def test_rounding_and_overflow_stay_inside():
    found = bounds(
        jax.make_jaxpr(lambda x: x * x)(jnp.float32(1.0)), [Bounds(1e-30, 1e30)]
    )
    assert found == [Bounds(0.0, math.inf)]  # it may underflow, and overflow
    wraps = lambda x: x * x
    (found,) = bounds(jax.make_jaxpr(wraps)(jnp.int32(1)), [Bounds(0.0, 1e6)])
    assert found == ANY
    (found,) = bounds(
        jax.make_jaxpr(lambda x: x - 1)(jnp.uint32(1)), [Bounds(0.0, 1.0)]
    )
    assert found == ANY


def test_constants_that_are_not_numbers_have_no_bounds():
    for value in (jax.random.key(0), jnp.nan, np.zeros(0), np.zeros(1000), 1j):
        assert of_constant(value) == ANY
    assert of_constant(jnp.array([-1.0, jnp.nan, 2.0])) == (-1.0, 2.0)
    assert of_constant(True) == (1.0, 1.0)


def test_an_invariant_holds_from_the_start_on():
    grows = lambda known: [Bounds(0.5 * known[0].low, known[0].high + 1.0)]
    assert invariant([Bounds(1.0, 1.0)], grows) == [Bounds(0.0, math.inf)]
    falls = lambda known: [Bounds(known[0].low - 1.0, known[0].high)]
    assert invariant([Bounds(1.0, 1.0)], falls) == [Bounds(-math.inf, 1.0)]
    assert invariant([], lambda _: []) == []


def guarded_primitives(optimizer):
    """What `guard` leaves guarded in an update, by name."""
    params = {"w": jnp.ones(3)}

    def step(rate, grads):
        tx = metalr.guard(optimizer(rate))
        return tx.update(grads, tx.init(params), params)[0]

    program = jax.make_jaxpr(step)(0.1, params)
    inner = [
        e.params["jaxpr"] for e in program.jaxpr.eqns if "guarded" in str(e.primitive)
    ]
    return sorted(program.jaxpr.eqns[0].primitive.name for program in inner)


def test_only_a_pole_that_can_be_met_is_guarded():
    # Adam's denominators are at least eps, its bias corrections positive.
    assert guarded_primitives(optax.adam) == ["sqrt"]
    assert guarded_primitives(lambda h: optax.adam(h, eps_root=1e-8)) == []
    assert guarded_primitives(optax.rmsprop) == []  # ε stands in the root


def test_where_nothing_is_known_the_guard_stays():
    learned = lambda h: optax.adam(0.1, b2=h)
    assert "div" in guarded_primitives(learned)  # 1 - b2**t may be 0
    assert "sqrt" in guarded_primitives(lambda h: optax.adam(0.1, eps_root=h))
    outside = lambda h: optax.rmsprop(h, eps_in_sqrt=False)
    assert guarded_primitives(outside) == ["sqrt"]


def test_the_guard_costs_no_memory():
    keys = jax.random.split(jax.random.key(0), 3)
    inputs = jax.random.normal(keys[0], (16, 64), "float32")
    params = {
        "first": jax.random.normal(keys[1], (64, 48), "float32"),
        "last": jax.random.normal(keys[2], (48, 4), "float32"),
    }

    def loss(p, hyper, batch):
        return jnp.mean((jnp.tanh(inputs @ p["first"]) @ p["last"]) ** 2)

    def temporary(guarded, engine):
        run = metalr.Unrolled(loss, optax.adam, params, steps=6, guarded=guarded)
        program = jax.jit(lambda h: metalr.hypergradient(run, h, engine))
        compiled = program.lower(jnp.float32(0.1)).compile()
        analysis: Any = compiled.memory_analysis()
        return analysis.temp_size_in_bytes

    for engine in (metalr.Forward(), metalr.Reverse(checkpoints=2)):
        assert temporary(True, engine) <= 1.03 * temporary(False, engine)
