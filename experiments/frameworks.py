r"""Question: does a model of flax, equinox or haiku learn as its plain functions do?

A rate and a weight for every training example are learned through momentum SGD on
minibatches of digits, with dropout (its keys are in the batches) and, in flax, batch
norm (its statistics are `model_state`). The model is taken apart as its framework
does it, and held against the same model as plain functions, with the same parameters,
batches and keys. Claim: value, both hypergradients, the trained parameters and what
`learn` finds agree to 1e-6, but for `nnx.BatchNorm` as it is shipped: it stops the
gradient of its running statistics, so that the value is the same and the hypergradient
is not (a layer without the stop is in the recipe).

`check_hypergrad` says of it (5 steps): differs, the model_state that the loss returns
has derivatives of its own (stop_gradient); of flax linen: agrees, to 1e-10 of finite
differences.
"""

import importlib
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from pydantic import PositiveFloat, PositiveInt

import metalr
from experiments._command.experiment import ConfigError, ExperimentConfig, Record
from experiments._frameworks import plain
from experiments._frameworks.model import Model, Shape
from experiments._report.style import panels

Name: TypeAlias = Literal[
    "flax_nnx", "flax_nnx_as_shipped", "flax_linen", "equinox", "haiku"
]


class Recipe(NamedTuple):
    """Where a framework's model is made, and what that takes."""

    module: str
    package: str
    distribution: str  # the package's name for pip
    function: str = "model"


RECIPES: dict[Name, Recipe] = {
    "flax_nnx": Recipe("flax_nnx", "flax", "flax"),
    "flax_nnx_as_shipped": Recipe("flax_nnx", "flax", "flax", "as_shipped"),
    "flax_linen": Recipe("flax_linen", "flax", "flax"),
    "equinox": Recipe("equinox_model", "equinox", "equinox"),
    "haiku": Recipe("haiku_model", "haiku", "dm-haiku"),
}


class Config(ExperimentConfig):
    """Options of this experiment."""

    experiment: Literal["frameworks"] = "frameworks"
    frameworks: tuple[Name, ...] = get_args(Name)
    examples: PositiveInt = 300  # half of them held out
    batch: PositiveInt = 32
    steps: PositiveInt = 30
    rate: PositiveFloat = 0.05
    outer_steps: PositiveInt = 20
    outer_rate: PositiveFloat = 0.03  # of Adam
    hidden: PositiveInt = 16


class Digits(NamedTuple):
    """Images as rows, and labels."""

    inputs: jax.Array
    labels: jax.Array


class Batch(NamedTuple):
    """Rows of a step, and the key of its dropout."""

    rows: jax.Array
    key: jax.Array


def size(config: Config) -> int:
    """Records that `run` yields."""
    return len(config.frameworks)


def run(config: Config) -> Iterator[Record]:
    """Yield one record a framework."""
    for name in config.frameworks:  # all of them, before anything runs
        package(name)
    training, held_out = digits(config)
    for name in config.frameworks:
        shape = Shape(training.inputs.shape[1], config.hidden)
        model = made(name, shape, config)
        both = model, plain.model(model, shape)
        found = [learned(model, config, training, held_out) for model in both]
        yield {
            "framework": name,
            "version": package(name).__version__,
            "state": "none" if model.state is None else "batch norm",
            **differences(*found),
            "learned_rate": float(found[0].outer.hyper["rate"]),
            "value_before": float(found[0].value),
            "value_after": float(found[0].outer.value),
            "weights": np.asarray(found[0].grad["weights"]).tolist(),
            "weights_plain": np.asarray(found[1].grad["weights"]).tolist(),
        }


def package(name: Name) -> Any:
    """The framework.

    Raises:
        ConfigError: if it is not installed, naming it.
    """
    recipe = RECIPES[name]
    try:
        return importlib.import_module(recipe.package)
    except ModuleNotFoundError as error:
        msg = (
            f"frameworks: {name} needs {recipe.distribution}, which is not installed: "
            "pip install 'metalr[models]', or leave it out"
        )
        raise ConfigError(msg) from error


def made(name: Name, shape: Shape, config: Config) -> Model:
    """The model of a framework in the dtype of the run."""
    recipe = RECIPES[name]
    module = importlib.import_module(f"experiments._frameworks.{recipe.module}")
    model = getattr(module, recipe.function)(shape, config.seed)
    cast = lambda leaf: jnp.asarray(leaf, config.dtype)
    return model._replace(
        params=jax.tree.map(cast, model.params),
        state=jax.tree.map(cast, model.state),
    )


class Found(NamedTuple):
    """What one model gives."""

    value: jax.Array
    grad: Any
    params: Any
    outer: metalr.Learned


