r"""Question: how large is a convolutional network, and which layer makes it so?

The table of the source notes, for their network and for any other that is described
in a config: neurons, parameters, connections, work and memory, layer by layer.
Claim: the notes' totals hold, 1 957 988 neurons, 52 444 644 parameters, 999 407 616
connections; LeNet-5, AlexNet and VGG-16 have their published parameter counts; the
network that JAX builds from the same description agrees in every layer.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import jax
import numpy as np
from matplotlib.figure import Figure
from pydantic import Field, PositiveInt

from experiments._command.config import MAX_INT, Model
from experiments._command.experiment import ExperimentConfig, Record
from experiments._report.style import panels
from experiments._settings.networks import NOTES, LayerConfig, to_layers
from metalr import convnet


class Published(Model):
    """Totals to be compared with; those left out are not compared."""

    neurons: PositiveInt | None = Field(default=None, le=MAX_INT)
    parameters: PositiveInt | None = Field(default=None, le=MAX_INT)
    connections: PositiveInt | None = Field(default=None, le=MAX_INT)


class Config(ExperimentConfig):
    """Options of this experiment."""

    experiment: Literal["network_size"] = "network_size"
    network: str = "the notes' network"
    input_shape: tuple[PositiveInt, ...] = (112, 112, 3)
    layers: tuple[LayerConfig, ...] = NOTES
    published: Published = Published(
        neurons=1_957_988, parameters=52_444_644, connections=999_407_616
    )


def run(config: Config) -> Iterator[Record]:
    """Yield one record for each layer, the total, and each published figure."""
    layers = to_layers(config.layers, config.input_shape)
    table = convnet.size_table(layers, config.input_shape, dtype=config.dtype)
    built = _built(layers, config.input_shape)
    fields = [field.size for field in convnet.fields(layers, config.input_shape)]
    fields += [None] * (len(layers) - len(fields))
    for row, real, field in zip(table.rows, built, fields, strict=True):
        agrees = real == (row.shape, row.parameters)
        yield _record(row, config.network, field=field, agrees=agrees)
    total = sum(parameters for _, parameters in built)
    yield _record(
        table.total, config.network, field=None, agrees=total == table.total.parameters
    )
    for name, value in config.published:
        if value is not None:
            counted = getattr(table.total, name)
            yield {
                "table": "published totals",
                "quantity": name,
                "published": f"{value:,}",
                "counted": f"{counted:,}",
                "agrees": counted == value,
            }


def figures(records: Sequence[Record]) -> dict[str, Figure]:
    """Which layers hold the neurons, the parameters and the connections."""
    rows = [r for r in records if "layer" in r and r["layer"] != "total"]
    height = 1.3 + 0.22 * len(rows)
    figure, axes = panels(3, height=height)
    names = [f"{i}  {r['layer']}" for i, r in enumerate(rows, start=1)]
    quantities = ("neurons", "parameters", "connections")
    for axis, quantity in zip(axes, quantities, strict=True):
        values = np.array([r["numbers"][quantity] for r in rows], float)
        axis.barh(names, values, color="C0")
        axis.set(xlabel=f"{quantity} (total {values.sum():,.0f})")
        axis.invert_yaxis()
        axis.grid(visible=False, axis="y")
        if axis is not axes[0]:
            axis.set_yticklabels([])
        axis.ticklabel_format(axis="x", style="sci", scilimits=(0, 0))
    figure.suptitle(records[0]["table"], fontsize=10)
    return {"network_size": figure}


def _record(
    row: convnet.Row, network: str, *, field: int | None, agrees: bool
) -> dict[str, Any]:
    numbers = {name: getattr(row, name) for name in row._fields[2:]}
    columns = ("neurons", "parameters", "connections", "connections_inside")
    return {
        "table": network,
        "layer": row.name,
        "shape": "×".join(map(str, row.shape)),
        **{name: f"{numbers[name]:,}" for name in columns},
        "activation_MB": row.activation_bytes / 1e6,
        "field": field,
        "agrees_with_jax": agrees,
        "numbers": numbers,
    }


def _built(
    layers: Sequence[convnet.Layer], input_shape: Sequence[int]
) -> list[tuple[tuple[int, ...], int]]:
    """Shape and parameters of each layer of the real network, traced by JAX."""
    params = jax.eval_shape(
        lambda key: convnet.init(key, layers, input_shape), jax.random.key(0)
    )
    image = jax.ShapeDtypeStruct((1, *input_shape), np.dtype(float))
    built = []
    for depth, part in enumerate(params, start=1):
        output = jax.eval_shape(
            lambda p, x, n=depth: convnet.apply(layers[:n], p[:n], x), params, image
        )
        count = sum(leaf.size for leaf in jax.tree.leaves(part))
        built.append((output.shape[1:], count))
    return built


if __name__ == "__main__":
    from experiments._command.cli import module_main

    raise SystemExit(module_main("network_size"))
