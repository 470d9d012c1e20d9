r"""Question: does the hypergradient find the best learning rate of a single setting?

One run is one point of a sweep: a data set, T, an inner optimizer, initial weights and
noise drawn by `seed`. The rate of the T steps is learned by its hypergradient and held
against the closed form of that very run.
Claim: without momentum the learned rate is η*_T, to 1e-6. With momentum L_T is not
convex: the learned rate is a minimum, and the record says whether it is the global one.

A sweep runs points that differ only in BATCHED fields as one vmapped program. A point's
result is then the same as alone: Newton ends where the slope vanishes, which rounding
moves by `resolution`, and lanes that have stopped are held. So both agree to 1e-12
where `resolution` is below that (it is nearly everywhere; not where $L_T - L_\infty$
has vanished next to $L_\infty$ and a range of rates is equal).
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial
from matplotlib.figure import Figure
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

import metalr
from experiments._command.experiment import Record
from experiments._settings.data import (
    BundledData,
    CsvData,
    Regression,
    RegressionConfig,
    load_regression,
)
from experiments._tuned_rate.figures import agreement, horizons
from metalr.problems import least_squares
from metalr.theory import runs as theory
from metalr.theory.global_rates import Local, Optimum

BATCHED = ("seed", "start", "momentum", "weight_scale", "noise")
"""Fields that are numbers in the same traced program."""


_WITH_MOMENTUM = ("heavy_ball", "nesterov")
_COMPARED = (
    "eta_closed",
    "relative_error",
    "to_minimum",
    "resolution",
    "loss_closed",
    "minimum",
    "minima",
)
"""Columns that need a closed form."""


class Config(RegressionConfig):
    """Options of this experiment."""

    experiment: Literal["tuned_rate"] = "tuned_rate"
    data_seed: int = 0  # of data.samples and of a made-up spectrum
    steps: PositiveInt = 10
    optimizer: Literal["sgd", "heavy_ball", "nesterov", "adam"] = "sgd"
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9  # heavy_ball, nesterov
    weight_scale: NonNegativeFloat = 1.0  # initial weights: N(0, weight_scale²/d)
    noise: NonNegativeFloat = 0.0  # deviation of what is added to the targets
    start: PositiveFloat = 1e-3  # learning rate
    engine: Literal["forward", "reverse"] = "forward"
    checkpoints: PositiveInt | None = None  # of engine: reverse
    outer_optimizer: Literal["newton", "lbfgs", "adam"] = "newton"
    outer_learning_rate: PositiveFloat = 0.1  # of outer_optimizer: adam
    outer_steps: PositiveInt = 200
    rtol: NonNegativeFloat = 1e-13

    def regression(self) -> Regression:
        """Read the data, whose seed is its own."""
        return load_regression(self.data, seed=self.data_seed, dtype=self.dtype)


def size(config: Config) -> int:
    """Records that `run` yields."""
    del config
    return 1


def run(config: Config) -> Iterator[Record]:
    """The single record of this point."""
    problem = _problem(config)
    lane = _lane(config, problem)
    found = _learn(_program(config), jnp.asarray(problem.X), lane)
    yield from _records([config], problem, _stack([lane]), _stack([found]))


def run_batch(configs: Sequence[Config]) -> Iterator[list[Record]]:
    """The records of each config, in order: `run` of all, as one program.

    Args:
        configs: at least one; they may differ in the fields of BATCHED only.

    Raises:
        ValueError: if two differ in another field.
    """
    first = configs[0]
    for config in configs[1:]:
        if _static(config) != _static(first):
            msg = f"{config!r} and {first!r} differ in more than {', '.join(BATCHED)}"
            raise ValueError(msg)
    problem = _problem(first)
    lanes = _stack([_lane(config, problem) for config in configs])
    found = _learn_all(_program(first), jnp.asarray(problem.X), lanes)
    for record in _records(configs, problem, lanes, found):
        yield [record]


def point_bytes(config: Config) -> int:
    r"""Memory of one point in a batch, in bytes: at least what XLA accounts for it.

    A model, held against the accounting of compiled programs in the tests: to compile
    a program twice just to choose a chunk would cost more than most chunks. For n
    examples and d weights a point takes less than $16(n + d)$ numbers (its data, the
    run, its tangents, copies in the loops; four times as many with the line search of
    L-BFGS), and for each step that reverse mode keeps $4d$ more, with Adam $16d$. X is
    shared and not counted.
    """
    n, d = _problem(config).X.shape
    kept = 0
    if config.engine == "reverse":
        kept = min(config.steps, config.checkpoints or config.steps)
    base = 64 if config.outer_optimizer == "lbfgs" else 16
    state = 16 if config.optimizer == "adam" else 4
    itemsize = jnp.dtype(config.dtype).itemsize
    return itemsize * (base * (n + d) + state * d * kept)


def figures(records: Sequence[Record]) -> dict[str, Figure]:
    """Learned against closed-form rates, and the closed form against T."""
    compared = [record for record in records if record["eta_closed"] is not None]
    if not compared:
        return {}
    return {"agreement": agreement(compared), "horizons": horizons(compared)}


class Problem(NamedTuple):
    """A regression, and the closed form of runs on it."""

    X: np.ndarray
    t: np.ndarray  # before any noise
    runs: theory.On


class _Lane(NamedTuple):
    """What is a number in the traced program."""

    w0: Any  # (d,)
    t: Any  # (n,)
    momentum: Any
    start: Any


@dataclasses.dataclass(frozen=True)
class _Program:
    """What is static in the traced program."""

    optimizer: str
    steps: int
    engine: Any
    outer_optimizer: str
    outer_learning_rate: float
    outer_steps: int
    rtol: float


def _program(config: Config) -> _Program:
    engine = metalr.Forward()
    if config.engine == "reverse":
        engine = metalr.Reverse(checkpoints=config.checkpoints)
    return _Program(
        optimizer=config.optimizer,
        steps=config.steps,
        engine=engine,
        outer_optimizer=config.outer_optimizer,
        outer_learning_rate=config.outer_learning_rate,
        outer_steps=config.outer_steps,
        rtol=config.rtol,
    )


class _Found(NamedTuple):
    """What the outer loop found; of `metalr.Learned` all but the history."""

    rate: Any
    loss: Any
    outer_steps: Any
    converged: Any


def _learn_one(program: _Program, X: jax.Array, lane: _Lane) -> _Found:
    objective = metalr.Unrolled(
        least_squares(X, lane.t),
        _inner_optimizer(program.optimizer, lane.momentum),
        lane.w0,
        steps=program.steps,
    )
    learned = metalr.learn(
        objective,
        lane.start,
        outer_optimizer=_outer_optimizer(program),
        steps=program.outer_steps,
        engine=program.engine,
        log=True,
        rtol=program.rtol,
    )
    return _Found(learned.hyper, learned.value, learned.steps, learned.converged)


_learn = jax.jit(_learn_one, static_argnums=0)
_learn_all = jax.jit(jax.vmap(_learn_one, in_axes=(None, None, 0)), static_argnums=0)


def _inner_optimizer(name: str, momentum: jax.Array) -> Any:
    """A function of the rate; a momentum is a leaf of it, so that it can be batched."""
    if name == "heavy_ball":
        return Partial(_heavy_ball, momentum)
    if name == "nesterov":
        return Partial(_nesterov, momentum)
    return getattr(optax, name)


def _heavy_ball(momentum: jax.Array, rate: Any) -> optax.GradientTransformation:
    return optax.sgd(rate, momentum)


def _nesterov(momentum: jax.Array, rate: Any) -> optax.GradientTransformation:
    return optax.sgd(rate, momentum, nesterov=True)


def _outer_optimizer(
    program: _Program,
) -> optax.GradientTransformation | metalr.Newton:
    if program.outer_optimizer == "newton":
        return metalr.Newton()
    if program.outer_optimizer == "lbfgs":
        return optax.lbfgs()
    return optax.adam(program.outer_learning_rate)


def _static(config: Config) -> dict[str, Any]:
    return config.model_dump(exclude=set(BATCHED))


def _problem(config: Config) -> Problem:
    data, stamp = config.data, None
    if isinstance(data, CsvData) and Path(data.path).is_file():
        stamp = Path(data.path).stat().st_mtime_ns
    key: Any = data  # a frozen model, hashable
    return _load(key, config.data_seed, config.dtype, stamp)


@functools.lru_cache(maxsize=8)
def _load(data: Any, seed: int, dtype: str, stamp: int | None) -> Problem:
    del stamp  # a CSV file that has changed is read again
    # Also where a driver asks for `point_bytes` only, outside of any run.
    with jax.enable_x64(dtype == "float64"):
        X, t, _ = load_regression(data, seed=seed, dtype=dtype)
    return Problem(np.asarray(X), np.asarray(t), theory.on(np.asarray(X)))


def _lane(config: Config, problem: Problem) -> _Lane:
    """Drawn on the host, point by point: the same numbers alone and in a batch."""
    rng = np.random.default_rng(config.seed)
    n, d = problem.X.shape
    scale = config.weight_scale / np.sqrt(d)
    w0, noise = scale * rng.standard_normal(d), config.noise * rng.standard_normal(n)
    arrays = (w0, problem.t + noise, config.momentum, config.start)
    return _Lane(*(np.asarray(array, config.dtype) for array in arrays))


def _stack(lanes: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *lanes)


class _Closed(NamedTuple):
    """What the closed form says; leading axis: the points."""

    optimum: Optimum
    there: Local  # at the optimum
    learned: Local  # at the learned rate


def _closed(
    config: Config, problem: Problem, lanes: _Lane, found: _Found
) -> _Closed | None:
    if config.optimizer == "adam":
        return None
    runs = problem.runs(lanes.t, lanes.w0)
    if config.optimizer == "sgd":
        optimum = runs.optimal_rates(config.steps)
    else:
        optimum = runs.momentum_optima(config.optimizer, lanes.momentum, config.steps)
    there, learned = (
        runs.at(config.optimizer, rates, lanes.momentum, config.steps)
        for rates in (optimum.rate.astype(config.dtype), found.rate)
    )
    return _Closed(optimum, there, learned)


def _records(
    configs: Sequence[Config], problem: Problem, lanes: _Lane, found: _Found
) -> list[Record]:
    found = jax.tree.map(np.asarray, found)
    closed = _closed(configs[0], problem, lanes, found)
    pick = lambda tree, index: jax.tree.map(lambda x: x[index], tree)
    return [
        _record(config, pick(found, i), closed and pick(closed, i))
        for i, config in enumerate(configs)
    ]


def _record(config: Config, found: _Found, closed: _Closed | None) -> Record:
    with_momentum = config.optimizer in _WITH_MOMENTUM
    record = {
        "data": _name(config),
        "T": config.steps,
        "optimizer": config.optimizer,
        "momentum": config.momentum if with_momentum else None,
        "seed": config.seed,
        "noise": config.noise,
        "start": config.start,
        "eta_learned": _number(found.rate),
        "loss_learned": _number(found.loss),
        "outer_steps": int(found.outer_steps),
        "converged": bool(found.converged),
    }
    missing = dict.fromkeys(_COMPARED, None)
    return record | (missing if closed is None else _compared(config, found, closed))


def _compared(config: Config, found: _Found, closed: _Closed) -> dict[str, Any]:
    """The learned rate beside the closed form; None where there is nothing to learn."""
    best, learned = float(closed.optimum.rate), float(found.rate)
    loss, slope, curvature = (float(x) for x in closed.learned)
    error = abs(learned / best - 1.0)
    resolution = to_minimum = np.nan
    if curvature > 0.0:
        flat = loss / (learned**2 * curvature)
        eps = float(np.finfo(config.dtype).eps)
        resolution = config.rtol * flat + eps * np.sqrt(flat)
        to_minimum = abs(slope) / (learned * curvature)
    tolerance = max(1e-6, 10.0 * resolution)
    as_low = loss <= float(closed.there.loss) * (1.0 + 1e-12)
    at_minimum = to_minimum <= tolerance
    if error <= tolerance or (at_minimum and as_low):
        minimum = "global"
    else:
        minimum = "local" if at_minimum else "none"
    values = (best, error, to_minimum, resolution, float(closed.there.loss))
    numbers = [_number(value) for value in values]
    return dict(
        zip(_COMPARED, (*numbers, minimum, int(closed.optimum.minima)), strict=True)
    )


def _number(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None


def _name(config: Config) -> str:
    data = config.data
    if isinstance(data, BundledData):
        return data.name
    if isinstance(data, CsvData):
        return Path(data.path).stem
    return f"spectrum of {len(data.eigenvalues)}"


if __name__ == "__main__":
    from experiments._command.cli import module_main

    raise SystemExit(module_main("tuned_rate"))
