"""What a network costs: neurons, parameters, connections, work and memory, by layer."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from .geometry import Shape, check_input, shapes, taps, taps_inside
from .layers import Conv, Dense, Layer, Pool


class Row(NamedTuple):
    """One layer, for one example; or the sums over all layers."""

    name: str
    shape: Shape  # of the output; () in the total
    neurons: int  # outputs
    parameters: int  # weights and biases
    connections: int  # inputs of all neurons, padding included, biases not
    connections_inside: int  # those that fall on the image, not on its padding
    multiply_adds: int  # connections that carry a weight
    activation_bytes: int  # of the outputs
    parameter_bytes: int


class Table(NamedTuple):
    """Rows in the order of the layers, and their sums. `str(table)` is legible."""

    rows: tuple[Row, ...]
    total: Row

    def __str__(self) -> str:
        """Columns aligned, thousands separated."""
        cells = [tuple(name.replace("_", " ") for name in Row._fields)]
        cells += [
            tuple(_cell(value) for value in row) for row in (*self.rows, self.total)
        ]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [
            "  ".join(
                cell.ljust(width) if i < 2 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            )
            for line in cells
        ]
        return "\n".join(line.rstrip() for line in lines)


def size_table(
    layers: Sequence[Layer], input_shape: Sequence[int], *, dtype: Any = jnp.float32
) -> Table:
    r"""Size of a network, layer by layer, for one example.

    The input itself and a softmax at the end are not counted. A connection is one input
    of one neuron: a k × k convolution of C channels in g groups has k²C/g a neuron, a
    pool k², a dense layer as many as there are neurons before it. Taps on the padding
    count in `connections`, and do not in `connections_inside`; biases never do. Pools
    have connections but no multiply-adds. Nonlinearities count as done in place.

    Args:
        layers: the description.
        input_shape: (height, width, channels), or (features,).
        dtype: of parameters and activations, for the bytes.

    Returns:
        `Table(rows, total)`; each `Row` has name, shape, neurons, parameters,
        connections, connections_inside, multiply_adds, activation_bytes and
        parameter_bytes. Python ints: they do not overflow.

    Raises:
        ValueError: if a layer cannot follow what is before it; the message names it.

    Example:
        >>> from metalr.convnet import Conv, Dense, Pool, size_table
        >>> lenet = [Conv(6, 5, padding="valid"), Pool(2), Conv(16, 5, padding="valid")]
        >>> lenet += [Pool(2), Dense(120), Dense(84), Dense(10)]
        >>> print(size_table(lenet, (32, 32, 1)).total.parameters)
        61706
    """
    before, rows = check_input(input_shape), []
    itemsize = jnp.dtype(dtype).itemsize
    for layer, shape in zip(layers, shapes(layers, before), strict=True):
        neurons, parameters = math.prod(shape), _parameters(layer, before)
        connections, inside = _connections(layer, before, shape)
        rows.append(
            Row(
                name=layer.label,
                shape=shape,
                neurons=neurons,
                parameters=parameters,
                connections=connections,
                connections_inside=inside,
                multiply_adds=connections if isinstance(layer, Conv | Dense) else 0,
                activation_bytes=neurons * itemsize,
                parameter_bytes=parameters * itemsize,
            )
        )
        before = shape
    sums = (sum(column) for column in list(zip(*rows, strict=True))[2:])
    return Table(tuple(rows), Row("total", (), *sums))


def _parameters(layer: Layer, before: Shape) -> int:
    if isinstance(layer, Conv):
        fan_in = layer.kernel**2 * (before[-1] // layer.groups)
        return layer.channels * (fan_in + layer.bias)
    if isinstance(layer, Dense):
        return layer.units * (math.prod(before) + layer.bias)
    return 0


def _connections(layer: Layer, before: Shape, shape: Shape) -> tuple[int, int]:
    """With the taps on padding, and without."""
    if isinstance(layer, Dense):
        count = layer.units * math.prod(before)
        return count, count
    if not isinstance(layer, Conv | Pool):  # global pool
        return math.prod(before), math.prod(before)
    depth = before[-1] // layer.groups if isinstance(layer, Conv) else 1
    each = shape[-1] * depth
    inside = math.prod(taps_inside(layer, side) for side in before[:-1])
    return math.prod(shape[:-1]) * taps(layer) ** 2 * each, inside * each


def _cell(value: Any) -> str:
    if isinstance(value, tuple):
        return "×".join(map(str, value))
    return f"{value:,}".replace(",", " ") if isinstance(value, int) else value
