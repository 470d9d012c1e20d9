"""Evolution strategies, persistent or not: unbiased for what they say they estimate."""

import functools
import itertools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metalr
from metalr.hypergrad._smoothing import Smoothing, normal
from metalr.hypergrad.evolution import antithetic
from metalr.hypergrad.persistent import persistent
from metalr.problems import least_squares
from metalr.theory import Quadratic, estimators
from tests.helpers import assert_close, regression

ETA, SIGMA = 0.3, 0.15
X, t = regression(4, 6)
Q = Quadratic.from_regression(X, t)
BOTH = {
    "one": metalr.EvolutionStrategies,
    "persistent": lambda sigma, pairs, key, **options: metalr.PersistentES(
        sigma, pairs, 2, key, **options
    ),
}
both = pytest.mark.parametrize("make", BOTH.values(), ids=BOTH.keys())


def unrolled(steps, optimizer=optax.sgd, **options):
    start = jnp.zeros(6)
    return metalr.Unrolled(
        least_squares(X, t), optimizer, start, steps=steps, **options
    )


def quadrature(count):
    """Nodes and weights of N(0, 1), exact to degree 2·count − 1."""
    nodes, weights = np.polynomial.hermite.hermgauss(count)
    return np.sqrt(2.0) * nodes, weights / np.sqrt(np.pi)


def windowed_loss(eta, steps, window):
    """Σ p Π_k E(1 − ηλ + σλε)^(2 W_k): fresh noise in each window, in closed form."""
    full, rest = divmod(steps, window)
    total = Q.minimum
    for value, weight in zip(Q.eigenvalues, Q.weights, strict=True):
        single = Quadratic(eigenvalues=value[None], weights=jnp.ones(1))
        moment = functools.partial(estimators.smoothed_loss, single, eta, SIGMA)
        total += weight * moment(window) ** full * moment(rest)
    return total


