"""What a trace shows, held against what the method's own theory says."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments._bilevel.limits import Limit
from experiments._bilevel.methods import Trace
from experiments._bilevel.quadratics import Simulated
from experiments._bilevel.solvers import POWERS
from experiments._command.experiment import Record

_PART = 1e-6
"""Of ‖∇h‖² at the start: what the passes and seconds to it are told of."""


class Seen(NamedTuple):
    """Squared gradients along a trace, relative to ‖∇h‖² at 0."""

    name: str
    limit: Limit
    of_h: np.ndarray
    of_own: np.ndarray  # of what the method converges to
    trace: Trace


def seen(problem: Simulated, name: str, limit: Limit, trace: Trace) -> Seen:
    """Along a trace, both gradients in closed form."""
    truth = problem.truth
    square = lambda gradient: jax.vmap(lambda x: jnp.sum(gradient(x) ** 2))
    start = float(jnp.sum(truth.gradient(jnp.zeros_like(truth.outer.b)) ** 2))
    h, own = (
        np.asarray(square(gradient)(trace.hypers)) / start
        for gradient in (truth.gradient, limit.gradient)
    )
    return Seen(name, limit, h, own, trace)


def converged(known: Seen, *, tolerance: float) -> Record:
    """With full batches: where a method ends."""
    h, own = float(known.of_h[-1]), float(known.of_own[-1])
    verdict = "still falling"
    if own <= tolerance:
        verdict = "converged" if h <= tolerance else "converged, not to ∇h = 0"
    return {
        "table": "full batches: where each converges",
        "method": known.name,
        "batches": "full batch",
        "gradient²": h,
        "own_gradient²": own,
        "verdict": verdict,
        "converges_to": known.limit.says,
        **_spent(known),
    }


def floors(known: Seen, *, scales: tuple[float, ...], tolerance: float) -> Record:
    """At constant rates: the mean over the second half at each of the scales.

    The ratio is that of two floors whose rates are as 4 to 1.
    """
    stages = known.of_own.reshape(len(scales), -1)
    found = stages[:, stages.shape[1] // 2 :].mean(axis=1)
    record: dict = {
        "table": "minibatches at constant rates: floors of the own gradient²",
        "method": known.name,
        "batches": "constant rates",
        "gradient²": float(known.of_h[-1]),
    }
    for scale, floor in zip(scales, found, strict=True):
        record[f"floor at {scale:g}"] = float(floor)
    record["verdict"] = "converged: no floor"
    if found[-1] > tolerance:
        fourfold = np.log(scales[0] / scales[-1]) / np.log(4.0)
        ratio = float((found[0] / found[-1]) ** (1.0 / fourfold))
        falls = "a noise floor that falls with the rates"
        stays = "a floor that does not fall with the rates"
        record |= {"floor_ratio": ratio, "verdict": falls if ratio > 2.0 else stays}
    return {**record, "of": known.limit.says, **_spent(known)}


def falling(known: Seen, *, falls_after: int) -> Record:
    """At falling rates: the power of t, by least squares over the last two thirds."""
    # The penalty of F2SA grows, so that it is to reach ∇h = 0.
    squares = known.of_h if known.name == "F2SA" else known.of_own
    late, count = len(squares) // 3, len(squares)
    updates = np.arange(1, count + 1) / count * known.trace.updates
    times = np.log1p(updates / falls_after)
    power = float(np.polyfit(times[late:], np.log(squares[late:]), 1)[0])
    theory = -POWERS[known.name]
    return {
        "table": "minibatches at the papers' falling rates: powers of t",
        "method": known.name,
        "batches": "falling rates",
        "gradient²": float(known.of_h[-(count // 10) :].mean()),
        "own_gradient²": float(known.of_own[-(count // 10) :].mean()),
        "power": power,
        "power_in_theory": theory,
        "verdict": "falls" if power < 0.7 * theory else "stalls",
        "of": "h" if known.name == "F2SA" else known.limit.says,
        **_spent(known),
    }


def _spent(known: Seen) -> Record:
    """Passes, seconds, those to a millionth of the start if it got there; the curve."""
    passes, seconds = known.trace.passes, known.trace.seconds
    spent: dict = {"passes": float(passes[-1]), "seconds": seconds}
    if known.of_h[-1] <= _PART:
        first = float(passes[np.argmax(known.of_h <= _PART)])
        spent[f"passes to {_PART:g}"] = first
        spent[f"seconds to {_PART:g}"] = seconds * first / float(passes[-1])
    curve = {"passes": passes.tolist(), "gradient²": known.of_h.tolist()}
    return {**spent, "curve": curve}
