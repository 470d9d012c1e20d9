"""A watched run is the same run, and tells where it is: once, whatever is batched."""

import io

import jax
import jax.numpy as jnp
import optax
import pytest
from rich.console import Console

import metalr
from experiments._command.scan_progress import scan_progress, watched
from metalr.hypergrad.binomial import forward_steps
from metalr.problems import least_squares
from tests.helpers import assert_close, regression

STEPS = 12


@pytest.fixture
def seen():
    return []


@pytest.fixture
def objective():
    X, t = regression(4, 3)
    return metalr.Unrolled(least_squares(X, t), optax.adam, jnp.ones(3), steps=STEPS)


def told(seen, run):
    """What `run()` gives, and the sorted steps that were told about meanwhile."""
    seen.clear()
    result = jax.block_until_ready(run())
    jax.effects_barrier()
    return result, sorted(seen)


def test_every_step_is_told_once_and_nothing_else_changes(objective, seen):
    watch = watched(objective, lambda index: seen.append(int(index)))
    value, steps = told(seen, lambda: watch(0.1))
    assert steps == list(range(STEPS))
    assert value == objective(0.1)
    slope, steps = told(seen, lambda: jax.grad(watch)(0.1))
    assert steps == list(range(STEPS))
    assert_close(slope, jax.grad(objective)(0.1), rtol=1e-14)


def test_few_calls_are_spread_over_the_run(objective, seen):
    watch = watched(objective, lambda index: seen.append(int(index)), calls=3)
    assert told(seen, lambda: watch(0.1))[1] == [0, 4, 8]


def test_a_batch_of_runs_tells_once_for_all(objective, seen):
    watch = watched(objective, lambda index: seen.append(int(index)))
    rates = jnp.linspace(0.05, 0.2, 5)
    values, steps = told(seen, lambda: jax.jit(jax.vmap(watch))(rates))
    assert steps == list(range(STEPS))
    assert_close(values, jax.vmap(objective)(rates), rtol=1e-13)


def test_steps_that_an_engine_runs_again_are_told_again(objective, seen):
    watch = watched(objective, lambda index: seen.append(int(index)))
    engine = metalr.Reverse(checkpoints=2)
    found, steps = told(seen, lambda: metalr.hypergradient(watch, 0.1, engine))
    assert set(steps) == set(range(STEPS))
    # The run, one last step for the final state, and what is recomputed.
    assert len(steps) == forward_steps(STEPS, 2) + 1
    assert_close(found.grad, jax.grad(objective)(0.1), rtol=1e-12)


def test_a_file_gets_plain_lines_and_a_terminal_a_bar(objective):
    file = io.StringIO()
    console = Console(file=file, force_terminal=False)
    with scan_progress("run", total=STEPS, console=console, every=0.0) as tell:
        watched(objective, tell)(0.1)
    lines = file.getvalue().splitlines()
    assert "run: inner step 11 of 12" in lines
    assert "\x1b" not in file.getvalue()
    terminal = io.StringIO()
    console = Console(file=terminal, force_terminal=True, width=80)
    with scan_progress("run", total=STEPS, console=console) as tell:
        watched(objective, tell)(0.1)
    assert "run: inner step" in terminal.getvalue()


def test_a_watched_run_is_still_an_unrolled_to_every_check(objective):
    silent = watched(objective, lambda index: None)
    per_step = metalr.Unrolled(
        objective.loss, metalr.per_step(optax.sgd), jnp.ones(3), steps=STEPS
    )
    assert isinstance(silent, metalr.Unrolled)
    with pytest.raises(ValueError, match="needs a leading axis of length 12"):
        watched(per_step, lambda index: None)(jnp.ones(3))
