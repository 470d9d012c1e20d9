r"""Question: does the size table predict the memory of an unrolled training step?

Prediction, from the table alone: state + activations = 2 · parameters (the gradient and
the new parameters) + batch · activations. Beside it, what XLA reserves (temporary
memory) for one compiled training step, and for its hypergradient by reverse mode.
Claim: both are affine in the batch. Without max pools their slopes are 2 to 3 times the
table's bytes per example; a max pool, whose derivative keeps whole windows, makes them
6 and 10 times as large. The table says how memory grows, not how much it is.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from pydantic import PositiveInt

import metalr
from experiments._command.experiment import ConfigError, ExperimentConfig, Record
from experiments._report.style import panels
from experiments._settings.networks import (
    ConvLayer,
    DenseLayer,
    LayerConfig,
    PoolLayer,
    to_layers,
)
from metalr import convnet
from metalr.profiling import compiled

_LENET: tuple[LayerConfig, ...] = (
    ConvLayer(conv=6, kernel=5, padding="valid"),
    PoolLayer(pool=2),
    ConvLayer(conv=16, kernel=5, padding="valid"),
    PoolLayer(pool=2),
    DenseLayer(dense=120),
    DenseLayer(dense=84),
    DenseLayer(dense=10),
)
_LENET_AVERAGE: tuple[LayerConfig, ...] = tuple(
    PoolLayer(pool=2, kind="average") if isinstance(layer, PoolLayer) else layer
    for layer in _LENET
)
_SMALL: tuple[LayerConfig, ...] = (
    ConvLayer(conv=8, kernel=3),
    ConvLayer(conv=16, kernel=3, stride=2),
    DenseLayer(dense=10),
)


class Config(ExperimentConfig):
    """Options of this experiment."""

    experiment: Literal["convnet_memory"] = "convnet_memory"
    dtype: Literal["float64", "float32"] = "float32"
    input_shape: tuple[PositiveInt, ...] = (32, 32, 1)
    networks: dict[str, tuple[LayerConfig, ...]] = {  # noqa: RUF012
        "LeNet-5": _LENET,
        "LeNet-5, average pools": _LENET_AVERAGE,
        "two convolutions": _SMALL,
    }
    batches: tuple[PositiveInt, ...] = (8, 32, 128)


def size(config: Config) -> int:
    """Records that `run` yields."""
    return len(config.networks) * (len(config.batches) + 1)


def run(config: Config) -> Iterator[Record]:
    """Yield one record for each network and batch, and the slope in the batch."""
    if len(set(config.batches)) < 2:
        msg = f"batches = {config.batches}: two sizes at least are needed for a slope"
        raise ConfigError(msg)
    for name, description in config.networks.items():
        layers = to_layers(description, config.input_shape)
        table = convnet.size_table(layers, config.input_shape, dtype=config.dtype)
        each = table.total.activation_bytes
        measured = []
        for batch in config.batches:
            step, gradient = _measure(layers, config, batch)
            measured.append((step, gradient))
            predicted = 2 * table.total.parameter_bytes + batch * each
            yield {
                "table": "bytes",
                "network": name,
                "batch": batch,
                "predicted_MB": predicted / 1e6,
                "step_MB": step / 1e6,
                "step_ratio": step / predicted,
                "hypergradient_MB": gradient / 1e6,
                "ratio": gradient / predicted,
            }
        slopes = np.polyfit(config.batches, np.array(measured, float), 1)[0]
        yield {
            "table": "bytes per example",
            "network": name,
            "predicted": each,
            "step": float(slopes[0]),
            "step_ratio": float(slopes[0]) / each,
            "hypergradient": float(slopes[1]),
            "ratio": float(slopes[1]) / each,
        }


def headline(records: Sequence[Record]) -> str:
    """Bytes an example of a hypergradient step over the table's."""
    found = [record for record in records if record["table"] == "bytes per example"]
    parts = [f"{record['ratio']:.2g} × ({record['network']})" for record in found]
    return f"a hypergradient step takes the table's bytes {', '.join(parts)}"


def figures(records: Sequence[Record]) -> dict[str, Figure]:
    """Prediction and measurement against the batch."""
    rows = [r for r in records if "batch" in r]
    names = list(dict.fromkeys(r["network"] for r in rows))
    figure, axes = panels(len(names))
    top = 2.0 * max(r["hypergradient_MB"] for r in rows)
    low = 0.5 * min(min(r["step_MB"], r["predicted_MB"]) for r in rows)
    for axis, name in zip(axes, names, strict=True):
        mine = [r for r in rows if r["network"] == name]
        batches = [r["batch"] for r in mine]
        for quantity, mark in (
            ("hypergradient", "o-"),
            ("step", "s:"),
            ("predicted", "--"),
        ):
            values = [r[f"{quantity}_MB"] for r in mine]
            axis.plot(batches, values, mark, label=quantity)
        axis.set(xscale="log", yscale="log", ylim=(low, top), title=name)
        axis.set(xlabel="batch (examples)", ylabel="temporary memory (MB)")
        axis.set_xticks(batches, [str(batch) for batch in batches])
        axis.minorticks_off()
    axes[0].legend(fontsize=8)
    return {"convnet_memory": figure}


def _objective(
    layers: Sequence[convnet.Layer], config: Config, batch: int
) -> metalr.Unrolled:
    """One step of SGD on a batch of made-up images: only shapes matter here."""
    keys = jax.random.split(jax.random.key(config.seed), 3)
    images = jax.random.normal(keys[0], (batch, *config.input_shape), config.dtype)
    *_, (classes,) = convnet.shapes(layers, config.input_shape)
    labels = jax.random.randint(keys[1], (batch,), 0, classes)
    loss = metalr.problems.classifier(layers, images, labels)
    return metalr.Unrolled(loss, optax.sgd, loss.init(keys[2]), steps=1)


def _measure(
    layers: Sequence[convnet.Layer], config: Config, batch: int
) -> tuple[int, int]:
    """Temporary bytes of one training step, and of its hypergradient."""
    objective, rate = _objective(layers, config, batch), _rate(config)
    step = jax.jit(lambda objective, rate: objective.final_params(rate))
    try:
        training = compiled(step, objective, rate)
        hypergradient = compiled(metalr.hypergradient, objective, rate)
    except RuntimeError as error:  # the backend does not say
        raise ConfigError(str(error)) from error
    return training.temp_bytes, hypergradient.temp_bytes


def _rate(config: Config) -> jax.Array:
    return jnp.asarray(0.01, config.dtype)


if __name__ == "__main__":
    from experiments._command.cli import module_main

    raise SystemExit(module_main("convnet_memory"))
