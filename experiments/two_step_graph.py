r"""Question: what is the graph of two steps, and what must reverse mode keep of it?

The graph is read off the traced program of `Unrolled(steps=2)`, not drawn by hand. For
more steps, the bytes that plain reverse mode keeps between its two sweeps.
Claim: w₀ → ∇L₀; (w₀, ∇L₀, η) → w₁; w₁ → ∇L₁; (w₁, ∇L₁, η) → w₂ → L₂; the L before are
side outputs; what reverse mode keeps grows linearly with T, by 8d bytes a step or more.
"""

from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pydantic import Field, PositiveInt

import metalr
from experiments._command.experiment import Record
from experiments._report.style import panels
from experiments._settings.data import (
    RegressionConfig,
)
from metalr.graph import computation_graph, reverse_residuals

_OPTIMIZERS = {
    "sgd": optax.sgd,
    "momentum": lambda rate: optax.sgd(rate, momentum=0.9),
    "adam": optax.adam,
}
_SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")
_ROWS = {"η": 2.0, "w": 1.0, "∇": 0.0, "L": -1.0}


class Config(RegressionConfig):
    """Options of this experiment."""

    experiment: Literal["two_step_graph"] = "two_step_graph"
    optimizer: Literal["sgd", "momentum", "adam"] = "sgd"
    steps: Annotated[int, Field(ge=1, le=50)] = 2  # a graph to look at
    horizons: tuple[PositiveInt, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


def run(config: Config) -> Iterator[Record]:
    """Yield a record for each edge and side output, then one for each horizon."""
    X, t, _ = config.regression()
    loss = metalr.problems.least_squares(X, t)
    start = jnp.zeros_like(X[0])

    def unrolled(steps: int) -> metalr.Unrolled:
        optimizer = _OPTIMIZERS[config.optimizer]
        return metalr.Unrolled(loss, optimizer, start, steps=steps)

    graph = computation_graph(unrolled(config.steps), 0.1)
    position = {node: index for index, node in enumerate(graph.nodes)}
    side = graph.side_outputs()
    for node in graph.nodes:
        sources = sorted(
            (a for a, b in graph.edges if b == node),
            key=lambda source: position[source],
        )
        yield {
            "table": f"computation graph of {config.steps} steps of {config.optimizer}",
            "node": node,
            "computed from": ", ".join(sources),
            "side output": node in side,
            "sources": sources,
        }
    data_bytes = reverse_residuals(unrolled(0), 0.1).bytes
    state = jax.eval_shape(lambda: unrolled(1).init(jnp.asarray(0.1, X.dtype)))
    state_bytes = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    for steps in config.horizons:
        kept = reverse_residuals(unrolled(steps), 0.1).bytes - data_bytes
        yield {
            "table": "what plain reverse mode keeps",
            "T": steps,
            "bytes_kept": kept,
            "bytes_per_step": kept / steps,
            "state_bytes": state_bytes,
            "states_kept": kept / state_bytes,
        }


def headline(records: Sequence[Record]) -> str:
    """What a further step costs plain reverse mode."""
    kept = [record for record in records if "bytes_per_step" in record]
    return f"{kept[-1]['bytes_per_step']:.4g} bytes a step to T = {kept[-1]['T']}"


def figures(records: Sequence[Record]) -> dict[str, Figure]:
    """The graph, and the bytes kept against the horizon."""
    figure, (left, right) = panels(2)
    _draw_graph(left, [record for record in records if "node" in record])
    rows = [record for record in records if "T" in record]
    horizons = np.array([row["T"] for row in rows])
    right.plot(horizons, [row["bytes_kept"] for row in rows], "o", label="kept")
    slope = rows[-1]["bytes_per_step"]
    right.plot(horizons, slope * horizons, "-", label=f"{slope:.0f} bytes · T")
    state = rows[0]["state_bytes"]
    right.axhline(state, color="black", linestyle=":", label="one state")
    right.set(xscale="log", yscale="log", xlabel="horizon T (steps)")
    right.set(ylabel="kept by plain reverse mode (bytes)")
    right.legend(fontsize=8)
    return {"two_step_graph": figure}


def _draw_graph(axes: Axes, records: Sequence[Record]) -> None:
    place = {record["node"]: _place(record["node"]) for record in records}
    hidden = {record["node"] for record in records if record["side output"]}
    width = max(x for x, _ in place.values())
    place["η"] = (width / 2, _ROWS["η"])
    for record in records:
        node = record["node"]
        style = "dashed" if node in hidden else "solid"
        for source in record["sources"]:
            arrow = {"arrowstyle": "-|>", "linestyle": style, "shrinkA": 13}
            arrow |= {"shrinkB": 13, "color": "0.6" if node in hidden else "black"}
            axes.annotate("", place[node], place[source], arrowprops=arrow)
        color = "0.6" if node in hidden else "black"
        box = {"boxstyle": "circle,pad=0.35", "fc": "white", "ec": color}
        axes.annotate(
            node.translate(_SUBSCRIPTS),
            place[node],
            ha="center",
            va="center",
            bbox=box,
            color=color,
        )
    axes.set(xlim=(-0.6, width + 0.6), ylim=(-1.6, 2.5))
    axes.set_title("dashed: side outputs", fontsize=8)
    axes.axis("off")


def _place(node: str) -> tuple[float, float]:
    """Column = step; the gradient of step s stands between w_s and w_{s+1}."""
    digits = "".join(c for c in node if c.isdigit())
    step = float(digits) if digits else 0.0
    return step + (0.5 if node.startswith("∇") else 0.0), _ROWS[node[0]]


if __name__ == "__main__":
    from experiments._command.cli import module_main

    raise SystemExit(module_main("two_step_graph"))
