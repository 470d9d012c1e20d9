"""Ten learned images: the recipe against plain JAX, and the rows of the experiment."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metalr
from experiments import distillation as experiment
from experiments._command.config import validate
from experiments._settings.images import Labeled
from metalr.convnet import Dense
from metalr.problems import classifier
from tests.helpers import assert_close


def by_hand(hyper, params, images, labels, steps):
    """The loss on real images after T steps on ten others, in plain JAX."""

    def loss(params, x, t):
        (V, c), (W, b) = params
        scores = jnp.maximum(x @ V + c, 0.0) @ W + b
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(scores), t[:, None], 1))

    def step(params, _):
        grads = jax.grad(loss)(params, hyper["images"], jnp.arange(10))
        return jax.tree.map(lambda w, g: w - hyper["rate"] * g, params, grads), None

    return loss(jax.lax.scan(step, params, length=steps)[0], images, labels)


def test_value_and_gradient_are_those_of_plain_jax():
    key = jax.random.key(3)
    images = jax.random.normal(key, (12, 6))
    labels = jnp.arange(12) % 10
    network = classifier((Dense(5), Dense(10)), images, labels)
    params = network.init(key)
    hyper = {
        "images": jax.random.normal(jax.random.key(4), (10, 6)),
        "rate": jnp.array(0.7),
    }
    objective = experiment.unrolled(network, params, Labeled(images, labels), 4)
    pairs = [(layer["kernel"], layer["bias"]) for layer in params]
    hand = lambda hyper: by_hand(hyper, pairs, images, labels, 4)
    value, grad = jax.value_and_grad(hand)(hyper)
    found = metalr.hypergradient(objective, hyper)
    assert_close(found.value, value, rtol=1e-12)
    for name in ("images", "rate"):
        assert_close(found.grad[name], grad[name], rtol=1e-9, atol=1e-13)


@pytest.mark.slow
def test_learned_images_are_better_than_real_ones():
    options = {"steps": [2], "outer_steps": 80, "tests": 3, "rates": 4, "epochs": 3}
    config = validate(
        experiment.Config,
        {"experiment": "distillation", "data": {"samples": 600}, **options},
    )
    records = list(experiment.run(config))
    assert [record["start"] for record in records] == ["fixed", "random"]
    assert len(records) == experiment.size(config)
    fixed = records[0]
    assert fixed["accuracy"] > fixed["ten_real"] + 0.1
    assert fixed["full_training"] > fixed["accuracy"] - 0.05
    assert np.shape(fixed["images"]) == (10, 8, 8)
    assert set(experiment.figures(records)) == {
        "distillation",
        "distillation-images-fixed",
        "distillation-images-random",
    }
    assert "fixed start" in experiment.headline(records)
