"""Figures that metalr computes in closed form: counts, and the noisy quadratic."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import jax

import metalr
from experiments import network_size, short_horizon
from experiments._command.config import read_yaml, validate
from experiments._published.row import Row, compared, exact, ordered
from experiments._settings.networks import to_layers
from experiments._short_horizon.search import best_schedule
from metalr import convnet

_CONFIGS = Path(__file__).parents[2] / "configs"


def parameters() -> Iterator[Row]:
    """Parameters of three networks, as their papers count them."""
    for name in ("lenet5", "alexnet", "vgg16"):
        content = read_yaml(_CONFIGS / f"network_size_{name}.yaml")
        described = validate(network_size.Config, content)
        layers = to_layers(described.layers, described.input_shape)
        table = convnet.size_table(layers, described.input_shape)
        published = described.published.parameters
        assert published is not None
        counted = table.total.parameters
        yield compared(f"parameters of {described.network}", exact(published), counted)


def short_horizon_bias(
    *, steps: int, dtype: Literal["float64", "float32"]
) -> Iterator[Row]:
    """Greed falls short in several dimensions only (Wu et al. 2018)."""
    model = short_horizon.quadratic(short_horizon.Config(dtype=dtype))
    single = metalr.theory.NoisyQuadratic(*(x[:1] for x in jax.tree.leaves(model)))
    alone = float(single.short_horizon_bias(steps))
    yield compared(
        f"greedy over optimal loss − 1, one dimension, T = {steps}",
        exact(0),
        alone,
        1e-9,
        "theorem: greedy is optimal there",
    )
    optimal = best_schedule(model, steps)
    bias = float(model.short_horizon_bias(steps, optimal))
    yield ordered(
        f"the same, {model.curvatures.size} curvatures from "
        f"{model.curvatures.min():g} to {model.curvatures.max():g}",
        "> 0",
        bias,
        holds=bias > 0.01,
        note="the order is held; the paper's spectrum and curves are not rebuilt",
    )
