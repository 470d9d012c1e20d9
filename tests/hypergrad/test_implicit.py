"""`Implicit`: the derivative of the minimum, and how far it can be trusted."""

import functools

import jax
import jax.numpy as jnp
import optax
import pytest

import metalr
from metalr import Implicit, Unrolled, hypergradient
from tests.helpers import assert_near

# Solves to this residual, of systems with a condition number below 100.
TIGHT = {"iterations": 200, "rtol": 1e-13}
RTOL = 1e-10


assert_close = functools.partial(assert_near, rtol=RTOL)


def data(key, n=12, d=4):
    X = jax.random.normal(key, (n, d))
    return X, X @ jnp.arange(1.0, d + 1) + jnp.cos(jnp.arange(n))


def ridge(X, t):
    def loss(params, hyper, batch):
        X_, t_ = (X, t) if batch is None else (X[batch], t[batch])
        return jnp.mean((X_ @ params - t_) ** 2) + hyper["decay"] @ params**2

    return loss


def minimum(X, t, decay):
    """w* of the ridge, in closed form."""
    n = X.shape[0]
    return jnp.linalg.solve(X.T @ X / n + jnp.diag(decay), X.T @ t / n)


def validation(params, hyper):
    return jnp.sum((params - 1.0) ** 4) + jnp.sum(hyper["decay"] ** 2)


def solved(X, t, hyper, **options):
    """An objective that starts at its minimum, and stays there."""
    start = minimum(X, t, hyper["decay"])
    options = {"steps": 3, "outer_loss": validation, **options}
    return Unrolled(ridge(X, t), lambda h: optax.sgd(0.1), start, **options)


HYPER = {"decay": jnp.array([0.1, 0.2, 0.3, 0.4])}
NEUMANN = Implicit("neumann", iterations=3000, rate=0.1)


@pytest.mark.parametrize("engine", [Implicit(**TIGHT), NEUMANN], ids=["cg", "neumann"])
def test_it_is_the_derivative_of_the_closed_form(key, engine):
    X, t = data(key)
    value, grad, *_ = hypergradient(solved(X, t, HYPER), HYPER, engine)
    exact = lambda hyper: validation(minimum(X, t, hyper["decay"]), hyper)
    expected_value, expected = jax.value_and_grad(exact)(HYPER)
    assert_close(value, expected_value)
    assert_close(grad, expected)


@pytest.mark.parametrize("terms", [1, 2, 17])
def test_unrolling_from_the_optimum_is_the_neumann_series(key, terms):
    """THEORY, item 13: T steps of a rate, T terms of the series with that rate."""
    X, t = data(key)
    L = solved(X, t, HYPER, steps=terms)
    neumann = Implicit("neumann", iterations=terms, rate=0.1)
    assert_close(hypergradient(L, HYPER, neumann).grad, hypergradient(L, HYPER).grad)


def test_after_a_long_run_it_is_the_unrolled_derivative(key):
    X, t = data(key)
    L = Unrolled(
        ridge(X, t), lambda h: optax.adam(0.05), jnp.zeros(4), steps=3000,
        outer_loss=validation,
    )  # fmt: skip
    result = hypergradient(L, HYPER, Implicit(**TIGHT))
    # Adam ends within its stationarity of the minimum, and not closer.
    assert float(result.stationarity) < 1e-6
    assert_close(result.grad, hypergradient(L, HYPER).grad, rtol=1e-5)


def test_minibatches_are_judged_by_their_mean(key):
    X, t = data(key)
    rows = jnp.arange(12).reshape(3, 4)
    L = solved(X, t, HYPER, batches=rows)
    at_rest = solved(X, t, HYPER)
    hyper = {"decay": HYPER["decay"]}
    resting = Unrolled(
        ridge(X, t), lambda h: optax.sgd(0.0), L.params, steps=3, batches=rows,
        outer_loss=validation,
    )  # fmt: skip
    mine = hypergradient(resting, hyper, Implicit(**TIGHT))
    assert_close(mine.grad, hypergradient(at_rest, hyper, Implicit(**TIGHT)).grad)
    assert float(mine.stationarity) < 1e-14
    moved = hypergradient(L, hyper, Implicit(**TIGHT))
    assert float(moved.stationarity) > 1e-3