@pytest.mark.parametrize("steps", [0, 1, 6])
def test_the_expectation_of_a_pair_is_the_gradient_of_the_smoothed_loss(steps):
    nodes, weights = quadrature(steps + 1)  # L_T(η ± σε)·ε has degree 2T + 1
    objective = unrolled(steps)
    pair = lambda e: antithetic(objective, jnp.array(ETA), jnp.array(SIGMA), e)
    grads, values = jax.vmap(pair)(jnp.asarray(nodes))
    smoothed = functools.partial(estimators.smoothed_loss, Q, sigma=SIGMA, steps=steps)
    assert_close(weights @ values, smoothed(ETA), rtol=1e-12)
    assert_close(weights @ grads, jax.grad(smoothed)(ETA), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(("steps", "window"), [(5, 1), (5, 2), (2, 9)])
def test_the_expectation_of_a_persistent_pair_has_fresh_noise_in_each_window(
    steps, window
):
    windows = -(-steps // window)
    nodes, weights = quadrature(min(window, steps) + 1)
    noises = jnp.array(list(itertools.product(nodes, repeat=windows)))
    weight = np.prod(list(itertools.product(weights, repeat=windows)), axis=1)
    objective = unrolled(steps)

    def pair(noise):
        draw = lambda index: noise[index]
        return persistent(objective, jnp.array(ETA), jnp.array(SIGMA), window, draw)

    grads, values = jax.vmap(pair)(noises)
    expected = functools.partial(windowed_loss, steps=steps, window=window)
    if window >= steps:
        expected = lambda eta: estimators.smoothed_loss(Q, eta, SIGMA, steps)
    if window == 1:
        per_step = estimators.per_step_smoothed_loss(Q, ETA, SIGMA, steps)
        assert_close(expected(ETA), per_step, rtol=1e-12)
    assert_close(weight @ values, expected(ETA), rtol=1e-11)
    assert_close(weight @ grads, jax.grad(expected)(ETA), rtol=1e-10)


def test_a_short_last_window_has_its_own_inputs_and_noise_also_in_the_outer_loss():
    # s_3 = 11 h_1 + 100 h_2, L = s_3 h_2, with the noisy rates of the two windows.
    objective = metalr.Rollout(
        lambda state, h, x: (state + x * h, None),
        0.0,
        steps=3,
        value=lambda state, h: state * h,
        inputs=jnp.array([1.0, 10.0, 100.0]),
    )
    noise = jnp.array([0.7, -1.3])
    found, mean = persistent(
        objective, jnp.array(ETA), jnp.array(SIGMA), 2, lambda index: noise[index]
    )
    up, down = (ETA + sign * SIGMA * noise for sign in (1, -1))
    plus, minus = ((11 * h[0] + 100 * h[1]) * h[1] for h in (up, down))
    assert_close(mean, 0.5 * (plus + minus), rtol=1e-12)
    slope = (plus - minus) / (2 * SIGMA) * jnp.sum(noise)
    assert_close(found, slope, rtol=1e-12)


def test_the_standard_error_of_two_pairs_is_half_their_difference():
    # On h² a pair's estimate is 2ηε²; √(Σ(g − ḡ)² / (2 − 1) / 2) = |g₁ − g₂| / 2.
    engine = metalr.EvolutionStrategies(SIGMA, 2, jax.random.key(3))
    found = metalr.hypergradient(lambda h: h**2, ETA, engine)
    keys = jax.random.split(engine.key, 2)
    first, second = (2 * ETA * normal(key, jnp.array(ETA)) ** 2 for key in keys)
    assert_close(found.grad, 0.5 * (first + second), rtol=1e-12)
    assert_close(found.standard_error, 0.5 * jnp.abs(first - second), rtol=1e-12)


@both
def test_it_is_unbiased_and_its_standard_error_is_the_spread_over_keys(make):
    objective, pairs, runs = unrolled(3), 64, 500
    keys = jax.random.split(jax.random.key(7), runs)
    estimate = lambda key: metalr.hypergradient(objective, ETA, make(SIGMA, pairs, key))
    results = jax.vmap(estimate)(keys)
    spread = jnp.std(results.grad, ddof=1)
    reported = jnp.sqrt(jnp.mean(results.standard_error**2))
    # The deviation of `runs` numbers is known to 1/√(2·runs) = 3 %.
    assert abs(reported / spread - 1) < 4 / np.sqrt(2 * runs)
    window = 3 if make is BOTH["one"] else 2
    smoothed = lambda eta: windowed_loss(eta, 3, window)
    error = jnp.mean(results.grad) - jax.grad(smoothed)(ETA)
    assert abs(error) < 4 * spread / np.sqrt(runs)
    error = jnp.mean(results.smoothed) - smoothed(ETA)
    assert abs(error) < 4 * jnp.std(results.smoothed) / np.sqrt(runs)
    assert_close(results.value, jnp.full(runs, Q.loss(ETA, 3)), rtol=1e-12)


@pytest.mark.parametrize(
    ("make", "chunk"), [(BOTH["one"], 3), (BOTH["persistent"], 99)]
)
def test_chunks_change_nothing(make, chunk):
    objective = unrolled(3)
    expected = metalr.hypergradient(objective, ETA, make(SIGMA, 10, 0))
    found = metalr.hypergradient(objective, ETA, make(SIGMA, 10, 0, chunk=chunk))
    assert_close(found, expected, rtol=1e-12)


def test_sigma_is_a_prefix_of_hyper_and_scales_each_leaf():
    make = BOTH["persistent"]
    # σ = (a, b) on L(h) is σ = 1 on L(h·σ), with the gradient divided by σ.
    optimizer = lambda h: optax.sgd(h["rate"], h["momentum"][0])
    scaled = lambda h: optax.sgd(0.02 * h["rate"], 0.1 * h["momentum"][0])
    hyper = {"rate": 0.2, "momentum": [0.5]}
    result = metalr.hypergradient(
        unrolled(4, optimizer), hyper, make({"rate": 0.02, "momentum": 0.1}, 5, 0)
    )
    reference = metalr.hypergradient(
        unrolled(4, scaled), {"rate": 10.0, "momentum": [5.0]}, make(1.0, 5, 0)
    )
    unscale = lambda tree: {
        "rate": tree["rate"] / 0.02,
        "momentum": [tree["momentum"][0] / 0.1],
    }
    assert_close(result.value, reference.value, rtol=1e-12)
    assert_close(result.grad, unscale(reference.grad), rtol=1e-10)
    assert_close(result.standard_error, unscale(reference.standard_error), rtol=1e-10)


def test_adam_and_batches_in_float32_agree_with_reverse_mode():
    make = BOTH["persistent"]
    data = X.astype(jnp.float32), t.astype(jnp.float32)
    objective = metalr.Unrolled(
        least_squares(*data),
        lambda h: optax.adam(h["rate"], b1=h["b1"]),
        jnp.zeros(6, jnp.float32),
        steps=5,
        batches=jnp.array([[0, 1], [2, 3], [1, 2], [0, 3], [1, 3]]),
    )
    hyper = {"rate": jnp.float32(0.1), "b1": jnp.float32(0.8)}
    exact = metalr.hypergradient(objective, hyper)
    result = metalr.hypergradient(objective, hyper, make(0.01, 3000, 2))
    for name, grad in result.grad.items():
        assert grad.dtype == result.standard_error[name].dtype == jnp.float32
        difference = abs(grad - exact.grad[name])
        assert difference < 4 * result.standard_error[name] + 0.02 * abs(grad), name
    assert_close(result.value, exact.value, rtol=1e-6)


def test_a_learned_start_and_no_steps_at_all():
    make = BOTH["persistent"]
    objective = metalr.Unrolled(
        lambda params, hyper, batch: jnp.sum(hyper * params),
        lambda hyper: optax.sgd(0.1),
        lambda hyper: hyper**2,
        steps=0,
    )
    result = metalr.hypergradient(objective, jnp.array([1.0, -2.0]), make(0.1, 4000, 3))
    exact = 3 * jnp.array([1.0, 4.0]) + 3 * 0.1**2  # of E (h + σε)³, entry by entry
    assert jnp.all(abs(result.grad - exact) < 4 * result.standard_error)


def test_a_jump_has_a_gradient_once_smoothed():
    make = BOTH["persistent"]
    # E 1[η + σε > ½] has the derivative φ((η − ½)/σ)/σ: what no derivative shows.
    objective = metalr.Unrolled(
        lambda params, hyper, batch: hyper * params,  # w_1 = w_0 − η
        lambda hyper: optax.sgd(1.0),
        0.0,
        steps=1,
        outer_loss=lambda params, hyper: jnp.where(params < -0.5, 1.0, 0.0),
    )
    eta, sigma = 0.4, 0.2
    with pytest.raises(ValueError, match="no differentiable path"):
        metalr.hypergradient(objective, eta)
    result = metalr.hypergradient(objective, eta, make(sigma, 4000, 5))
    z = (eta - 0.5) / sigma
    exact = np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi) / sigma
    assert abs(result.grad - exact) < 4 * result.standard_error


def test_a_branch_counts_as_dependence_and_an_unused_leaf_does_not():
    engine = metalr.EvolutionStrategies(0.5, 100, 0)
    branch = lambda h: jax.lax.cond(h["a"] > 0.0, lambda: 1.0, lambda: 0.0)
    found = metalr.hypergradient(branch, {"a": 0.1}, engine)
    assert found.grad["a"] > 0.0
    loop = lambda h: jax.lax.while_loop(lambda x: x < h["a"], lambda x: x + 1.0, 0.0)
    assert metalr.hypergradient(loop, {"a": 0.1}, engine).grad["a"] > 0.0
    with pytest.raises(ValueError, match=r"hyper\['b'\]: no path"):
        metalr.hypergradient(branch, {"a": 0.1, "b": 0.2}, engine)
    objective = unrolled(2, lambda h: optax.sgd(h["a"]))
    engine = metalr.PersistentES(0.5, 3, 1, 0)
    with pytest.raises(ValueError, match=r"does not depend on hyper\['b'\]"):
        metalr.hypergradient(objective, {"a": 0.1, "b": 0.2}, engine)


def test_keys_of_every_kind_are_one_engine_and_a_new_key_compiles_nothing():
    make = BOTH["one"]
    forms = [make(0.1, 4, k) for k in (3, jax.random.key(3), jax.random.PRNGKey(3))]
    assert len(set(forms)) == 1
    assert forms[0] != make(0.1, 4, 4)
    assert forms[0] != make(0.2, 4, 3)
    assert forms[0] != make(0.1, 5, 3)
    assert "sigma=0.1, pairs=4" in str(forms[0])
    assert "key=<0 3>" in str(forms[0])
    base = least_squares(X, t)
    loss: Any = chex.assert_max_traces(base.__call__, n=20)
    objective = metalr.Unrolled(loss, optax.sgd, jnp.zeros(6), steps=2)
    grads = [
        metalr.hypergradient(objective, ETA, make(0.1, 4, key)).grad
        for key in range(25)  # one compilation traces the loss some times, 25 more
    ]
    assert len(set(map(float, grads))) == 25
    keys = jnp.stack([jax.random.key(key) for key in range(25)])
    batched = jax.jit(
        jax.vmap(lambda key: metalr.hypergradient(objective, ETA, make(0.1, 4, key)))
    )(keys)
    assert_close(batched.grad, jnp.stack(grads), rtol=1e-11)


def test_the_same_noise_at_every_hyper_makes_a_function_that_can_be_learned():
    make = BOTH["persistent"]
    # With common noise the estimate is the gradient of the mean over that noise.
    objective, engine = unrolled(3), make(0.1, 3, 0)
    grad = lambda eta: metalr.hypergradient(objective, eta, engine).grad
    slope = jax.jit(jax.grad(grad))(ETA)
    step = 1e-5
    central = (grad(ETA + step) - grad(ETA - step)) / (2 * step)
    assert_close(slope, central, rtol=1e-7)


def test_learn_takes_the_engine_and_finds_the_smoothed_optimum():
    objective, sigma, steps = unrolled(2), 0.2, 2
    learned = metalr.learn(
        objective,
        ETA,
        outer_optimizer=metalr.Newton(),
        steps=30,
        engine=metalr.EvolutionStrategies(sigma, 20_000, 0),
        rtol=1e-6,
    )
    smoothed = lambda eta: estimators.smoothed_loss(Q, eta, sigma, steps)
    curvature = jax.grad(jax.grad(smoothed))(learned.hyper)
    error = metalr.hypergradient(
        objective, learned.hyper, metalr.EvolutionStrategies(sigma, 20_000, 0)
    ).standard_error
    distance = jax.grad(smoothed)(learned.hyper) / curvature
    assert abs(distance) < 4 * error / curvature
    assert (
        abs(Q.optimal_rate(steps) - learned.hyper) > 8 * error / curvature
    )  # told apart


def test_memory_is_constant_in_steps_and_falls_with_the_chunk():
    def temp(steps, chunk):
        loss = lambda params, hyper, batch: jnp.sum(params**2)
        objective = metalr.Unrolled(loss, optax.sgd, jnp.zeros(500), steps=steps)
        engine = metalr.PersistentES(0.1, 40, 3, 0, chunk=chunk)
        return metalr.profiling.memory(objective, 0.1, engine).temp_bytes

    short, long, chunked = temp(10, None), temp(1000, None), temp(10, 2)
    assert long < 1.05 * short
    assert short > 2 * 40 * 500 * 8
    assert chunked < short / 8


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((0.0, 3, 0), {}, "sigma = 0.0 must be positive"),
        ((-1.0, 3, 0), {}, "sigma = -1.0"),
        ((True, 3, 0), {}, "sigma = True"),
        ((float("nan"), 3, 0), {}, "sigma = nan"),
        (({"a": 1.0, "b": "x"}, 3, 0), {}, r"sigma\['b'\] = 'x'"),
        (({}, 3, 0), {}, "sigma = {}"),
        ((0.1, 0, 0), {}, "pairs = 0"),
        ((0.1, True, 0), {}, "pairs = True"),
        ((0.1, 3, 0), {"chunk": 0}, "chunk = 0"),
        ((0.1, 3, 0.5), {}, "key = 0.5 must be one random key"),
        ((0.1, 3, True), {}, "key = True"),
        ((0.1, 3, jax.random.split(jax.random.key(0))), {}, "must be one random key"),
    ],
)
@both
def test_bad_options_are_refused(make, arguments, options, message):
    with pytest.raises(ValueError, match=message):
        make(*arguments, **options)


