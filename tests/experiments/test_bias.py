"""The experiments on implicit bias and conv nets make good on their claims."""

import numpy as np
import pytest

from experiments import (
    convnet_memory,
    edges,
    implicit_bias,
    network_size,
    receptive_field,
)
from experiments._command.config import ConfigError, validate
from experiments._settings.networks import ConvLayer, DenseLayer, PoolLayer


@pytest.mark.slow
def test_gradient_methods_end_at_minimum_norm_and_sign_methods_do_not():
    config = implicit_bias.Config(
        optimizers=("sgd", "momentum", "adagrad", "adam"),
        examples=((1.0, 1.0), (1.0, 2.0)),
    )
    records = list(implicit_bias.run(config))
    assert len(records) == implicit_bias.size(config)
    assert all(r["converged"] for r in records)
    for r in records:
        gradient = r["optimizer"] in {"sgd", "momentum"}
        near = r["distance_to_min_norm"] < 1e-4
        assert near == (gradient or r.get("x") == [1.0, 1.0])
        if gradient:
            assert r["row_space_residual"] < 1e-13
        if "x" in r:
            assert r["distance_to_prediction"] < 1e-5
    assert set(implicit_bias.figures(records)) == {"implicit_bias"}


def test_a_constant_training_target_is_an_error():
    with pytest.raises(ConfigError, match="raise train"):
        list(implicit_bias.run(implicit_bias.Config(train=8)))


def test_too_many_training_examples_are_an_error():
    with pytest.raises(ConfigError, match="Lower train or raise degree"):
        list(implicit_bias.run(implicit_bias.Config(train=64)))


def test_the_size_table_agrees_with_the_published_totals_and_with_jax():
    records = list(network_size.run(network_size.Config()))
    layers = [r for r in records if "agrees_with_jax" in r]
    totals = [r for r in records if "agrees" in r]
    assert len(layers) == 10  # nine, and their total
    assert len(totals) == 3
    assert len(layers) + len(totals) == len(records)
    assert all(r["agrees_with_jax"] for r in layers)
    assert all(r["agrees"] for r in totals)
    assert [r["counted"] for r in records[-3:]] == [
        r["published"] for r in records[-3:]
    ]
    assert set(network_size.figures(records)) == {"network_size"}


def test_a_description_is_read_and_a_wrong_one_is_named():
    content = {
        "experiment": "network_size",
        "input_shape": [8, 8, 1],
        "layers": [{"conv": 4, "kernel": 3}, {"pool": 9}, {"dense": 2}],
        "published": {},
    }
    config = validate(network_size.Config, content)
    kinds = [type(layer) for layer in config.layers]
    assert kinds == [ConvLayer, PoolLayer, DenseLayer]
    with pytest.raises(ConfigError, match=r"layer 1 \(max-pool\)"):
        list(network_size.run(config))
    content["layers"] = [{"convolution": 4}]
    with pytest.raises(ConfigError, match=r"layers\.0"):
        validate(network_size.Config, content)


def test_the_image_is_recovered_and_every_filter_shown():
    records = list(edges.run(edges.Config(picture="digit")))
    recovery = next(r for r in records if "recovery_error" in r)
    assert recovery["recovery_error"] < 1e-13
    np.testing.assert_allclose(
        recovery["smallest_singular_value"], 4 - 4 * np.cos(np.pi / 6), rtol=1e-13
    )
    assert [r["output"] for r in records[:1]] == [" -1   2   2  -2   0"]
    assert set(edges.figures(records)) == {"edges", "filters"}


def test_formula_and_jacobian_agree_for_every_change():
    records = list(receptive_field.run(receptive_field.Config()))
    assert all(r["formula"] == r["jacobian"] for r in records)
    assert len({r["formula"] for r in records}) > 3
    assert set(receptive_field.figures(records)) == {"receptive_field"}


@pytest.mark.slow
def test_memory_is_affine_in_the_batch_and_above_the_prediction():
    tiny = (ConvLayer(conv=4, kernel=3), DenseLayer(dense=3))
    config = convnet_memory.Config(
        networks={"tiny": tiny}, input_shape=(16, 16, 1), batches=(16, 32, 64)
    )
    *rows, slope = convnet_memory.run(config)
    sizes = [r["hypergradient_MB"] for r in rows]
    assert sizes[0] < sizes[1] < sizes[2]
    np.testing.assert_allclose(sizes[2] - sizes[1], 2 * (sizes[1] - sizes[0]), rtol=0.1)
    assert slope["ratio"] >= 1.0
    assert set(convnet_memory.figures(rows)) == {"convnet_memory"}
