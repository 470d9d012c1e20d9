"""Every optimizer of optax: the same run, and derivatives that differences confirm."""

import numpy as np
import pytest

from experiments import optimizer_census as census
from experiments._command.config import ConfigError
from metalr.optimizers.stopped import stops_gradient

RATE, STEPS = 0.05, 3


def test_the_list_is_optax_own_and_each_one_left_out_has_a_reason():
    exported = census.exported()
    assert {"adam", "nadamw", "lamb", "polyak_sgd", "prodigy", "dog"} <= set(exported)
    assert set(census.NOT_RUN) <= set(exported)
    assert all(census.NOT_RUN.values())
    assert set(census.optimizers()) | set(census.NOT_RUN) == set(exported)
    listed = {name for name, _ in census.NOT_DIFFERENTIABLE}
    assert listed <= set(census.optimizers())


@pytest.mark.parametrize("name", sorted(census.optimizers()))
def test_all_derivatives_are_finite_and_those_of_differences(name):
    for record in census.examine(name, RATE, STEPS, plain=False):
        assert record["same_bits"], record
        if (name, record["case"]) in census.NOT_DIFFERENTIABLE:
            assert not np.isfinite(record["guarded"]).all(), "no exception any more"
            continue
        assert np.isfinite(record["guarded"]).all(), record
        assert record["first_error"] < 1e-7, record
        assert record["second_error"] < 1e-6, record


def test_those_that_stop_a_gradient_are_listed():
    start = np.ones((2, 2))
    optimizers = census.optimizers()
    found = {n for n, make in optimizers.items() if stops_gradient(make, start, RATE)}
    assert found == set(census.STOPS)


def test_without_the_guard_the_same_table_shows_nan():
    live, one_dead, _ = census.examine("adam", RATE, STEPS)
    assert np.isfinite(live["unguarded"]).all()
    assert np.isnan(one_dead["unguarded"]).all()
    assert "unguarded_finite" in one_dead


def test_an_unknown_optimizer_is_a_wrong_config():
    with pytest.raises(ConfigError, match="adamm"):
        list(census.run(census.Config(optimizers=("adamm",))))
