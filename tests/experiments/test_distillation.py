"""Ten learned images: the recipe against plain JAX, and the rows of the experiment."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metalr
from experiments import distillation as experiment
from experiments._command.config import ConfigError, validate
from experiments._command.experiment import kept_in
from experiments._distillation import by_hand, held_against, recipe
from experiments._settings.images import Labeled
from metalr.convnet import Dense
from metalr.problems import classifier
from tests.helpers import assert_close


def config(**options):
    base = {"experiment": "distillation", "data": {"samples": 600}, "tests": 3}
    return validate(experiment.Config, base | options)


@pytest.fixture
def small(key):
    """A network of two layers, its weights, twelve images; where learning starts."""
    images = jax.random.normal(key, (12, 6))
    network = classifier((Dense(5), Dense(10)), images, jnp.arange(12) % 10)
    start = {"images": jax.random.normal(jax.random.key(4), (10, 6)), "rate": 0.7}
    return network, network.init(key), start


def explicit(network, hyper, params, images, labels, steps):
    """The loss on real images after T steps on ten others: the net written out."""

    def loss(params, x, t):
        (V, c), (W, b) = params
        scores = jnp.maximum(x @ V + c, 0.0) @ W + b
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(scores), t[:, None], 1))

    for _ in range(steps):
        grads = jax.grad(loss)(params, hyper["images"], jnp.arange(10))
        params = jax.tree.map(lambda w, g: w - hyper["rate"] * g, params, grads)
    return loss(params, images, labels)


def test_value_and_gradient_are_those_of_plain_jax(small):
    network, params, hyper = small
    hyper = jax.tree.map(jnp.asarray, hyper)
    drawn = recipe.Task(params, Labeled(network.inputs, network.labels))
    pairs = [(layer["kernel"], layer["bias"]) for layer in params]
    hand = lambda hyper: explicit(network, hyper, pairs, *drawn.real, 4)
    value, grad = jax.value_and_grad(hand)(hyper)
    ours = metalr.hypergradient(recipe.objective(network, drawn, 4), hyper)
    for found in (ours, by_hand.hypergradient(network, hyper, drawn, 4)):
        assert_close(found[0], value, rtol=1e-12)
        for name in ("images", "rate"):
            assert_close(found[1][name], grad[name], rtol=1e-9, atol=1e-13)


def test_learning_begins_with_the_means_of_the_classes(small):
    network, _, _ = small
    of_class = [network.inputs[network.labels == label].mean(0) for label in range(10)]
    assert_close(recipe.class_means(network), jnp.stack(of_class), rtol=1e-12)


def test_ten_real_images_are_one_of_each_class(small):
    network, _, _ = small
    images = held_against.ten_real(network, jax.random.key(1), 5)
    place = lambda x: int(jnp.all(network.inputs == x, axis=1).argmax())
    rows = [[place(x) for x in ten] for ten in images]
    assert np.array_equal(network.labels[np.array(rows)], [range(10)] * 5)
    assert len({row[0] for row in rows}) == 2  # class 0 has two images: both are drawn


def test_starts_are_new_ones_or_the_one_that_is_known(small):
    network, params, _ = small
    key = jax.random.key(2)
    drawn = held_against.starts_of(network, None, key, 2)
    known = held_against.starts_of(network, params, key, 2)
    assert_close(jax.tree.map(lambda x: x[1], known), params, rtol=0)
    first, second = (drawn[0]["kernel"][i] for i in (0, 1))
    assert not np.allclose(first, second)


def test_a_wrong_key_is_named():
    with pytest.raises(ConfigError, match="image = 10: unknown key"):
        config(image=10)


@pytest.mark.slow
def test_learned_images_are_better_than_real_ones(tmp_path):
    options = {"steps": [2], "outer_steps": 80, "epochs": 40, "rate": 0.3}
    options |= {"starts": ["fixed"], "outer_learning_rate": 0.05}
    chosen = config(**options)
    with kept_in(tmp_path):
        records = list(experiment.run(chosen))
        assert len(records) == experiment.size(chosen) == 2
        fixed, price = records
        again = next(iter(experiment.run(chosen)))  # from its checkpoint
    assert again == fixed
    assert fixed["history"][-1] < 0.8 * fixed["history"][0]
    assert fixed["accuracy"] > fixed["ten_real"]
    assert 0.5 < fixed["full_training"] <= 1.0
    assert np.shape(fixed["images"]) == (10, 8, 8)
    assert price["value_difference"] < 1e-6
    assert price["gradient_difference"] < 1e-5  # float32
    assert set(experiment.figures(records)) == {
        "distillation",
        "distillation-images-fixed",
    }
    assert "fixed start" in experiment.headline(records)