def learned(model: Model, config: Config, training: Digits, held_out: Digits) -> Found:
    """Value, hypergradient and end of the run; and a short outer loop."""
    run = objective(model, config, training, held_out)
    hyper = {
        "rate": jnp.asarray(config.rate, config.dtype),
        "weights": jnp.ones(len(training.labels), config.dtype),
    }
    value, grad = metalr.hypergradient(run, hyper)
    outer = metalr.learn(
        run,
        hyper,
        outer_optimizer=optax.adam(config.outer_rate),
        steps=config.outer_steps,
        log={"rate": True, "weights": False},
    )
    return Found(value, grad, model.to_plain(run.final_params(hyper)), outer)


def objective(
    model: Model, config: Config, training: Digits, held_out: Digits
) -> metalr.Unrolled:
    """The held-out cross-entropy after training, of rate and example weights."""
    sample, drop = jax.random.split(jax.random.key(config.seed))
    rows = jax.random.randint(
        sample, (config.steps, config.batch), 0, len(training.labels)
    )
    stateful = model.state is not None

    def loss(params: Any, hyper: Any, batch: Batch, state: Any = None) -> Any:
        inputs, labels = jax.tree.map(lambda x: x[batch.rows], training)
        logits, state = model.logits(params, state, inputs, batch.key)
        value = jnp.mean(hyper["weights"][batch.rows] * entropy(logits, labels))
        return (value, state) if stateful else value

    def outer_loss(params: Any, hyper: Any, state: Any = None) -> jax.Array:
        del hyper
        logits, _ = model.logits(params, state, held_out.inputs, None)
        return jnp.mean(entropy(logits, held_out.labels))

    return metalr.Unrolled(
        loss,
        momentum,
        model.params,
        steps=config.steps,
        batches=Batch(rows, jax.random.split(drop, config.steps)),
        # By the number of parameters, the loss of a model with state or without it.
        outer_loss=outer_loss if stateful else partial(outer_loss, state=None),
        model_state=model.state,
    )


entropy = optax.softmax_cross_entropy_with_integer_labels


def momentum(hyper: Any) -> optax.GradientTransformation:
    """SGD of the learned rate."""
    return optax.sgd(hyper["rate"], 0.9)


def differences(ours: Found, plain: Found) -> dict[str, float]:
    """The largest relative difference of each result."""
    return {
        "value_difference": apart(ours.value, plain.value),
        "rate_difference": apart(ours.grad["rate"], plain.grad["rate"]),
        "weights_difference": apart(ours.grad["weights"], plain.grad["weights"]),
        "params_difference": apart(ours.params, plain.params),
        "learned_difference": apart(ours.outer.hyper, plain.outer.hyper),
    }


def apart(ours: Any, plain: Any) -> float:
    """The norm of the difference over the norm."""
    difference = optax.tree.norm(optax.tree.sub(ours, plain))
    return float(difference / optax.tree.norm(plain))


def digits(config: Config) -> tuple[Digits, Digits]:
    """The first examples of scikit-learn's digits, for training and held out."""
    from sklearn.datasets import load_digits

    inputs, labels = load_digits(return_X_y=True)
    if config.examples > len(labels):
        msg = f"examples = {config.examples}: the data has only {len(labels)}"
        raise ConfigError(msg)
    half = config.examples // 2
    inputs, labels = jnp.asarray(inputs / 16.0, config.dtype), jnp.asarray(labels)
    parts = [slice(0, half), slice(half, config.examples)]
    training, held_out = (Digits(inputs[part], labels[part]) for part in parts)
    return training, held_out


def figures(records: Sequence[Record]) -> dict[str, Figure]:
    """The derivative by every example's weight: framework against plain functions."""
    columns = min(3, len(records))
    figure, axes = panels(columns, -(-len(records) // columns))
    for axis in axes[len(records) :]:
        axis.set_axis_off()
    for axis, record in zip(axes, records, strict=False):
        axis.plot(record["weights_plain"], record["weights"], ".", markersize=4)
        axis.axline((0, 0), slope=1, color="black", linewidth=0.6)
        axis.set(
            xlabel="∂L/∂w, plain functions", ylabel=f"∂L/∂w, {record['framework']}"
        )
        worst = record["weights_difference"]
        axis.set_title(f"{record['framework']}: within {worst:.0e}", fontsize=8)
    return {"frameworks": figure}


def headline(records: Sequence[Record]) -> str:
    """The largest difference of all but the one that stops a gradient."""
    rows = [r for r in records if r["framework"] != "flax_nnx_as_shipped"]
    each = [v for r in rows for k, v in r.items() if k.endswith("_difference")]
    return f"{len(rows)} models within {max(each, default=0.0):.0e} of plain functions"


if __name__ == "__main__":
    from experiments._command.cli import module_main

    raise SystemExit(module_main("frameworks"))
