r"""Question: which engine differentiates which kind of run, and how exactly?

Every engine on every kind of run, value and hypergradient against a loop written out
in JAX: to 1e-10 in float64, to the accuracy of bfloat16 where the parameters are; the
engines that sample within five of their standard errors. Claim: each cell is right, or
the engine refuses by name before anything runs. `Implicit` is asked where it applies,
after enough steps to be at rest; `Truncated(last=T)` cuts nothing off.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from pydantic import PositiveFloat, PositiveInt

import metalr
from experiments._command.experiment import ExperimentConfig, Record


class Config(ExperimentConfig):
    """Options of this experiment."""

    experiment: Literal["coverage"] = "coverage"
    steps: PositiveInt = 6
    steps_at_rest: PositiveInt = 100  # for `Implicit`
    pairs: PositiveInt = 400  # of the engines that sample
    tolerance: PositiveFloat = 1e-10
    narrow_tolerance: PositiveFloat = 0.03  # bfloat16: a few of its 2⁻⁸


_RATE, _MOMENTUM = 0.2, 0.5
_START, _HYPER = np.array([0.5, -1.0, 0.25]), np.array([0.3, 0.6, 0.9])
_CURVATURES = np.array([1.0, 0.8, 0.5])


class Kind(NamedTuple):
    """A kind of run, and the same run by hand."""

    make: Callable[[int], Any]  # steps -> objective
    by_hand: Callable[[int, Any], Any]  # steps, hyper -> value
    narrow: bool = False


def loss(w: jax.Array, hyper: jax.Array, batch: jax.Array) -> jax.Array:
    """Convex and not quadratic, one strength for each parameter."""
    fit = 0.5 * jnp.sum(_CURVATURES.astype(w.dtype) * (w - batch) ** 2)
    return fit + 0.5 * jnp.sum(hyper * w**2) + 0.1 * jnp.sum(jnp.cosh(w))


def outer(w: jax.Array, hyper: jax.Array) -> jax.Array:
    """Sees the parameters, and the hyperparameters directly."""
    return jnp.sum((w - 0.2) ** 2) + 0.01 * jnp.sum(hyper**2)


def with_state(w: Any, hyper: Any, batch: Any, mean: Any) -> tuple[Any, Any]:
    """A loss that pulls to a running mean of the parameters, which it updates."""
    return loss(w, hyper, batch) + 0.1 * jnp.sum((w - mean) ** 2), 0.8 * mean + 0.2 * w


def kinds() -> dict[str, Kind]:
    """The columns of the table."""
    start, target = jnp.asarray(_START), jnp.array([1.0, -0.5, 0.75])
    weights = lambda steps: jnp.linspace(0.0, 1.0, steps + 1) ** 2

    def unrolled(steps: int, params: Any = start, **options: Any) -> Any:
        batch = jnp.broadcast_to(target.astype(params.dtype), (steps, 3))
        given = {"loss": loss, "outer_loss": outer, **options}
        carried = jnp.promote_types(params.dtype, jnp.float32)
        return metalr.Unrolled(
            given.pop("loss"),
            lambda _: optax.sgd(_RATE, _MOMENTUM, accumulator_dtype=carried),
            params,
            steps=steps,
            batches=batch,
            **given,
        )

    def step(state: Any, hyper: Any, _: Any) -> tuple[Any, None]:
        w, v = state
        v = _MOMENTUM * v + jax.grad(loss)(w, hyper, target)
        return (w - _RATE * v, v), None

    def by_hand(
        steps: int, hyper: Any, weights: Any = None, *, stateful: bool = False
    ) -> Any:
        def update(carry: Any, _: Any) -> tuple[Any, Any]:
            w, v, mean = carry
            grad, new = jax.grad(loss)(w, hyper, target), mean
            if stateful:
                grad, new = jax.grad(with_state, has_aux=True)(w, hyper, target, mean)
            v = _MOMENTUM * v + grad
            return (w - _RATE * v, v, new), outer(w, hyper)

        zeros = jnp.zeros(3)
        end, before = jax.lax.scan(update, (start, zeros, zeros), length=steps)
        value = outer(end[0], hyper) + (jnp.sum(end[2]) if stateful else 0.0)
        if weights is None:
            return value
        return jnp.dot(weights[:-1], before) + weights[-1] * value

    return {
        "Unrolled": Kind(unrolled, by_hand),
        "model_state": Kind(
            lambda steps: unrolled(
                steps,
                loss=with_state,
                model_state=jnp.zeros(3),
                outer_loss=lambda w, h, mean: outer(w, h) + jnp.sum(mean),
            ),
            lambda steps, h: by_hand(steps, h, stateful=True),
        ),
        "Rollout": Kind(
            lambda steps: metalr.Rollout(
                step,
                (start, jnp.zeros(3)),
                steps=steps,
                value=lambda state, h: outer(state[0], h),
            ),
            by_hand,
        ),
        "outer_weights": Kind(
            lambda steps: unrolled(steps, outer_weights=weights(steps)),
            lambda steps, h: by_hand(steps, h, weights(steps)),
        ),
        "bfloat16": Kind(
            lambda steps: unrolled(steps, start.astype(jnp.bfloat16)), by_hand, True
        ),
    }


def engines(config: Config) -> list[Any]:
    """The rows of the table."""
    key = jax.random.key(config.seed)
    return [
        metalr.Reverse(),
        metalr.Reverse(checkpoints=2),
        metalr.Forward(),
        metalr.Forward(chunk=2),
        metalr.Mixed(),
        metalr.Mixed(checkpoints=2),
        metalr.Truncated(last=config.steps),
        metalr.Reversible(min_momentum=_MOMENTUM),
        metalr.Implicit(rtol=1e-13),
        metalr.EvolutionStrategies(1e-3, config.pairs, key),
        metalr.PersistentES(1e-3, config.pairs, max(1, config.steps // 2), key),
    ]


def run(config: Config) -> Iterator[Record]:
    """Yield a record for each engine; then one for each reason to refuse."""
    hyper = jnp.asarray(_HYPER)
    columns, truths, refusals = kinds(), {}, {}
    for engine in engines(config):
        at_rest = isinstance(engine, metalr.Implicit)
        steps = config.steps_at_rest if at_rest else config.steps
        row: dict[str, Any] = {"engine": _name(engine)}
        for column, kind in columns.items():
            try:
                found = metalr.hypergradient(kind.make(steps), hyper, engine)
            except ValueError as error:
                row[column] = "refused"
                refusals.setdefault((row["engine"], str(error)), []).append(column)
            else:
                if (column, steps) not in truths:
                    truths[column, steps] = _truth(kind, steps, hyper)
                row[column] = _judged(config, kind, found, truths[column, steps])
        yield row
    for (engine, reason), names in refusals.items():
        yield {
            "table": "refusals",
            "engine": engine,
            "run": ", ".join(names),
            "because": reason,
        }


def headline(records: Sequence[Record]) -> str:
    """How many cells are right."""
    cells = [
        record[column] for record in records for column in kinds() if column in record
    ]
    counts = {mark: sum(cell.startswith(mark) for cell in cells) for mark in "✓r✗"}
    return (
        f"{counts['✓']} of {len(cells)} pairs of engine and run right, "
        f"{counts['r']} refused by name, {counts['✗']} wrong"
    )


def _truth(kind: Kind, steps: int, hyper: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Value and gradient of the loop written out."""
    return jax.jit(jax.value_and_grad(lambda h: kind.by_hand(steps, h)))(hyper)


