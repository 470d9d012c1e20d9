"""The shape after each layer, and where its windows lie."""

from collections.abc import Sequence

from .layers import Conv, Dense, GlobalPool, Layer, Window

Shape = tuple[int, ...]
"""(height, width, channels), or (units,) after a dense or global layer."""


def shapes(layers: Sequence[Layer], input_shape: Sequence[int]) -> list[Shape]:
    """The shape after each layer, for one example.

    Args:
        layers: the description.
        input_shape: (height, width, channels), or (features,) for dense layers only.

    Raises:
        ValueError: if the input shape is not one of these, or a layer cannot follow
            what is before it; the message names the layer.

    Example:
        >>> from metalr.convnet import Conv, Pool, shapes
        >>> print(shapes([Conv(4, 5, padding="valid"), Pool(2)], (28, 28, 1)))
        [(24, 24, 4), (12, 12, 4)]
    """
    shape, result = check_input(input_shape), []
    if not layers:
        msg = "layers is empty: describe at least one, e.g. [Dense(10)]"
        raise ValueError(msg)
    for index, layer in enumerate(layers):
        shape = _after(layer, shape, f"layer {index} ({layer.label})")
        result.append(shape)
    return result


def check_input(input_shape: Sequence[int]) -> Shape:
    """`input_shape` as a tuple.

    Raises:
        ValueError: if it is not one or three positive ints.
    """
    shape = tuple(input_shape)
    good = all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in shape)
    if len(shape) not in {1, 3} or not good:
        msg = (
            f"input_shape = {shape} must be (height, width, channels), or (features,), "
            "of positive ints, without a batch axis"
        )
        raise ValueError(msg)
    return shape


def padding_of(layer: Window, size: int) -> tuple[int, int]:
    """Zeros before and after an axis of length `size`."""
    if layer.padding == "valid":
        return 0, 0
    if isinstance(layer.padding, int):
        return layer.padding, layer.padding
    stride = stride_of(layer)
    total = max((-(-size // stride) - 1) * stride + layer.extent - size, 0)
    return total // 2, total - total // 2


def stride_of(layer: Window) -> int:
    """The stride as an int: `Pool` fills its own in when it is made."""
    return layer.stride or layer.extent


def taps(layer: Window) -> int:
    """Taps of a window along one axis."""
    return layer.kernel if isinstance(layer, Conv) else layer.size


def length(layer: Window, size: int) -> int:
    """Output positions along an axis of length `size`; less than 1: impossible."""
    return (size + sum(padding_of(layer, size)) - layer.extent) // stride_of(layer) + 1


def taps_inside(layer: Window, size: int) -> int:
    """Taps of all windows along an axis that fall on it, not on its padding."""
    before, _ = padding_of(layer, size)
    places = (
        i * stride_of(layer) + k * layer.dilation - before
        for i in range(length(layer, size))
        for k in range(taps(layer))
    )
    return sum(0 <= place < size for place in places)


def _after(layer: Layer, shape: Shape, where: str) -> Shape:
    if isinstance(layer, Dense):
        return (layer.units,)
    if len(shape) == 1:
        msg = (
            f"{where} needs (height, width, channels), but sees {shape}: it cannot "
            "follow a dense layer or a global pool"
        )
        raise ValueError(msg)
    *sides, channels = shape
    if isinstance(layer, GlobalPool):
        return (channels,)
    out = [length(layer, side) for side in sides]
    if min(out) < 1:
        msg = (
            f"{where} has a window of {layer.extent} × {layer.extent}, more than the "
            f"{sides[0]} × {sides[1]} it sees with padding={layer.padding!r}: pad, or "
            "take a smaller window"
        )
        raise ValueError(msg)
    if not isinstance(layer, Conv):
        return (*out, channels)
    if channels % layer.groups or layer.channels % layer.groups:
        msg = (
            f"{where}: groups = {layer.groups} must divide both its {channels} input "
            f"and its {layer.channels} output channels"
        )
        raise ValueError(msg)
    return (*out, layer.channels)
