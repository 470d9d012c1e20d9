"""A draw for each outer step: hand-written loops; draws that fail poison no others."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.core import Tracer

import metalr
from metalr.tasks import Each, Mean
from tests.helpers import assert_close

KEY = jax.random.key(3)
SGD = optax.sgd(0.1)


def draws(count):
    return [jax.random.fold_in(KEY, i) for i in range(count)]


def bowl(key):
    """A minimum at a random place."""
    place = jax.random.normal(key)
    return jax.tree_util.Partial(lambda place, h: (h - place) ** 2, place)


def test_each_outer_step_has_the_draw_of_its_number():
    learned = metalr.learn(bowl, 1.0, key=KEY, outer_optimizer=SGD, steps=6)
    h, hypers, values = 1.0, [], []
    for key in draws(7):
        place = jax.random.normal(key)
        hypers.append(h)
        values.append((h - place) ** 2)
        h = h - 0.1 * 2 * (h - place)
    assert_close(learned.history.hyper, jnp.array(hypers), rtol=1e-13)
    assert_close(learned.history.value, jnp.array(values), rtol=1e-12)
    assert int(learned.steps) == 6
    assert not learned.converged


def test_it_goes_on_from_a_state_as_if_it_had_not_stopped():
    adam = {"key": 3, "outer_optimizer": optax.adam(0.1), "keep": "last"}
    whole = metalr.learn(bowl, 1.0, steps=6, **adam)
    half = metalr.learn(bowl, 1.0, steps=3, **adam)
    rest = metalr.learn(bowl, half.hyper, steps=3, state=half.state, **adam)
    assert rest.hyper == whole.hyper
    assert np.array_equal(rest.history.value[1:], whole.history.value[4:])


def test_the_best_point_is_that_of_a_draw_that_no_step_sees_also_when_continued():
    options = {"key": KEY, "outer_optimizer": optax.sgd(0.3)}
    every = metalr.learn(bowl, 1.0, steps=10, **options).history
    place = jax.random.normal(jax.random.fold_in(KEY, 2**32 - 1))
    held_out = (every.hyper - place) ** 2
    index = int(jnp.argmin(held_out))
    assert index not in {0, 10, int(jnp.argmin(every.value))}

    best = metalr.learn(bowl, 1.0, steps=10, keep="best", **options)
    assert_close(best.hyper, every.hyper[index], rtol=1e-12)
    assert_close(best.value, held_out[index], rtol=1e-9)
    assert np.array_equal(best.history.value, every.value)
    half = metalr.learn(bowl, 1.0, steps=index + 1, keep="best", **options)
    rest = metalr.learn(
        bowl, half.hyper, steps=9 - index, keep="best", state=half.state, **options
    )
    assert (rest.hyper, rest.value) == (best.hyper, best.value)


def test_runs_are_made_inside_the_compiled_loop():
    """The loss of a fresh task: one trace, the mean of (1 − h)^2T over targets."""
    made = []

    def make(key):
        made.append(key)
        target = jax.random.normal(key)
        loss = lambda params, hyper, batch: 0.5 * (params - batch) ** 2
        return metalr.Unrolled(
            loss, optax.sgd, 0.0, steps=2, batches=jnp.full(2, target)
        )

    learned = metalr.learn(make, 0.1, key=KEY, outer_optimizer=SGD, steps=4)
    assert all(isinstance(key, Tracer) for key in made)
    targets = jnp.array([jax.random.normal(key) for key in draws(5)])
    expected = 0.5 * (1 - learned.history.hyper) ** 4 * targets**2
    assert_close(learned.history.value, expected, rtol=1e-12)
    slopes = -2 * (1 - learned.history.hyper) ** 3 * targets**2
    assert_close(
        jnp.diff(learned.history.hyper), -0.1 * slopes[:-1], rtol=1e-12, atol=1e-15
    )


def test_values_of_different_draws_are_never_compared():
    def make(key):  # now and then the loss is 1e30 times larger, with the same slope
        large = 1e20 * jax.random.bernoulli(key)
        return jax.tree_util.Partial(lambda large, h: 1e-10 + large + h, large)

    learned = metalr.learn(make, 1.0, key=KEY, outer_optimizer=SGD, steps=8)
    assert (
        np.ptp(np.log(learned.history.value)) > 40
    )  # over 1/eps: both kinds were drawn
    assert_close(jnp.diff(learned.history.hyper), jnp.full(8, -0.1), rtol=1e-12)


def failing(share):
    """Draws of which a share is nan."""

    def make(key):
        bad = jax.random.uniform(key) < share
        return jax.tree_util.Partial(
            lambda bad, h: jnp.where(bad, jnp.nan, 1.0) * h**2, bad
        )

    return make


def test_a_draw_that_fails_costs_a_step_and_nothing_else():
    learned = metalr.learn(failing(0.3), 1.0, key=KEY, outer_optimizer=SGD, steps=30)
    bad = np.array([jax.random.uniform(key) < 0.3 for key in draws(31)])
    assert 0 < bad[1:].sum() < 30
    stayed = np.diff(learned.history.hyper) == 0.0
    unknown = bad.cumprod().astype(bool)  # until a draw comes through
    assert np.array_equal(stayed, bad[1:] | unknown[:-1])
    assert np.array_equal(np.isnan(learned.history.value), unknown)


def test_a_first_draw_that_fails_is_passed_over():
    first = jax.random.key_data(jax.random.fold_in(KEY, 0))

    def make(key):
        bad = jnp.all(jax.random.key_data(key) == first)
        return jax.tree_util.Partial(
            lambda bad, h: jnp.where(bad, jnp.nan, 1.0) * h**2, bad
        )

    learned = metalr.learn(make, 1.0, key=KEY, outer_optimizer=optax.adam(0.1), steps=3)
    assert_close(learned.history.hyper[:3], jnp.array([1.0, 1.0, 0.9]), rtol=1e-6)


def tasks(key, bad):
    """Five bowls, of which some are nan."""
    places = jax.random.normal(key, (5,))
    scales = jnp.where(jnp.arange(5) < bad, jnp.nan, 1.0)
    bowl = lambda place, scale, h: scale * (h - place) ** 2
    return Mean(jax.tree_util.Partial(bowl, places, scales))


@pytest.mark.parametrize(
    "engine", [metalr.Reverse(), metalr.Forward(), Each(metalr.Reverse())], ids=repr
)
def test_tasks_that_are_nan_are_left_out_and_counted(engine):
    learned = metalr.learn(
        lambda key: tasks(key, bad=2),
        1.0,
        key=KEY,
        engine=engine,
        outer_optimizer=SGD,
        steps=3,
    )
    places = jnp.stack([jax.random.normal(key, (5,))[2:] for key in draws(4)])
    hypers = learned.history.hyper
    expected = jnp.mean((hypers[:, None] - places) ** 2, axis=1)
    assert_close(learned.history.value, expected, rtol=1e-12)
    slopes = 2 * jnp.mean(hypers[:, None] - places, axis=1)
    assert_close(jnp.diff(hypers), -0.1 * slopes[:-1], rtol=1e-12)
    assert_close(learned.history.lost, jnp.full(4, 2.0), rtol=0)


def test_a_step_that_loses_more_than_half_of_the_tasks_is_refused():
    learned = metalr.learn(
        lambda key: tasks(key, bad=3), 1.0, key=KEY, outer_optimizer=SGD, steps=3
    )
    assert_close(learned.history.hyper, jnp.ones(4), rtol=0)
    assert jnp.isnan(learned.value)


def test_weights_of_tasks_count_among_those_that_are_left():
    places, weights = jnp.arange(4.0), jnp.array([1.0, 2.0, 3.0, 4.0])
    bowl = lambda place, h: jnp.where(place == 3.0, jnp.nan, 1.0) * (h - place) ** 2
    mean = Mean(jax.tree_util.Partial(bowl, places), weights=weights)
    learned = metalr.learn(mean, 0.0, outer_optimizer=optax.sgd(0.25), steps=200)
    assert learned.converged
    assert_close(learned.hyper, jnp.array(8 / 6), rtol=1e-6)  # (0 + 2 + 6)/6
    assert np.nanmax(learned.history.lost) == 1.0


def test_on_one_objective_a_trial_that_loses_more_tasks_is_refused():
    edges = jnp.array([0.5, 2.0, 3.0])  # of which the first fails beyond its edge
    slope = lambda edge, h: jnp.where(h > edge, jnp.nan, 1.0) * -h
    mean = Mean(jax.tree_util.Partial(slope, edges))
    learned = metalr.learn(mean, 0.0, outer_optimizer=optax.sgd(0.4), steps=8)
    assert_close(learned.history.hyper[:4], jnp.array([0, 0.4, 0.4, 0.5]), rtol=1e-12)
    assert jnp.all(learned.history.hyper <= 0.5)


def test_the_best_point_has_lost_the_fewest_tasks_whatever_its_value():
    edges, heights = jnp.array([1.0, 9.0]), jnp.array([100.0, 0.0])
    task = lambda edge, height, h: jnp.where(h > edge, jnp.nan, height) + h**2
    mean = Mean(jax.tree_util.Partial(task, edges, heights))
    learned = metalr.learn(
        mean, 2.0, outer_optimizer=optax.sgd(0.4), steps=2, keep="best"
    )
    assert_close(learned.history.lost, jnp.array([1.0, 0.0, 0.0]), rtol=0)
    assert_close(learned.history.value[:2], jnp.array([4.0, 50.16]), rtol=1e-12)
    assert_close(learned.hyper, jnp.array(0.08), rtol=1e-12)


def test_of_a_held_out_draw_lost_tasks_are_left_out_too():
    learned = metalr.learn(
        lambda key: tasks(key, bad=2),
        1.0,
        key=KEY,
        outer_optimizer=SGD,
        steps=3,
        keep="best",
    )
    last = jax.random.fold_in(KEY, 2**32 - 1)
    places = jax.random.normal(last, (5,))[2:]
    held_out = jnp.mean((learned.history.hyper[:, None] - places) ** 2, axis=1)
    assert_close(learned.value, jnp.min(held_out), rtol=1e-12)


def test_noise_of_an_engine_is_drawn_anew_for_each_step():
    engine = metalr.EvolutionStrategies(0.1, 1, jax.random.key(1))
    make = lambda key: lambda h: h
    learned = metalr.learn(
        make, 0.0, key=KEY, engine=engine, outer_optimizer=SGD, steps=4
    )
    assert len(set(np.diff(learned.history.hyper).tolist())) == 4  # −0.1 ε²
    same = metalr.learn(lambda h: h, 0.0, engine=engine, outer_optimizer=SGD, steps=4)
    assert_close(
        jnp.diff(same.history.hyper), jnp.full(4, same.history.hyper[1]), rtol=1e-12
    )


UNROLLED = metalr.Unrolled(lambda p, h, b: p**2, optax.sgd, 1.0, steps=1)
REFUSED = {
    "made anew in each outer step": lambda: learn(UNROLLED),
    r"make\(key\) returned": lambda: learn(lambda key: 3.0),
    "Newton brackets .*Mean.of.make": lambda: learn(
        bowl, outer_optimizer=metalr.Newton()
    ),
    "must be one random key": lambda: learn(bowl, key=jax.random.split(KEY, 2)),
}


def learn(make, **options):
    return metalr.learn(
        make, 1.0, **{"key": KEY, "outer_optimizer": SGD, "steps": 1, **options}
    )


@pytest.mark.parametrize("message", REFUSED)
def test_what_a_draw_cannot_be_is_refused(message):
    with pytest.raises(ValueError, match=message):
        REFUSED[message]()
