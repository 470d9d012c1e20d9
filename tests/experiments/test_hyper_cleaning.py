"""Hyper-cleaning on a few digits: by hand, the projection, and what is found."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import hyper_cleaning
from experiments._command.config import ConfigError, validate
from experiments._command.experiment import kept_in
from experiments._hyper_cleaning.problem import capped, f1
from tests.helpers import assert_near

TINY = {
    "data": {"samples": 240, "test": 80},
    "steps": 30,
    "outer_steps": 25,
    "projected_rate": 0.05,
    "solver_updates": 1500,
}


def small(**setting):
    named: dict[str, Any] = {"engines": ("reverse", "soba")} | setting
    return hyper_cleaning.Config(**TINY, settings=(hyper_cleaning.Setting(**named),))


@pytest.fixture(scope="module")
def records():
    config = small()
    rows = list(hyper_cleaning.run(config))
    assert len(rows) == hyper_cleaning.size(config)
    return rows


BATCHES = {"engines": ("reverse",), "protocols": (), "batch": 20}


@pytest.mark.parametrize(
    "setting", [BATCHES, {**BATCHES, "hidden": (7,)}], ids=["softmax", "hidden"]
)
def test_the_derivative_through_minibatches_is_the_hand_written_one(setting):
    config = small(**setting)
    (row,) = hyper_cleaning.run(config)
    assert row["batch"] == "batch 20"
    assert row["gradient_difference"] < 1e-11


def test_the_hand_written_derivative_is_metalrs(records):
    (row,) = (r for r in records if "gradient_difference" in r)
    assert row["gradient_difference"] < 1e-12
    assert row["value_difference"] < 1e-13
    assert row["statements"] < row["statements_by_hand"]


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


def test_what_was_stopped_goes_on(tmp_path):
    config = small(engines=("reverse",), protocols=("sigmoid",))
    alone = list(hyper_cleaning.run(config))[-1]
    with kept_in(tmp_path):
        kept = list(hyper_cleaning.run(config))[-1]
        held = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.checkpoint")}
        again = list(hyper_cleaning.run(config))[-1]  # makes no step
    assert held
    assert held == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.checkpoint")}
    assert alone["curve"] == kept["curve"] == again["curve"]


def test_a_single_loop_on_minibatches():
    single = hyper_cleaning.Setting(batch=20, protocols=("sigmoid",), engines=("soba",))
    config = hyper_cleaning.Config(
        **{**TINY, "outer_steps": 2, "steps": 5, "solver_updates": 10},
        settings=(single,),
    )
    (record,) = hyper_cleaning.run(config)
    assert (record["engine"], hyper_cleaning.size(config)) == ("soba", 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"setings": []}, "setings"),
        ({"settings": [{"hiden": [300]}]}, "hiden"),
    ],
)
def test_a_wrong_key_is_named(content, message):
    with pytest.raises(ConfigError, match=message):
        validate(hyper_cleaning.Config, {"experiment": "hyper_cleaning", **content})


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(ConfigError, match="batch = 5000"):
        next(hyper_cleaning.run(small(batch=5000)))


def test_labels_are_exchanged_for_others_and_only_those():
    problem = hyper_cleaning._problem(hyper_cleaning.Config(**TINY))
    differ = np.asarray(problem.given != problem.true)
    np.testing.assert_array_equal(differ, problem.wrong)
    assert problem.wrong.sum() == 40
    assert len(problem.given) == 80


def test_by_hand_is_the_derivative_of_its_value():
    config = small().model_copy(update={"steps": 8})
    problem = hyper_cleaning._problem(config)
    training = hyper_cleaning._training(config, config.settings[0], problem)
    weights = jnp.linspace(0.1, 0.9, len(problem.given))
    run = training.by_hand()
    value, grad = run(weights)
    step = jnp.cos(jnp.arange(len(weights)))
    ends = [run(weights + sign * 1e-5 * step)[0] for sign in (1.0, -1.0)]
    assert_near((ends[0] - ends[1]) / 2e-5, grad @ step, rtol=1e-7)
    assert_near(value, training.objective()(weights), rtol=1e-13)


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
