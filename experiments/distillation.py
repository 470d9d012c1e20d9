r"""Question: how much of a training set fits into ten images?

One image for each class and one learning rate (its logarithm) are learned, so that T
steps of gradient descent on these ten images alone, full batch, leave a small loss on
real ones. The network starts from one fixed set of weights, or from new ones drawn in
each outer step; the images, from the means of their classes.
Claim: ten learned images train the network to a much higher accuracy than ten real ones
with their own best rate, which is chosen on the test images; training on everything is
better still. The hypergradient is that of hand-written JAX.

`check_hypergrad` (200 of scikit-learn's digits, T = 10, float64) agrees: the engines to
2e-16, finite differences to 1e-9. `diagnose` there finds nothing; 90 % of the
derivative needs all ten steps.

Published, in another setting (all of MNIST, a LeNet, a fixed start): 94 % (Wang, Zhu,
Torralba, Efros 2018, Dataset distillation, arXiv 1811.10959). Here: 4000 images of
MNIST to learn from, 1000 to test on, and a small network by default; `network: lenet`
and `data: {kind: idx, images: …, labels: …}` come closer.
"""

import functools
import sys
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from matplotlib.figure import Figure
from pydantic import PositiveFloat, PositiveInt

import metalr
from experiments._command.experiment import Record
from experiments._distillation import by_hand, figures as drawings
from experiments._distillation.held_against import (
    accuracies,
    best_of_real,
    full_training,
    starts_of,
    ten_real,
)
from experiments._distillation.recipe import NETWORKS, class_means, objective, task
from experiments._settings import outer_loop
from experiments._settings.beside import beside
from experiments._settings.images import ImagesConfig
from metalr.problems.network import NetworkLoss

Start = Literal["fixed", "random"]

_PUBLISHED = "94 % in another setting: all of MNIST, a LeNet"


class Config(ImagesConfig):
    """Options of this experiment."""

    experiment: Literal["distillation"] = "distillation"
    dtype: Literal["float64", "float32"] = "float32"
    network: Literal["mlp", "lenet"] = "mlp"
    starts: tuple[Start, ...] = ("fixed", "random")
    steps: tuple[PositiveInt, ...] = (1, 5, 10, 20, 50)  # T
    outer_steps: PositiveInt = 600
    outer_learning_rate: PositiveFloat = 0.01  # of Adam; decays to 0
    rate: PositiveFloat = 0.05  # where the learned rate starts
    batch: PositiveInt = 500  # real images in each outer step
    tests: PositiveInt = 20  # random starts of a test; draws of ten real images
    epochs: PositiveInt = 30  # of training on everything
    checkpoint_every: PositiveInt = 200


def size(config: Config) -> int:
    """Records that `run` yields."""
    return (len(config.starts) + 1) * len(config.steps)


def run(config: Config) -> Iterator[Record]:
    """Yield what each kind of start and each T gives; then the price of each T."""
    train, test, _ = config.images()
    network = metalr.problems.classifier(
        NETWORKS[config.network], train.images, train.labels
    )
    key = jax.random.key(config.seed)
    known = network.init(key)
    of_all = jax.random.fold_in(key, 4)
    everything = full_training(network, known, test, config.epochs, of_all)
    real = ten_real(network, jax.random.fold_in(key, 3), config.tests)
    for kind in config.starts:
        start = known if kind == "fixed" else None
        starts = starts_of(network, start, jax.random.fold_in(key, 1), config.tests)
        for steps in config.steps:
            learned = distilled(config, network, kind, steps)
            found = accuracies(network, learned.hyper, starts, test, steps)
            of_real, best = best_of_real(network, real, starts, test, steps)
            yield {
                "table": f"test accuracy; published: {_PUBLISHED}",
                "start": kind,
                "T": steps,
                "accuracy": float(jnp.mean(found)),
                "accuracy_spread": float(jnp.std(found)),
                "ten_real": float(jnp.mean(of_real)),
                "ten_real_spread": float(jnp.std(of_real)),
                "full_training": everything,
                "rate": float(learned.hyper["rate"]),
                "rate_real": best,
                "loss": float(learned.value),
                "images": learned.hyper["images"][..., 0].tolist(),
                "history": learned.history.value.tolist(),
            }
    for steps in config.steps:
        yield {
            "table": "an outer step beside hand-written JAX, the same draw",
            "T": steps,
            **price(config, network, known, steps),
        }


def distilled(
    config: Config, network: NetworkLoss, kind: Start, steps: int
) -> metalr.Learned:
    """Learn ten images, from the means of their classes, and a rate."""
    start = network.init(jax.random.key(config.seed)) if kind == "fixed" else None

    def make(key: jax.Array) -> metalr.Unrolled:
        return objective(network, task(network, start, config.batch, key), steps)

    decay = optax.cosine_decay_schedule(config.outer_learning_rate, config.outer_steps)
    return outer_loop.learn(
        sys.modules[__name__],
        config,
        f"{kind} start, T = {steps}",
        make,
        beginning(config, network),
        key=jax.random.fold_in(jax.random.key(config.seed), 2),
        outer_optimizer=optax.chain(optax.clip_by_global_norm(1.0), optax.adam(decay)),
        steps=config.outer_steps,
        log={"images": False, "rate": True},
        every=config.checkpoint_every,
    )


def beginning(config: Config, network: NetworkLoss) -> dict[str, jax.Array]:
    """The means of the classes, and a rate."""
    rate = jnp.asarray(config.rate, network.inputs.dtype)
    return {"images": class_means(network), "rate": rate}


def price(config: Config, network: NetworkLoss, start: Any, steps: int) -> Record:
    """The first hypergradient of the fixed start, both ways."""
    key = jax.random.fold_in(jax.random.key(config.seed), 5)
    drawn = task(network, start, config.batch, key)

    def ours(hyper: Any) -> tuple[jax.Array, Any]:
        found = metalr.hypergradient(objective(network, drawn, steps), hyper)
        return found.value, found.grad

    theirs = functools.partial(by_hand.hypergradient, network, drawn=drawn, steps=steps)
    return beside(
        jax.jit(ours),
        jax.jit(theirs),
        beginning(config, network),
        written=[objective],
        by_hand=[by_hand.hypergradient],
    )


def headline(records: Sequence[Record]) -> str:
    """The best row of each kind of start."""
    rows = [record for record in records if "accuracy" in record]
    parts = []
    for kind in dict.fromkeys(row["start"] for row in rows):
        own = [row for row in rows if row["start"] == kind]
        best = max(own, key=lambda row: row["accuracy"])
        parts.append(
            f"{kind} start: {best['accuracy']:.3f} against {best['ten_real']:.3f}"
        )
    return (
        f"ten learned images against ten real ones, {'; '.join(parts)}; "
        f"all images: {rows[0]['full_training']:.3f}"
    )


def figures(records: Sequence[Record]) -> dict[str, Figure]:
    """Accuracy against T, and the ten images of the longest run of each start."""
    rows = [record for record in records if "accuracy" in record]
    drawn = {"distillation": drawings.curves(rows)} if rows else {}
    for kind in dict.fromkeys(row["start"] for row in rows):
        last = [row for row in rows if row["start"] == kind][-1]
        drawn[f"distillation-images-{kind}"] = drawings.pictures(last)
    return drawn


if __name__ == "__main__":
    from experiments._command.cli import module_main

    raise SystemExit(module_main("distillation"))
