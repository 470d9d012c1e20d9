r"""Question: how much of a training set fits into ten images?

One image for each class and one learning rate (its logarithm) are learned, so that T
steps of gradient descent on these ten images alone, full batch, leave a small loss on
real ones. The network starts from one fixed set of weights, or from new ones drawn in
each outer step.
Claim: ten learned images train the network to a much higher accuracy than ten real ones
with their own best rate, most of all from a known start; training on everything is
better still.

Published, in another setting (all of MNIST, a LeNet, a fixed start): 94 % (Wang, Zhu,
Torralba, Efros 2018, Dataset distillation). Here: 4000 images of MNIST to learn from,
1000 to test on, and a small network by default; `network: lenet` and `data: {kind: idx,
images: …, labels: …}` come closer.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial
from matplotlib.figure import Figure
from pydantic import PositiveFloat, PositiveInt

import metalr
from experiments._command.experiment import Record
from experiments._report.style import panels
from experiments._settings.images import ImagesConfig, Labeled
from metalr.convnet import Conv, Dense, Pool
from metalr.problems.network import NetworkLoss

Start = Literal["fixed", "random"]
NETWORKS = {
    "mlp": (Dense(64), Dense(10)),
    "lenet": (
        *(Conv(6, 5), Pool(2), Conv(16, 5), Pool(2)),
        *(Dense(120), Dense(84), Dense(10)),
    ),
}


class Config(ImagesConfig):
    """Options of this experiment."""

    experiment: Literal["distillation"] = "distillation"
    dtype: Literal["float64", "float32"] = "float32"
    network: Literal["mlp", "lenet"] = "mlp"
    starts: tuple[Start, ...] = ("fixed", "random")
    steps: tuple[PositiveInt, ...] = (1, 5, 10, 20, 50)
    outer_steps: PositiveInt = 800
    outer_learning_rate: PositiveFloat = 0.3  # of Adam
    rate: PositiveFloat = 0.3  # where the learned rate starts
    spread: PositiveFloat = 0.05  # deviation of the pixels where they start
    batch: PositiveInt = 500  # real images in each outer step
    tests: PositiveInt = 20  # random starts of a test; draws of ten real images
    rates: PositiveInt = 13  # tried for the ten real images, in [1e-3, 1]
    epochs: PositiveInt = 30  # of training on everything


def size(config: Config) -> int:
    """Records that `run` yields."""
    return len(config.starts) * len(config.steps)


def run(config: Config) -> Iterator[Record]:
    """Yield a record for each kind of start and number of steps."""
    train, test, _ = config.images()
    network = metalr.problems.classifier(
        NETWORKS[config.network], train.images, train.labels
    )
    everything = full_training(config, network, test)
    key = jax.random.key(config.seed)
    for kind in config.starts:
        start = network.init(key) if kind == "fixed" else None
        for steps in config.steps:
            learned = distill(config, network, start, steps)
            draws = starts_of(network, start, jax.random.fold_in(key, 1), config.tests)
            found = accuracies(network, learned.hyper, draws, test, steps)
            real, best = real_images(config, network, draws, test, steps)
            yield {
                "start": kind,
                "T": steps,
                "accuracy": float(jnp.mean(found)),
                "spread": float(jnp.std(found)),
                "ten_real": float(jnp.mean(real)),
                "ten_real_spread": float(jnp.std(real)),
                "full_training": everything,
                "rate": float(learned.hyper["rate"]),
                "rate_real": best,
                "loss": float(learned.value),
                "images": learned.hyper["images"][..., 0].tolist(),
                "history": learned.history.value.tolist(),
            }


# The recipe.


def on_images(network: NetworkLoss, params: Any, hyper: Any, batch: Any) -> jax.Array:
    """The inner loss: cross-entropy on the learned images."""
    del batch
    labels = jnp.arange(10)
    return cross_entropy(network, Labeled(hyper["images"], labels), params, hyper)


def cross_entropy(
    network: NetworkLoss, data: Labeled, params: Any, hyper: Any
) -> jax.Array:
    """The outer loss, on real images."""
    del hyper
    logits = network.apply(params, data.images)
    return jnp.mean(
        optax.softmax_cross_entropy_with_integer_labels(logits, data.labels)
    )


def descent(hyper: Any) -> optax.GradientTransformation:
    """Gradient descent at the learned rate."""
    return optax.sgd(hyper["rate"])


def unrolled(
    network: NetworkLoss, start: Any, data: Labeled, steps: int
) -> metalr.Unrolled:
    """The loss on real data after T steps on the learned images."""
    return metalr.Unrolled(
        Partial(on_images, network),
        descent,
        start,
        steps=steps,
        outer_loss=Partial(cross_entropy, network, data),
    )


def distill(
    config: Config, network: NetworkLoss, start: Any, steps: int
) -> metalr.Learned:
    """Learn ten images and a rate; a batch of real ones in each outer step."""
    first, outer = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 2))

    def make(key: jax.Array) -> metalr.Unrolled:
        init_key, batch_key = jax.random.split(key)
        count = (min(config.batch, len(network.labels)),)
        rows = jax.random.randint(batch_key, count, 0, len(network.labels))
        data = Labeled(network.inputs[rows], network.labels[rows])
        params = network.init(init_key) if start is None else start
        return unrolled(network, params, data, steps)

    shape, dtype = (10, *network.inputs.shape[1:]), network.inputs.dtype
    images = config.spread * jax.random.normal(first, shape, dtype)
    decay = optax.cosine_decay_schedule(config.outer_learning_rate, config.outer_steps)
    return metalr.learn(
        make,
        {"images": images, "rate": jnp.asarray(config.rate, dtype)},
        key=outer,
        outer_optimizer=optax.chain(optax.clip_by_global_norm(1.0), optax.adam(decay)),
        steps=config.outer_steps,
        log={"images": False, "rate": True},
        history="scalars",
    )


# What it is held against.


def starts_of(network: NetworkLoss, start: Any, key: jax.Array, count: int) -> Any:
    """Starts for a test, along a leading axis: new ones, or the one that is known."""
    if start is None:
        return jax.vmap(network.init)(jax.random.split(key, count))
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape)), start)


def accuracies(
    network: NetworkLoss, hyper: Any, draws: Any, test: Labeled, steps: int
) -> jax.Array:
    """Test accuracy after training on given images from each start."""

    def one(start: Any) -> jax.Array:
        params = unrolled(network, start, test, steps).final_params(hyper)
        return network.accuracy(params, test.images, test.labels)

    return jax.lax.map(one, draws)


def real_images(
    config: Config, network: NetworkLoss, draws: Any, test: Labeled, steps: int
) -> tuple[jax.Array, float]:
    """The same with ten real images, drawn for each start, and the best of many rates.

    The rate is chosen by the accuracy on the tests themselves, in their favor.
    """
    key = jax.random.fold_in(jax.random.key(config.seed), 3)
    order = jax.vmap(lambda key: jax.random.permutation(key, len(network.labels)))(
        jax.random.split(key, config.tests)
    )
    first = lambda rows: jax.vmap(
        lambda label: rows[jnp.argmax(network.labels[rows] == label)]
    )(jnp.arange(10))
    images = network.inputs[jax.vmap(first)(order)]

    def at(rate: jax.Array) -> jax.Array:
        def one(case: Any) -> jax.Array:
            start, ten = case
            params = unrolled(network, start, test, steps).final_params(
                {"images": ten, "rate": rate}
            )
            return network.accuracy(params, test.images, test.labels)

        return jax.lax.map(one, (draws, images))

    rates = jnp.logspace(-3.0, 0.0, config.rates, dtype=images.dtype)
    found = jax.jit(lambda rates: jax.lax.map(at, rates))(rates)
    best = int(jnp.argmax(jnp.mean(found, axis=1)))
    return found[best], float(rates[best])


def full_training(config: Config, network: NetworkLoss, test: Labeled) -> float:
    """Test accuracy after Adam on all images, in batches of 64."""
    key = jax.random.key(config.seed)
    n, batch = len(network.labels), 64
    draw = lambda key, index: jax.random.randint(
        jax.random.fold_in(key, index), (batch,), 0, n
    )
    training = metalr.Unrolled(
        network,
        optax.adam,
        network.init(key),
        steps=max(1, config.epochs * n // batch),
        batches=Partial(draw, jax.random.fold_in(key, 4)),
    )
    params = training.final_params(jnp.asarray(1e-3, network.inputs.dtype))
    return float(network.accuracy(params, test.images, test.labels))


def headline(records: Sequence[Record]) -> str:
    """The best row of each kind of start."""
    parts = []
    for kind in dict.fromkeys(record["start"] for record in records):
        rows = [record for record in records if record["start"] == kind]
        best = max(rows, key=lambda record: record["accuracy"])
        parts.append(
            f"{kind} start: {best['accuracy']:.3f} against {best['ten_real']:.3f}"
        )
    everything = records[0]["full_training"]
    return (
        f"ten learned images against ten real ones, {'; '.join(parts)}; "
        f"all images: {everything:.3f}"
    )


def figures(records: Sequence[Record]) -> dict[str, Figure]:
    """Accuracy against T, and the ten images of the longest run of each start."""
    kinds = list(dict.fromkeys(record["start"] for record in records))
    curves, axes = panels(len(kinds))
    drawn = {"distillation": curves}
    for panel, kind in zip(axes, kinds, strict=True):
        rows = [record for record in records if record["start"] == kind]
        steps = [row["T"] for row in rows]
        for name, spread in (("accuracy", "spread"), ("ten_real", "ten_real_spread")):
            panel.errorbar(
                steps,
                [row[name] for row in rows],
                [row[spread] for row in rows],
                marker="o",
                capsize=2,
                label={"accuracy": "ten learned", "ten_real": "ten real"}[name],
            )
        everything = rows[0]["full_training"]
        panel.axhline(everything, color="black", linestyle=":", label="all images")
        panel.set(xscale="log", xlabel="inner steps T", ylabel="test accuracy")
        panel.set_title(f"{kind} start", fontsize=9)
        panel.legend(fontsize=8)
        drawn[f"distillation-images-{kind}"] = _images(rows[-1])
    return drawn


def _images(row: Record) -> Figure:
    """The ten images side by side."""
    figure = Figure(figsize=(9.2, 1.4))
    figure.suptitle(f"learned images, {row['start']} start, T = {row['T']}", fontsize=9)
    for axes, image in zip(figure.subplots(1, 10), row["images"], strict=True):
        axes.imshow(image, cmap="gray")
        axes.set_axis_off()
    return figure


if __name__ == "__main__":
    from experiments._command.cli import module_main

    raise SystemExit(module_main("distillation"))
