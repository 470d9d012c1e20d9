"""Networks as YAML: `{conv: 64, kernel: 3}`, `{pool: 2}`, `{dense: 10}`."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, NonNegativeInt, PositiveInt, Tag

from experiments._command.config import ConfigError, Model
from metalr import convnet

Padding = Literal["same", "valid"] | NonNegativeInt


class ConvLayer(Model):
    """A convolution of `conv` channels."""

    conv: PositiveInt
    kernel: PositiveInt
    stride: PositiveInt = 1
    padding: Padding = "same"
    dilation: PositiveInt = 1
    groups: PositiveInt = 1
    bias: bool = True
    name: str | None = None


class PoolLayer(Model):
    """A pool over `pool` × `pool` pixels."""

    pool: PositiveInt
    stride: PositiveInt | None = None
    padding: Padding = "valid"
    kind: Literal["max", "average"] = "max"
    name: str | None = None


class GlobalPoolLayer(Model):
    """A pool over the whole image."""

    global_pool: Literal["average", "max"]
    name: str | None = None


class DenseLayer(Model):
    """A fully connected layer of `dense` units."""

    dense: PositiveInt
    bias: bool = True
    name: str | None = None


def _kind(value: Any) -> str | None:
    kinds = ("conv", "pool", "global_pool", "dense")
    keys = value if isinstance(value, dict) else vars(value)
    return next((kind for kind in kinds if kind in keys), None)


LayerConfig = Annotated[
    Annotated[ConvLayer, Tag("conv")]
    | Annotated[PoolLayer, Tag("pool")]
    | Annotated[GlobalPoolLayer, Tag("global_pool")]
    | Annotated[DenseLayer, Tag("dense")],
    Discriminator(_kind),
]
"""One line of `layers:`; its first key says what it is."""

NOTES: tuple[LayerConfig, ...] = (
    ConvLayer(conv=64, kernel=3),
    PoolLayer(pool=2),
    ConvLayer(conv=128, kernel=3),
    PoolLayer(pool=2),
    ConvLayer(conv=256, kernel=3),
    ConvLayer(conv=256, kernel=3),
    PoolLayer(pool=2),
    DenseLayer(dense=1024),
    DenseLayer(dense=100),
)
"""The network of the source notes, question 3.2; its input is 112 × 112 × 3."""


def to_layers(
    description: tuple[LayerConfig, ...], input_shape: tuple[int, ...]
) -> list[convnet.Layer]:
    """The layers of a description.

    Raises:
        ConfigError: if they do not fit each other or the input, naming the layer.
    """
    try:
        layers = [_layer(item) for item in description]
        convnet.shapes(layers, input_shape)
    except ValueError as error:
        msg = f"layers: {error}"
        raise ConfigError(msg) from error
    return layers


def _layer(item: Any) -> convnet.Layer:
    options = {name: value for name, value in item if name not in _FIRST}
    if isinstance(item, ConvLayer):
        return convnet.Conv(item.conv, **options)
    if isinstance(item, PoolLayer):
        return convnet.Pool(item.pool, **options)
    if isinstance(item, GlobalPoolLayer):
        return convnet.GlobalPool(item.global_pool, **options)
    return convnet.Dense(item.dense, **options)


_FIRST = frozenset({"conv", "pool", "global_pool", "dense"})
