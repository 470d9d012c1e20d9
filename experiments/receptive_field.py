r"""Question: what makes a unit see more of the input?

A base network, and the same with one thing changed: stride, kernel, depth, dilation,
pooling. For each the formula's field, drawn on the input beside what the Jacobian of
the real network shows.
Claim: r_l = r_{l−1} + (k_l − 1)·d_l·∏ s_i; a stride enlarges only later fields; the
field is exactly the extent of the Jacobian; the weight within it is concentrated at
the center, the more the deeper the network.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from pydantic import PositiveInt

from experiments._command.experiment import ExperimentConfig, Record
from experiments._report.style import panels
from experiments._settings.networks import ConvLayer, LayerConfig, PoolLayer, to_layers
from metalr import convnet

_C3 = ConvLayer(conv=1, kernel=3)


class Config(ExperimentConfig):
    """Options of this experiment."""

    experiment: Literal["receptive_field"] = "receptive_field"
    input_side: PositiveInt = 25
    networks: dict[str, tuple[LayerConfig, ...]] = {  # noqa: RUF012
        "base: three 3×3": (_C3, _C3, _C3),
        "stride 2 in the first": (ConvLayer(conv=1, kernel=3, stride=2), _C3, _C3),
        "stride 2 in the last": (_C3, _C3, ConvLayer(conv=1, kernel=3, stride=2)),
        "kernel 7 in the first": (ConvLayer(conv=1, kernel=7), _C3, _C3),
        "depth 6": (_C3,) * 6,
        "dilation 1, 2, 4": (
            _C3,
            ConvLayer(conv=1, kernel=3, dilation=2),
            ConvLayer(conv=1, kernel=3, dilation=4),
        ),
        "dilation 4 in the last": (_C3, _C3, ConvLayer(conv=1, kernel=3, dilation=4)),
        "pool 2 after the first": (_C3, PoolLayer(pool=2, kind="average"), _C3, _C3),
    }


def size(config: Config) -> int:
    """Records that `run` yields."""
    return len(config.networks)


def run(config: Config) -> Iterator[Record]:
    """Yield one record for each network."""
    shape = (config.input_side, config.input_side, 1)
    for name, description in config.networks.items():
        layers = to_layers(description, shape)
        field = convnet.fields(layers, shape)[-1]
        weight, unit = _middle_unit(layers, shape)
        center = [field.offset[axis] + field.jump * unit[axis] for axis in (0, 1)]
        columns = np.flatnonzero(weight.any(axis=0))
        yield {
            "network": name,
            "fields": " ".join(map(str, convnet.receptive_field(layers))),
            "formula": field.size,
            "jacobian": int(columns[-1] - columns[0] + 1),
            "pixels_seen": int(np.count_nonzero(weight)),
            "jump": field.jump,
            "effective": field.effective,
            "weight": (weight / weight.max()).round(4).tolist(),
            "center": center,
        }


def headline(records: Sequence[Record]) -> str:
    """In how many networks the formula is the extent of the Jacobian."""
    same = sum(record["formula"] == record["jacobian"] for record in records)
    return f"formula = extent of the Jacobian in {same} of {len(records)} networks"


def figures(records: Sequence[Record]) -> dict[str, Figure]:
    """The middle unit's weight on each pixel, with the field and the effective box."""
    figure, axes = panels(4, (len(records) + 3) // 4, height=4.9)
    image = None
    for axis, r in zip(axes, records, strict=False):
        weight = np.array(r["weight"])
        shown = np.where(weight > 0.0, weight, np.nan)
        image = axis.imshow(shown, cmap="viridis", vmin=0.0, vmax=1.0)
        y, x = r["center"]
        for side, style in ((r["formula"], "-"), (r["effective"], ":")):
            corner = (x - side / 2, y - side / 2)
            color = "#D55E00" if style == "-" else "white"
            box = Rectangle(corner, side, side, fill=False, ls=style, lw=1.8, ec=color)
            axis.add_patch(box)
        axis.set_title(f"{r['network']}\nfields {r['fields']}", fontsize=10)
        axis.grid(visible=False)
        axis.set(xlabel="input column", ylabel="input row")
    for axis in axes[len(records) :]:
        axis.set_axis_off()
    label = "weight of the pixel in the middle unit, relative to the largest"
    if image is not None:
        figure.colorbar(image, ax=axes, shrink=0.7, label=label)
    figure.suptitle(
        "solid: receptive field; dotted: effective field (box of equal spread)"
    )
    return {"receptive_field": figure}


def _middle_unit(
    layers: Sequence[convnet.Layer], shape: tuple[int, int, int]
) -> tuple[np.ndarray, tuple[int, int]]:
    """Derivative of the middle output with respect to each pixel, all weights 1."""
    params = convnet.init(jax.random.key(0), layers, shape)
    params = jax.tree.map(jnp.ones_like, params)
    *_, (height, width, _) = convnet.shapes(layers, shape)
    unit = (height // 2, width // 2)

    def output(image: jax.Array) -> jax.Array:
        values = convnet.apply(layers, params, image[None], activation=lambda x: x)
        return values[0, unit[0], unit[1], 0]

    weight = jax.jit(jax.grad(output))(jnp.zeros(shape))
    return np.asarray(weight[:, :, 0]), unit


if __name__ == "__main__":
    from experiments._command.cli import module_main

    raise SystemExit(module_main("receptive_field"))
