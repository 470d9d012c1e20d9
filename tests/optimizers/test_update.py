"""One update of any optax transformation, and a state that every loop can carry."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

import metalr
from metalr.optimizers.guard import guard
from metalr.optimizers.update import as_arrays, is_transformation, standard, update
from tests.helpers import assert_close, finite_difference

A = jnp.array([[2.0, 0.3], [0.3, 1.0]])
START = jnp.array([1.0, -0.5])
STEPS = 5


def loss(w):
    return 0.5 * w @ A @ w + 0.1 * jnp.sum(w**4)


def counted(rate):
    def step(grads, state, params=None):
        updates = jax.tree.map(lambda g: -rate * g / (1 + state["n"]), grads)
        return updates, {"n": state["n"] + 1}

    return transformation(lambda params: {"n": 0}, step)


ADVERSARY = optax.chain(contrib.normalize(), optax.sgd(0.1))
OPTIMIZERS = {
    "a Python int in the state": counted,
    "dog": contrib.dog,
    "optimistic_adam_v2": optax.optimistic_adam_v2,
    "a MultiSteps object": lambda h: optax.MultiSteps(
        optax.adam(h), 2, accumulator_dtype=jnp.float64
    ),
    "sam": lambda h: contrib.sam(optax.sgd(h), ADVERSARY),
    "sam, opaque": lambda h: contrib.sam(optax.sgd(h), ADVERSARY, opaque_mode=True),
    "sam in a chain": lambda h: optax.chain(
        optax.clip(1.5), contrib.sam(optax.sgd(h), ADVERSARY, opaque_mode=True)
    ),
    "sophia": contrib.sophia,
    "schedule_free": lambda h: contrib.schedule_free(optax.sgd(h), h),
    "reduce_on_plateau": lambda h: optax.chain(
        optax.sgd(h), contrib.reduce_on_plateau(patience=1)
    ),
    "backtracking": lambda h: optax.chain(
        optax.sgd(h), optax.scale_by_backtracking_linesearch(10, store_grad=False)
    ),
    "zoom": lambda h: optax.chain(optax.sgd(h), optax.scale_by_zoom_linesearch(10)),
}


def transformation(init, update) -> Any:
    """One written by a user, who names the arguments as they like."""
    return optax.GradientTransformationExtraArgs(init, update)


def run(optimizer: Any, start: Any = START, of: Any = loss) -> Any:
    """The loss after a hand-written scan with `update`."""

    def step(carry, _):
        params, state = carry
        value, grads = jax.value_and_grad(of)(params)
        updates, state = update(
            optimizer, grads, state, params, value=value, value_fn=of
        )
        return (optax.apply_updates(params, updates), state), None

    carry = (start, optimizer.init(start))
    return jax.lax.scan(step, carry, None, STEPS)[0]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_kind_of_transformation_runs_in_a_loop_and_is_differentiated(name):
    make = OPTIMIZERS[name]
    rate = jnp.array(0.1)
    plain, safe = (
        jax.jit(lambda h, w=wrap: loss(run(w(make(h)))[0]))
        for wrap in (standard, guard)
    )
    assert safe(rate) == plain(rate)
    expected = finite_difference(plain, rate)
    assert expected != 0.0
    assert_close(jax.jacfwd(safe)(rate), expected, rtol=1e-6, atol=1e-10)
    if name not in {"backtracking", "zoom"}:  # while loops
        assert_close(jax.grad(safe)(rate), expected, rtol=1e-6, atol=1e-10)


def test_lookahead_as_its_documentation_writes_it():
    start = optax.LookaheadParams.init_synced(START)

    def by_hand(rate):
        tx = optax.lookahead(optax.adam(rate), sync_period=2, slow_step_size=0.5)
        params: Any = start
        state = tx.init(start)
        for _ in range(STEPS):
            grads = jax.grad(loss)(params.fast)
            updates, state = tx.update(grads, state, params)
            params: Any = optax.apply_updates(params, updates)
        return loss(params.slow)

    def looped(rate):
        tx = guard(optax.lookahead(optax.adam(rate), sync_period=2, slow_step_size=0.5))
        return loss(run(tx, start, lambda params: loss(params.fast))[0].slow)

    assert_close(looped(0.1), by_hand(0.1), rtol=1e-15)
    assert_close(jax.grad(looped)(0.1), jax.grad(by_hand)(0.1), rtol=1e-13)


def test_lookahead_of_plain_params_is_told_how_to_start():
    tx = standard(optax.lookahead(optax.sgd(0.1), 2, 0.5))
    with pytest.raises(ValueError, match="init_synced"):
        run(tx)


def test_a_state_gets_arrays_with_dtypes_of_their_own():
    state = {"n": 0, "on": True, "x": 0.5, "numpy": np.float32(2.0), "a": jnp.ones(2)}
    made: Any = as_arrays(state, jnp.ones(2, jnp.float32))
    kinds = {name: leaf.dtype.name for name, leaf in made.items()}
    assert kinds == {
        "n": "int64",
        "on": "bool",
        "x": "float32",
        "numpy": "float32",
        "a": "float64",
    }
    assert not any(leaf.aval.weak_type for leaf in made.values())
    assert made["a"] is state["a"]
    alone: Any = as_arrays({"x": 0.5}, {})
    assert alone["x"].dtype == jnp.float64


def test_a_float_state_is_no_wider_than_params():
    # A float32 run with a Python float in the state stays what JAX makes of it.
    tx = transformation(
        lambda params: {"scale": 0.1},
        lambda g, s, p=None: (-s["scale"] * g, {"scale": 0.9 * s["scale"]}),
    )
    params, state = jax.jit(lambda w: run(standard(tx), w))(START.astype("float32"))
    assert params.dtype == state["scale"].dtype == jnp.float32
    assert_close(state["scale"], jnp.float32(0.1 * 0.9**STEPS), rtol=1e-6)


def changing(first, second):
    return transformation(
        lambda params: {"kept": first}, lambda g, s, p=None: (g, {"kept": second})
    )


@pytest.mark.parametrize(
    ("first", "second"),
    [(0.0, jnp.zeros(2)), (True, 1), (jnp.zeros(2), jnp.zeros(2, complex))],
    ids=["shape", "bool to int", "real to complex"],
)
def test_a_leaf_that_changes_its_kind_is_named(first, second):
    tx = standard(changing(first, second))
    with pytest.raises(ValueError, match=r"opt_state\['kept'\] came into"):
        tx.update(START, tx.init(START), START)


def test_a_state_that_changes_its_structure_is_refused():
    tx = standard(changing(jnp.zeros(2), None))
    with pytest.raises(ValueError, match="keep its structure"):
        tx.update(START, tx.init(START), START)


def test_a_leaf_that_is_no_array_is_named():
    with pytest.raises(ValueError, match=r"opt_state\['kept'\] = 'text' is str"):
        standard(changing("text", "text")).init(START)


def test_only_arguments_that_the_signature_has_are_passed_on():
    seen = {}

    def step(grad, state, params=None, *, value):  # `grad` is the first argument's name
        seen.update(value=value)
        return grad, state

    tx = standard(transformation(lambda p: (), step))
    tx.update(START, tx.init(START), START, value=3.0, grad=START, obj_fn=loss)
    assert seen == {"value": 3.0}


def test_an_error_of_the_update_itself_is_not_hidden():
    def step(updates, state, params=None, **extra):
        msg = "f() got an unexpected keyword argument 'value'"
        raise TypeError(msg)

    tx = standard(transformation(lambda p: (), step))
    with pytest.raises(TypeError, match="argument 'value'"):
        tx.update(START, (), START, value=1.0)


def test_what_is_no_transformation_is_refused():
    assert is_transformation(optax.MultiSteps(optax.sgd(0.1), 2))
    assert not is_transformation(optax.MultiSteps)
    with pytest.raises(ValueError, match=r"optimizer = 0\.1 must be"):
        standard(0.1)


REFUSED = {
    "a peak": lambda h: optax.warmup_cosine_decay_schedule(0.0, h, 2, 4),
    "a peak of several": lambda h: optax.sgdr_schedule(
        [{"init_value": 0.0, "peak_value": h, "decay_steps": 2, "warmup_steps": 1}] * 2
    ),
    "a decay rate": lambda h: optax.exponential_decay(0.1, 2, h),
    "a factor": lambda h: optax.piecewise_constant_schedule(0.1, {2: h}),
}


def scheduled(schedule):
    return metalr.Unrolled(
        lambda w, h, b: loss(w), lambda h: optax.sgd(schedule(h)), START, steps=4
    )


@pytest.mark.parametrize("name", REFUSED)
def test_a_schedule_that_optax_cannot_trace_is_told_how_it_is_written(name):
    with pytest.raises(ValueError, match="Learn a factor of a schedule"):
        jax.grad(scheduled(REFUSED[name]))(0.1)


WRITTEN = {
    "a peak": lambda h: (
        lambda count: h * optax.warmup_cosine_decay_schedule(0.0, 1.0, 2, 4)(count)
    ),
    "a decay rate": lambda h: lambda count: 0.1 * h ** (count / 2),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_written_as_the_error_says_it_is_the_schedule_of_optax(name):
    written, optax_own = WRITTEN[name](0.3), REFUSED[name](0.3)
    for count in range(5):
        assert_close(written(count), optax_own(count), rtol=1e-12, atol=1e-15)
    L = scheduled(WRITTEN[name])
    rate = jnp.array(0.3)
    assert_close(jax.grad(L)(rate), finite_difference(L, rate), rtol=1e-6)