def test_pytrees_and_a_loss_that_is_not_quadratic(key):
    """Logistic regression with its intercept, against finite differences of w*."""
    X, t = data(key)
    y = jnp.sign(t)

    def loss(params, hyper, batch):
        margins = y * (X @ params["w"] + params["b"])
        penalty = jnp.exp(hyper["log"]) * jnp.sum(params["w"] ** 2)
        return jnp.mean(jax.nn.softplus(-margins)) + penalty + 0.1 * params["b"] ** 2

    start = {"w": jnp.zeros(4), "b": jnp.zeros(())}
    outer = lambda params, hyper: jnp.sum(params["w"]) ** 2 + params["b"]
    L = Unrolled(loss, lambda h: optax.sgd(0.5), start, steps=2000, outer_loss=outer)
    at, step = jnp.array(-2.0), jnp.finfo(float).eps ** (1 / 3)
    result = hypergradient(L, {"log": at}, Implicit(**TIGHT))
    difference = (L({"log": at + step}) - L({"log": at - step})) / (2 * step)
    assert float(result.stationarity) < 1e-13
    assert_close(result.grad["log"], difference, rtol=1e-8)


def test_residual_and_stationarity_are_measured(key):
    X, t = data(key)
    L = Unrolled(
        ridge(X, t), lambda h: optax.sgd(0.1), jnp.zeros(4), steps=5,
        outer_loss=validation,
    )  # fmt: skip
    result = hypergradient(L, HYPER, Implicit(iterations=2))
    assert isinstance(result, metalr.ImplicitHyperGradient)
    params = L.final_params(HYPER)
    gradient = jax.grad(lambda w: L.loss(w, HYPER, None))
    assert_close(result.stationarity, jnp.linalg.norm(gradient(params)))
    H, b = jax.jacfwd(gradient)(params), jax.grad(validation)(params, HYPER)
    q, _ = jax.scipy.sparse.linalg.cg(lambda v: H @ v, b, tol=0.0, maxiter=2)
    residual = jnp.linalg.norm(H @ q - b) / jnp.linalg.norm(b)
    assert float(residual) > 1e-2
    assert_close(result.linear_residual, residual)
    assert float(hypergradient(L, HYPER, Implicit(**TIGHT)).linear_residual) < 1e-12


def test_the_stationarity_of_batches_is_that_of_their_mean():
    # At w = 2 the gradients h (w − b) of b = 1, 2, 6 are 1, 0, −4: −1 in the mean.
    loss = lambda w, h, b: 0.5 * h * (w - b) ** 2
    options = {"steps": 3, "batches": jnp.array([1.0, 2.0, 6.0])}
    L = Unrolled(loss, lambda h: optax.sgd(0.0), 2.0, **options)
    found = hypergradient(L, 1.0, Implicit(**TIGHT))
    assert_close(found.stationarity, jnp.array(1.0), rtol=1e-14)


def test_its_hessian_is_that_of_the_minimum(key):
    X, t = data(key)
    L = solved(X, t, HYPER)
    mine = lambda decay: hypergradient(L, {"decay": decay}, Implicit(**TIGHT)).grad
    exact = lambda decay: validation(minimum(X, t, decay), {"decay": decay})
    expected = jax.hessian(exact)(HYPER["decay"])
    assert_close(jax.jacfwd(mine)(HYPER["decay"])["decay"], expected, rtol=1e-9)
    assert_close(jax.jacrev(mine)(HYPER["decay"])["decay"], expected, rtol=1e-9)


def test_it_batches_over_hyper_and_over_tasks(key):
    X, t = data(key)

    def grad(t, decay):
        loss = lambda t, params, hyper, batch: ridge(X, t)(params, hyper, batch)
        L = Unrolled(
            jax.tree_util.Partial(loss, t), lambda h: optax.sgd(0.1), jnp.zeros(4),
            steps=9, outer_loss=validation,
        )  # fmt: skip
        return hypergradient(L, {"decay": decay}, Implicit(**TIGHT))

    ts, decays = jnp.stack([t, -t]), jnp.stack([HYPER["decay"], 0.5 * HYPER["decay"]])
    batched = jax.vmap(grad)(ts, decays)
    for i in range(2):
        single = grad(ts[i], decays[i])
        assert_close(jax.tree.map(lambda x, i=i: x[i], batched.grad), single.grad)
        assert_close(batched.stationarity[i], single.stationarity)


