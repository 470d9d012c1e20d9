r"""Question: what does the notes' filter see in their picture, and what does it lose?

The 5 × 5 image of the source notes under the Laplacian, zero padding; the image
computed back from the output alone; and a bank of filters on a real picture.
Claim: the output is the image's edges; the image is recovered to rounding, because the
25 × 25 system is regular, its smallest eigenvalue 4 − 4cos(π/6) ≈ 0.5359.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from experiments._command.experiment import ExperimentConfig, Record
from experiments._report.style import panels
from experiments._settings.source_notes import IMAGE, LAPLACIAN
from metalr import convnet


class Config(ExperimentConfig):
    """Options of this experiment."""

    experiment: Literal["edges"] = "edges"
    image: tuple[tuple[float, ...], ...] = IMAGE
    kernel: tuple[tuple[float, ...], ...] = LAPLACIAN
    picture: Literal["china", "flower", "digit"] = "china"  # scikit-learn's


def run(config: Config) -> Iterator[Record]:
    """Yield the output row by row, the recovery, and one record for each filter."""
    image = jnp.asarray(config.image, config.dtype)
    kernel = jnp.asarray(config.kernel, config.dtype)
    output = convnet.convolve2d(image, kernel)
    for given, made in zip(image.tolist(), output.tolist(), strict=True):
        row = {"image": _line(given), "output": _line(made), "values": [given, made]}
        yield {"table": "image and output", **row}
    matrix = convnet.convolution_matrix(kernel, (image.shape[0], image.shape[1]))
    singular = jnp.linalg.svd(matrix, compute_uv=False)
    recovered = convnet.recover_image(output, kernel)
    flipped = convnet.correlate2d(image, kernel)
    yield {
        "table": "the image back from the output alone",
        "unknowns": matrix.shape[0],
        "smallest_singular_value": float(singular[-1]),
        "condition_number": float(singular[0] / singular[-1]),
        "recovery_error": float(jnp.max(jnp.abs(recovered - image))),
        "convolution_minus_correlation": float(jnp.max(jnp.abs(output - flipped))),
        "recovered": recovered.tolist(),
    }
    picture = _picture(config)
    yield _seen(config, "none", "the picture itself", picture)
    for name, (taps, detects) in convnet.filters(picture.dtype).items():
        seen = convnet.correlate2d(picture, taps)
        yield _seen(config, name, detects, seen)


def figures(records: Sequence[Record]) -> dict[str, Figure]:
    """The notes' image, its edges and its recovery; the bank on a real picture."""
    rows = [r for r in records if "output" in r]
    image, output = (np.array([r["values"][i] for r in rows]) for i in (0, 1))
    back = next(np.array(r["recovered"]) for r in records if "recovered" in r)
    small, axes = panels(3, height=3.6)
    for axis, (title, values) in zip(
        axes,
        {"image": image, "output": output, "recovered": back}.items(),
        strict=True,
    ):
        _show(axis, values, title)
        for (i, j), value in np.ndenumerate(values):
            bright = abs(value) < 0.6 * np.abs(values).max()
            color = "black" if bright else "white"
            axis.text(j, i, str(round(value)), ha="center", va="center", color=color)
    pictures = [r for r in records if "filter" in r]
    bank, axes = panels(4, (len(pictures) + 3) // 4, height=3.4)
    for axis, r in zip(axes, pictures, strict=False):
        _show(
            axis,
            np.array(r["values"]),
            r["filter"],
            plain=r["filter"] in {"none", "gaussian"},
        )
    for axis in axes[len(pictures) :]:
        axis.set_axis_off()
    return {"edges": small, "filters": bank}


def _show(axis: Any, values: np.ndarray, title: str, *, plain: bool = False) -> None:
    top = float(np.quantile(np.abs(values), 0.995)) or 1.0
    if plain or values.min() >= -1e-9:
        axis.imshow(values, cmap="gray" if plain else "gray_r", vmin=0.0, vmax=top)
    else:
        axis.imshow(values, cmap="RdBu_r", vmin=-top, vmax=top)
    axis.set(title="picture" if title == "none" else title, xticks=[], yticks=[])
    axis.grid(visible=False)


def _picture(config: Config) -> jax.Array:
    """A gray picture, 0 black and 1 white."""
    from sklearn import datasets

    if config.picture == "digit":
        bunch: Any = datasets.load_digits()
        values = np.asarray(bunch.images[0]) / 16.0
    else:
        color = np.asarray(datasets.load_sample_image(f"{config.picture}.jpg")) / 255.0
        values = color.mean(axis=-1)[::3, ::3]
    return jnp.asarray(values, config.dtype)


def _seen(config: Config, name: str, detects: str, values: jax.Array) -> Record:
    return {
        "table": f"filters on {config.picture}",
        "filter": name,
        "detects": detects,
        "mean_magnitude": float(jnp.mean(jnp.abs(values))),
        "values": _small(values),
    }


def _small(values: jax.Array) -> list[list[float]]:
    return np.round(np.asarray(values), 3).tolist()


def _line(values: Sequence[float]) -> str:
    return " ".join(f"{value + 0.0:3g}" for value in values)


if __name__ == "__main__":
    from experiments._command.cli import module_main

    raise SystemExit(module_main("edges"))
