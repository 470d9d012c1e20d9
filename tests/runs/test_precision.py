"""Dtypes: what moves in bfloat16 is differentiated in float32; constants are seen."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metalr
from metalr.hypergrad import PrecisionWarning
from tests.helpers import assert_close

ENGINES = [
    metalr.Reverse(),
    metalr.Reverse(checkpoints=3),
    metalr.Forward(),
    metalr.Mixed(),
]


@pytest.mark.parametrize("engine", ENGINES, ids=str)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_a_thousand_derivatives_of_one_are_a_thousand(engine, dtype):
    L = metalr.Unrolled(lambda p, h, b: p, optax.sgd, dtype(0.0), steps=1000)
    found = metalr.hypergradient(L, jnp.float32(1e-3), engine)
    assert found.grad.dtype == jnp.float32
    assert found.grad == -1000.0  # −256 where they are summed in bfloat16
    narrow = metalr.hypergradient(L, jnp.bfloat16(1e-3), engine).grad
    assert narrow.dtype == jnp.bfloat16
    assert narrow == -1000.0


def test_a_bfloat16_run_is_that_of_the_loop_written_out_bit_for_bit():
    start, rate = jnp.array([1.0, -0.3, 0.07], jnp.bfloat16), jnp.bfloat16(0.1)
    loss = lambda p, h, b: jnp.sum(jnp.cos(p) * p)
    params, tx = start, optax.sgd(rate, 0.9)
    state = tx.init(params)
    for _ in range(20):
        updates, state = tx.update(jax.grad(loss)(params, 0, 0), state, params)
        params = optax.apply_updates(params, updates)
    L = metalr.Unrolled(loss, lambda h: optax.sgd(h, 0.9), start, steps=20)
    for found in (L.final_params(rate), L.run(rate).state.params):
        assert found.dtype == jnp.bfloat16
        assert np.array_equal(np.asarray(found), np.asarray(params))


def test_a_leaf_whose_derivative_is_narrow_is_named_once():
    loss = lambda p, h, b: jnp.sum(p.astype(jnp.float32) ** 2)
    L = metalr.Unrolled(loss, optax.adam, jnp.ones(3, jnp.bfloat16), steps=4)
    with pytest.warns(PrecisionWarning, match=r"opt_state\[0\]\.(mu|nu) is bfloat16"):
        metalr.hypergradient(L, jnp.float32(0.1))


@pytest.mark.parametrize("engine", ENGINES, ids=str)
def test_a_loss_may_be_wider_than_its_params(engine):
    data = np.linspace(-1.0, 1.0, 12).reshape(4, 3)  # NumPy: float64
    loss = lambda p, h, b: jnp.mean((data @ p - 1.0) ** 2)
    wide, narrow = (
        metalr.Unrolled(loss, optax.adam, jnp.ones(3, dtype), steps=4)
        for dtype in (jnp.float64, jnp.float32)
    )
    expected = metalr.hypergradient(wide, 0.1)
    found = metalr.hypergradient(narrow, jnp.float32(0.1), engine)
    assert found.grad.dtype == jnp.float32
    # Some 40 operations a step of eps = 6e-8, four steps.
    assert_close(found.grad.astype(float), expected.grad, rtol=2e-5)


def test_mixed_dtypes_train_and_other_leaves_are_constants_that_the_loss_sees():
    key = jax.random.key(0)
    params = {
        "wide": jnp.ones(2),
        "half": jnp.ones(2, jnp.float32),
        "index": jnp.array([1, 0]),
        "mask": jnp.array([True, False]),
        "key": key,
    }

    def loss(p, h, b):
        noise = jax.random.normal(p["key"], (2,))
        inside = p["wide"][p["index"]] * p["half"].astype(float) + noise
        return jnp.sum(jnp.where(p["mask"], inside, 2.0 * inside) ** 2)

    L = metalr.Unrolled(loss, optax.adam, params, steps=3)
    full = {**params, "half": jnp.ones(2)}
    trained = {name: full[name] for name in ("wide", "half")}
    reference = metalr.Unrolled(
        lambda p, h, b: loss({**full, **p}, h, b), optax.adam, trained, steps=3
    )
    expected = metalr.hypergradient(reference, 0.1)
    for engine in ENGINES:
        found = metalr.hypergradient(L, 0.1, engine)
        assert_close(found.grad, expected.grad, rtol=1e-5)
    end = L.final_params(0.1)
    assert jax.tree.map(lambda x: x.dtype, end) == jax.tree.map(
        lambda x: x.dtype, params
    )
    assert np.array_equal(end["index"], params["index"])


def test_steps_may_be_a_numpy_integer_and_params_a_partial():
    loss = lambda p, h, b: 0.5 * jnp.sum(p**2)
    start = jax.tree_util.Partial(lambda data, h: h["start"] * data, jnp.arange(3.0))
    make = lambda h: optax.sgd(h["rate"])
    L = metalr.Unrolled(loss, make, start, steps=np.int64(3))
    hyper = {"rate": jnp.array(0.1), "start": jnp.array(2.0)}
    assert L.steps == 3
    found = metalr.hypergradient(L, hyper, metalr.Reverse(checkpoints=2))
    expected = lambda h: (
        0.5 * jnp.sum((h["start"] * jnp.arange(3.0)) ** 2) * (1 - h["rate"]) ** 6
    )
    assert_close(tuple(found), jax.value_and_grad(expected)(hyper), rtol=1e-12)


def test_nothing_compiles_anew_where_the_parts_are_the_same():
    count = []

    def loss(scale, p, h, b):
        count.append(1)
        return scale * jnp.sum(p**2)

    import functools

    for make in (
        lambda: functools.partial(loss, 2.0),
        lambda: jax.tree_util.Partial(loss, 2.0),
        lambda: jax.tree_util.Partial(loss, jnp.array(2.0)),
    ):
        traced = []
        for repeat in range(3):
            L = metalr.Unrolled(make(), optax.sgd, jnp.ones(2), steps=3)
            before = len(count)
            metalr.hypergradient(L, 0.1, metalr.Forward())
            L(0.1 + repeat)
            traced.append(len(count) - before)
        assert traced[1:] == [0, 0]
    assert count