def test_memory_does_not_grow_with_steps(key):
    X, t = data(key, n=6, d=512)

    def temp(steps):
        loss = ridge(X, t)
        L = Unrolled(loss, lambda h: optax.sgd(0.01), jnp.zeros(512), steps=steps)
        hyper = {"decay": jnp.full(512, 0.1)}
        f = jax.jit(lambda h: hypergradient(L, h, Implicit()))
        analysis = f.lower(hyper).compile().memory_analysis()
        assert analysis is not None
        return analysis.temp_size_in_bytes

    assert temp(2000) - temp(20) < 8 * 512


STEERING = {
    "rate": (lambda h: optax.sgd(h["rate"]), None),
    "rate in the outer loss too": (
        lambda h: optax.sgd(h["rate"]),
        lambda params, hyper: jnp.sum(params**2) + hyper["rate"] ** 2,
    ),
}


@pytest.mark.parametrize("name", STEERING)
def test_what_only_steers_the_optimizer_is_refused(key, name):
    optimizer, outer = STEERING[name]
    X, t = data(key)
    L = Unrolled(ridge(X, t), optimizer, jnp.zeros(4), steps=5, outer_loss=outer)
    with pytest.raises(ValueError, match=r"does not depend on hyper\['rate'\], which"):
        hypergradient(L, {**HYPER, "rate": 0.1}, Implicit())


def test_a_learned_start_is_refused(key):
    X, t = data(key)
    L = Unrolled(ridge(X, t), lambda h: optax.sgd(0.1), lambda h: h["start"], steps=5)
    with pytest.raises(ValueError, match=r"hyper\['start'\].*start: its minimum does"):
        hypergradient(L, {**HYPER, "start": jnp.ones(4)}, Implicit())


def test_what_enters_the_outer_loss_alone_has_its_direct_derivative(key):
    X, t = data(key)
    outer = lambda params, hyper: hyper["weight"] ** 2 * validation(params, hyper)
    L = solved(X, t, HYPER, outer_loss=outer)
    hyper = {**HYPER, "weight": jnp.array(3.0)}
    grad = hypergradient(L, hyper, Implicit(**TIGHT)).grad
    assert_close(grad["weight"], 6.0 * validation(L.params, HYPER))
    alone = hypergradient(solved(X, t, HYPER), HYPER, Implicit(**TIGHT)).grad["decay"]
    assert_close(grad["decay"], 9.0 * alone)


@pytest.mark.parametrize(
    "options",
    [
        {"solver": "neumann"},
        {"solver": "neumann", "rate": -0.1},
        {"rate": 0.1},
        {"iterations": 0},
        {"rtol": -1.0},
    ],
    ids=str,
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=r"(rate|iterations|rtol) = "):
        Implicit(**options)


def test_it_is_a_hashable_printable_value_and_needs_an_unrolled():
    assert {Implicit(): 1}[Implicit("cg")] == 1
    assert repr(NEUMANN).startswith("Implicit(solver='neumann', iterations=3000")
    with pytest.raises(ValueError, match=r"Implicit\(.*needs a metalr.Unrolled"):
        hypergradient(lambda eta: eta**2, 1.0, Implicit())


def test_a_minimum_found_by_a_solver_of_ones_own_is_differentiated_at_zero_steps():
    # w* = 3 / (1 + h) of (w − 3)² + h w²: d(w*²)/dh = −2 · 9 / (1 + h)³.
    inner = lambda w, h, b: (w - 3.0) ** 2 + h * w**2
    make = lambda w: Unrolled(
        inner, lambda h: optax.sgd(0.1), w, steps=0, outer_loss=lambda w, h: w**2
    )
    found = hypergradient(make(2.0), 0.5, Implicit())
    assert_close(found.grad, jnp.array(-18.0 / 1.5**3), rtol=1e-12)
    assert found.stationarity < 1e-12
    with pytest.raises(ValueError, match="does not depend on hyper"):
        hypergradient(make(2.0), 0.5)


def test_conjugate_gradients_end_at_rounding_whatever_they_are_asked():
    """At rtol = 0 one of these systems ended in 0/0."""
    engine = Implicit("cg", iterations=200, rtol=0.0)

    @jax.vmap
    def solutions(key):
        A = jax.random.normal(key, (6, 4))
        H = A.T @ A + 0.1 * jnp.eye(4)
        target = jax.random.normal(jax.random.fold_in(key, 1), (4,))
        return engine.solve(lambda v: H @ v, target), jnp.linalg.solve(H, target)

    found, exact = solutions(jax.vmap(jax.random.key)(jnp.arange(200)))
    assert_near(found, exact, rtol=1e-12)
