"""A description made runnable: parameters and the function they parametrize."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray

from .._types import Params
from .geometry import Shape, check_input, padding_of, shapes, stride_of
from .layers import Conv, Dense, GlobalPool, Layer, Pool

_AXES = ("NHWC", "HWIO", "NHWC")


def init(
    key: PRNGKeyArray,
    layers: Sequence[Layer],
    input_shape: Sequence[int],
    *,
    dtype: Any = float,
) -> Params:
    r"""Parameters of a described network: a list with one dict for each layer.

    Kernels are normal with variance 2/fan-in (He et al. 2015), biases 0. A `Conv` has
    `kernel` (k, k, in/groups, out), a `Dense` has `kernel` (in, out), both `bias`
    (out,) unless switched off; pools have an empty dict.

    Args:
        key: random key.
        layers: the description.
        input_shape: (height, width, channels), or (features,).
        dtype: of the parameters.

    Raises:
        ValueError: if a layer cannot follow what is before it; the message names it.
    """
    before, params = check_input(input_shape), []
    after = shapes(layers, before)
    for layer, shape, k in zip(
        layers, after, jax.random.split(key, len(layers)), strict=True
    ):
        params.append(_init_layer(k, layer, before, shape[-1], dtype))
        before = shape
    return params


def apply(
    layers: Sequence[Layer],
    params: Params,
    inputs: Float[Array, "batch ..."],
    *,
    activation: Callable[[Array], Array] = jax.nn.relu,
) -> Float[Array, "batch ..."]:
    """The network's output for a batch.

    The activation follows every `Conv` and `Dense` but the last layer, whose output is
    returned as it is (logits, where it is dense). Supports every transformation of JAX.

    Args:
        layers: the description.
        params: as made by `init`.
        inputs: (batch, height, width, channels), or (batch, features).
        activation: the nonlinearity.

    Raises:
        ValueError: if a layer cannot follow what is before it; the message names it.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from metalr.convnet import Conv, Dense, Pool, apply, init
        >>> layers = [Conv(4, 3), Pool(2), Dense(10)]
        >>> params = init(jax.random.key(0), layers, (8, 8, 1))
        >>> print(apply(layers, params, jnp.ones((2, 8, 8, 1))).shape)
        (2, 10)
    """
    shapes(layers, inputs.shape[1:])
    x = inputs
    for index, (layer, part) in enumerate(zip(layers, params, strict=True)):
        x = _apply_layer(layer, part, x)
        if isinstance(layer, Conv | Dense) and index < len(layers) - 1:
            x = activation(x)
    return x


def _init_layer(
    key: Any, layer: Layer, before: Shape, out: int, dtype: Any
) -> dict[str, Array]:
    if isinstance(layer, Conv):
        side, groups = layer.kernel, layer.groups
        shape = (side, side, before[-1] // groups, out)
    elif isinstance(layer, Dense):
        shape = (math.prod(before), out)
    else:
        return {}
    scale = math.sqrt(2.0 / math.prod(shape[:-1]))
    params = {"kernel": scale * jax.random.normal(key, shape, dtype)}
    return {**params, "bias": jnp.zeros(out, dtype)} if layer.bias else params


def _apply_layer(layer: Layer, params: dict[str, Array], x: Array) -> Array:
    if isinstance(layer, GlobalPool):
        reduce = jnp.mean if layer.kind == "average" else jnp.max
        return reduce(x, axis=(1, 2))
    if isinstance(layer, Pool):
        return _pool(layer, x)
    if isinstance(layer, Conv):
        x = lax.conv_general_dilated(
            x,
            params["kernel"],
            window_strides=(layer.stride, layer.stride),
            padding=[padding_of(layer, side) for side in x.shape[1:3]],
            rhs_dilation=(layer.dilation, layer.dilation),
            dimension_numbers=_AXES,
            feature_group_count=layer.groups,
        )
    else:
        x = x.reshape(x.shape[0], -1) @ params["kernel"]
    return x + params["bias"] if layer.bias else x


def _pool(layer: Pool, x: Array) -> Array:
    window = (1, layer.size, layer.size, 1)
    strides = (1, stride_of(layer), stride_of(layer), 1)
    sides = [padding_of(layer, side) for side in x.shape[1:3]]
    padding = [(0, 0), *sides, (0, 0)]
    if layer.kind == "max":
        return lax.reduce_window(x, -jnp.inf, lax.max, window, strides, padding)
    return lax.reduce_window(x, 0.0, lax.add, window, strides, padding) / layer.size**2
