"""Programs are found again by what they are made of, and go with users' functions."""

import functools
import gc
import math
import weakref

import jax
import jax.numpy as jnp
import optax
import pytest

import metalr
from metalr._programs.compiled import compiled
from metalr._programs.identity import identity

key_of = lambda value: identity(value, [])

EQUAL = {
    "adam": lambda: optax.adam(0.1),
    "a chain": lambda: optax.chain(optax.clip(1.0), optax.sgd(0.1, momentum=0.9)),
    "a schedule": lambda: optax.sgd(optax.cosine_decay_schedule(0.1, 100)),
    "lbfgs": optax.lbfgs,
    "an engine": lambda: metalr.Reverse(checkpoints=3),
    "a partial": lambda: functools.partial(optax.sgd, momentum=0.9),
    "a structure": lambda: jax.tree.structure({"a": (1, None), "b": [2]}),
    "nan": lambda: math.nan,
    "a bound method": lambda: EQUAL.get,
}


@pytest.mark.parametrize("name", EQUAL)
def test_what_is_made_anew_of_the_same_parts_is_the_same(name):
    assert key_of(EQUAL[name]()) == key_of(EQUAL[name]())


class Scaled:
    """Mutable: two functions that hold it need not do the same."""


DIFFERENT = {
    "another rate": (optax.adam(0.1), optax.adam(0.2)),
    "a closure of the user, whose globals may change": (
        *(lambda w, h, b: w for _ in range(2)),
    ),
    "a partial of what may change": (
        *(functools.partial(dict, a=Scaled()) for _ in range(2)),
    ),
    "a partial of one list": (
        *(functools.partial(dict, a=held) for held in 2 * [[0.1]]),
    ),
    "types": (1, True),
    "the sign of zero": (0.0, -0.0),
    "a container": ((1, 2), [1, 2]),
    "an engine": (metalr.Reverse(checkpoints=3), metalr.Reverse(checkpoints=4)),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_what_may_do_something_else_is_not_the_same(name):
    one, other = DIFFERENT[name]
    assert key_of(one) != key_of(other)


def test_a_function_is_traced_once_and_its_program_goes_with_it():
    traced = []

    @compiled
    def apply(function, x, *, power):
        traced.append(power)
        return function(x) ** power

    def once():
        square = jax.tree_util.Partial(lambda x: x + 1)
        for x in jnp.ones(2):
            assert apply(square, x, power=2) == (x + 1) ** 2
        assert jax.grad(lambda x: apply(square, x, power=2))(3 * jnp.ones(())) == 8.0
        assert jnp.all(jax.vmap(lambda x: apply(square, x, power=2))(jnp.ones(2)) == 4)
        return weakref.ref(square.func)

    gone = [once() for _ in range(3)]
    gc.collect()
    assert traced == [2, 2, 2]
    assert [ref() for ref in gone] == [None] * 3


def test_a_program_within_its_own_trace_sees_its_own_functions():
    @compiled
    def apply(function, x):
        return function(x)

    P = jax.tree_util.Partial
    inner, outer = P(lambda x: 2 * x), P(lambda x: apply(inner, x) + 1)
    assert apply(outer, 3.0) == 7.0
    assert apply(inner, 3.0) == 6.0


def closures(call, times=50):
    """How many of the losses that `call` was given are still alive."""

    def once():
        data = jnp.ones(3)
        loss = lambda params, hyper, batch: jnp.sum((params - data) ** 2)
        make = lambda hyper: optax.sgd(2 * hyper)
        call(metalr.Unrolled(loss, make, jnp.zeros(3), steps=1))
        return weakref.ref(loss), weakref.ref(make)

    held = [ref for _ in range(times) for ref in once()]
    gc.collect()
    return sum(ref() is not None for ref in held)


CALLS = {
    "value": lambda L: L(0.1),
    "trajectory": lambda L: L.trajectory(0.1),
    "gradient": lambda L: jax.grad(L)(0.1),
    "hypergradient": lambda L: metalr.hypergradient(L, 0.1, metalr.Forward()),
    "sweep": lambda L: metalr.hypergradient(L, 0.1, metalr.Reverse(checkpoints=1)),
    "online": lambda L: metalr.online(L, 0.1, outer_learning_rate=0.1),
    "learn": lambda L: metalr.learn(L, 0.1, outer_optimizer=optax.adam(0.1), steps=1),
}


@pytest.mark.parametrize("name", CALLS)
def test_closures_die_with_their_user(name):
    assert closures(CALLS[name], times=5) == 0


def test_a_changed_copy_is_another_objective():
    import copy

    import optax

    import metalr

    loss = lambda params, hyper, batch: 0.5 * params**2
    L = metalr.Unrolled(loss, optax.sgd, 1.0, steps=2)
    value = L(0.5)
    other = copy.copy(L)
    object.__setattr__(other, "steps", 3)
    assert other(0.5) == 0.25 * value
    assert L(0.5) == value


def test_a_sweep_traces_a_step_once_however_often_its_program_has_it():
    traced = []

    def loss(params, hyper, batch):
        traced.append(None)
        return 0.5 * params**2

    L = metalr.Unrolled(loss, optax.sgd, 1.0, steps=5)
    traced.clear()
    metalr.hypergradient(L, 0.5, metalr.Reverse(checkpoints=2))
    # The step (counted in int64 in the plain run, in int32 in the sweep); its
    # pullback, judged and linearized; the outer loss, thrice.
    assert len(traced) == 7
