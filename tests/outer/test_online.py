"""Online hypergradient descent: one step ahead; at β = 0, plain training."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metalr
from metalr.problems import least_squares
from tests.helpers import assert_close, finite_difference, regression

X, t = regression(6, 4)
LOSS = least_squares(X, t)
START = jnp.linspace(-1.0, 1.0, 4)
BATCHES = jnp.array([[0, 1], [2, 3], [4, 5], [1, 4], [0, 5]])
OPTIMIZERS = {
    "sgd": optax.sgd,
    "momentum": lambda rate: optax.sgd(rate, 0.9),
    "nesterov": lambda rate: optax.sgd(rate, 0.9, nesterov=True),
    "adam": optax.adam,
}


def unrolled(optimizer, batches=None, steps=5, **options):
    return metalr.Unrolled(
        LOSS, optimizer, START, steps=steps, batches=batches, **options
    )


def loop(objective, hyper, beta, *, multiplicative=False):
    """A Python loop that knows nothing of the scan: jax.grad of one step ahead."""
    prepared = jnp.asarray(hyper)
    state, curve = objective.init(prepared), []
    move_from = lambda state, s, h: objective.step(h, state, s)[0]
    for s in range(objective.steps):
        after = min(s + 1, objective.steps - 1)
        move = functools.partial(move_from, state, s)
        ahead = lambda h, move=move, after=after: objective.inner_loss(h, after)(
            move(h).params
        )
        slope, params = jax.grad(ahead)(prepared), move(prepared).params
        curve.append((prepared, slope))
        state = move(prepared)
        change = slope
        if multiplicative:
            size = jnp.linalg.norm(
                jax.grad(objective.inner_loss(prepared, after))(params)
            )
            reach = jnp.linalg.norm(jax.jacfwd(move)(prepared).params)
            change = prepared * slope / (size * reach)
        prepared -= beta * change
    hypers, slopes = (jnp.stack(column) for column in zip(*curve, strict=True))
    return state.params, prepared, hypers, slopes


@pytest.mark.parametrize(
    ("optimizer", "batches"),
    [(optax.sgd, None), *((optimizer, BATCHES) for optimizer in OPTIMIZERS.values())],
    ids=["full", *OPTIMIZERS],
)
def test_each_step_is_the_one_step_hypergradient(optimizer, batches):
    objective = unrolled(optimizer, batches)
    run = metalr.online(objective, 0.05, outer_learning_rate=0.003)
    params, hyper, hypers, slopes = loop(objective, 0.05, 0.003)
    assert_close(run.hypers, hypers, rtol=1e-12)
    assert_close(run.hypergradients, slopes, rtol=1e-9)
    assert_close(run.hyper, hyper, rtol=1e-12)
    assert_close(run.params, params, rtol=1e-12)
    assert len(set(np.asarray(run.hypers).tolist())) == 5  # the rate does move
    final = BATCHES[-1] if batches is not None else None
    assert_close(run.value, LOSS(params, None, final), rtol=1e-11)
    assert_close(run.losses[-1], run.value, rtol=1e-12)


@pytest.mark.parametrize("optimizer", [optax.sgd, optax.adam], ids=["sgd", "adam"])
def test_the_multiplicative_rule_is_a_relative_change_by_a_cosine(optimizer):
    objective = unrolled(optimizer)
    run = metalr.online(objective, 0.05, outer_learning_rate=0.3, multiplicative=True)
    params, _, hypers, slopes = loop(objective, 0.05, 0.3, multiplicative=True)
    assert_close(run.hypers, hypers, rtol=1e-10)
    assert_close(run.hypergradients, slopes, rtol=1e-8)
    assert_close(run.params, params, rtol=1e-10)
    factors = run.hypers[1:] / run.hypers[:-1]
    assert jnp.all((factors > 0.7 - 1e-12) & (factors < 1.3 + 1e-12))


@pytest.mark.parametrize("optimizer", [optax.sgd, optax.adam], ids=["sgd", "adam"])
def test_the_last_hypergradient_is_that_of_truncation_to_one_step(optimizer):
    # With β = 0 the states are those of plain training, where Truncated looks.
    for steps in (1, 4):
        objective = unrolled(optimizer, steps=steps)
        run = metalr.online(objective, 0.1, outer_learning_rate=0.0)
        truncated = metalr.hypergradient(objective, 0.1, metalr.Truncated(last=1))
        assert_close(run.hypergradients[-1], truncated.grad, rtol=1e-10)
        assert_close(run.value, truncated.value, rtol=1e-12)


def test_for_sgd_it_is_minus_the_product_of_two_gradients():
    objective = unrolled(optax.sgd, BATCHES)
    run = metalr.online(objective, 0.1, outer_learning_rate=0.02)
    gradient = jax.grad(LOSS)
    w, rate = START, 0.1
    for s in range(4):  # Baydin et al., algorithm 4
        before = gradient(w, None, BATCHES[s])
        assert_close(run.hypers[s], jnp.asarray(rate), rtol=1e-12)
        w = w - rate * before
        product = gradient(w, None, BATCHES[s + 1]) @ before
        assert_close(run.hypergradients[s], -product, rtol=1e-10)
        rate = rate + 0.02 * product


def test_for_adam_it_is_the_gradient_times_the_last_direction():
    objective = unrolled(optax.adam, steps=3)
    run = metalr.online(objective, 0.1, outer_learning_rate=0.01)
    w, state = START, optax.adam(1.0).init(START)
    for s in range(3):  # Adam-HD: the update of a unit rate is ∂u/∂α
        direction, state = optax.adam(1.0).update(jax.grad(LOSS)(w, None, None), state)
        w = w + run.hypers[s] * direction
        expected = jax.grad(LOSS)(w, None, None) @ direction
        assert_close(run.hypergradients[s], expected, rtol=1e-9)


@pytest.mark.parametrize("name", ["momentum", "adam"])
def test_with_beta_zero_the_run_is_plain_training_to_the_bit(name):
    # Operation by operation; what XLA fuses, it may round otherwise.
    objective = unrolled(OPTIMIZERS[name], BATCHES)
    with jax.disable_jit():
        run = metalr.online(objective, 0.07, outer_learning_rate=0.0)
        plain = objective.final_params(0.07)
    np.testing.assert_array_equal(run.params, plain)
    run = metalr.online(objective, 0.07, outer_learning_rate=0.0)
    assert_close(run.params, objective.final_params(0.07), rtol=1e-13)
    np.testing.assert_array_equal(run.hypers, jnp.full(5, 0.07))
    np.testing.assert_array_equal(run.hyper, 0.07)
    assert_close(run.losses, objective.trajectory(0.07), rtol=1e-13)


def test_finite_differences_of_a_step_ahead_for_a_pytree_with_a_loss_that_sees_it():
    # Rate, per-parameter momentum and a penalty in the loss; a validation loss outside.
    def loss(params, hyper, batch):
        return LOSS(params, hyper, batch) + jnp.exp(hyper["penalty"]) * params @ params

    V, v = regression(3, 4, seed=1)
    objective = metalr.Unrolled(
        loss,
        lambda h: optax.chain(
            optax.trace(0.9), optax.scale_by_learning_rate(h["rate"])
        ),
        START,
        steps=4,
        outer_loss=lambda p, h: jnp.mean((V @ p - v) ** 2) + 0.1 * jnp.sum(h["rate"]),
    )
    hyper = {"rate": jnp.array(0.05), "penalty": jnp.array(-2.0)}
    beta = {"rate": 0.01, "penalty": 0.1}
    run = metalr.online(objective, hyper, outer_learning_rate=beta)
    state = objective.init(hyper)
    for s in range(4):
        at = jax.tree.map(lambda leaf, s=s: leaf[s], run.hypers)
        ahead = jax.jit(
            lambda h, s=s, state=state: objective.evaluate(
                h, objective.step(h, state, s)[0]
            )
        )
        found = jax.tree.map(lambda leaf, s=s: leaf[s], run.hypergradients)
        assert_close(found, finite_difference(ahead, at), rtol=1e-7, atol=1e-9)
        assert_close(run.losses[s], loss(state.params, at, None), rtol=1e-12)
        state = objective.step(at, state, s)[0]
    assert_close(run.params, state.params, rtol=1e-12)
    assert_close(run.value, objective.evaluate(run.hyper, state), rtol=1e-12)
    assert not np.allclose(run.hyper["penalty"], hyper["penalty"])


def test_per_parameter_rates_each_follow_their_own_product():
    optimizer = lambda rates: optax.chain(
        optax.sgd(1.0), optax.stateless(lambda u, _: rates * u)
    )
    run = metalr.online(unrolled(optimizer), jnp.full(4, 0.1), outer_learning_rate=0.02)
    before = jax.grad(LOSS)(START, None, None)
    after = jax.grad(LOSS)(START - 0.1 * before, None, None)
    assert run.hypers.shape == (5, 4)
    assert_close(run.hypergradients[0], -before * after, rtol=1e-11)
    assert_close(run.hypers[1], 0.1 + 0.02 * before * after, rtol=1e-12)


def test_an_optimizer_that_needs_the_value_gets_it_and_its_derivative():
    polyak = lambda scale: optax.polyak_sgd(max_learning_rate=10.0, scaling=scale)
    objective = unrolled(polyak, steps=3)
    run = metalr.online(objective, 0.5, outer_learning_rate=0.1)
    params, _, hypers, slopes = loop(objective, 0.5, 0.1)
    assert_close(run.hypers, hypers, rtol=1e-11)
    assert_close(run.hypergradients, slopes, rtol=1e-9)
    assert_close(run.params, params, rtol=1e-11)


def test_it_runs_under_jit_and_vmap_and_is_differentiable_in_beta():
    objective = unrolled(optax.adam, BATCHES)
    final = lambda rate, beta: (
        metalr.online(objective, rate, outer_learning_rate=beta).value
    )
    rates = jnp.array([0.01, 0.1, 0.3])
    found = jax.jit(jax.vmap(final, (0, None)))(rates, 0.01)
    expected = jnp.stack([final(rate, 0.01) for rate in rates])
    assert_close(found, expected, rtol=1e-12)
    backward = jax.grad(final, 1)(0.1, 0.01)
    forward = jax.jacfwd(final, 1)(0.1, 0.01)
    difference = finite_difference(lambda beta: final(0.1, beta), jnp.array(0.01))
    assert_close(backward, difference, rtol=1e-6)
    assert_close(forward, backward, rtol=1e-10)


def test_float32_stays_float32_and_follows_float64():
    data = X.astype(jnp.float32), t.astype(jnp.float32)
    objective = metalr.Unrolled(
        least_squares(*data), optax.adam, START.astype(jnp.float32), steps=5
    )
    run = metalr.online(objective, jnp.float32(0.05), outer_learning_rate=0.003)
    exact = metalr.online(unrolled(optax.adam), 0.05, outer_learning_rate=0.003)
    for leaf in jax.tree.leaves(run):
        assert leaf.dtype == jnp.float32
    assert_close(run, exact, rtol=3e-5, atol=1e-6)


def test_no_steps_is_the_start_and_a_zero_gradient_moves_no_rate():
    run = metalr.online(unrolled(optax.sgd, steps=0), 0.1, outer_learning_rate=1.0)
    assert run.hypers.shape == run.hypergradients.shape == (0,)
    assert run.losses.shape == (1,)
    assert_close(run.params, START, rtol=0)
    flat = metalr.Unrolled(lambda p, h, b: 0.0 * jnp.sum(p), optax.sgd, START, steps=2)
    run = metalr.online(flat, 0.1, outer_learning_rate=1.0, multiplicative=True)
    assert_close(run.hypers, jnp.full(2, 0.1), rtol=0)


def test_what_cannot_be_adapted_is_refused_by_name():
    with pytest.raises(ValueError, match="per_step gives each update"):
        metalr.online(
            unrolled(metalr.per_step(optax.sgd)), jnp.ones(5), outer_learning_rate=0.1
        )
    injected = unrolled(optax.inject_hyperparams(optax.sgd))
    with pytest.raises(ValueError, match="hyper does not act within one step"):
        metalr.online(injected, 0.1, outer_learning_rate=0.1)
    learned_start = metalr.Unrolled(
        LOSS, lambda h: optax.sgd(h["rate"]), lambda h: h["start"], steps=2
    )
    hyper = {"rate": 0.1, "start": START}
    with pytest.raises(ValueError, match=r"hyper\['start'\] does not act"):
        metalr.online(learned_start, hyper, outer_learning_rate=0.1)
    for beta in (-0.1, float("nan"), "fast", True):
        with pytest.raises(ValueError, match=r"outer_learning_rate = .* must be ≥ 0"):
            metalr.online(unrolled(optax.sgd), 0.1, outer_learning_rate=beta)
    with pytest.raises(ValueError, match="is not a prefix of hyper"):
        metalr.online(unrolled(optax.sgd), 0.1, outer_learning_rate={"rate": 0.1})
    with pytest.raises(ValueError, match="has no derivative"):
        metalr.online(unrolled(optax.sgd), 1, outer_learning_rate=0.1)
    with pytest.raises(ValueError, match="adapts within"):
        metalr.online(lambda h: h, 0.1, outer_learning_rate=0.1)
