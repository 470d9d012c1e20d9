"""What a loss carries from step to step, and outer losses along the run."""

import dataclasses

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.tree_util import Partial

import metalr
from tests.helpers import assert_close

ENGINES = [
    metalr.Reverse(),
    metalr.Reverse(checkpoints=2),
    metalr.Forward(),
    metalr.Mixed(),
    metalr.Truncated(last=9),
]
STEPS = 4
X = jax.random.normal(jax.random.key(0), (STEPS, 6, 3))
Y = jax.random.normal(jax.random.key(1), (STEPS, 6))
START = {"w": jnp.array([0.3, -0.2, 0.5]), "b": jnp.array(0.1)}
STATE = {"mean": jnp.zeros(3), "seen": jnp.array(0), "key": jax.random.key(7)}
HYPER = {"rate": jnp.array(0.05), "decay": jnp.array(0.3)}


def loss(params, hyper, batch, state):
    """A regression on inputs centred by a running mean, with noise of its own."""
    x, y = batch
    mean = hyper["decay"] * jnp.mean(x, axis=0) + (1 - hyper["decay"]) * state["mean"]
    key, now = jax.random.split(state["key"])
    kept = jax.random.bernoulli(now, 0.8, y.shape)
    residual = (x - mean) @ params["w"] + params["b"] * jnp.sum(params["w"]) - y
    value = jnp.mean(kept * residual**2)
    return value, {"mean": mean, "seen": state["seen"] + 1, "key": key}


def outer(params, hyper, state):
    return jnp.sum(params["w"] ** 2) + jnp.sum(state["mean"] * params["w"])


def optimizer(hyper):
    return optax.sgd(hyper["rate"], momentum=0.9)


def by_hand(hyper, weights=None, outer_loss=outer):
    """The same as one would write it; also each step's loss and state."""
    params, state, tx = START, STATE, optimizer(hyper)
    opt_state, losses, total, states = tx.init(params), [], 0.0, []
    for index in range(STEPS):
        batch = (X[index], Y[index])
        (value, new), grads = jax.value_and_grad(loss, has_aux=True)(
            params, hyper, batch, state
        )
        if weights is not None:
            here = value if outer_loss is None else outer_loss(params, hyper, state)
            total += weights[index] * here
        state = new
        updates, opt_state = tx.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        losses.append(value)
        states.append(state)
    last = (X[-1], Y[-1])
    if outer_loss is None:
        end = loss(params, hyper, last, state)[0]
    else:
        end = outer_loss(params, hyper, state)
    value = end if weights is None else total + weights[-1] * end
    return value, params, state, jnp.stack(losses)


def unrolled(**options):
    given = {"batches": (X, Y), "model_state": STATE, "outer_loss": outer}
    return metalr.Unrolled(loss, optimizer, START, steps=STEPS, **given | options)


@pytest.mark.parametrize("engine", ENGINES, ids=str)
def test_a_model_state_is_differentiated_as_in_the_loop_written_out(engine):
    expected = jax.value_and_grad(lambda h: by_hand(h)[0])(HYPER)
    assert_close(
        tuple(metalr.hypergradient(unrolled(), HYPER, engine)), expected, rtol=1e-11
    )


@pytest.mark.parametrize("outer_loss", [outer, None])
@pytest.mark.parametrize("engine", ENGINES[:4], ids=str)
def test_outer_weights_sum_the_outer_loss_along_the_run(engine, outer_loss):
    weights = jnp.array([0.5, 0.0, -1.0, 2.0, 1.5])
    value = lambda h: by_hand(h, weights, outer_loss)[0]
    objective = unrolled(outer_weights=weights, outer_loss=outer_loss)
    found = metalr.hypergradient(objective, HYPER, engine)
    assert_close(tuple(found), jax.value_and_grad(value)(HYPER), rtol=1e-11)


def test_outer_weights_without_an_outer_loss_weigh_the_trajectory():
    plain = lambda p, h, b: loss(p, h, b, STATE)[0]
    weights = jnp.linspace(-1.0, 1.0, STEPS + 1)
    objective = metalr.Unrolled(
        plain, optimizer, START, steps=STEPS, batches=(X, Y), outer_weights=weights
    )
    curve = dataclasses.replace(objective, outer_weights=None).trajectory
    expected = jax.value_and_grad(lambda h: weights @ curve(h))(HYPER)
    for engine in (*ENGINES[:4], metalr.Reversible()):
        found = metalr.hypergradient(objective, HYPER, engine)
        assert_close((found.value, found.grad), expected, rtol=1e-9)
    with pytest.raises(ValueError, match="outer_weights along the run"):
        metalr.hypergradient(objective, HYPER, metalr.Implicit())


def test_weighted_outer_losses_meet_the_noise_of_their_window():
    # One window is plain smoothing; two have the same mean and other noise.
    weights = jnp.ones(STEPS + 1) / (STEPS + 1)
    objective = unrolled(outer_weights=weights)
    exact = metalr.hypergradient(objective, HYPER).grad["rate"]
    one = metalr.hypergradient(objective, HYPER, metalr.PersistentES(1e-3, 3000, 9, 0))
    two = metalr.hypergradient(objective, HYPER, metalr.PersistentES(1e-3, 3000, 3, 0))
    for found in (one, two):
        assert abs(found.grad["rate"] - exact) < 4.5 * found.standard_error["rate"]
    assert one.grad["rate"] != two.grad["rate"]