def test_what_does_not_fit_is_refused_when_called():
    with pytest.raises(ValueError, match="window = 0"):
        metalr.PersistentES(0.1, 3, 0, 0)
    engine = metalr.PersistentES({"rate": 0.1}, 3, 1, 0)
    with pytest.raises(ValueError, match=r"sigma = .* is not a prefix of hyper"):
        metalr.hypergradient(unrolled(2), 0.1, engine)
    engine = metalr.PersistentES(0.1, 3, 1, 0)
    with pytest.raises(ValueError, match=r"needs a metalr\.Unrolled"):
        metalr.hypergradient(lambda h: h**2, 0.1, engine)


def test_a_single_pair_has_no_standard_error_and_a_diverged_one_is_a_result():
    objective = unrolled(2)
    engine = metalr.EvolutionStrategies(0.1, 1, 0)
    result = metalr.hypergradient(objective, 0.1, engine)
    assert jnp.isfinite(result.grad)
    assert jnp.isnan(result.standard_error)
    wild = metalr.EvolutionStrategies(1e200, 1, 0)
    assert not jnp.isfinite(metalr.hypergradient(objective, 0.1, wild).grad)


def test_both_are_engines_and_frozen():
    for engine in (make(0.1, 3, 0) for make in BOTH.values()):
        assert isinstance(engine, metalr.hypergrad.Engine)
        assert isinstance(engine, Smoothing)
        with pytest.raises(AttributeError):
            engine.pairs = 4
