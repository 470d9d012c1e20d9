r"""What a unit sees of the input.

$$r_l = r_{l-1} + (k_l - 1)\,d_l\,j_{l-1}, \qquad j_l = j_{l-1}s_l$$

A layer's stride enlarges only the fields of *later* layers, through the jump j.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from .geometry import check_input, padding_of, shapes, stride_of, taps
from .layers import Conv, Layer, Pool, Window


class Field(NamedTuple):
    """The receptive field of one layer's units, in input pixels."""

    name: str
    size: int  # side of the field, where the border does not cut it off
    jump: int  # distance between the fields of neighboring units
    offset: tuple[float, float]  # center of the first unit's field; pixel 0 is at 0
    effective: float  # side of a box as wide (in variance) as what the unit weighs


def receptive_field(layers: Sequence[Layer]) -> list[int]:
    r"""Side of the receptive field after each layer, in input pixels.

    $r_l = r_{l-1} + (k_l - 1)\,d_l\prod_{i<l}s_i$, with kernel k, dilation d, stride s.
    A dense layer or a global pool sees the whole input, which is no number of pixels
    without the input's size: the list ends before the first of them.

    Args:
        layers: the description.

    Returns:
        One int for each layer before the first dense or global one.

    Example:
        >>> from metalr.convnet import Conv, Pool, receptive_field
        >>> print(receptive_field([Conv(64, 3), Pool(2), Conv(128, 3, dilation=2)]))
        [3, 4, 12]
    """
    return [size for _, size, _, _ in _growth(layers)]


def fields(layers: Sequence[Layer], input_shape: Sequence[int]) -> list[Field]:
    r"""Size, jump, offset and effective size of the field after each layer.

    Unit (i, j) sees no pixel farther than `(size − 1)/2` from `offset + jump·(i, j)`
    along an axis, and where this box lies in the image, it sees its ends. Where the box
    leaves the image, a unit can see less than is left of it: a tap on the padding of a
    later layer sees nothing, where the window that is missing there would have reached
    into the image. Dilation, and strides longer than a window, leave holes in the box.
    `effective` is $\sqrt{1 + \sum_l (k_l^2 - 1)(d_l
    j_{l-1})^2}$: a unit's weight on the input, summed over all paths through equal
    taps, tends to a bell, whose variance is that of a box of this side. It equals
    `size` for one layer without dilation, and grows like the root of the depth while
    `size` grows like the depth.

    Args:
        layers: the description; the list ends before a dense or global layer.
        input_shape: (height, width, channels).

    Raises:
        ValueError: if a layer cannot follow what is before it.

    Example:
        >>> from metalr.convnet import Conv, Pool, fields
        >>> for field in fields([Conv(64, 3), Pool(2)], (112, 112, 3)):
        ...     print(field.name, field.size, field.jump, field.offset)
        conv3-64 3 1 (0.0, 0.0)
        max-pool 4 2 (0.5, 0.5)

    References:
        Araujo, Norris, Sim (2019), Computing receptive fields of convolutional neural
        networks. Luo et al. (2016), Understanding the effective receptive field.
    """
    before, result = check_input(input_shape), []
    offset, jump = (0.0, 0.0), 1
    after = shapes(layers, before)
    for (layer, size, next_jump, effective), shape in zip(
        _growth(layers), after, strict=False
    ):
        shifts = [
            ((layer.extent - 1) / 2 - padding_of(layer, side)[0]) * jump
            for side in before[:2]
        ]
        offset = (offset[0] + shifts[0], offset[1] + shifts[1])
        result.append(Field(layer.label, size, next_jump, offset, effective))
        before, jump = shape, next_jump
    return result


def _growth(
    layers: Sequence[Layer],
) -> Iterator[tuple[Window, int, int, float]]:
    """Each layer with its field's size, jump and effective size."""
    size, jump, square = 1, 1, 1
    for layer in layers:
        if not isinstance(layer, Conv | Pool):
            return
        size += (layer.extent - 1) * jump
        square += (taps(layer) ** 2 - 1) * (layer.dilation * jump) ** 2
        jump *= stride_of(layer)
        yield layer, size, jump, math.sqrt(square)
