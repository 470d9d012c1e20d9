"""`Truncated`: the last K steps, exact for the surrogate and biased as predicted."""

import functools

import jax
import jax.numpy as jnp
import optax
import pytest

import metalr
from metalr import Reverse, Truncated, Unrolled, hypergradient, per_step
from tests.helpers import assert_near

# A few operations a step in float64: only the order of summation differs.
RTOL = 1e-12


def regression(key, n=12, d=4):
    X = jax.random.normal(key, (n, d))
    return X, X @ jnp.arange(1.0, d + 1) + 0.1 * jnp.cos(jnp.arange(n))


def ridge(X, t):
    """A loss that depends on hyper["decay"], where there is one, and on the batch."""

    def loss(params, hyper, batch):
        X_, t_ = (X, t) if batch is None else (X[batch], t[batch])
        penalty = hyper["decay"] if isinstance(hyper, dict) else 0.0
        return jnp.mean((X_ @ params - t_) ** 2) + penalty * jnp.sum(params**2)

    return loss


assert_close = functools.partial(assert_near, rtol=RTOL)


@pytest.mark.parametrize(("steps", "last"), [(1, 1), (7, 1), (7, 3), (12, 11)])
@pytest.mark.parametrize("eta", [0.05, 0.3])
def test_on_a_quadratic_it_is_k_over_t_of_the_gradient(key, steps, last, eta):
    X, t = regression(key)
    L = Unrolled(
        metalr.problems.least_squares(X, t), optax.sgd, jnp.zeros(4), steps=steps
    )
    exact = metalr.theory.Quadratic.from_regression(X, t)
    value, grad = hypergradient(L, eta, Truncated(last))
    assert_close(value, exact.loss(eta, steps))
    assert_close(grad, last / steps * exact.slope(eta, steps), rtol=1e-10)


def test_one_step_is_hypergradient_descent(key):
    X, t = regression(key)
    loss = metalr.problems.least_squares(X, t)
    before = Unrolled(loss, optax.sgd, jnp.zeros(4), steps=8).final_params(0.05)
    after = Unrolled(loss, optax.sgd, jnp.zeros(4), steps=9).final_params(0.05)
    gradient = jax.grad(lambda w: loss(w, None, None))
    L = Unrolled(loss, optax.sgd, jnp.zeros(4), steps=9)
    assert_close(
        hypergradient(L, 0.05, Truncated(1)).grad, -gradient(before) @ gradient(after)
    )


OPTIMIZERS = {
    "sgd": lambda h: optax.sgd(h["rate"]),
    "momentum": lambda h: optax.sgd(h["rate"], h["momentum"]),
    "adam": lambda h: optax.adam(h["rate"], b1=h["momentum"]),
}


def hypers(name):
    hyper = {"rate": 0.03, "decay": 0.2, "momentum": 0.8}
    return {k: v for k, v in hyper.items() if name != "sgd" or k != "momentum"}


