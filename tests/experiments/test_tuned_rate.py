"""Points of a sweep: the same in a batch as alone, and at the closed form's minimum."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metalr
from experiments import sweep_speed, tuned_rate
from experiments._command.config import ConfigError, validate
from experiments.tuned_rate import BATCHED, Config
from metalr.problems import least_squares
from tests.helpers import assert_close, regression

SPECTRUM = {"kind": "spectrum", "eigenvalues": [0.1, 0.4, 1.0], "n": 6, "minimum": 0.1}
VARIED = {
    "seed": [1, 7],
    "start": [1e-6, 0.5],
    "momentum": [0.0, 0.5],
    "weight_scale": [0.0, 3.0],
    "noise": [0.1, 1.0],
}
NUMBERS = ("eta_learned", "eta_closed", "loss_learned", "loss_closed")
ROUNDING = ("relative_error", "to_minimum", "resolution")


def config(**options):
    base = {"data": SPECTRUM, "steps": 6, "noise": 0.2, "start": 0.01}
    return validate(Config, {"experiment": "tuned_rate", **base, **options})


def varied(optimizer):
    """The base point, and points that differ from it in one batched field each."""
    base = {"optimizer": optimizer, "momentum": 0.8}
    each = [{name: value} for name, values in VARIED.items() for value in values]
    return [config(**base), *(config(**(base | other)) for other in each)]


@functools.cache
def in_a_batch(optimizer):
    return [record for (record,) in tuned_rate.run_batch(varied(optimizer))]


@functools.cache
def one_by_one(optimizer):
    return [record for point in varied(optimizer) for record in tuned_rate.run(point)]


def test_every_batched_field_is_varied_below():
    assert set(VARIED) == set(BATCHED)


@pytest.mark.parametrize("optimizer", ["sgd", "nesterov"])
def test_a_point_in_a_batch_is_the_point_alone(optimizer):
    # These optima are well conditioned (see `resolution`): 1e-12 is far from rounding.
    for batched, alone in zip(
        in_a_batch(optimizer), one_by_one(optimizer), strict=True
    ):
        assert batched.keys() == alone.keys()
        assert alone["resolution"] < 1e-12
        for name, value in alone.items():
            if name in NUMBERS:
                assert_close(batched[name], value, rtol=1e-12)
            elif name in ROUNDING:
                assert_close(batched[name], value, rtol=0.1, atol=1e-12)
            else:
                assert batched[name] == value, name


@pytest.mark.parametrize("optimizer", ["sgd", "nesterov"])
def test_batched_fields_change_the_result(optimizer):
    base, *others = in_a_batch(optimizer)
    names = [name for name, values in VARIED.items() for _ in values]
    for name, other in zip(names, others, strict=True):
        unused = name == "start" or (name == "momentum" and optimizer == "sgd")
        same = abs(other["eta_closed"] / base["eta_closed"] - 1.0) < 1e-12
        assert same == unused, name


def test_a_batch_must_not_mix_programs():
    with pytest.raises(ValueError, match="differ in more than seed, start"):
        next(tuned_rate.run_batch([config(), config(steps=7)]))


def test_a_lane_that_has_stopped_stays_as_it_is_while_others_go_on():
    X, t = regression()
    objective = metalr.Unrolled(least_squares(X, t), optax.sgd, jnp.zeros(8), steps=5)

    @jax.jit
    @jax.vmap
    def learn(start):
        return metalr.learn(
            objective, start, outer_optimizer=metalr.Newton(), steps=60, log=True
        )

    near, far = learn(jnp.array([0.5, 0.5])), learn(jnp.array([0.5, 1e-4]))
    assert far.steps[1] > far.steps[0]  # lane 0 waited for lane 1
    for held, alone in zip(jax.tree.leaves(far), jax.tree.leaves(near), strict=True):
        np.testing.assert_array_equal(held[0], alone[0])


def test_the_learned_rate_is_the_closed_form_without_momentum():
    for record in in_a_batch("sgd"):
        assert record["converged"]
        assert record["minimum"] == "global"
        assert record["relative_error"] < 1e-6
        assert record["minima"] == 1


def test_the_learned_rate_is_a_minimum_with_momentum_and_says_which():
    kinds = set()
    for record in in_a_batch("nesterov"):
        assert record["converged"]
        assert record["to_minimum"] < 1e-6
        assert record["loss_closed"] <= record["loss_learned"] * (1.0 + 1e-12)
        is_best = record["relative_error"] < 1e-6
        assert record["minimum"] == ("global" if is_best else "local")
        kinds.add(record["minimum"])
    assert "global" in kinds


def test_where_nothing_can_be_learned_the_closed_columns_are_empty():
    flat = {**SPECTRUM, "weights": 0.0}
    point = config(data=flat, noise=0.0, weight_scale=0.0, steps=2)
    (record,) = tuned_rate.run(point)
    assert record["eta_closed"] is None
    assert record["relative_error"] is None
    json.dumps(record, allow_nan=False)


def test_adam_has_no_closed_form_but_a_slope_that_vanishes():
    points = [config(optimizer="adam", steps=3, seed=seed) for seed in range(2)]
    records = [record for (record,) in tuned_rate.run_batch(points)]
    assert tuned_rate.figures(records) == {}
    for point, record in zip(points, records, strict=True):
        assert record["eta_closed"] is record["minimum"] is None
        assert record["converged"]
        problem = tuned_rate._problem(point)
        lane = tuned_rate._lane(point, problem)
        loss = least_squares(jnp.asarray(problem.X), jnp.asarray(lane.t))
        objective = metalr.Unrolled(loss, optax.adam, jnp.asarray(lane.w0), steps=3)
        value, slope = jax.value_and_grad(objective)(record["eta_learned"])
        assert abs(record["eta_learned"] * slope) < 1e-12 * value


def test_float32_points_agree_to_their_resolution():
    points = [config(dtype="float32", rtol=1e-6, seed=seed) for seed in range(3)]
    with jax.enable_x64(False):
        batched = [record for (record,) in tuned_rate.run_batch(points)]
        alone = [record for point in points for record in tuned_rate.run(point)]
    for one, other in zip(batched, alone, strict=True):
        assert one["converged"]
        assert one["relative_error"] < 1e-4
        tolerance = 10.0 * one["resolution"]
        assert_close(one["eta_learned"], other["eta_learned"], rtol=tolerance)


WIDE = {**SPECTRUM, "d": 60}


@pytest.mark.parametrize(
    "options",
    [
        {"data": {"samples": 60}},
        {"data": WIDE, "optimizer": "adam", "engine": "reverse", "steps": 20},
        {"data": WIDE, "optimizer": "nesterov", "engine": "reverse", "steps": 40},
        {
            "data": WIDE,
            "optimizer": "heavy_ball",
            "engine": "reverse",
            "checkpoints": 4,
            "steps": 40,
        },
        {"outer_optimizer": "lbfgs"},
    ],
    ids=["forward", "reverse-adam", "reverse", "checkpoints", "lbfgs"],
)
def test_a_point_takes_no_more_memory_than_it_says(options):
    point, size = config(**options), 16
    problem = tuned_rate._problem(point)
    lanes = tuned_rate._stack([tuned_rate._lane(point, problem)] * size)
    X = jnp.asarray(problem.X)
    lowered = tuned_rate._learn_all.lower(tuned_rate._program(point), X, lanes)
    used = lowered.compile().memory_analysis()
    assert used is not None
    each = used.temp_size_in_bytes + used.argument_size_in_bytes - X.nbytes
    each = (each + used.output_size_in_bytes) / size
    assert each <= tuned_rate.point_bytes(point) <= 8 * each


def test_asking_for_the_memory_outside_of_a_run_leaves_its_precision_alone():
    point = config(data={**SPECTRUM, "n": 7})
    with jax.enable_x64(False):
        double = tuned_rate.point_bytes(point)
    assert double == 2 * tuned_rate.point_bytes(
        config(data={**SPECTRUM, "n": 7}, dtype="float32")
    )
    assert tuned_rate._problem(point).X.dtype == np.float64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"momentum": 1.0}, "momentum = 1.0"),
        ({"optimizer": "rmsprop"}, "optimizer = 'rmsprop'"),
        ({"start": 0.0}, "start = 0.0"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        config(**options)


def test_the_figures_show_every_point_and_every_data_set():
    records = [*in_a_batch("sgd"), *in_a_batch("nesterov")]
    drawn = tuned_rate.figures(records)
    left = drawn["agreement"].axes[0]
    assert sum(np.size(line.get_xdata()) for line in left.lines) == len(records) + 2
    assert [axes.get_title() for axes in drawn["horizons"].axes] == ["spectrum of 3"]


def test_every_way_of_the_speed_benchmark_makes_the_same_points(monkeypatch):
    monkeypatch.setattr(
        sweep_speed, "_processes", lambda few, *_: sweep_speed._one_by_one(few)
    )
    chosen = {"data": SPECTRUM, "steps": [1], "batches": [2], "points": 2}
    short = validate(sweep_speed.Config, {**chosen, "repeats": 1, "process_points": 1})
    records = list(sweep_speed.run(short))
    assert [record["points"] for record in records] == [2, 2, 1, 1, 1]
    for record in records:
        assert record["largest_difference"] < 1e-12
        assert record["points_per_second"] > 0.0
        assert (record["compilation_seconds"] is None) == ("process" in record["way"])
    assert set(sweep_speed.figures(records)) == {"sweep_speed"}


@pytest.mark.slow
def test_a_point_in_its_own_process_is_the_point_here():
    point = config(steps=1)
    (there,) = sweep_speed._processes([point], 1, {})
    (here,) = sweep_speed._one_by_one([point])
    assert_close(there, here, rtol=1e-12)


def test_a_process_that_fails_shows_its_traceback():
    broken = config(data={"kind": "csv", "path": "nowhere.csv", "target": "y"})
    with pytest.raises(RuntimeError, match=r"nowhere\.csv"):
        sweep_speed._processes([broken], 1, {})
