"""Convolution of images, and its inverse."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, Float


def convolve2d(image: ArrayLike, kernel: ArrayLike) -> Array:
    r"""Convolution with zero padding, of the size of the image.

    $$y_{ij} = \sum_{uv} k_{uv}\,x_{i+a-u,\;j+b-v}$$

    with (a, b) the center of the kernel, (side − 1)//2 each as in the mode "same" of
    `scipy.signal`. This is the convolution of signal processing, which flips the
    kernel; what networks call convolution is `correlate2d`. Linear in both arguments;
    every derivative. Integers become floats.

    Args:
        image: (height, width); or (batch, height, width, channels).
        kernel: (a, b); or, for batches, (a, b, in channels, out channels).

    Returns:
        (height, width); or (batch, height, width, out channels).

    Raises:
        ValueError: if the shapes do not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> from metalr.convnet import convolve2d
        >>> print(convolve2d(jnp.eye(2), jnp.array([[0.0, 1.0, 2.0]])))
        [[1. 2.]
         [0. 1.]]
    """
    kernel = jnp.asarray(kernel)
    return correlate2d(image, kernel[::-1, ::-1] if kernel.ndim > 1 else kernel)


def correlate2d(image: ArrayLike, kernel: ArrayLike) -> Array:
    r"""Correlation with zero padding: `convolve2d` with the kernel not flipped.

    $y_{ij} = \sum_{uv} k_{uv}\,x_{i+u-a,\;j+v-b}$, with center side//2: the
    inner product of the kernel with the window around each pixel, which is largest
    where the image looks like the kernel. Equal to `convolve2d` for a symmetric kernel
    of odd sides. Arguments, errors and derivatives are the same.
    """
    image, kernel = _floats(image), _floats(kernel)
    _check(image, kernel)
    plain = image.ndim == 2
    dtype = jnp.result_type(image, kernel)
    image, kernel = image.astype(dtype), kernel.astype(dtype)
    if plain:
        image, kernel = image[None, :, :, None], kernel[:, :, None, None]
    sides = [(side // 2, (side - 1) // 2) for side in kernel.shape[:2]]
    output = lax.conv_general_dilated(
        image, kernel, (1, 1), sides, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return output[0, :, :, 0] if plain else output


def recover_image(output: ArrayLike, kernel: ArrayLike) -> Float[Array, "height width"]:
    r"""The image whose convolution with `kernel` is `output`.

    With zero padding, convolution is a square linear system, one equation a pixel;
    it is solved by its singular value decomposition. An error in `output` is magnified
    by up to the condition number. Memory (height·width)²: for small images.

    Args:
        output: what `convolve2d(image, kernel)` returned.
        kernel: of the convolution.

    Raises:
        ValueError: if the system is singular (the kernel erases some images: their
            number is in the message), or the arrays are traced or do not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> from metalr.convnet import convolve2d, recover_image
        >>> image, kernel = jnp.eye(2), jnp.array([[4.0, 1.0]])
        >>> found = recover_image(convolve2d(image, kernel), kernel)
        >>> print(bool(jnp.allclose(found, image, atol=1e-5)))
        True
    """
    if isinstance(output, Tracer) or isinstance(kernel, Tracer):
        msg = "recover_image decides by value whether it can: call it outside jit"
        raise ValueError(msg)
    output, kernel = _floats(output), _floats(kernel)
    if output.ndim != 2:
        msg = f"output {output.shape} must be (height, width): recover one channel"
        raise ValueError(msg)
    matrix = convolution_matrix(kernel, (output.shape[0], output.shape[1]))
    left, singular, right = jnp.linalg.svd(matrix)
    tolerance = singular.size * jnp.finfo(matrix.dtype).eps * singular[0]
    lost = int(jnp.sum(singular <= tolerance))
    if lost:
        msg = (
            f"the image cannot be recovered: on {output.shape} the kernel erases "
            f"{lost} of {singular.size} independent images (smallest singular value "
            f"{float(singular[-1]):.1e}). Take another kernel or size, or "
            "jnp.linalg.lstsq on convolution_matrix for the smallest such image"
        )
        raise ValueError(msg)
    return (right.T @ ((left.T @ output.ravel()) / singular)).reshape(output.shape)


def convolution_matrix(
    kernel: Float[Array, "a b"], shape: tuple[int, int]
) -> Float[Array, "pixels pixels"]:
    """The matrix M with `convolve2d(image, kernel).ravel() = M @ image.ravel()`.

    Args:
        kernel: of the convolution.
        shape: (height, width) of the images.

    Raises:
        ValueError: as `convolve2d`.
    """
    pixels = shape[0] * shape[1]
    basis = jnp.eye(pixels, dtype=kernel.dtype).reshape(pixels, *shape)
    rows = jax.vmap(functools.partial(convolve2d, kernel=kernel))(basis)
    return rows.reshape(pixels, pixels).T


def _check(image: Array, kernel: Array) -> None:
    pairs = {(2, 2), (4, 4)}
    fits = (image.ndim, kernel.ndim) in pairs
    if not fits or 0 in kernel.shape or 0 in image.shape:
        msg = (
            f"image {image.shape} and kernel {kernel.shape} do not fit: pass (height, "
            "width) and (a, b), or (batch, height, width, channels) and (a, b, in, out)"
        )
        raise ValueError(msg)
    if image.ndim == 4 and image.shape[-1] != kernel.shape[2]:
        msg = f"image has {image.shape[-1]} channels, the kernel {kernel.shape[2]}"
        raise ValueError(msg)


def _floats(array: ArrayLike) -> Array:
    array = jnp.asarray(array)
    return array.astype(jnp.result_type(array, float))
