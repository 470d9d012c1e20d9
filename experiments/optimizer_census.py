r"""Question: through which of optax's optimizers can one differentiate, and when?

Every optimizer that optax exports, three inner steps on four parameters, the loss after
them as a function of the learning rate. Cases: every coordinate has a gradient; one has
none (it is dead, as behind a ReLU that never opens); all are dead. First and second
derivatives in both modes, unguarded beside guarded, against central differences.
Claim: six common optimizers give nan as soon as one coordinate is dead; guarded, every
derivative that exists is finite and right, and the run is the same to the last bit.
"""

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from optax import contrib
from optax._src import alias
from pydantic import PositiveFloat, PositiveInt

import metalr
from experiments._command.experiment import ConfigError, ExperimentConfig, Record
from experiments._report.style import panels

CASES = {
    "live": ((1.0, 1.0), (1.0, 1.0)),
    "one dead": ((1.0, 1.0), (1.0, 0.0)),
    "all dead": ((0.0, 0.0), (0.0, 0.0)),
}
"""Factors of the gradient's coordinates; parameters are a 2 × 2 matrix."""

MODES = ("forward", "reverse", "forward over reverse", "reverse over reverse")

NOT_RUN = {
    "dpsgd": "takes a gradient for each example, and an inner loss gives their mean",
    "optimistic_adam": "deprecated by optax; optimistic_adam_v2 is run",
    "sophia": "takes `obj_fn` at each update, a name that optax's line searches refuse",
    "sam": "wraps two optimizers; it takes no learning rate of its own",
}
"""Optimizers that optax exports and that are left out, each with its reason."""

_RATIO = "the run itself is nan: its distance estimate is 0/0 without any gradient"
NOT_DIFFERENTIABLE = {
    ("dadapt_adamw", "all dead"): _RATIO,
    ("prodigy", "all dead"): _RATIO,
    ("galore", "all dead"): "singular vectors of a zero gradient have no derivative",
}
"""Optimizer and case where no derivative exists, each with its reason."""

STOPS = {
    "lbfgs": "it stops the gradient of the norm that scales its first step: right in "
    "the rate, which that step does not know yet, wrong in what the start or the loss "
    "depends on",
}
"""Optimizers whose derivatives leave a path out, each with what it stops."""

_OPTIONS: dict[str, Callable[[Any], Any]] = {
    "polyak_sgd": lambda rate: optax.polyak_sgd(scaling=rate),
    "noisy_sgd": lambda rate: optax.noisy_sgd(rate, key=jax.random.key(0)),
    # Its line search is a while loop, which reverse mode cannot pass; its number of
    # iterations is not a smooth function.
    "lbfgs": lambda rate: optax.lbfgs(rate, linesearch=None),
    "schedule_free": lambda rate: contrib.schedule_free(optax.sgd(rate), rate),
}
"""Those that are not made by `optimizer(learning_rate)`."""


class Config(ExperimentConfig):
    """Options of this experiment."""

    experiment: Literal["optimizer_census"] = "optimizer_census"
    optimizers: tuple[str, ...] = ()  # names; empty: all that optax exports
    steps: PositiveInt = 3
    rate: PositiveFloat = 0.05


class Derivatives(NamedTuple):
    """L_T and its derivatives in the rate, one for each of `MODES`."""

    value: jax.Array
    derivatives: tuple[jax.Array, ...]


def exported() -> dict[str, Callable[..., Any]]:
    """The optimizers that optax exports by name, found by introspection.

    Those are the public functions of `optax` that its module of optimizers defines
    (`alias`), and the public functions of `optax.contrib` that take a learning rate or
    optimizers; building blocks, `scale_by_…`, are not optimizers.
    """
    found = {}
    for module in (optax, contrib):
        for name, value in inspect.getmembers(module, callable):
            function = value.func if isinstance(value, functools.partial) else value
            if name.startswith(("_", "scale_by_")) or not inspect.isfunction(function):
                continue
            names = set(inspect.signature(function).parameters)
            in_contrib = module is contrib and names & {"learning_rate", "optimizer"}
            if function.__module__ == alias.__name__ or in_contrib:
                found[name] = value
    return found


