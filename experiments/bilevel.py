r"""Question: which bilevel method reaches ∇h = 0, at how many oracle calls?

The simulated quadratics of the bilevel benchmark (Dagréou et al. 2022): $h(x) =
f(z^*(x), x)$ with g and f means of 1024 quadratics in 100 + 100 variables, of which
$\nabla h$ is known in closed form. A pass is as many derivatives (gradients, Hessian
and cross products) as there are rows. Each method is held against what its own theory
says of it, also in closed form:

Claims: with full batches every method converges linearly: SOBA, SABA, AmIGO and
warm-started implicit steps to ∇h = 0; the others to the zero of another gradient
(`converges to`), by the terms left out of a Neumann series, the penalty, or a run that
ends early. With minibatches at constant rates SABA converges; the others end at a noise
floor, which falls with the rates (divided by 4, twice). At the papers' falling rates
StocBiO, AmIGO and F2SA fall; SOBA and MA-SOBA were lower, and 4000 passes are too few
to tell a further fall from noise.

`check_hypergrad` on the unrolled run (64 rows, 5 + 5 variables, T = 20) agrees, by
exact rational arithmetic too, and `diagnose` finds nothing: the derivative is that of
the run. That the run is not the minimum only `Implicit`'s `stationarity` says.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
from matplotlib.figure import Figure
from pydantic import PositiveFloat, PositiveInt

from experiments._bilevel import by_hand, verdicts
from experiments._bilevel.figures import curves
from experiments._bilevel.limits import limit
from experiments._bilevel.methods import OuterName, Trace, by_outer_loop, by_solver
from experiments._bilevel.quadratics import Simulated, loss, simulated
from experiments._bilevel.solvers import SOLVERS, Name, Settings
from experiments._command.experiment import ConfigError, ExperimentConfig, Record
from experiments._settings.beside import difference, in_turns, statements
from metalr import bilevel

Regime: TypeAlias = Literal["full batch", "constant rates", "falling rates"]


class Config(ExperimentConfig):
    """Options of this experiment."""

    experiment: Literal["bilevel"] = "bilevel"
    solvers: tuple[Name, ...] = get_args(Name)
    regimes: tuple[Regime, ...] = get_args(Regime)
    outer_loops: tuple[OuterName, ...] = get_args(OuterName)
    rows: PositiveInt = 1024
    dimension: PositiveInt = 100
    batch: PositiveInt = 64
    mu: PositiveFloat = 0.1
    smoothness: PositiveFloat = 1.0
    cross: PositiveFloat = 0.1
    inner_rate: PositiveFloat = 0.3
    outer_rate: PositiveFloat = 0.1  # of an update of one inner step; else 5 times it
    falls_after: PositiveInt = 200  # of falling rates: (1 + t / falls_after)^-power
    scales: tuple[PositiveFloat, ...] = (1.0, 0.25, 0.0625)  # of constant rates
    inner_steps: PositiveInt = 10  # of StocBiO, AmIGO and F2SA; twice it in outer loops
    penalty: PositiveFloat = 10.0  # of F2SA
    products: PositiveInt = 40  # of conjugate gradients
    passes: PositiveInt = 6000  # of each row with minibatches
    full_passes: PositiveInt = 40_000  # of each with full batches
    points: PositiveInt = 200  # of each curve (and each scale)
    tolerance: PositiveFloat = 1e-12  # of a squared gradient, relative to the start
    timed_updates: PositiveInt = 2000  # beside hand-written JAX

    def settings(self, after: float | None = None) -> Settings:
        """The numbers of the solvers."""
        return Settings(
            self.inner_rate,
            self.outer_rate,
            5.0,
            self.inner_steps,
            self.penalty,
            after=after,
        )


def size(config: Config) -> int:
    """Records that `run` yields."""
    by_regime = sum(len(_solvers(config, regime)) for regime in config.regimes)
    hand = sum(name in by_hand.UPDATES for name in config.solvers)
    return by_regime + len(config.outer_loops) + hand


def run(config: Config) -> Iterator[Record]:
    """Yield one record for each method, as soon as it has spent its passes."""
    if config.rows % config.batch:
        msg = f"batch = {config.batch} must divide rows = {config.rows}"
        raise ConfigError(msg)
    problem = _problem(config)
    for regime in config.regimes:
        for name in _solvers(config, regime):
            trace = _solved(config, problem, name, regime)
            yield _judged(config, problem, name, regime, trace)
    for name in config.outer_loops:
        trace = _looped(config, problem, name)
        yield _judged(config, problem, name, "full batch", trace)
    for name in config.solvers:
        if name in by_hand.UPDATES:
            yield _beside(config, problem, name)


def headline(records: Sequence[Record]) -> str:
    """How many converge, and what floors do when the rates are divided by 4."""
    full = [r for r in records if r.get("batches") == "full batch"]
    done = [r for r in full if r["verdict"].startswith("converged")]
    to_h = sum(r["verdict"] == "converged" for r in full)
    floors = (r.get("floor_ratio") for r in records)
    ratios = [ratio for ratio in floors if ratio is not None]
    said = (
        f"full batches: {len(done)} of {len(full)} converge, {to_h} of them to ∇h = 0"
    )
    if not ratios:
        return said
    return (
        f"{said}; noise floors fall {min(ratios):.1f} to {max(ratios):.1f} times for "
        "rates 4 times smaller"
    )


def figures(records: Sequence[Record]) -> dict[str, Figure]:
    """‖∇h‖² against passes, one panel a regime."""
    return {"bilevel": curves(records)}


def _solvers(config: Config, regime: Regime) -> list[Name]:
    """All; but SABA's rates need not fall."""
    falling = regime == "falling rates"
    return [name for name in config.solvers if not (falling and name == "SABA")]


