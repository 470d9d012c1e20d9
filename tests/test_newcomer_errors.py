"""Errors that a newcomer meets: each names what was given and says what to do."""

import functools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

import metalr


def loss(params, hyper, batch):
    return jnp.sum(params**2)


def unrolled(
    loss: Any = loss,
    optimizer: Any = optax.sgd,
    params: Any = None,
    steps: Any = 3,
    **options: Any,
):
    params = jnp.ones(2) if params is None else params
    return metalr.Unrolled(loss, optimizer, params, steps=steps, **options)


def rollout(step: Any, **options: Any):
    value = options.pop("value", lambda state, hyper: state)
    return metalr.Rollout(step, 1.0, steps=2, value=value, **options)


def learn(
    objective: Any = None,
    hyper: Any = 0.1,
    outer_optimizer: Any = None,
    steps: Any = 1,
    **options: Any,
):
    objective = unrolled() if objective is None else objective
    outer_optimizer = outer_optimizer or optax.adam(0.1)
    return metalr.learn(
        objective, hyper, outer_optimizer=outer_optimizer, steps=steps, **options
    )


def grad(objective: Any, hyper: Any = 0.1, *engine: Any):
    return metalr.hypergradient(objective, hyper, *engine)


# What was written: the call, and words of the error (what was given; the remedy).
CASES = {
    "an optimizer for a function that makes one": (
        lambda: unrolled(optimizer=optax.sgd(0.1)),
        ("made already", "lambda hyper: optax.sgd(0.1)"),
    ),
    "an optimizer's function without a return": (
        lambda: unrolled(optimizer=lambda hyper: None)(0.1),
        ("None", "such as optax.adam"),
    ),
    "an optimizer that asks for the number": (
        lambda: unrolled(optimizer=lambda h: optax.sgd(float(h)))(0.1),
        ("float(h)", "use h as it is"),
    ),
    "an optimizer that asks if it is positive": (
        lambda: unrolled(optimizer=lambda h: optax.sgd(h if h > 0 else 0.1))(0.1),
        ("asks in Python", "jnp.where"),
    ),
    "a fraction of a step": (lambda: unrolled(steps=1.5), ("steps = 1.5", "int")),
    "a loss of two arguments": (
        lambda: unrolled(loss=lambda w, batch: jnp.sum(w)),
        ("loss takes (w, batch)", "loss(params, hyper, batch)"),
    ),
    "a loss of three arguments with a model_state": (
        lambda: unrolled(model_state=jnp.ones(2)),
        ("(params, hyper, batch)", "loss(params, hyper, batch, model_state)"),
    ),
    "an outer loss that wants a batch": (
        lambda: unrolled(outer_loss=loss),
        ("outer_loss takes (params, hyper, batch)", "outer_loss(params, hyper)"),
    ),
    "an outer loss that is a number": (
        lambda: unrolled(outer_loss=3.0),
        ("outer_loss = 3.0", "function of params, hyper"),
    ),
    "a loss without a return": (
        lambda: unrolled(loss=lambda params, hyper, batch: None)(0.1),
        ("loss returned None", "return it"),
    ),
    "a loss for each example": (
        lambda: unrolled(loss=lambda params, hyper, batch: params),
        ("[2]", "jnp.mean"),
    ),
    "a loss with metrics": (
        lambda: unrolled(loss=lambda params, hyper, batch: (jnp.sum(params), 1.0)),
        ("returned a tuple", "model_state"),
    ),
    "a list of batches": (
        lambda: unrolled(batches=[jnp.ones(2)] * 3),
        ("a list of length 3", "jnp.stack"),
    ),
    "a data loader": (
        lambda: unrolled(batches=iter([1, 2, 3])),
        ("iterator", "function index -> batch"),
    ),
    "batches of another length": (
        lambda: unrolled(batches=jnp.ones((4, 2))),
        ("(4, 2)", "steps=3", "slice or repeat"),
    ),
    "batches that want a key as well": (
        lambda: unrolled(batches=lambda key, index: index),
        ("batches takes (key, index)", "batches(index)"),
    ),
    "params of integers": (
        lambda: unrolled(params=jnp.arange(3)),
        ("int", "floating-point"),
    ),
    "params with a function": (
        lambda: unrolled(params={"w": jnp.ones(2), "act": jnp.tanh}),
        ("params['act']", "eqx.partition"),
    ),
    "params with text": (
        lambda: unrolled(params={"w": jnp.ones(2), "name": "mlp"}),
        ("params['name'] = 'mlp'", "let the loss put them together"),
    ),
    "a hyperparameter that is an integer": (
        lambda: unrolled()({"rate": 1}),
        ("hyper['rate'] = 1", "0.1"),
    ),
    "a hyperparameter that is text": (lambda: unrolled()("0.1"), ("'0.1'", "0.1")),
    "no hyperparameter": (lambda: unrolled()(None), ("None", "at least one")),
    "the arguments swapped": (
        lambda: grad(0.1, unrolled()),
        ("objective = 0.1", "hypergradient(objective, hyper, engine)"),
    ),
    "an engine's class": (
        lambda: grad(unrolled(), 0.1, metalr.Forward),
        ("Forward", "such as metalr.Reverse()"),
    ),
    "an engine's name": (
        lambda: grad(unrolled(), 0.1, "forward"),
        ("'forward'", "such as metalr.Reverse()"),
    ),
    "a rate that is not used": (
        lambda: grad(unrolled(optimizer=lambda hyper: optax.sgd(0.1))),
        ("does not depend on hyper", "Does it reach the optimizer"),
    ),
    "no checkpoints": (
        lambda: metalr.Reverse(checkpoints=0),
        ("checkpoints = 0", "None"),
    ),
    "one number for all steps": (
        lambda: unrolled(optimizer=metalr.per_step(optax.sgd))(0.1),
        ("shape ()", "one entry for each update"),
    ),
    "an outer optimizer not called": (
        lambda: learn(outer_optimizer=optax.adam),
        ("outer_optimizer", "optax.adam(0.1)"),
    ),
    "a fraction of an outer step": (lambda: learn(steps=1.5), ("steps = 1.5", "int")),
    "the logarithm of what is negative": (
        lambda: learn(hyper=-0.1, log=True),
        ("-0.1", "log=False"),
    ),
    "a function of a key without a key": (
        lambda: learn(lambda key: unrolled()),
        ("returned Unrolled", "key=…"),
    ),
    "a key without a function of it": (
        lambda: learn(unrolled(), key=0),
        ("with key=", "pass a function of a key"),
    ),
    "Newton on a vector": (
        lambda: learn(jnp.sum, jnp.ones(2), metalr.Newton()),
        ("(2,)", "use an optax optimizer"),
    ),
    "a limit in words": (
        lambda: metalr.profiling.plan(unrolled(), 0.1, memory_limit="2 gigs"),
        ("'2 gigs'", "'2GiB'"),
    ),
    "tasks of other lengths": (
        lambda: metalr.tasks.Mean([unrolled(), unrolled(steps=4)]),
        ("4 against 3", "one Mean for each T"),
    ),
    "no tasks": (lambda: metalr.tasks.Mean([]), ("empty", "at least one")),
    "a mean of tasks taken apart": (
        lambda: grad(metalr.tasks.Mean([unrolled()] * 2), 0.1, metalr.Mixed()),
        ("Mean(", "metalr.tasks.Each(engine)"),
    ),
    "a step without a record": (
        lambda: rollout(lambda state, hyper, x: hyper * state)(0.1),
        ("(state, record)", "return (state, None)"),
    ),
    "a step of two arguments": (
        lambda: rollout(lambda state, x: (state, None)),
        ("step takes (state, x)", "step(state, hyper, x)"),
    ),
    "a step that changes a shape": (
        lambda: rollout(lambda state, hyper, x: (jnp.ones(3), None))(0.1),
        ("[3]", "one shape"),
    ),
    "windows longer than the run": (
        lambda: metalr.windows(unrolled(), 9),
        ("length = 9", "3 steps"),
    ),
    "hypergradient descent without a loss": (
        lambda: metalr.online(
            rollout(lambda state, hyper, x: (state, None)), 0.1, outer_learning_rate=0.1
        ),
        ("Rollout", "metalr.windows"),
    ),
    "the minimum's derivative by the rate": (
        lambda: grad(unrolled(), 0.1, metalr.Implicit()),
        ("only steers the optimizer", "Take an engine"),
    ),
    "Adam reversed": (
        lambda: grad(unrolled(optimizer=optax.adam), 0.1, metalr.Reversible()),
        ("ScaleByAdamState", "metalr.Reverse("),
    ),
    "a start that is truncated away": (
        lambda: grad(
            metalr.Unrolled(
                loss, lambda hyper: optax.sgd(0.1), lambda hyper: hyper, steps=3
            ),
            jnp.ones(2),
            metalr.Truncated(last=1),
        ),
        ("last 1 of 3", "metalr.Reverse()"),
    ),
    "weights of the wrong number": (
        lambda: unrolled(outer_weights=jnp.ones(3)),
        ("[3]", "steps + 1 = 4"),
    ),
    "a smoothing of no pairs": (
        lambda: metalr.EvolutionStrategies(0.1, 0, jax.random.key(0)),
        ("pairs = 0", "≥ 1"),
    ),
}


