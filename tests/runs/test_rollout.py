"""Any step is a run: every engine against a loop written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import metalr
from tests.helpers import assert_close, finite_difference

ENGINES = [
    metalr.Reverse(),
    metalr.Reverse(checkpoints=3),
    metalr.Forward(),
    metalr.Mixed(),
    metalr.Mixed(checkpoints=2),
    metalr.Truncated(last=99),
]
HYPER = {"gain": jnp.array(0.9), "push": jnp.array([0.3, -0.2])}
INPUTS = {
    "wind": jnp.linspace(-1.0, 1.0, 7),
    "key": jax.random.split(jax.random.key(1), 7),
}


def step(state, hyper, x):
    noise = jax.random.normal(x["key"], (2,))
    place = hyper["gain"] * jnp.sin(state["place"]) + hyper["push"] * x["wind"] + noise
    key, _ = jax.random.split(state["key"])
    place = place + 0.1 * state["count"] * jax.random.normal(key, (2,))
    return {"place": place, "count": state["count"] + 1, "key": key}, jnp.sum(place)


def start(hyper):
    return {
        "place": hyper["push"] ** 2,
        "count": jnp.array(0),
        "key": jax.random.key(3),
    }


def value(state, hyper):
    return jnp.sum(state["place"] ** 2) * hyper["gain"]


@pytest.fixture(scope="module")
def rollout():
    return metalr.Rollout(step, start, steps=7, value=value, inputs=INPUTS)


def at(index):
    return jax.tree.map(lambda x: x[index], INPUTS)


def by_hand(hyper, steps=7):
    state, records = start(hyper), []
    for index in range(steps):
        state, record = step(state, hyper, at(index))
        records.append(record)
    return value(state, hyper), state, jnp.stack(records)


@pytest.mark.parametrize("engine", ENGINES, ids=str)
def test_every_engine_gives_the_derivative_of_the_loop_written_out(rollout, engine):
    expected = jax.value_and_grad(lambda h: by_hand(h)[0])(HYPER)
    found = metalr.hypergradient(rollout, HYPER, engine)
    assert_close(tuple(found), expected, rtol=1e-11)
    result, run = metalr.hypergradient_and_run(rollout, HYPER, engine)
    assert_close(result, found, rtol=1e-13)
    assert_close(run.state["place"], by_hand(HYPER)[1]["place"], rtol=1e-12)
    if run.records is not None:
        assert_close(run.records, by_hand(HYPER)[2], rtol=1e-12)


def test_smoothing_engines_estimate_it_within_their_standard_error(rollout):
    exact = metalr.hypergradient(rollout, HYPER).grad
    for engine in (
        metalr.EvolutionStrategies(1e-3, 4000, 0),
        metalr.PersistentES(1e-3, 4000, 3, 0),
    ):
        found = metalr.hypergradient(rollout, HYPER, engine)
        for a, b, error in zip(
            *map(jax.tree.leaves, (found.grad, exact, found.standard_error)),
            strict=True,
        ):
            assert np.all(np.abs(a - b) < 4.5 * error)


def test_truncation_is_the_derivative_with_the_state_before_held_fixed(rollout):
    _, held, _ = by_hand(HYPER, 4)

    def last(hyper):
        state = held
        for index in range(4, 7):
            state, _ = step(state, hyper, at(index))
        return value(state, hyper)

    found = metalr.hypergradient(rollout, HYPER, metalr.Truncated(last=3))
    assert_close(found.grad, jax.grad(last)(HYPER), rtol=1e-12)


def test_a_run_gives_value_end_and_records_and_goes_on_from_there(rollout):
    expected, state, records = by_hand(HYPER)
    run = rollout.run(HYPER)
    assert_close(run.value, expected, rtol=1e-12)
    assert_close(run.records, records, rtol=1e-12)
    _, middle, _ = by_hand(HYPER, 4)
    rest = rollout.continued(middle, 4)
    assert rest.steps == 3
    assert_close(rest(HYPER), expected, rtol=1e-12)
    assert_close(rest.run(HYPER).state["place"], state["place"], rtol=1e-12)
    found = metalr.hypergradient(rest, HYPER, metalr.Reverse(checkpoints=2)).grad
    truncated = metalr.hypergradient(rollout, HYPER, metalr.Truncated(last=3)).grad
    assert_close(found, truncated, rtol=1e-11)
    with pytest.raises(ValueError, match="first_step = 8 is past the end"):
        rollout.continued(middle, 8)


def test_inputs_may_be_a_function_of_the_step_with_its_data_in_a_partial(rollout):
    traces = []

    def pick(data, index):
        traces.append(1)
        return jax.tree.map(lambda x: x[index], data)

    make = lambda data: metalr.Rollout(
        step, start, steps=7, value=value, inputs=Partial(pick, data)
    )
    assert_close(make(INPUTS)(HYPER), rollout(HYPER), rtol=1e-13)
    count = len(traces)
    other = {**INPUTS, "wind": 2.0 * INPUTS["wind"]}
    assert make(other)(HYPER) != rollout(HYPER)
    assert len(traces) == count  # new data run the program that there is


def test_all_transformations_compose(rollout):
    gradient = jax.grad(rollout)(HYPER)
    assert_close(gradient, finite_difference(rollout, HYPER), rtol=1e-7, atol=1e-7)
    batch = jax.tree.map(lambda x: jnp.stack([x, 1.1 * x]), HYPER)
    for engine in (metalr.Reverse(), metalr.Reverse(checkpoints=2), metalr.Forward()):
        each = jax.vmap(lambda h, e=engine: metalr.hypergradient(rollout, h, e).grad)(
            batch
        )
        assert_close(jax.tree.map(lambda x: x[0], each), gradient, rtol=1e-11)
    only = lambda gain: rollout({**HYPER, "gain": gain})
    hessian = jax.hessian(only)(HYPER["gain"])
    swept = lambda gain: metalr.hypergradient(
        rollout, {**HYPER, "gain": gain}, metalr.Reverse(checkpoints=2)
    ).grad["gain"]
    assert_close(jax.jacfwd(swept)(HYPER["gain"]), hessian, rtol=1e-9)


def test_float32_states_and_bfloat16_hyper_keep_their_dtypes():
    R = metalr.Rollout(
        lambda s, h, x: (s + h * 1.0, None),
        jnp.float32(0.0),
        steps=1000,
        value=lambda s, h: s,
    )
    for engine in ENGINES[:4]:
        found = metalr.hypergradient(R, jnp.bfloat16(0.5), engine)
        assert found.grad.dtype == jnp.bfloat16
        assert found.grad == 1000.0  # summed in float32: 256 in bfloat16
        assert found.value.dtype == jnp.float32


def bad_calls():
    make = lambda **o: metalr.Rollout(
        **{"step": step, "init": start, "steps": 7, "value": value} | o
    )
    one = {"init": 1.0, "value": lambda s, h: s, "steps": 2}
    wide = lambda s, h, x: (s * jnp.ones(2), None)
    return {
        "steps = 1.5": lambda: make(steps=1.5),
        "value = 3 must be a function": lambda: make(value=3),
        r"inputs\['key'\] has shape \(7,\); steps=6": lambda: make(
            steps=6, inputs=INPUTS
        ),
        r"must return \(state, record\)": lambda: make(**one, step=lambda s, h, x: s)(
            0.1
        ),
        r"came into step as float64\[\] and left it as float64\[2\]": lambda: make(
            **one, step=wide
        )(0.1),
        "changed the state from": lambda: make(
            **one, step=lambda s, h, x: ((s, s), None)
        )(0.1),
        "init = 'text' is str": lambda: make(init="text"),
        "Reversible.* needs a metalr.Unrolled": lambda: metalr.hypergradient(
            make(inputs=INPUTS), HYPER, metalr.Reversible()
        ),
        "Implicit.* needs a metalr.Unrolled": lambda: metalr.hypergradient(
            make(inputs=INPUTS), HYPER, metalr.Implicit()
        ),
    }


@pytest.mark.parametrize("message", bad_calls())
def test_bad_input_is_a_value_error_that_names_the_value(message):
    with pytest.raises(ValueError, match=message):
        bad_calls()[message]()


def test_it_is_frozen_and_printable(rollout):
    assert repr(rollout) == "Rollout(step, steps=7)"
    with pytest.raises(AttributeError):
        rollout.steps = 3
