"""A hypergradient for each window: hand-written windows, and no bias where none is."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metalr
from experiments._published import toy_regression
from tests.helpers import assert_close

A = jnp.diag(jnp.array([1.0, 0.3]))
BATCHES = jnp.linspace(0.5, 1.5, 12).reshape(6, 2)
HYPER = {"rate": jnp.array(0.2), "decay": jnp.array(0.9)}


def loss(params, hyper, batch):
    return 0.5 * params @ A @ params + jnp.sum(jnp.sin(params * batch))


def run(steps=6, **options):
    make = lambda h: optax.sgd(h["rate"], h["decay"])
    return metalr.Unrolled(
        loss,
        make,
        jnp.array([1.0, -2.0]),
        steps=steps,
        batches=BATCHES[:steps],
        outer_loss=lambda params, hyper: jnp.sum(params**2),
        **options,
    )


def by_hand(state, hyper, first, last):
    """Heavy ball from (params, trace) through some steps: end, and the outer loss."""
    params, trace = state
    for s in range(first, last):
        grad = jax.grad(loss)(params, hyper, BATCHES[s])
        trace = grad + hyper["decay"] * trace
        params = params - hyper["rate"] * trace
    return (params, trace), jnp.sum(params**2)


ENGINES = [
    metalr.Reverse(),
    metalr.Forward(),
    metalr.Mixed(),
    metalr.Reverse(checkpoints=1),
]


@pytest.mark.parametrize("engine", ENGINES, ids=repr)
@pytest.mark.parametrize(("steps", "ends"), [(6, [2, 4, 6]), (5, [2, 4, 5])])
def test_each_window_is_differentiated_with_its_past_held_fixed(engine, steps, ends):
    training = metalr.windows(run(steps), 2, engine)
    update = jax.jit(training.update)
    carry = training.init(HYPER)
    for _ in range(2):  # the second run is the first again
        state, first = (jnp.array([1.0, -2.0]), jnp.zeros(2)), 0
        for last in ends:
            carry, result = update(carry, HYPER)
            window = lambda h, s=state, f=first, t=last: by_hand(s, h, f, t)[1]
            value, grad = jax.value_and_grad(window)(HYPER)
            assert_close(result.value, value, rtol=1e-12)
            assert_close(result.grad, grad, rtol=1e-11)
            state, first = by_hand(state, HYPER, first, last)[0], last
            assert_close(carry.state.params, state[0], rtol=1e-12)
            assert int(carry.step) == last % steps


def test_the_last_window_has_its_share_of_the_gradient_on_a_quadratic():
    quadratic = lambda params, hyper, batch: 0.5 * params @ A @ params
    L = metalr.Unrolled(quadratic, optax.sgd, jnp.array([1.0, -2.0]), steps=12)
    training = metalr.windows(L, 3)
    result, _ = last_of(training, 0.2, 4)
    full = metalr.hypergradient(L, 0.2)
    assert_close(result.value, full.value, rtol=1e-12)
    assert_close(result.grad, full.grad * 3 / 12, rtol=1e-12)


def test_one_window_is_the_whole_derivative_start_included():
    L = metalr.Unrolled(
        lambda params, hyper, batch: 0.5 * params @ A @ params,
        lambda h: optax.sgd(h["rate"]),
        lambda h: h["start"],
        steps=3,
    )
    hyper = {"rate": 0.3, "start": jnp.array([1.0, 2.0])}
    training = metalr.windows(L, 3)
    carry, result = training.update(training.init(hyper), hyper)
    full = metalr.hypergradient(L, hyper)
    assert_close((result.value, result.grad), (full.value, full.grad), rtol=1e-12)
    moved = {**hyper, "start": jnp.array([0.5, 2.0])}  # the next run starts there
    _, result = training.update(carry, moved)
    assert_close(result.value, L(moved), rtol=1e-12)


def test_values_of_the_windows_add_up_to_a_weighted_sum():
    weights = jnp.array([0.5, 1.0, 0.0, 2.0, 1.0, 0.3, 0.7])
    L = run(outer_weights=weights)
    training = metalr.windows(L, 2)
    carry, values = training.init(HYPER), []
    for _ in range(6):
        carry, result = training.update(carry, HYPER)
        values.append(result.value)
    assert_close(sum(values[:3]), L(HYPER), rtol=1e-12)
    assert_close(values[3:], values[:3], rtol=1e-12)


def test_several_tasks_at_several_places():
    training = metalr.windows(run(), 2)
    offsets = jnp.array([0, 2, 3])
    carries = jax.vmap(lambda first: training.init(HYPER, first))(offsets)
    every = jax.vmap(training.update, in_axes=(0, None))
    for _ in range(2):
        carries, _ = every(carries, HYPER)
    both = every(carries, HYPER)
    for index, first in enumerate([0, 2, 3]):
        carry = training.init(HYPER, first)
        for _ in range(2):
            carry, _ = training.update(carry, HYPER)
        mine = jax.tree.map(lambda leaf, i=index: leaf[i], both)
        assert_close(mine, training.update(carry, HYPER), rtol=1e-11)


# The online estimator


def balancing(steps):
    """Influence balancing (Vicol et al. 2021): near influence says −, far says +."""
    n = 23
    A = 0.5 * jnp.eye(n) + 0.5 * jnp.eye(n, k=1)
    signs = jnp.where(jnp.arange(n) < 10, 1.0, -1.0)

    def step(state, theta, x):
        moved = A @ state + theta * signs
        return moved, None

    return metalr.Rollout(
        step,
        jnp.ones(n),
        steps=steps,
        value=lambda state, theta: 0.5 * (state[0] - 1.0) ** 2,
    )


def mean_gradient(training, hyper, count):
    """The sum over `count` windows, and its standard error."""

    def body(carry, _):
        carry, result = training.update(carry, hyper)
        return carry, (result.value, result.grad)

    return jax.jit(lambda: jax.lax.scan(body, training.init(hyper), None, count)[1])()


def test_truncation_gets_influence_balancing_wrong_in_sign_and_persistent_es_right():
    """Published: exact 24 at θ = ½, truncated to one step −4."""
    L = balancing(steps=100)
    _, truncated = last_of(metalr.windows(L, 1), 0.5, 100)
    exact = jax.grad(L)(0.5)
    assert_close((truncated, exact), (jnp.array(-4.0), jnp.array(24.0)), rtol=1e-3)
    engine = metalr.PersistentES(0.1, 2000, 1, jax.random.key(0))
    result, grad = last_of(metalr.windows(L, 1, engine), 0.5, 100)
    assert abs(grad - exact) < 4 * result.standard_error
    assert grad > 4 * result.standard_error


def test_truncation_is_stuck_on_the_toy_regression_and_persistent_es_is_not():
    """Published: a figure of Vicol et al. 2021, 20 000 updates of a third of the rate.

    The exact gradient stays where the truncated one does: noise and smoothing free ES.
    """
    value, best = toy_regression.objective(), toy_regression.least(61)
    truncated = toy_regression.learned(metalr.Reverse(), 10, updates=400, rate=0.03)
    engine = metalr.PersistentES(0.3, 20, 10, jax.random.key(3))
    persistent = toy_regression.learned(engine, 10, updates=400, rate=0.03)
    assert value(truncated) > 4 * best
    assert value(persistent) < 1.25 * best


def last_of(training, hyper, count):
    """The result of the last of `count` windows, and its gradient."""

    def body(_, both):
        return training.update(both[0], hyper)

    def every(hyper):
        return jax.lax.fori_loop(
            1, count, body, training.update(training.init(hyper), hyper)
        )

    result = jax.jit(every)(hyper)[1]
    return result, result.grad


@pytest.mark.parametrize("length", [1, 3])
def test_the_online_estimator_is_unbiased_over_a_run(length):
    """Linear state, quadratic loss: smoothing changes no gradient, so none is left."""
    quadratic = lambda params, hyper, batch: 0.5 * params**2
    L = metalr.Unrolled(quadratic, optax.sgd, 1.0, steps=6)
    engine = metalr.PersistentES(1e-3, 400, length, jax.random.key(1))
    training = metalr.windows(L, length, engine)
    runs, per = 40, 6 // length
    _, grads = mean_gradient(training, 0.3, runs * per)
    sums = np.asarray(grads).reshape(runs, per).sum(axis=1)
    ends = range(length, 7, length)
    exact = sum(-t * 0.7 ** (2 * t - 1) for t in ends)  # of ½(1 − η)^2t
    error = sums.std(ddof=1) / np.sqrt(runs)
    assert error < 0.02 * abs(exact)
    assert abs(sums.mean() - exact) < 4 * error + 1e-4 * abs(exact)
    held = sum(-length * 0.7 ** (2 * t - 1) for t in ends)  # the past held fixed
    assert abs(held - exact) > 6 * error


def test_the_first_window_of_the_online_estimator_is_that_of_the_whole_engine():
    """Without a past, persistent ES is ES: the same pairs, by hand."""
    L = run()
    engine = metalr.PersistentES(0.01, 3, 6, jax.random.key(2))
    training = metalr.windows(L, 6, engine)
    _, result = training.update(training.init(HYPER), HYPER)
    key = jax.random.fold_in(engine.key, 0)
    leaves = jax.tree.leaves(HYPER)
    grads = []
    for pair in jax.random.split(key, 3):
        draws = jax.random.split(pair, 2)
        noise = [jax.random.normal(k, ()) for k in draws]
        values = []
        for sign in (1, -1):
            decay, rate = (
                h + sign * 0.01 * e for h, e in zip(leaves, noise, strict=True)
            )
            values.append(L({"decay": decay, "rate": rate}))
        grads.append([e * (values[0] - values[1]) / 0.02 for e in noise])
    expected = [jnp.mean(jnp.array(entry)) for entry in zip(*grads, strict=True)]
    assert_close(jax.tree.leaves(result.grad), expected, rtol=1e-9)
    assert_close(result.value, L(HYPER), rtol=1e-12)


def test_noise_of_the_online_estimator_is_fresh_in_every_window_and_chunked_alike():
    L = run()
    engine = metalr.PersistentES(0.01, 4, 3, jax.random.key(2))
    chunked = metalr.PersistentES(0.01, 4, 3, jax.random.key(2), chunk=2)
    results = []
    for each in (engine, chunked):
        training = metalr.windows(L, 3, each)
        carry = training.init(HYPER)
        grads = []
        for _ in range(4):
            carry, result = training.update(carry, HYPER)
            grads.append(result.grad["rate"])
        results.append(jnp.array(grads))
    assert_close(results[0], results[1], rtol=1e-9)
    assert len(set(results[0].tolist())) == 4  # also the second run of the same windows
    later = metalr.windows(L, 3, engine).init(HYPER, 3)
    assert int(later.step) == 3
    assert jnp.all(later.ensemble.total["rate"] != 0.0)


REFUSED = {
    "length = 0 must be an int ≥ 1": lambda: metalr.windows(run(), 0),
    "length = 2.0": lambda: metalr.windows(run(), 2.0),
    "longer than the run: it has 6": lambda: metalr.windows(run(), 7),
    "must be a run": lambda: metalr.windows(lambda h: h**2, 2),
    "give both the same": lambda: metalr.windows(
        run(), 2, metalr.PersistentES(0.1, 2, 3, 0)
    ),
    "first_step = 6 must be less than": lambda: metalr.windows(run(), 2).init(HYPER, 6),
    "a multiple of 2": lambda: metalr.windows(
        run(), 2, metalr.PersistentES(0.1, 2, 2, 0)
    ).init(HYPER, 3),
    "floating-point": lambda: metalr.windows(run(), 2).init({"rate": 1, "decay": 0.1}),
}


@pytest.mark.parametrize("message", REFUSED)
def test_bad_input_is_a_value_error_that_says_what_to_do(message):
    with pytest.raises(ValueError, match=message):
        REFUSED[message]()
