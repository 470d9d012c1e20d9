"""Labeled images: IDX files as their format says, splits that are disjoint."""

import gzip
import struct

import numpy as np
import pytest

from experiments._command.errors import ConfigError
from experiments._settings import images
from experiments._settings.images import BundledImages, IdxImages, load_images

PIXELS = np.arange(24, dtype=np.uint8).reshape(4, 2, 3)
LABELS = np.array([3, 1, 0, 2], np.uint8)


def idx(array):
    sizes = struct.pack(f">{array.ndim}I", *array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


@pytest.fixture
def files(tmp_path):
    (tmp_path / "images.gz").write_bytes(gzip.compress(idx(PIXELS)))
    (tmp_path / "labels").write_bytes(idx(LABELS))
    return {"images": str(tmp_path / "images.gz"), "labels": str(tmp_path / "labels")}


def test_idx_files_are_read_scaled_and_split(files):
    data = IdxImages(kind="idx", test=1, **files)
    train, test, description = load_images(data, seed=0, dtype="float64")
    assert train.images.shape == (3, 2, 3, 1)
    assert description == {"name": files["images"], "n": 3, "test": 1, "shape": [2, 3]}
    both = np.concatenate([train.images, test.images])[..., 0]
    labels = np.concatenate([train.labels, test.labels])
    assert sorted(labels) == [0, 1, 2, 3]
    for image, label in zip(both, labels, strict=True):
        of = int(np.flatnonzero(label == LABELS)[0])
        np.testing.assert_allclose(image, PIXELS[of] / 23.0, rtol=1e-15)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"PNG.", "is no IDX file: it begins with '504e472e'"),
        (idx(PIXELS)[:-1], "which its shape"),
        (b"\x1f\x8b broken", "cannot be read"),
    ],
)
def test_what_is_no_idx_file_is_refused(tmp_path, content, says):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ConfigError, match=says):
        images.read_idx(str(tmp_path / "file"))


def test_what_does_not_fit_is_refused(files, tmp_path):
    with pytest.raises(ConfigError, match=r"samples = 9.*only 4"):
        load_images(IdxImages(kind="idx", samples=9, **files), seed=0, dtype="float32")
    with pytest.raises(ConfigError, match="must leave some"):
        load_images(IdxImages(kind="idx", test=4, **files), seed=0, dtype="float32")
    swapped = {"images": files["labels"], "labels": files["images"]}
    with pytest.raises(ConfigError, match="expected"):
        load_images(IdxImages(kind="idx", **swapped), seed=0, dtype="float32")
    with pytest.raises(ConfigError, match="cannot be read"):
        images.read_idx(str(tmp_path / "none"))


@pytest.mark.parametrize(
    ("name", "n", "side"), [("digits", 1797, 8), ("mnist5000", 5000, 28)]
)
def test_bundled_images(name, n, side):
    train, test, _ = load_images(BundledImages(name=name), seed=0, dtype="float32")
    assert test.images.shape == (n // 5, side, side, 1)
    assert len(train.labels) + len(test.labels) == n
    assert float(train.images.min()) == 0.0
    assert float(train.images.max()) == 1.0
    assert set(np.asarray(train.labels)) == set(range(10))