def test_a_run_has_the_metrics_of_every_step():
    value, params, state, losses = by_hand(HYPER)
    run = unrolled().run(HYPER)
    assert_close(run.value, value, rtol=1e-12)
    assert_close(run.state.params, params, rtol=1e-12)
    assert_close(run.records.loss, losses, rtol=1e-12)
    assert_close(run.records.model_state["seen"], jnp.arange(1, STEPS + 1), rtol=0)
    assert_close(run.records.model_state["mean"][-1], state["mean"], rtol=1e-12)
    result, again = metalr.hypergradient_and_run(unrolled(), HYPER, metalr.Mixed())
    assert_close(again.records.loss, losses, rtol=1e-12)
    assert_close(result.value, value, rtol=1e-12)


def test_a_continued_run_ends_where_the_whole_one_does():
    whole = unrolled()
    first = metalr.Unrolled(
        loss, optimizer, START, steps=1, batches=(X[:1], Y[:1]), model_state=STATE
    )
    middle = first.run(HYPER).state
    rest = whole.continued(middle, 1)
    assert_close(rest(HYPER), whole(HYPER), rtol=1e-12)
    assert_close(
        metalr.hypergradient(rest, HYPER, metalr.Reverse(checkpoints=1)).grad,
        metalr.hypergradient(whole, HYPER, metalr.Truncated(last=3)).grad,
        rtol=1e-11,
    )


def test_batches_may_be_made_in_the_step_from_a_key_and_data():
    def draw(data, index):
        rows = jax.random.choice(jax.random.fold_in(jax.random.key(2), index), 24, (6,))
        return data[0][rows], data[1][rows]

    data = (X.reshape(24, 3), Y.reshape(24))
    given = jax.vmap(lambda i: draw(data, i))(jnp.arange(STEPS))
    made = unrolled(batches=Partial(draw, data))
    for engine in ENGINES[:4]:
        expected = metalr.hypergradient(unrolled(batches=given), HYPER, engine)
        assert_close(metalr.hypergradient(made, HYPER, engine), expected, rtol=1e-12)


def test_an_outer_loss_may_see_the_optimizers_state():
    average = lambda hyper: optax.chain(optax.sgd(hyper), optax.ema(0.5))
    start = jnp.array(2.0)

    def judged(params, hyper, *, opt_state):
        return opt_state[1].ema ** 2 + params * hyper

    L = metalr.Unrolled(
        lambda p, h, b: 0.5 * p**2, average, start, steps=3, outer_loss=judged
    )

    def hand(rate):
        tx, params = average(rate), start
        state = tx.init(params)
        for _ in range(3):
            updates, state = tx.update(params, state, params)
            params = optax.apply_updates(params, updates)
        return judged(params, rate, opt_state=state)

    for engine in ENGINES[:4]:
        found = metalr.hypergradient(L, 0.3, engine)
        assert_close(tuple(found), jax.value_and_grad(hand)(0.3), rtol=1e-12)


def test_schedule_free_weights_are_judged_by_the_average_of_the_optimizer():
    make = lambda h: optax.contrib.schedule_free_sgd(h, b1=0.9)
    evaluated = optax.contrib.schedule_free_eval_params

    def judged(params, hyper, *, opt_state):
        return jnp.sum(evaluated(opt_state, params) ** 2)

    start = jnp.array([1.0, -2.0])
    target = lambda p, h, b: jnp.sum((p - 0.5) ** 2)
    L = metalr.Unrolled(target, make, start, steps=4, outer_loss=judged)

    def hand(rate):
        tx, params = make(rate), start
        state = tx.init(params)
        for _ in range(4):
            updates, state = tx.update(jax.grad(target)(params, 0, 0), state, params)
            params = optax.apply_updates(params, updates)
        return judged(params, rate, opt_state=state)

    for engine in ENGINES[:4]:
        found = metalr.hypergradient(L, 0.05, engine)
        assert_close(tuple(found), jax.value_and_grad(hand)(0.05), rtol=1e-10)


def bad_calls():
    of = lambda loss, **options: metalr.Unrolled(
        loss, lambda h: optax.sgd(h["rate"]), START, steps=1, **options
    )
    pair = lambda p, h, b: (p["b"], {})
    scalar = lambda p, h, b, s: p["b"]
    wider = lambda p, h, b, s: (p["b"], {**s, "mean": jnp.zeros((1, 3))})
    other = lambda p, h, b, s: (p["b"], {"mean": s["mean"]})
    return {
        "goes into model_state, with which": lambda: of(pair)(HYPER),
        "must return .scalar, new_model_state": lambda: of(scalar, model_state=STATE)(
            HYPER
        ),
        r"model_state\['mean'\] came into the loss": lambda: of(
            wider, model_state=STATE
        )(HYPER),
        "a model_state of structure": lambda: of(other, model_state=STATE)(HYPER),
        "must be steps \\+ 1 = 5 floats": lambda: unrolled(outer_weights=jnp.ones(4)),
        "microbatch = 2 with model_state": lambda: unrolled(microbatch=2),
        "a list of length 4 = steps": lambda: unrolled(batches=[X[0]] * 4),
        "Reversible.* one with a model_state": lambda: metalr.hypergradient(
            unrolled(), HYPER, metalr.Reversible()
        ),
    }


@pytest.mark.parametrize("message", bad_calls())
def test_bad_input_is_a_value_error_that_says_what_to_do(message):
    with pytest.raises(ValueError, match=message):
        bad_calls()[message]()
