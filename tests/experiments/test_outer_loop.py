"""The outer loop of an experiment: the same with a folder and without one."""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metalr
from experiments._command.experiment import ExperimentConfig, kept_in
from experiments._settings import outer_loop

HERE, CONFIG = sys.modules[__name__], ExperimentConfig()
OPTIONS = {"key": jax.random.key(1), "outer_optimizer": optax.sgd(0.1)}


def make(key):
    """A bowl around a random point."""
    center = jax.random.normal(key)
    return lambda x: 0.5 * (x - center) ** 2


def test_a_finished_loop_makes_no_further_step(tmp_path, capsys):
    run = functools.partial(
        outer_loop.learn, HERE, CONFIG, "a bowl", make, 1.0, steps=5, every=2, **OPTIONS
    )
    alone = run()
    with kept_in(tmp_path):
        first, again = run(), run()
    for learned in (first, again):
        np.testing.assert_array_equal(learned.hyper, alone.hyper)
        np.testing.assert_array_equal(learned.history.value, alone.history.value)
    assert int(alone.state.step) == 5
    (folder,) = (tmp_path / "checkpoints").glob("*/a-bowl")
    assert (folder / "5.checkpoint").exists()


def test_a_loop_of_ones_own_goes_on_where_it_was_stopped(tmp_path):
    asked = []

    def loop(hyper, *, steps, state=None):
        asked.append(steps)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return metalr.learn(
            make, hyper, steps=steps, state=state, history="scalars", **OPTIONS
        )

    resumed = functools.partial(
        outer_loop.resumed, HERE, CONFIG, "own", loop, jnp.array(1.0), steps=5, every=2
    )
    whole = metalr.learn(make, 1.0, steps=5, **OPTIONS)
    with kept_in(tmp_path):
        with pytest.raises(KeyboardInterrupt):
            resumed()
        found = resumed()
    assert asked[:3] == [2, 2, 1]
    assert asked[3:] == [0, 1]  # the form of what is stored, then the last step
    np.testing.assert_array_equal(found.hyper, whole.hyper)
    np.testing.assert_array_equal(found.history.value, whole.history.value)