def _problem(config: Config) -> Simulated:
    try:
        return simulated(
            n=config.rows,
            d=config.dimension,
            mu=config.mu,
            L=config.smoothness,
            cross=config.cross,
            seed=config.seed,
            dtype=config.dtype,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _solved(config: Config, problem: Simulated, name: Name, regime: Regime) -> Trace:
    falling = regime == "falling rates"
    full = regime == "full batch"
    return by_solver(
        name,
        problem,
        config.settings(config.falls_after if falling else None),
        batch=None if full else config.batch,
        passes=config.full_passes if full else config.passes,
        points=config.points,
        scales=config.scales if regime == "constant rates" else (1.0,),
        seed=config.seed,
    )


def _looped(config: Config, problem: Simulated, name: OuterName) -> Trace:
    return by_outer_loop(
        name,
        problem,
        inner_rate=config.inner_rate,
        outer_rate=5 * config.outer_rate,
        steps=2 * config.inner_steps,
        products=config.products,
        passes=config.full_passes,
        points=config.points,
    )


def _judged(
    config: Config, problem: Simulated, name: str, regime: Regime, trace: Trace
) -> Record:
    end = limit(
        name,
        problem.truth,
        rate=config.inner_rate,
        terms=config.inner_steps,
        steps=2 * config.inner_steps,
        penalty=config.penalty,
    )
    known = verdicts.seen(problem, name, end, trace)
    if regime == "full batch":
        return verdicts.converged(known, tolerance=config.tolerance)
    if regime == "falling rates":
        return verdicts.falling(known, falls_after=config.falls_after)
    return verdicts.floors(known, scales=config.scales, tolerance=config.tolerance)


def _beside(config: Config, problem: Simulated, name: Name) -> Record:
    """The same updates of the same minibatches in plain JAX."""
    settings, count = config.settings(), config.timed_updates
    inner, outer = (
        bilevel.oracle(loss, rows, size=config.batch) for rows in problem[:2]
    )
    every = jnp.arange(inner.minibatches)
    data = by_hand.Data(jax.vmap(inner.batches)(every), jax.vmap(outer.batches)(every))
    make = SOLVERS[name]

    @jax.jit
    def ours(zeros: jax.Array, key: jax.Array) -> Any:
        end = _updated(make(inner, outer, settings), zeros, key, count)
        return end.params, end.hyper

    @jax.jit
    def theirs(zeros: jax.Array, key: jax.Array) -> Any:
        end = by_hand.updated(name, data, settings, zeros, key, count)
        return end.z, end.x

    zeros = jnp.zeros_like(problem.truth.outer.b)
    turns = in_turns(ours, theirs, zeros, jax.random.key(config.seed))
    return {
        "table": f"beside hand-written JAX: {count} updates, same keys",
        "method": name,
        "difference": difference(turns.ours, turns.theirs),
        "microseconds": 1e6 * turns.seconds / count,
        "microseconds_by_hand": 1e6 * turns.seconds_by_hand / count,
        "cost_ratio": turns.seconds / turns.seconds_by_hand,
        "statements": statements(make, _updated),
        "statements_by_hand": statements(by_hand.UPDATES[name], by_hand.updated),
    }


def _updated(solver: bilevel.Solver, zeros: Any, key: Any, count: int) -> bilevel.State:
    """So many updates from 0: what a user writes."""
    again = lambda _, state: solver.update(state)
    return jax.lax.fori_loop(0, count, again, solver.init(zeros, zeros, key))


if __name__ == "__main__":
    from experiments._command.cli import module_main

    raise SystemExit(module_main("bilevel"))
