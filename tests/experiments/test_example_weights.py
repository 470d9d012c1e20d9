"""Metagradients of example weights against retrainings, small."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metalr
from experiments._command import cli
from experiments._command.errors import ConfigError
from experiments._example_weights import runs, score, text

SMALL = [
    "vision={examples: 60, held_out: 40, steps: 24, batch: 30, channels: 2}",
    "text=null",
    "parts=[score, poison, memory]",
    "retrainings=8",
    "left_out=[0.05]",
    "checkpoints=3",
]


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    assert cli.module_main("example_weights", [*SMALL, "--runs", str(folder)]) == 0
    (path,) = folder.glob("example_weights/*/records.jsonl")
    assert list(path.parent.glob("*.png"))
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_exact_engines_predict_the_same_and_retraining_agrees(records):
    mixed, reverse, _ = (r for r in records if "score" in r)
    for key in ("predicted", "retrained"):
        np.testing.assert_allclose(mixed["points"][key], reverse["points"][key], 1e-9)
    assert mixed["score"] > 0.8
    assert 0.8 < mixed["slope"] < 1.25


def test_kept_states_bound_the_memory(records):
    rows = {r["way"]: r["part_of_plain_reverse"] for r in records if "temp_bytes" in r}
    assert rows["Reverse()"] == 1.0
    assert rows["Mixed(checkpoints=3)"] < 0.5
    assert rows["Reverse(checkpoints=3)"] < 0.5


def test_wrong_labels_are_ranked_above_others(records):
    (row,) = (r for r in records if r.get("ranked by") == "metagradient")
    assert row["area_under_roc"] > 0.6


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

    def by_hand(weights):
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
    expected, slope = jax.value_and_grad(by_hand)(ones)
    found = metalr.hypergradient(
        runs.objective(training, 3), ones, metalr.Mixed(checkpoints=2)
    )
    np.testing.assert_allclose(found.value, expected, rtol=1e-12)
    np.testing.assert_allclose(found.grad, slope, rtol=1e-10, atol=1e-14)


def test_the_score_is_a_rank_correlation():
    truth = np.array([1.0, 2.0, 3.0, 10.0])
    assert score.score(np.exp(truth), truth).value == pytest.approx(1.0)
    assert score.score(-truth, truth).value == pytest.approx(-1.0)
    # d² = 0, 1, 1, 0: 1 − 6·2/(4·15)
    swapped = np.array([1.0, 3.0, 2.0, 10.0])
    assert score.score(swapped, truth).value == pytest.approx(0.8)


def test_the_bootstrap_error_of_independent_losses_is_one_over_root_n():
    a, b = np.random.default_rng(0).normal(size=(2, 400))
    assert score.score(a, b).error == pytest.approx(1 / 20, rel=0.15)


def test_the_area_under_roc_counts_pairs():
    scores, wanted = (
        np.array([3.0, 1.0, 2.0, 0.0]),
        np.array([True, True, False, False]),
    )
    assert score.ranked_above(scores, wanted) == 0.75
