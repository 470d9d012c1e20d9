"""An optimizer that stops a gradient is named; its run is as it was."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

import metalr
from metalr.optimizers.stopped import stops_gradient
from tests.helpers import assert_close

PARAMS = {"b": jnp.ones(2), "w": jnp.ones(3)}


def lbfgs(_):
    return optax.lbfgs(0.1, linesearch=None)


def run(optimizer, **options):
    """Two steps on Σ(w − s)⁴ + (w − s)², as a function of s."""
    loss = lambda w, s, b: jnp.sum((w - s) ** 4) + jnp.sum((w - s) ** 2)
    start = jnp.array([1.0, -1.0])
    return metalr.Unrolled(loss, optimizer, start, steps=2, **options)


def test_lbfgs_is_named_where_it_is_met_and_runs_as_ever():
    with pytest.warns(UserWarning, match="in scale_by_lbfgs.*on the way to updates"):
        slope = jax.grad(run(lbfgs))(0.3)
    assert_close(slope, 4.6919, rtol=1e-4)  # the run's is 6.0950: the path left out
    with pytest.warns(UserWarning, match="stops a gradient"):
        assert run(lbfgs)(0.3) == run(lbfgs, guarded=False)(0.3)


def stopping(function):
    """SGD on what `function` makes of the gradient."""
    return lambda h: optax.chain(
        optax.stateless(lambda g, p: jax.tree.map(function, g)), optax.sgd(h, 0.9)
    )


STOP = jax.lax.stop_gradient
STOPPING = {
    "a norm": lambda g: g / (1.0 + STOP(jnp.linalg.norm(g))),
    "within a call": jax.jit(lambda g: STOP(g) * g),
    "within a loop": lambda g: jax.lax.fori_loop(0, 2, lambda _, x: x * STOP(g), g),
}
FLOWING = {
    "nothing": lambda g: g,
    "a stop that cancels": jax.nn.softmax,
    "a stopped constant": lambda g: g * STOP(jnp.float64(2.0)),
    "a stop that is not used": lambda g: (STOP(g), g)[1],
}


@pytest.mark.parametrize("name", STOPPING)
def test_what_is_stopped_is_listed_by_path(name):
    found = stops_gradient(stopping(STOPPING[name])(0.1), PARAMS)
    trace = "opt_state[1][0].trace"
    both = ["updates['b']", "updates['w']", f"{trace}['b']", f"{trace}['w']"]
    assert found == both


@pytest.mark.parametrize("name", FLOWING)
def test_what_flows_is_not_listed(name):
    assert stops_gradient(stopping(FLOWING[name])(0.1), PARAMS) == []


def test_one_leaf_alone_and_the_hyperparameters():
    def first(g: Any, p: Any) -> Any:
        return {"b": STOP(g["b"]), "w": g["w"]}

    alone = optax.stateless(first)
    assert stops_gradient(alone, PARAMS) == ["updates['b']"]
    rate = lambda h: optax.sgd(STOP(h))
    assert stops_gradient(rate, PARAMS, 0.1) == ["updates['b']", "updates['w']"]
    assert stops_gradient(optax.sgd, PARAMS, 0.1) == []
