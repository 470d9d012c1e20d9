"""A recipe beside the same by hand: what the columns say of known functions."""

import jax
import jax.numpy as jnp

from experiments._settings.beside import beside, difference, in_turns, statements
from tests.helpers import assert_close


def helper(x):
    """Not a statement."""
    return x + 1


def three_statements(x):
    y = helper(x)  # its two are counted as well
    return jnp.sin(y)  # another module's are not


def recursive(x):
    return recursive(x - 1) if x else 0


def test_statements_are_those_of_the_functions_and_of_their_own_helpers():
    assert statements(helper) == 2
    assert statements(three_statements) == 3 + 2
    assert statements(three_statements, helper) == 3 + 2
    assert statements(recursive) == 2


def test_the_difference_is_relative_to_the_second():
    ours, theirs = {"a": jnp.array([3.0, 4.0])}, {"a": jnp.array([0.0, 8.0])}
    assert_close(difference(ours, theirs), 5 / 8, rtol=1e-15)
    assert difference(theirs, theirs) == 0.0


def test_both_run_in_turns_after_a_first_call():
    called = []

    def told(name):
        return lambda x: called.append(name) or x

    turns = in_turns(told("ours"), told("theirs"), 2.0, rounds=2)
    assert called == ["ours", "theirs"] * 3
    assert turns.ours == turns.theirs == 2.0
    assert 0.0 < turns.seconds < 1.0


def test_the_columns_hold_value_and_gradient_apart():
    ours = jax.value_and_grad(lambda x: x**2)
    theirs = jax.value_and_grad(lambda x: x**2 + 1.0)
    row = beside(ours, theirs, 3.0, written=[helper], by_hand=[recursive], rounds=1)
    assert_close(row["value_difference"], 0.1, rtol=1e-15)
    assert row["gradient_difference"] == 0.0
    assert_close(
        row["cost_ratio"], row["milliseconds"] / row["milliseconds_by_hand"], rtol=1e-12
    )
    assert (row["statements"], row["statements_by_hand"]) == (2, 2)
