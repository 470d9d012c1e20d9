"""What an objective depends on, by a path that carries a derivative."""

import jax
import jax.numpy as jnp
import optax
import pytest

import metalr
from metalr._programs.dependence import independent_leaves


def rounded(rule):
    """Round, with a rule that passes on what `rule` makes of the cotangent."""

    @jax.custom_vjp
    def function(x):
        return jnp.round(x)

    function.defvjp(lambda x: (jnp.round(x), x), lambda x, t: (rule(x, t),))
    return function


@jax.custom_jvp
def first_only(x, y):
    return jnp.round(x) * y


first_only.defjvp(lambda p, t: (first_only(*p), t[0]))


@jax.custom_vjp
def swapped(x, count, y):
    return y, jnp.round(x) * count


swapped.defvjp(
    lambda x, count, y: (swapped(x, count, y), None),
    lambda _, t: (t[0], None, t[1]),
)

straight = rounded(lambda x, t: t)

CASES = {
    "round": (lambda h: jnp.round(h["a"]) + h["b"], ["a"]),
    "sign": (lambda h: jnp.sign(h["a"]) * h["b"], ["a"]),
    "a rule that passes on": (lambda h: straight(h["a"]) + h["b"], []),
    "a rule that stops": (lambda h: rounded(lambda x, t: 0.0 * x)(h["a"]), ["a", "b"]),
    "a rule in a loop": (
        lambda h: jax.lax.fori_loop(0, 3, lambda i, x: straight(x * h["a"]), h["b"]),
        [],
    ),
    "under jit and checkpoint": (
        lambda h: jax.jit(jax.checkpoint(straight))(h["a"]) + jnp.floor(h["b"]),
        ["b"],
    ),
    "a rule for one of two": (lambda h: first_only(h["a"], h["b"]), ["b"]),
    "each output its own": (lambda h: swapped(h["a"], 3, h["b"])[0], ["b"]),
    "with an integer": (lambda h: sum(swapped(h["a"], 3, h["b"])), []),
    "relu": (lambda h: jax.nn.relu(h["a"]) + jax.nn.softplus(h["b"]), []),
    "through an integer": (
        lambda h: h["a"].astype(jnp.int32).astype(float) + h["b"],
        ["a"],
    ),
    "stopped": (lambda h: h["a"] * jax.lax.stop_gradient(h["b"]), ["b"]),
}


@pytest.mark.parametrize("name", CASES)
def test_a_path_is_what_carries_a_derivative(name):
    function, missing = CASES[name]
    hyper = {"a": jnp.asarray(1.3), "b": jnp.asarray(0.7)}
    assert independent_leaves(function, hyper) == [f"hyper['{m}']" for m in missing]
    # JAX agrees: where no path leads, its derivative is 0, elsewhere it is not.
    grads = jax.grad(lambda h: jnp.sum(jnp.asarray(function(h))))(hyper)
    assert [name for name in "ab" if float(grads[name]) == 0.0] == missing


def test_without_derivatives_every_path_counts():
    function = lambda h: jnp.sign(h["a"]) + rounded(lambda x, t: 0.0 * x)(h["b"])
    hyper = {"a": jnp.asarray(1.3), "b": jnp.asarray(0.7)}
    assert independent_leaves(function, hyper, smooth=False) == []


def test_a_sign_is_refused_where_a_derivative_is_asked_for():
    loss = lambda w, hyper, batch: (w - jnp.sign(hyper)) ** 2
    L = metalr.Unrolled(loss, lambda h: optax.sgd(0.1), 0.5, steps=2)
    with pytest.raises(ValueError, match="silent 0"):
        metalr.hypergradient(L, 0.3)