def _judged(config: Config, kind: Kind, found: Any, truth: Any) -> str:
    """✓ or ✗ with the error: relative to the largest entry, or in standard errors."""
    value, grad = (np.asarray(x, np.float64) for x in truth)
    errors = [abs(float(found.value) / float(value) - 1.0)]
    limit = config.narrow_tolerance if kind.narrow else config.tolerance
    off = np.asarray(found.grad, np.float64) - grad
    if hasattr(found, "standard_error"):
        deviations = np.max(np.abs(off) / np.asarray(found.standard_error, np.float64))
        right = errors[0] <= limit and deviations <= _DEVIATIONS
        return f"{'✓' if right else '✗'} {deviations:.1f} s.e."
    errors.append(float(np.max(np.abs(off)) / np.max(np.abs(grad))))
    right = max(errors) <= limit
    return f"{'✓' if right else '✗'} {max(errors):.0e}"


_DEVIATIONS = 5.0
"""Standard errors that a sampled gradient may be off, the largest of three entries."""


def _name(engine: Any) -> str:
    """As it is printed, without the words of a key."""
    return repr(engine).split(", key=", maxsplit=1)[0].removesuffix(")") + ")"


if __name__ == "__main__":
    from experiments._command.cli import module_main

    raise SystemExit(module_main("coverage"))
