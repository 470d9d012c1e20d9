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
from types import ModuleType
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from pydantic import PositiveFloat, PositiveInt

import metalr
from experiments._command.experiment import ConfigError, ExperimentConfig, Record
from experiments._frameworks import plain
from experiments._frameworks.figures import figures
from experiments._frameworks.model import Model, Shape
from experiments._frameworks.problem import Digits, digits, objective
from experiments._settings.beside import (
    InTurns,
    difference,
    in_turns,
    own_statements,
)

__all__ = ["Config", "figures", "headline", "run", "size"]

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


def size(config: Config) -> int:
    """Records that `run` yields."""
    return len(config.frameworks)


def run(config: Config) -> Iterator[Record]:
    """Yield one record a framework."""
    for name in config.frameworks:  # all of them, before anything runs
        package(name)
    training, held_out = digits(config.examples, config.dtype)
    for name in config.frameworks:
        shape = Shape(training.inputs.shape[1], config.hidden)
        model = made(name, shape, config)
        both = model, plain.model(model, shape)
        runs = [
            objective(
                one,
                training,
                held_out,
                steps=config.steps,
                batch=config.batch,
                seed=config.seed,
            )
            for one in both
        ]
        turns = hypergradients(runs, start(config, training))
        found = [
            learned(one, run, config, training, gradient)
            for one, run, gradient in zip(both, runs, turns[:2], strict=True)
        ]
        yield {
            "framework": name,
            "version": package(name).__version__,
            "state": "none" if model.state is None else "batch norm",
            **differences(*found),
            "learned_rate": float(found[0].outer.hyper["rate"]),
            "value_before": float(found[0].value),
            "value_after": float(found[0].outer.value),
            "milliseconds": 1e3 * turns.seconds,
            "milliseconds_by_hand": 1e3 * turns.seconds_by_hand,
            "cost_ratio": turns.seconds / turns.seconds_by_hand,
            "statements": own_statements(recipe(name)),
            "statements_by_hand": own_statements(plain),
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


def recipe(name: Name) -> ModuleType:
    """The module that takes a framework's model apart."""
    return importlib.import_module(f"experiments._frameworks.{RECIPES[name].module}")


def made(name: Name, shape: Shape, config: Config) -> Model:
    """The model of a framework in the dtype of the run."""
    model = getattr(recipe(name), RECIPES[name].function)(shape, config.seed)
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


def start(config: Config, training: Digits) -> dict[str, jax.Array]:
    """The rate, and equal weights."""
    return {
        "rate": jnp.asarray(config.rate, config.dtype),
        "weights": jnp.ones(len(training.labels), config.dtype),
    }


def hypergradients(runs: Sequence[metalr.Unrolled], hyper: Any) -> InTurns:
    """Value and derivatives, of the framework's model and of plain functions."""
    ours, theirs = (jax.jit(partial(metalr.hypergradient, run)) for run in runs)
    return in_turns(ours, theirs, hyper)


def learned(
    model: Model,
    run: metalr.Unrolled,
    config: Config,
    training: Digits,
    gradient: metalr.HyperGradient,
) -> Found:
    """What else is compared: the end of the run, and a short outer loop."""
    hyper = start(config, training)
    outer = metalr.learn(
        run,
        hyper,
        outer_optimizer=optax.adam(config.outer_rate),
        steps=config.outer_steps,
        log={"rate": True, "weights": False},
    )
    params = model.to_plain(run.final_params(hyper))
    return Found(gradient.value, gradient.grad, params, outer)


def differences(ours: Found, plain: Found) -> dict[str, float]:
    """The largest relative difference of each result."""
    return {
        "value_difference": difference(ours.value, plain.value),
        "rate_difference": difference(ours.grad["rate"], plain.grad["rate"]),
        "weights_difference": difference(ours.grad["weights"], plain.grad["weights"]),
        "params_difference": difference(ours.params, plain.params),
        "learned_difference": difference(ours.outer.hyper, plain.outer.hyper),
    }


def headline(records: Sequence[Record]) -> str:
    """The largest difference of all but the one that stops a gradient."""
    rows = [r for r in records if r["framework"] != "flax_nnx_as_shipped"]
    each = [v for r in rows for k, v in r.items() if k.endswith("_difference")]
    return f"{len(rows)} models within {max(each, default=0.0):.0e} of plain functions"


if __name__ == "__main__":
    from experiments._command.cli import module_main

    raise SystemExit(module_main("frameworks"))
