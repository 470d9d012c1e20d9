"""Metagradients of example weights against retrainings, small."""

import json
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metalr
from experiments import example_weights
from experiments._command import cli
from experiments._command.errors import ConfigError
from experiments._example_weights import (
    by_hand,
    problems,
    retraining,
    runs,
    score,
    text,
)
from experiments._example_weights.figures import drawn
from experiments._example_weights.retraining import Kept, retrained
from experiments._example_weights.settings import Vision

SMALL = [
    "vision={examples: 60, held_out: 40, steps: 24, batch: 30, channels: 2}",
    "text=null",
    "parts=[score, poison, cost, by hand]",
    "retrainings=8",
    "left_out=[0.05]",
    "checkpoints=3",
    "repeats=1",
]


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    assert cli.module_main("example_weights", [*SMALL, "--runs", str(folder)]) == 0
    (path,) = folder.glob("example_weights/*/records.jsonl")
    assert list(path.parent.glob("*.png"))
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_exact_engines_predict_the_same_and_retraining_agrees(records):
    mixed, reverse, _ = (r for r in records if "points" in r)
    for key in ("predicted", "retrained"):
        np.testing.assert_allclose(mixed["points"][key], reverse["points"][key], 1e-9)
    assert mixed["score"] > 0.8
    assert 0.8 < mixed["slope"] < 1.25


def test_kept_states_bound_the_memory(records):
    rows = {r["way"]: r for r in records if "way" in r}
    part = {way: r.get("part_of_plain_reverse") for way, r in rows.items()}
    assert part["Reverse()"] == 1.0
    assert part["Mixed(checkpoints=3)"] < 0.5
    assert part["Reverse(checkpoints=3)"] < 0.5
    assert rows["training (no derivative)"]["times_training"] == 1.0
    assert all(r["seconds"] > 0.0 for r in rows.values())


def test_hand_written_jax_has_the_same_value_and_gradient(records):
    (row,) = (r for r in records if "gradient_difference" in r)
    assert row["value_difference"] < 1e-13
    assert row["gradient_difference"] < 1e-10
    assert row["statements"] < row["statements_by_hand"]
    assert row["temp_bytes"] < 2 * row["temp_bytes_by_hand"]


def test_both_rankings_of_wrong_labels_say_how_many_of_the_first_are_wrong(records):
    # Of a net that has hardly learned: what it finds says nothing, the record does.
    rows = {r["ranked_by"]: r for r in records if "ranked_by" in r}
    assert list(rows) == ["metagradient", "own loss at the end"]
    for row in rows.values():
        found = [row[f"precision_at_{k}"] * k for k in (1, 3, 6)]
        np.testing.assert_allclose(found, np.round(found), atol=1e-12)
        assert found == sorted(found)


def test_the_metagradient_ranks_wrong_labels_above_right_ones():
    # By chance the area under the curve is 0.5 ± 0.07; the reversed ranking has 0.07.
    net = Vision(
        examples=200,
        held_out=200,
        steps=60,
        batch=50,
        channels=4,
        learning_rate=0.1,
    )
    config = example_weights.Config(dtype="float64", vision=net)
    training, wrong = problems.poisoned(config)
    objective = runs.objective(training, net.steps)
    engine = metalr.Mixed(checkpoints=net.steps)
    found = metalr.hypergradient(objective, runs.uniform(training), engine)
    assert found.value < 1.2  # chance: 2.3
    assert score.ranked_above(np.asarray(found.grad), wrong) > 0.85


def test_a_position_of_the_transformer_sees_none_after_it():
    params = text.transformer(jax.random.key(0), 5, 4, 1, "float64")
    tokens = jnp.array([[1, 2, 3, 4, 5]])
    seen = text.logits(params, tokens)
    changed = text.logits(params, tokens.at[0, 3].set(9))
    np.testing.assert_allclose(changed[:, :3], seen[:, :3], rtol=1e-12)
    assert np.abs(changed[:, 3:] - seen[:, 3:]).min(axis=-1).all()


def test_windows_of_text_do_not_overlap_and_labels_follow():
    codes = np.arange(20, dtype=np.int32)
    data = text.windows(codes, 4, 4, seed=0)
    np.testing.assert_array_equal(data.labels, data.inputs + 1)
    assert len(np.unique(data.inputs)) == 16
    with pytest.raises(ConfigError, match="5 windows"):
        text.windows(codes, 4, 5, seed=0)