def message(call):
    """Of the ValueError that a call raises."""
    try:
        made = call()
    except ValueError as error:
        return str(error)
    except Exception as error:  # noqa: BLE001 (the test shows what it was)
        return f"not a ValueError: {error!r}"
    return f"no error: {made!r}"


@pytest.fixture(scope="module")
def said():
    """As a user meets them: in a process without the suite's checks of types."""
    program = (
        "import json\n"
        "from tests.test_newcomer_errors import CASES, message\n"
        "print(json.dumps({name: message(CASES[name][0]) for name in CASES}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
        cwd=Path(__file__).parents[1],
    )
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("case", CASES)
def test_an_error_names_what_was_given_and_the_remedy(case, said):
    for word in CASES[case][1]:
        assert word in said[case]


def test_what_is_right_is_not_refused():
    """Functions of every kind that can be called with the arguments."""
    partial = functools.partial(lambda scale, w, h, b: scale * jnp.sum(w**2), 1.0)
    assert unrolled(loss=partial)(0.1) > 0
    held = jax.tree_util.Partial(lambda s, w, h, b: s * jnp.sum(w**2), jnp.ones(()))
    assert unrolled(loss=jax.jit(held))(0.1) > 0
    assert unrolled(loss=lambda *parts: jnp.sum(parts[0] ** 2))(0.1) > 0

    def judged(params, hyper, *, opt_state):
        return jnp.sum(params) + 0.0 * len(jax.tree.leaves(opt_state))

    assert unrolled(outer_loss=judged)(0.1) > 0
    injected = optax.inject_hyperparams(optax.sgd)
    assert unrolled(optimizer=lambda h: injected(learning_rate=h))(0.1) > 0
    assert unrolled(optimizer=injected)(0.1) > 0
