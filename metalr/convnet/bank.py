"""A small bank of named filters, and what each detects."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float


class Filter(NamedTuple):
    """A kernel for `correlate2d`, and what it is for."""

    kernel: Float[Array, "a b"]
    detects: str


_BANK = {
    "laplacian": (
        [[0, -1, 0], [-1, 4, -1], [0, -1, 0]],
        1,
        "edges of every direction: pixels unlike their four neighbors",
    ),
    "laplacian_8": (
        [[-1, -1, -1], [-1, 8, -1], [-1, -1, -1]],
        1,
        "edges and corners: pixels unlike their eight neighbors",
    ),
    "sobel_x": (
        [[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]],
        1,
        "vertical edges: brighter to the right, smoothed along the edge",
    ),
    "sobel_y": (
        [[-1, -2, -1], [0, 0, 0], [1, 2, 1]],
        1,
        "horizontal edges: brighter below, smoothed along the edge",
    ),
    "prewitt_x": (
        [[-1, 0, 1], [-1, 0, 1], [-1, 0, 1]],
        1,
        "vertical edges: brighter to the right, averaged along the edge",
    ),
    "prewitt_y": (
        [[-1, -1, -1], [0, 0, 0], [1, 1, 1]],
        1,
        "horizontal edges: brighter below, averaged along the edge",
    ),
    "gaussian": (
        [[1, 2, 1], [2, 4, 2], [1, 2, 1]],
        16,
        "nothing: it blurs, so that later filters see less noise",
    ),
}


def filters(dtype: Any = float) -> dict[str, Filter]:
    """The bank by name: Laplacians, Sobel, Prewitt, Gaussian.

    To be applied with `correlate2d`. The Laplacians and the Gaussian are symmetric, so
    that `convolve2d` is the same; for the others it flips the sign.

    Args:
        dtype: of the kernels.

    Example:
        >>> from metalr.convnet import filters
        >>> print(filters()["laplacian"].kernel[1])
        [-1.  4. -1.]

    References:
        Gonzalez, Woods (2018), Digital image processing, chapter 10.
    """
    return {
        name: Filter(jnp.asarray(kernel, dtype) / scale, detects)
        for name, (kernel, scale, detects) in _BANK.items()
    }
