"""Part 3 of the notes: convolution, the size of a network, what a unit sees."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from experiments._errata.row import Row
from experiments._settings.networks import NOTES, to_layers
from experiments._settings.source_notes import (
    IMAGE,
    LAPLACIAN,
    NEURONS,
    OUTPUT_SHAPE,
    PARAMETERS,
)
from metalr import convnet


def output_size() -> Row:
    """3.1: with zero padding the output is as large as the image."""
    return Row(
        "3.1",
        "right",
        "the output is 5 × 5: pixels",
        "of the convolution with zero padding",
        float(OUTPUT_SHAPE[0] * OUTPUT_SHAPE[1]),
        float(_output().size),
    )


def edge_detector() -> Row:
    """3.1: the filter answers where a pixel differs from a neighbor, and only there."""
    image = jnp.pad(jnp.array(IMAGE), 1)  # beyond the border: zeros
    inner = image[1:-1, 1:-1]
    neighbors = (image[:-2, 1:-1], image[2:, 1:-1], image[1:-1, :-2], image[1:-1, 2:])
    differs = jnp.any(jnp.stack([inner != other for other in neighbors]), axis=0)
    return Row(
        "3.1",
        "right",
        "the filter is an edge detector: pixels that differ from one of 4 neighbors",
        "pixels where the output is not 0",
        float(jnp.sum(differs)),
        float(jnp.sum(_output() != 0.0)),
    )


def image_recovered() -> Row:
    """3.1: what they do not ask: the output still holds the image."""
    kernel = jnp.array(LAPLACIAN, float)
    matrix = convnet.convolution_matrix(kernel, (len(IMAGE), len(IMAGE[0])))
    return Row(
        "3.1",
        "missing",
        "–",
        "the image can be recovered from the output: smallest eigenvalue of the "
        "25 × 25 system, 4 − 4cos(π/6) > 0",
        None,
        float(jnp.min(jnp.linalg.eigvalsh(matrix))),
    )


def _output() -> jax.Array:
    return convnet.convolve2d(jnp.array(IMAGE, float), jnp.array(LAPLACIAN, float))


_NOTES_INPUT = (112, 112, 3)


def network_neurons() -> Row:
    """3.2: the neurons are right."""
    table = convnet.size_table(to_layers(NOTES, _NOTES_INPUT), _NOTES_INPUT)
    return Row(
        "3.2",
        "right",
        "1 957 988 neurons",
        "counted, without the input and the softmax",
        float(NEURONS),
        float(table.total.neurons),
    )


def network_parameters() -> Row:
    """3.2: the totals are right."""
    table = convnet.size_table(to_layers(NOTES, _NOTES_INPUT), _NOTES_INPUT)
    return Row(
        "3.2",
        "right",
        "52 444 644 parameters",
        "counted",
        float(PARAMETERS),
        float(table.total.parameters),
    )


def network_connections() -> Row:
    """3.2: the connections count taps on the padding."""
    table = convnet.size_table(to_layers(NOTES, _NOTES_INPUT), _NOTES_INPUT)
    return Row(
        "3.2",
        "loose",
        "999 407 616 connections: right if taps on the zero padding count",
        "961 041 152 that fall on the image",
        float(table.total.connections),
        float(table.total.connections_inside),
    )


def kernel_enlarges() -> Row:
    """3.3: the larger the kernel, the larger the field."""
    before = [convnet.Conv(1, 3), convnet.Conv(1, 3)]
    kernels = (1, 3, 5, 7)
    fields = [
        convnet.receptive_field([*before, convnet.Conv(1, kernel)])[-1]
        for kernel in kernels
    ]
    return Row(
        "3.3",
        "right",
        "a larger kernel enlarges the field: of k = 3, 5, 7 after two 3 × 3, how many "
        "see more than the kernel before",
        "r grows by (k − 1)·∏s",
        float(len(kernels) - 1),
        float(jnp.sum(jnp.diff(jnp.array(fields)) > 0)),
    )


def depth_enlarges() -> Row:
    """3.3: the deeper the layer, the larger the field."""
    layers = [convnet.Conv(1, 3)] * 4
    fields = convnet.receptive_field(layers)
    return Row(
        "3.3",
        "right",
        "more layers enlarge the field: of 4 layers of 3 × 3, how many after the first "
        "see more than the one before",
        "each adds (k − 1)·∏s",
        float(len(layers) - 1),
        float(jnp.sum(jnp.diff(jnp.array(fields)) > 0)),
    )


def stride_of_its_own() -> Row:
    """3.3: a layer's stride enlarges only later fields."""
    before = [convnet.Conv(1, 3), convnet.Conv(1, 3)]
    last = convnet.Conv(1, 3, stride=2)
    fields = convnet.receptive_field([*before, last])
    return Row(
        "3.3",
        "loose",
        "a larger stride enlarges the field: of a 3 × 3, stride 2, after two 3 × 3, if "
        "its own stride counts",
        "its stride enlarges only the fields of later layers",
        float(fields[1] + (last.kernel - 1) * last.stride),
        float(fields[2]),
    )


def larger_input() -> Row:
    """3.3: a 224 × 224 input with one more pool leaves the dense layer as it is."""
    deeper, wide = _one_more_pool()
    plain = convnet.size_table(to_layers(NOTES, _NOTES_INPUT), _NOTES_INPUT).rows
    return Row(
        "3.3",
        "right",
        "224 × 224 input and one more pooling layer: FC-1024 keeps its parameters",
        "counted, with the pool before FC-1024",
        float(plain[_FIRST_DENSE].parameters),
        float(convnet.size_table(deeper, wide).rows[_FIRST_DENSE + 1].parameters),
    )


def larger_input_field() -> Row:
    """3.3: what their remark on the dense layer does to the field."""
    deeper, _ = _one_more_pool()
    return Row(
        "3.3",
        "missing",
        "– (the remark is on the input of FC-1024, not on a field)",
        "with one more pool its units see 38 × 38 pixels, not 30 × 30, whatever the "
        "size of the input: side",
        None,
        float(convnet.receptive_field(deeper)[_FIRST_DENSE]),
    )


_FIRST_DENSE = 7
"""Place of FC-1024 in the network of 3.2."""


def _one_more_pool() -> tuple[list[convnet.Layer], tuple[int, int, int]]:
    wide = (224, 224, 3)
    layers = list(to_layers(NOTES, wide))
    layers.insert(_FIRST_DENSE, convnet.Pool(2))
    return layers, wide


ROWS: tuple[Callable[[], Row], ...] = (
    output_size,
    edge_detector,
    image_recovered,
    network_neurons,
    network_parameters,
    network_connections,
    kernel_enlarges,
    depth_enlarges,
    stride_of_its_own,
    larger_input,
    larger_input_field,
)