def optimizers() -> dict[str, Callable[[Any], Any]]:
    """`rate -> optax.GradientTransformation` of every optimizer that is run."""
    return {
        name: _OPTIONS.get(name, function)
        for name, function in exported().items()
        if name not in NOT_RUN
    }


def objective(
    make: Callable[[Any], Any], steps: int, *, guarded: bool
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """`L_T(rate, alive)` of a loss that is not quadratic; alive: see `CASES`."""
    target = jnp.array([[1.0, -0.5], [0.25, 2.0]])
    start = jnp.array([[0.3, 0.2], [-0.4, 0.6]])

    def loss(params: Any, hyper: Any, batch: Any) -> jax.Array:
        del batch
        away = (params - target) * hyper["alive"]
        return jnp.sum(0.5 * away**2 + 0.1 * away**4) + 0.3 * away[0, 0] * away[0, 1]

    unrolled = metalr.Unrolled(
        loss, lambda h: make(h["rate"]), start, steps=steps, guarded=guarded
    )
    return lambda rate, alive: unrolled({"rate": rate, "alive": alive})


def derivatives(
    make: Callable[[Any], Any], rates: Sequence[float], steps: int, *, guarded: bool
) -> Derivatives:
    """At every rate and in every case, axes (case, rate), by one compiled program."""
    function = objective(make, steps, guarded=guarded)

    def at(rate: jax.Array, alive: jax.Array) -> Derivatives:
        f = lambda rate: function(rate, alive)
        value, forward = jax.jvp(f, (rate,), (jnp.ones_like(rate),))
        reverse, curvature = jax.jvp(jax.grad(f), (rate,), (jnp.ones_like(rate),))
        twice = jax.grad(jax.grad(f))(rate)
        return Derivatives(value, (forward, reverse, curvature, twice))

    # Compiled once and run a few times: XLA need not optimize.
    program = jax.jit(at, compiler_options={"xla_backend_optimization_level": 0})
    table = [
        [program(jnp.asarray(rate), jnp.array(alive)) for rate in rates]
        for alive in CASES.values()
    ]
    rows = [jax.tree.map(lambda *x: jnp.stack(x), *row) for row in table]
    return jax.tree.map(lambda *x: jnp.stack(x), *rows)


def same_bits(make: Callable[[Any], Any], rate: float, steps: int) -> bool:
    """Do the guarded and the plain run end on the same float in every case?"""
    arguments = [(jnp.asarray(rate), jnp.array(alive)) for alive in CASES.values()]
    programs = [
        jax.jit(objective(make, steps, guarded=guarded)).lower(*arguments[0])
        for guarded in (True, False)
    ]
    if programs[0].as_text() == programs[1].as_text():
        return True  # one program
    ends = [[np.asarray(p.compile()(*a)) for a in arguments] for p in programs]
    return np.array(ends[0]).tobytes() == np.array(ends[1]).tobytes()


def examine(name: str, rate: float, steps: int, *, plain: bool = True) -> list[Record]:
    """One record for each case: what is finite, and how far from differences.

    Central differences of the value, and of the reverse derivative for the second. With
    step h = ε^(1/3)·rate the error is about h² of the third derivative and ε/h of the
    value: about 1e-8 of either, so 1e-6 separates right from wrong. A slope that is 0
    because terms of the size of the value cancel is rounded as they are. `plain=False`
    leaves the unguarded derivatives out.
    """
    make = optimizers()[name]
    step = rate * float(jnp.finfo(jnp.asarray(rate).dtype).eps) ** (1 / 3)
    rates = (rate, rate - step, rate + step)
    unguarded = (
        derivatives(make, rates[:1], steps, guarded=False).derivatives if plain else ()
    )
    value, exact = derivatives(make, rates, steps, guarded=True)
    slopes = [(v[:, 2] - v[:, 1]) / (rates[2] - rates[1]) for v in (value, exact[1])]
    bits = same_bits(make, rate, steps)
    ends = [float(v) for v in value[:, 0]]
    records = []
    for index, case in enumerate(CASES):
        guarded = [float(d[index, 0]) for d in exact]
        expected = [float(slopes[i][index]) for i in (0, 0, 1, 1)]
        finite = [bool(jnp.isfinite(d[index, 0])) for d in unguarded]
        records.append(
            {
                "table": "optimizers of optax",
                "optimizer": name,
                "case": case,
                "unguarded_finite": f"{sum(finite)} of {len(finite)}",
                "guarded_finite": f"{int(np.isfinite(guarded).sum())} of {len(MODES)}",
                "value": ends[index],
                "slope": guarded[1],
                "first_error": _error(guarded[:2], expected[:2], ends[index]),
                "second_error": _error(
                    guarded[2:], expected[2:], max(abs(guarded[1]), abs(ends[index]))
                ),
                "same_bits": bits,
                "reason": NOT_DIFFERENTIABLE.get((name, case), STOPS.get(name)),
                "unguarded": [float(d[index, 0]) for d in unguarded],
                "guarded": guarded,
                "expected": expected,
            }
        )
    return records


def size(config: Config) -> int:
    """Records that `run` yields."""
    return len(CASES) * len(config.optimizers or optimizers()) + len(NOT_RUN)


def run(config: Config) -> Iterator[Record]:
    """Yield the records of each optimizer, then those left out and why."""
    known = optimizers()
    unknown = sorted(set(config.optimizers) - set(known))
    if unknown:
        msg = f"optimizers = {unknown}: must be among {', '.join(sorted(known))}"
        raise ConfigError(msg)
    for name in config.optimizers or sorted(known):
        yield from examine(name, config.rate, config.steps)
    for name, reason in NOT_RUN.items():
        yield {"table": "not run", "optimizer": name, "reason": reason}


def figures(records: Sequence[Record]) -> dict[str, Figure]:
    """Finite derivatives of each optimizer, unguarded beside guarded."""
    rows = [r for r in records if "case" in r]
    names = list(dict.fromkeys(r["optimizer"] for r in rows))
    figure, axes = panels(len(CASES), height=0.19 * len(names) + 1.2)
    for axis, case in zip(axes, CASES, strict=True):
        of_case = [r for r in rows if r["case"] == case]
        grid = [
            [*np.isfinite(r["unguarded"]), *np.isfinite(r["guarded"])] for r in of_case
        ]
        axis.imshow(
            np.array(grid, float), cmap="RdBu", vmin=-0.5, vmax=1.5, aspect="auto"
        )
        axis.axvline(len(MODES) - 0.5, color="white", lw=4)
        short = ["f", "r", "f(r)", "r(r)"]
        axis.set_xticks(range(2 * len(MODES)), short * 2)
        axis.set_yticks(range(len(names)), names, fontsize=7)
        axis.set(title=f"{case}: unguarded | guarded")
        axis.grid(visible=False)
    figure.supxlabel("f forward, r reverse, second derivatives; red: not finite")
    return {"optimizer_census": figure}


def _error(
    actual: Sequence[float], expected: Sequence[float], scale: Any
) -> float | None:
    """Largest difference, relative to the derivative or to what it was taken of."""
    sizes = [max(abs(e), abs(float(scale)), 1e-3) for e in expected]
    errors = [abs(a - e) / s for a, e, s in zip(actual, expected, sizes, strict=True)]
    return max(errors) if np.isfinite(errors).all() else None


if __name__ == "__main__":
    from experiments._command.cli import module_main

    raise SystemExit(module_main("optimizer_census"))
