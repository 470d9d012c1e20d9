"""Influence balancing: where truncation has the wrong sign (Vicol et al. 2021)."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib import figure

import metalr
from experiments._command.experiment import Record
from experiments._published.row import Row, compared, exact, printed
from experiments._report.style import panels
from metalr.problems import influence_balancing


def rows(
    *, steps: int, pairs: int, sigma: float, windows: Sequence[int], seed: int
) -> Iterator[Row]:
    """Every figure that the paper prints of its example, and ours."""
    step, init, value_of = influence_balancing()
    theta = 0.5
    objective = metalr.Rollout(step, init, value=value_of, steps=steps)
    value, derivative = metalr.hypergradient(objective, theta)
    yield compared("loss at θ = 0.5", exact(8), float(value), 1e-9)
    yield compared("exact derivative", exact(24), float(derivative), 1e-9)
    forward = metalr.hypergradient(objective, theta, metalr.Forward()).grad
    yield compared("exact derivative, forward mode", exact(24), float(forward), 1e-9)
    learned = metalr.learn(
        objective, theta, outer_optimizer=metalr.Newton(), steps=50
    ).hyper
    yield compared("θ*, learned", exact(-1 / 6), float(learned), 1e-9)
    # One θ a step: the sum over the last K of their derivatives is the truncated one.
    each = metalr.Rollout(
        lambda state, thetas, index: step(state, thetas[index], None),
        init,
        value=value_of,
        steps=steps,
        inputs=lambda index: index,
    )
    by_step = metalr.hypergradient(each, jnp.full(steps, theta)).grad
    sums = np.cumsum(np.asarray(by_step)[::-1])
    for last, published, error in (
        (1, exact(-4), 1e-9),
        (10, exact(-40), 1e-9),
        (40, printed("-2.262"), 0.0),
        (100, exact(24), 1e-6),
    ):
        engine = metalr.Truncated(last=last)
        found = float(metalr.hypergradient(objective, theta, engine).grad)
        setting = f"truncated, K = {last}"
        yield compared(setting, published, found, error, engine_at=last)
    yield compared(
        "first K of the right sign",
        exact(41),
        int(np.argmax(sums > 0.0)) + 1,
        truncated=sums[:200].tolist(),
    )
    engines = _evolution(pairs, sigma, windows, jax.random.key(seed))
    for name, engine in engines.items():
        found = metalr.hypergradient(objective, theta, engine)
        error = float(found.standard_error)
        more = {"estimate": float(found.grad), "standard_error": error}
        if isinstance(engine, metalr.PersistentES):
            more["window"] = engine.window
        yield compared(
            f"{name}, {pairs} pairs",
            exact(24),
            float(found.grad),
            4.0 * error,
            f"{(float(found.grad) - 24.0) / error:+.1f} standard errors ({error:.2g}) "
            "off; the loss is quadratic, so smoothing leaves the derivative",
            **more,
        )


def _evolution(
    pairs: int, sigma: float, windows: Sequence[int], key: jax.Array
) -> dict[str, metalr.PersistentES | metalr.EvolutionStrategies]:
    """Unbiased: the loss is quadratic in θ, so that smoothing leaves its derivative."""
    common: dict[str, Any] = {"sigma": sigma, "pairs": pairs, "chunk": 1000}
    persistent = {
        f"persistent ES, windows of {window}": metalr.PersistentES(
            window=window, key=jax.random.fold_in(key, window), **common
        )
        for window in windows
    }
    plain = metalr.EvolutionStrategies(key=key, **common)
    return {**persistent, "evolution strategies": plain}


def figures(records: Sequence[Record]) -> dict[str, figure.Figure]:
    """Influence balancing: truncated and persistent estimates beside the exact one."""
    curve = next((r["truncated"] for r in records if "truncated" in r), None)
    if curve is None:
        return {}
    drawing, (axes,) = panels(height=3.8)
    lasts = np.arange(1, len(curve) + 1)
    axes.plot(lasts, curve, color="C0", label="truncated, last K steps")
    true = next(r["ours"] for r in records if r["setting"] == "exact derivative")
    axes.axhline(true, color="black", linewidth=0.8, label="exact")
    points = [r for r in records if "engine_at" in r]
    axes.plot(
        [r["engine_at"] for r in points],
        [r["ours"] for r in points],
        "C0o",
        markersize=4,
        label="Truncated(last=K)",
    )
    noisy = [r for r in records if "window" in r]
    axes.errorbar(
        [r["window"] for r in noisy],
        [r["estimate"] for r in noisy],
        yerr=[2.0 * r["standard_error"] for r in noisy],
        fmt="C1s",
        capsize=3,
        markersize=4,
        label="PersistentES(window=K), ± 2 s.e.",
    )
    axes.set(xscale="log", xlabel="K (steps)", ylabel=r"derivative at $\theta = 0.5$")
    drawing.legend(fontsize=8, loc="outside upper center", ncols=2)
    return {"influence_balancing": drawing}
