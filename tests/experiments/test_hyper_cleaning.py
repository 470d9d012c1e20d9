"""Hyper-cleaning on a few digits: by hand, the projection, and what is found."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import hyper_cleaning
from experiments._hyper_cleaning.problem import by_hand, capped, f1
from tests.helpers import assert_near

TINY = {
    "data": {"samples": 240, "test": 80},
    "steps": 30,
    "outer_steps": 25,
    "projected_rate": 0.05,
    "solver_updates": 1500,
}


@pytest.fixture(scope="module")
def records():
    config = hyper_cleaning.Config(**TINY, engines=("reverse", "soba"))
    rows = list(hyper_cleaning.run(config))
    assert len(rows) == hyper_cleaning.size(config)
    return rows


def test_the_hand_written_derivative_is_metalrs(records):
    by = {r["engine"]: r for r in records if "relative_error" in r}
    assert set(by) == {"by hand", "reverse"}
    assert by["reverse"]["relative_error"] < 1e-12
    assert by["reverse"]["value"] == pytest.approx(by["by hand"]["value"], rel=1e-13)


def test_wrong_labels_are_found_better_than_by_chance(records):
    # All called wrong gives F1 = 2/3 where half are wrong.
    cleaned = [r for r in records if r["table"] == "what is learned"]
    assert len(cleaned) == 4
    for record in cleaned:
        assert record["F1"] > 0.7
        assert record["curve"][-1] < record["curve"][0]
        assert "published" in record["setting"]
    (figure,) = hyper_cleaning.figures(records).values()
    assert len(figure.axes) == 3
    assert "F1" in hyper_cleaning.headline(records)


def test_minibatches_have_no_hand_written_row():
    options = {**TINY, "outer_steps": 2, "steps": 5, "solver_updates": 10}
    config = hyper_cleaning.Config(
        **options, batch=20, protocols=("sigmoid",), engines=("soba",)
    )
    (record,) = hyper_cleaning.run(config)
    assert (record["engine"], hyper_cleaning.size(config)) == ("soba", 1)


def test_labels_are_exchanged_for_others_and_only_those():
    problem = hyper_cleaning._problem(hyper_cleaning.Config(**TINY))
    differ = np.asarray(problem.given != problem.true)
    np.testing.assert_array_equal(differ, problem.wrong)
    assert problem.wrong.sum() == 40
    assert len(problem.given) == 80


def test_by_hand_is_the_derivative_of_its_value():
    config = hyper_cleaning.Config(**TINY)
    problem = hyper_cleaning._problem(config)
    params = hyper_cleaning._params(config, problem)
    weights = jnp.linspace(0.1, 0.9, len(problem.given))
    run = lambda w: by_hand(problem, params, w, steps=8, rate=0.1)
    value, grad = run(weights)
    step = jnp.cos(jnp.arange(len(weights)))
    ends = [run(weights + sign * 1e-5 * step)[0] for sign in (1.0, -1.0)]
    assert_near((ends[0] - ends[1]) / 2e-5, grad @ step, rtol=1e-7)
    assert_near(
        value,
        hyper_cleaning._objective(config.model_copy(update={"steps": 8}), problem)(
            weights
        ),
        rtol=1e-13,
    )


@pytest.mark.parametrize("limit", [1.0, 2.5, 100.0])
def test_the_projection_is_the_nearest_feasible_point(limit):
    z = 2.0 * jax.random.normal(jax.random.key(0), (12,))
    nearest = capped(limit)(z)
    assert float(jnp.sum(nearest)) <= limit + 1e-9
    assert float(jnp.min(nearest)) >= 0.0
    assert float(jnp.max(nearest)) <= 1.0
    # The variational inequality: (z - P z)·(y - P z) ≤ 0 for all feasible y.
    others = jax.random.uniform(jax.random.key(1), (2000, 12))
    others *= jnp.minimum(1.0, limit / jnp.sum(others, axis=1, keepdims=True))
    assert float(jnp.max((others - nearest) @ (z - nearest))) <= 1e-9


def test_f1():
    said, truth = np.array([1, 1, 0, 0], bool), np.array([1, 0, 1, 0], bool)
    assert f1(said, truth) == 0.5
    assert f1(~said & ~said & said, truth) == 0.0