def test_the_gradient_is_that_of_a_loop_by_hand():
    rng = np.random.default_rng(0)
    data = runs.Data(jnp.array(rng.normal(size=(6, 3))), jnp.array([0, 1, 1, 0, 1, 0]))
    net = (metalr.convnet.Dense(2),)
    training = runs.classification(
        (data, data, data),
        net,
        activation=jnp.tanh,
        optimizer=optax.sgd(0.5, momentum=0.9),
        batch=4,
        steps=3,
        seed=0,
    )

    def loop(weights):
        params, velocity = (
            training.params[0],
            jax.tree.map(jnp.zeros_like, training.params[0]),
        )

        def losses(p, rows):
            logp = jax.nn.log_softmax(data.inputs[rows] @ p["kernel"] + p["bias"])
            return -logp[jnp.arange(len(rows)), data.labels[rows]]

        for start in (0, 4, 8):
            rows = training.order[start : start + 4]
            grads = jax.grad(lambda p, r=rows: jnp.mean(weights[r] * losses(p, r)))(
                params
            )
            velocity = jax.tree.map(lambda g, v: g + 0.9 * v, grads, velocity)
            params = jax.tree.map(lambda p, v: p - 0.5 * v, params, velocity)
        return jnp.mean(losses(params, jnp.arange(6)))

    ones = runs.uniform(training)
    expected, slope = jax.value_and_grad(loop)(ones)
    found = metalr.hypergradient(
        runs.objective(training, 3), ones, metalr.Mixed(checkpoints=2)
    )
    plain = by_hand.metagradient(training, 3, ones)
    for value, grad in (found[:2], plain):
        np.testing.assert_allclose(value, expected, rtol=1e-12)
        np.testing.assert_allclose(grad, slope, rtol=1e-10, atol=1e-14)


def test_the_score_is_a_rank_correlation():
    truth = np.array([1.0, 2.0, 3.0, 10.0])
    assert score.score(np.exp(truth), truth).value == pytest.approx(1.0)
    assert score.score(-truth, truth).value == pytest.approx(-1.0)
    # d² = 0, 1, 1, 0: 1 − 6·2/(4·15)
    swapped = np.array([1.0, 3.0, 2.0, 10.0])
    assert score.score(swapped, truth).value == pytest.approx(0.8)


def test_the_slope_is_that_of_the_line_of_least_squares():
    guess = np.array([1.0, 2.0, 4.0])
    assert score.score(guess, 3.0 * guess - 5.0).slope == pytest.approx(3.0)


def test_guesses_that_are_all_equal_have_no_score():
    assert np.isnan(score.score(np.ones(4), np.arange(4.0))).all()


def test_the_bootstrap_error_of_independent_losses_is_one_over_root_n():
    a, b = np.random.default_rng(0).normal(size=(2, 400))
    assert score.score(a, b).error == pytest.approx(1 / 20, rel=0.15)


def test_the_area_under_roc_counts_pairs():
    scores, wanted = (
        np.array([3.0, 1.0, 2.0, 0.0]),
        np.array([True, True, False, False]),
    )
    assert score.ranked_above(scores, wanted) == 0.75


def test_retrainings_that_are_kept_are_not_made_again(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    weights = jnp.asarray(rng.random((7, 3)))
    made, twice = [], cast("Any", 2.0)

    def values(objective, rows, together):
        made.extend(rows[:, 0].tolist())
        return jnp.sum(rows**2, axis=1) * objective

    monkeypatch.setattr(retraining, "_values", values)
    truth = 2.0 * np.sum(np.asarray(weights) ** 2, axis=1)

    def again(kept):
        made.clear()
        found = retrained(twice, weights, together=2, kept=kept, name="x, 5%")
        np.testing.assert_allclose(found, truth, rtol=1e-12)
        return len(made)

    kept = Kept(tmp_path) / "a run"
    assert again(Kept(None)) == 8  # in pairs: the last one twice
    kept.write("x, 5%", truth[:4])  # what a process that was killed leaves
    assert again(kept) == 4
    assert made[:3] == weights[4:, 0].tolist()
    assert again(kept) == 0
    (tmp_path / "a_run" / "x, 5%.npy").write_bytes(b"cut short")
    assert again(kept) == 8


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot keep results in"):
        Kept(tmp_path / "file").write("x", np.ones(2))


def test_more_examples_than_there_are_is_an_error_that_counts_them():
    config = example_weights.Config(vision=Vision(examples=1397, held_out=1))
    with pytest.raises(ConfigError, match=r"examples \+ held_out = 1398.* 1397 images"):
        problems.vision(config)
    every = example_weights.Config(vision=Vision(examples=None, held_out=97))
    training = problems.vision(every)
    assert len(training.train.labels) == 1300
    assert len(training.held_out.labels) == 97


def test_no_image_is_in_two_parts():
    training = problems.vision(
        example_weights.Config(vision=Vision(examples=50, held_out=30))
    )
    parts = training.train, training.held_out, training.test
    rows = np.concatenate([np.asarray(part.inputs).reshape(-1, 64) for part in parts])
    assert len(np.unique(rows, axis=0)) == len(rows) == 480


def test_images_are_averaged_over_squares_first():
    image = jnp.arange(16.0).reshape(1, 4, 4, 1)
    (first, *_) = runs.layers(2, "max", shrink=2)
    shrunk = metalr.convnet.apply((first,), ((),), image)
    np.testing.assert_allclose(shrunk[0, :, :, 0], [[2.5, 4.5], [10.5, 12.5]])


def test_the_ticks_of_the_horizon_are_the_horizons():
    rows = [
        {
            "table": "cost of x",
            "T": T,
            "way": "a",
            "temp_bytes": T,
            "times_training": 1.0,
        }
        for T in (16, 64, 256)
    ]
    bytes_, times = drawn(rows)["example_weights"].axes
    for panel in (bytes_, times):
        assert [t.get_text() for t in panel.get_xticklabels()] == ["16", "64", "256"]
        assert not len(panel.get_xticks(minor=True))
