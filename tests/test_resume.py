"""A loop that is interrupted and continued is the loop that was not, bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metalr
from metalr.problems import least_squares
from tests.helpers import regression


def objective(steps=3, dtype="float64"):
    X, t = regression()
    loss = least_squares(X.astype(dtype), t.astype(dtype))
    make = lambda h: optax.sgd(h["rate"], h["momentum"])
    return metalr.Unrolled(loss, make, jnp.zeros(8, dtype), steps=steps)


def rates(steps=3, dtype="float64"):
    """Of one scalar, for Newton."""
    X, t = regression()
    loss = least_squares(X.astype(dtype), t.astype(dtype))
    return metalr.Unrolled(loss, optax.sgd, jnp.zeros(8, dtype), steps=steps)


def in_chunks(learn, hyper, steps, chunks):
    """What `chunks` continued calls return, put together as one."""
    learned = learn(hyper, steps=steps)
    rows, made = [learned.history], int(learned.steps)
    for _ in range(chunks - 1):
        learned = learn(learned.hyper, steps=steps, state=learned.state)
        rows.append(jax.tree.map(lambda x: x[1:], learned.history))
        made += int(learned.steps)
    history = jax.tree.map(lambda *parts: jnp.concatenate(parts), *rows)
    return learned._replace(history=history, steps=jnp.array(made, jnp.int32))


def assert_identical(actual, expected):
    """Every bit, nan and the sign of zero included."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert (a.dtype, a.shape) == (e.dtype, e.shape)
        assert bits(a) == bits(e)


def bits(leaf):
    key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if key else leaf).tobytes()


PAIR = {"rate": 0.3, "momentum": 0.1}
LOOPS = {
    "adam, log": (
        objective(),
        PAIR,
        {"outer_optimizer": optax.adam(0.1), "log": True, "engine": metalr.Forward()},
    ),
    "lbfgs, log of one": (
        objective(),
        PAIR,
        {"outer_optimizer": optax.lbfgs(), "log": {"rate": True, "momentum": False}},
    ),
    "noise": (objective(), PAIR, {"outer_optimizer": optax.noisy_sgd(0.01, key=0)}),
    "Newton, log, converged early": (
        rates(5),
        0.1,
        {"outer_optimizer": metalr.Newton(), "log": True, "atol": 1e-2},
    ),
    "sgd backs off": (rates(200), 0.5, {"outer_optimizer": optax.sgd(1e4)}),
    "Newton backs off": (
        rates(200),
        0.5,
        {"outer_optimizer": metalr.Newton(first_step=1e4)},
    ),
    "a start that diverged": (rates(200), 1e6, {"outer_optimizer": optax.sgd(0.1)}),
    "float32": (
        objective(dtype="float32"),
        jax.tree.map(jnp.float32, PAIR),
        {"outer_optimizer": optax.adam(0.1), "log": True},
    ),
}


@pytest.mark.parametrize("name", LOOPS)
def test_steps_in_chunks_are_the_steps_at_once_bit_for_bit(name):
    L, hyper, options = LOOPS[name]
    learn = lambda hyper, **more: metalr.learn(L, hyper, **options, **more)
    whole = learn(hyper, steps=12)
    assert_identical(in_chunks(learn, hyper, steps=4, chunks=3), whole)
    made = int(whole.steps)
    if "early" in name:
        assert 0 < made < 12
        assert whole.converged
    if "back" in name:
        assert np.any(np.diff(whole.history.value[: made + 1]) == 0.0)


def test_the_state_of_another_loop_is_refused():
    adam, sgd = optax.adam(0.1), optax.sgd(0.1)
    learned = metalr.learn(rates(), 0.1, outer_optimizer=adam, steps=0)
    with pytest.raises(ValueError, match="same outer_optimizer"):
        metalr.learn(rates(), 0.1, outer_optimizer=sgd, steps=1, state=learned.state)
    with pytest.raises(ValueError, match="same outer_optimizer"):
        metalr.learn(
            objective(), PAIR, outer_optimizer=adam, steps=1, state=learned.state
        )
