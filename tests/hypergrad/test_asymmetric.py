"""Fields that are no gradients: the derivative of the loop, or a refusal by name."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from hypothesis import given, settings, strategies as st
from jax.tree_util import Partial

import metalr
from tests.helpers import assert_close, python_loop


@jax.custom_vjp
def reversal(x, strength):
    return x


reversal.defvjp(
    lambda x, strength: (x, strength), lambda lam, t: (-lam * t, jnp.zeros_like(lam))
)


@jax.custom_jvp
def straight_through(x):
    return jnp.round(x)


straight_through.defjvp(lambda p, t: (straight_through(*p), t[0]))


@jax.custom_vjp
def clipped(x):
    return x


clipped.defvjp(lambda x: (x, None), lambda _, t: (jnp.clip(t, -0.3, 0.3),))

RULES = {
    "gradient reversal": reversal,
    "straight through": lambda x, h: straight_through(3.0 * x * h) / 3.0,
    "clipped backward": lambda x, h: clipped(x * h),
    "stop_gradient": lambda x, h: jax.lax.stop_gradient(x) * h + x,
    "target": lambda x, h: x - jax.lax.stop_gradient(jnp.roll(x, 1)) * h,
}
ENGINES = [metalr.Mixed(), metalr.Reverse(checkpoints=2), metalr.Reverse()]
MAKE = lambda h: optax.sgd(0.1, 0.9)
START = jnp.array([0.4, -0.7, 1.1])


def loss_with(rule):
    def loss(coupling, w, h, b):
        part = RULES[rule](jnp.sin(w), h)
        mixed = jnp.dot(part, coupling @ jnp.tanh(w))
        return mixed + 0.5 * jnp.sum(w**2) + 0.1 * jnp.sum(part * jnp.roll(w, 1))

    return loss


@pytest.mark.parametrize("rule", RULES)
def test_every_engine_gives_the_derivative_of_the_loop_written_out(rule):
    loss = loss_with(rule)
    outer = lambda w, h: jnp.sum(w**3)

    @jax.jit
    def hand(coupling, h):
        bound = Partial(loss, coupling)
        return outer(python_loop(bound, MAKE, START, h, 3)[0], h)

    @settings(max_examples=4, deadline=None)
    @given(st.integers(0, 1000), st.floats(0.3, 0.9))
    def holds(seed, h):
        coupling, h = jax.random.normal(jax.random.key(seed), (3, 3)), jnp.array(h)
        expected = jax.grad(hand, argnums=1)(coupling, h)
        bound = Partial(loss, coupling)
        L = metalr.Unrolled(bound, MAKE, START, steps=3, outer_loss=outer)
        for engine in ENGINES:
            found = metalr.hypergradient(L, h, engine).grad
            assert_close(found, expected, rtol=1e-9, atol=1e-12)
        # Fixed-point weights are off by 2^-44 a step.
        found = metalr.hypergradient(L, h, metalr.Reversible()).grad
        assert_close(found, expected, rtol=1e-6, atol=1e-9)
        with pytest.raises(ValueError, match="own derivatives"):
            metalr.hypergradient(L, h, metalr.Implicit())

    holds()


def test_a_game_with_a_reversed_gradient_ends_where_algebra_says():
    # The field (x − 1 − λy, x + y) is at rest in x* = 1 / (1 + λ).
    loss = lambda p, h, b: (
        0.5 * p["x"] ** 2 - p["x"] + reversal(p["x"], h) * p["y"] + 0.5 * p["y"] ** 2
    )
    L = metalr.Unrolled(
        loss,
        lambda h: optax.sgd(0.2, 0.5),
        {"x": 0.0, "y": 0.0},
        steps=300,
        outer_loss=lambda p, h: p["x"] ** 2,
    )
    for engine in (*ENGINES, metalr.Forward(), metalr.Reversible(min_momentum=0.5)):
        found = metalr.hypergradient(L, 0.7, engine)
        assert_close(found.grad, jnp.array(-2.0 / 1.7**3), rtol=1e-9)


def test_a_rule_for_hyper_is_used_by_the_run_and_not_within_the_gradient():
    @jax.custom_vjp
    def rounded(x):
        return jnp.round(x)

    rounded.defvjp(lambda x: (jnp.round(x), None), lambda _, t: (t,))
    loss = lambda w, h, b: (w - rounded(1.3 * h)) ** 2
    outer = lambda w, h: (w - 2.0) ** 2
    L = metalr.Unrolled(loss, lambda h: optax.sgd(0.1), 0.5, steps=1, outer_loss=outer)
    assert_close(jax.grad(L)(1.0), jnp.array(-0.728), rtol=1e-12)
    for engine in ENGINES:
        found = metalr.hypergradient(L, 1.0, engine)
        assert_close(found.grad, jnp.array(-0.728), rtol=1e-12)


def test_a_custom_vjp_cannot_be_pushed_forward_and_says_so():
    @jax.custom_vjp
    def sine(x):
        return jnp.sin(x)

    sine.defvjp(lambda x: (jnp.sin(x), jnp.cos(x)), lambda c, g: (g * c,))
    loss = lambda w, h, b: jnp.sum(sine(w * h)) + 0.1 * jnp.sum(w**2)
    plain = lambda w, h, b: jnp.sum(jnp.sin(w * h)) + 0.1 * jnp.sum(w**2)
    make = lambda h: optax.adam(0.1)
    L, P = (metalr.Unrolled(f, make, START, steps=4) for f in (loss, plain))
    for engine in ENGINES:
        found = metalr.hypergradient(L, 0.7, engine)
        assert_close(found, metalr.hypergradient(P, 0.7, engine), rtol=1e-10)
    with pytest.raises(ValueError, match=r"Forward\(\) pushes tangents forward"):
        metalr.hypergradient(L, 0.7, metalr.Forward())


def test_an_optimizer_that_uses_the_loss_value_is_pulled_back_through_it():
    # The update is scaled by the loss: its cotangent reaches params and hyper.
    def scaled(h):
        def update(updates, state, params=None, *, value, **rest):
            return jax.tree.map(lambda g: -h * value * g, updates), state

        made: Any = optax.GradientTransformationExtraArgs
        return made(lambda p: optax.EmptyState(), update)

    loss = lambda w, h, b: jnp.sum(w**4) * h + jnp.sum(w)

    def hand(h):
        w = START
        for _ in range(3):
            value, grad = jax.value_and_grad(loss)(w, h, None)
            w = w - h * value * grad
        return loss(w, h, None)

    L = metalr.Unrolled(loss, scaled, START, steps=3)
    for engine in ENGINES:
        found = metalr.hypergradient(L, 0.1, engine)
        assert_close(found.grad, jax.grad(hand)(0.1), rtol=1e-11)
    momentum = lambda h: optax.chain(optax.trace(0.9), scaled(h))
    L = metalr.Unrolled(loss, momentum, START, steps=3)
    with pytest.raises(ValueError, match="reverses SGD with momentum"):
        metalr.hypergradient(L, 0.1, metalr.Reversible())


def test_reversible_judges_an_optimizer_on_the_shapes_that_it_sees():
    weights = jnp.arange(6.0).reshape(2, 3) / 5 - 0.3
    loss = lambda w, h, b: jnp.sum((w @ jnp.array([1.0, 2.0, 3.0]) - 1) ** 2)
    centred = lambda h: optax.chain(optax.centralize(), optax.sgd(h, 0.9))
    L = metalr.Unrolled(loss, centred, weights, steps=4)
    with pytest.raises(ValueError, match="reverses SGD with momentum"):
        metalr.hypergradient(L, 0.02, metalr.Reversible())

    def by_rank(h):  # a rate for matrices and another for vectors
        scale = lambda g: g * (h if g.ndim > 1 else 0.1 * h)
        rates = optax.stateless(lambda g, p: jax.tree.map(lambda x: -scale(x), g))
        return optax.chain(optax.trace(0.9), rates)

    params = {"w": weights, "b": jnp.ones(2)}
    fit = lambda p, h, b: loss(p["w"], h, b) + jnp.sum(p["b"] ** 2)
    L = metalr.Unrolled(fit, by_rank, params, steps=4)
    exact = metalr.hypergradient(L, 0.02)
    found = metalr.hypergradient(L, 0.02, metalr.Reversible())
    assert_close((found.value, found.grad), tuple(exact), rtol=1e-9)


def test_a_line_search_that_moves_nothing_is_not_pulled_back_through():
    search = optax.scale_by_backtracking_linesearch(10, store_grad=False)
    loss = lambda w, h, b: jnp.sum(w**4) + jnp.sum(w**2)
    make = lambda h: optax.chain(optax.sgd(h), search)
    L = metalr.Unrolled(loss, make, jnp.array([1.0, -1.0]), steps=3)
    expected = metalr.hypergradient(L, 0.05, metalr.Forward())
    for engine in ENGINES:
        found = metalr.hypergradient(L, 0.05, engine)
        assert_close(found, expected, rtol=1e-11)