@pytest.mark.parametrize("batches", [False, True], ids=["full", "minibatches"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_it_is_the_derivative_of_a_run_from_the_frozen_state(key, name, batches):
    """Against steps made by hand, state and all, from the frozen state on."""
    X, t = regression(key)
    rows = jnp.arange(7 * 5).reshape(7, 5) % 12 if batches else None
    validation = lambda params, hyper: (
        jnp.sum((params - 1.0) ** 4) + hyper["decay"] ** 2
    )
    L = Unrolled(
        ridge(X, t), OPTIMIZERS[name], jnp.zeros(4), steps=7, batches=rows,
        outer_loss=validation,
    )  # fmt: skip
    hyper = jax.tree.map(jnp.asarray, hypers(name))
    states = [L.init(hyper)]
    for index in range(5):
        states.append(L.step(hyper, states[-1], index)[0])

    def tail(hyper):
        state = L.step(hyper, L.step(hyper, states[5], 5)[0], 6)[0]
        return validation(state.params, hyper)

    value, grad = hypergradient(L, hyper, Truncated(2))
    expected_value, expected = jax.value_and_grad(tail)(hyper)
    assert_close(value, expected_value)
    assert_close(grad, expected, rtol=1e-11)


@pytest.mark.parametrize("last", [7, 8, 10**9])
def test_all_steps_are_the_exact_gradient(key, last):
    X, t = regression(key)
    L = Unrolled(ridge(X, t), OPTIMIZERS["adam"], jnp.zeros(4), steps=7)
    hyper = hypers("adam")
    for mine, full in zip(
        hypergradient(L, hyper, Truncated(last)), hypergradient(L, hyper), strict=True
    ):
        assert_close(mine, full)


def test_a_per_step_rate_is_exact_in_the_last_steps_and_zero_before(key):
    X, t = regression(key)
    loss = metalr.problems.least_squares(X, t)
    L = Unrolled(loss, per_step(optax.sgd), jnp.zeros(4), steps=9)
    rates = 0.05 + 0.01 * jnp.arange(9.0)
    full = hypergradient(L, rates, Reverse()).grad
    grad = hypergradient(L, rates, Truncated(4)).grad
    assert_close(grad[5:], full[5:], rtol=1e-11)
    assert bool(jnp.all(grad[:5] == 0.0))
    assert bool(jnp.all(full[:5] != 0.0))


def test_its_hessian_is_that_of_the_surrogate_and_symmetric(key):
    X, t = regression(key)
    L = Unrolled(ridge(X, t), OPTIMIZERS["momentum"], jnp.zeros(4), steps=6)
    names = ("rate", "decay", "momentum")
    at = jnp.array([0.03, 0.2, 0.8])

    def pack(h):
        return dict(zip(names, h, strict=True))

    def mine(h):
        grad = hypergradient(L, pack(h), Truncated(2)).grad
        return jnp.stack([grad[name] for name in names])

    state = L.init(pack(at))
    for index in range(4):
        state = L.step(pack(at), state, index)[0]

    def surrogate(h):
        end = L.step(pack(h), L.step(pack(h), state, 4)[0], 5)[0]
        return L.evaluate(pack(h), end)

    expected = jax.hessian(surrogate)(at)
    assert_close(jax.jacfwd(mine)(at), expected, rtol=1e-10)
    assert_close(jax.jacrev(mine)(at), expected, rtol=1e-10)
    assert_close(expected, expected.T, rtol=1e-12)


def test_it_batches_over_hyper_and_over_tasks(key):
    X, t = regression(key)
    loss = metalr.problems.least_squares

    def grad(X, t, eta):
        L = Unrolled(
            jax.tree_util.Partial(loss(X, t)), optax.sgd, jnp.zeros(4), steps=6
        )
        return hypergradient(L, eta, Truncated(2)).grad

    etas, Xs, ts = jnp.array([0.02, 0.1]), jnp.stack([X, 0.5 * X]), jnp.stack([t, -t])
    batched = jax.vmap(grad)(Xs, ts, etas)
    single = [grad(Xs[i], ts[i], etas[i]) for i in range(2)]
    assert_close(batched, jnp.stack(single), rtol=1e-11)


def test_memory_grows_with_last_and_not_with_steps(key):
    X, t = regression(key, n=6, d=512)
    loss = metalr.problems.least_squares(X, t)

    def temp(steps, last):
        L = Unrolled(loss, optax.sgd, jnp.zeros(512), steps=steps)
        f = jax.jit(lambda eta: hypergradient(L, eta, Truncated(last)))
        analysis = f.lower(0.01).compile().memory_analysis()
        assert analysis is not None
        return analysis.temp_size_in_bytes

    state = 8 * 512
    assert temp(4000, 50) - temp(200, 50) < state
    assert temp(400, 150) - temp(400, 50) > 50 * state


def test_a_hyperparameter_that_acts_only_before_is_refused(key):
    loss = metalr.problems.least_squares(*regression(key))
    optimizer = lambda h: optax.sgd(h["rate"])
    L = Unrolled(loss, optimizer, lambda h: h["start"], steps=5)
    hyper = {"rate": 0.05, "start": jnp.ones(4)}
    with pytest.raises(
        ValueError, match=r"hyper\['start'\] acts only before the last 3"
    ):
        hypergradient(L, hyper, Truncated(3))
    full = hypergradient(L, hyper)
    assert_close(hypergradient(L, hyper, Truncated(5)).grad, full.grad)


@pytest.mark.parametrize("last", [0, -1, True])
def test_what_is_not_a_number_of_steps_is_refused(last):
    with pytest.raises(ValueError, match="last = "):
        Truncated(last)


def test_it_is_a_hashable_printable_value_and_needs_an_unrolled():
    assert repr(Truncated(last=3)) == "Truncated(last=3)"
    assert {Truncated(3): 1}[Truncated(last=3)] == 1
    with pytest.raises(
        ValueError, match=r"Truncated\(last=1\) .*needs a metalr.Unroll"
    ):
        hypergradient(lambda eta: eta**2, 1.0, Truncated(1))
