r"""Question: which bilevel method reaches ∇h = 0, at how many oracle calls?

The simulated quadratics of the bilevel benchmark (Dagréou et al. 2022): $h(x) =
f(z^*(x), x)$ with g and f means of 1024 quadratics in 100 + 100 variables, of which
$\nabla h$ is known in closed form. Single-loop solvers of `metalr.bilevel` with full
batches, with minibatches at constant rates and at falling rates, beside outer gradient
descent on an inner run that is unrolled or differentiated implicitly, cold and warm.
A pass is as many derivatives (gradients, Hessian and cross products) as there are rows.
Claim: with full batches SOBA, SABA and AmIGO converge linearly; StocBiO stalls at the
bias of its Neumann series and F2SA at that of its penalty. With minibatches SABA alone
converges at constant rates; the others stall at the noise, and fall with the rates.
Unrolled from a fixed start, the run's own optimum is reached, not that of h.

`check_hypergrad` on the unrolled run (64 rows, 5 + 5 variables, T = 20) agrees, by
exact rational arithmetic too, and `diagnose` finds nothing: the derivative is that of
the run. That the run is not the minimum only `Implicit`'s `stationarity` says.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

import metalr
from experiments._bilevel.quadratics import Simulated, loss, simulated
from experiments._bilevel.warm import outer_loop
from experiments._command.experiment import ConfigError, ExperimentConfig, Record
from experiments._report.style import panels
from metalr import bilevel

SolverName: TypeAlias = Literal["SOBA", "MA-SOBA", "SABA", "StocBiO", "AmIGO", "F2SA"]
Regime: TypeAlias = Literal["full batch", "constant rates", "falling rates"]
OuterName: TypeAlias = Literal[
    "unrolled, cold", "unrolled, warm", "implicit, cold", "implicit, warm"
]


class Config(ExperimentConfig):
    """Options of this experiment."""

    experiment: Literal["bilevel"] = "bilevel"
    solvers: tuple[SolverName, ...] = get_args(SolverName)
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
    decay: NonNegativeFloat = 0.75  # of falling rates: (1 + t / decay_after)^-decay
    decay_after: PositiveInt = 200
    inner_steps: PositiveInt = 10  # of StocBiO, AmIGO and F2SA; twice it in outer loops
    penalty: PositiveFloat = 10.0  # of F2SA
    passes: PositiveInt = 4000  # of each row with minibatches
    full_passes: PositiveInt = 40_000  # of each with full batches
    points: PositiveInt = 100  # of each curve
    tolerance: PositiveFloat = 1e-12  # of ‖∇h‖², relative to the start


def size(config: Config) -> int:
    """Records that `run` yields."""
    return len(config.solvers) * len(config.regimes) + len(config.outer_loops)


def run(config: Config) -> Iterator[Record]:
    """Yield one record for each method, as soon as it has spent its passes."""
    if config.rows % config.batch:
        msg = f"batch = {config.batch} must divide rows = {config.rows}"
        raise ConfigError(msg)
    problem = _problem(config)
    for regime in config.regimes:
        for name in config.solvers:
            trace = _by_solver(config, problem, name, regime)
            yield _record(config, problem, name, regime, trace)
    for name in config.outer_loops:
        trace = _by_outer_loop(config, problem, name)
        yield _record(config, problem, name, "full batch", trace)


class Trace(NamedTuple):
    """Where a method was, and what it had spent."""

    hypers: jax.Array  # (points, d)
    passes: np.ndarray  # (points,)
    seconds: float  # of the whole run, compiled


def headline(records: Sequence[Record]) -> str:
    """The best with minibatches, and how many converge."""
    stochastic = [r for r in records if r["batches"] != "full batch"]
    best = min(stochastic or records, key=lambda record: record["gradient²"])
    done = sum(record["verdict"] == "converged" for record in records)
    return (
        f"{done} of {len(records)} converge; best: {best['method']} "
        f"({best['batches']}), ‖∇h‖² = {best['gradient²']:.1e}"
    )


def figures(records: Sequence[Record]) -> dict[str, Figure]:
    """‖∇h‖² against passes, one panel a regime; and the outer loops."""
    regimes = list(dict.fromkeys(record["batches"] for record in records))
    figure, axes = panels(len(regimes))
    for ax, regime in zip(axes, regimes, strict=True):
        for record in records:
            if record["batches"] != regime:
                continue
            curve = record["curve"]
            style = "--" if "," in record["method"] else "-"
            ax.plot(curve["passes"], curve["gradient²"], style, label=record["method"])
        ax.set(yscale="log", xscale="log", xlabel="passes over the rows")
        ax.set_title(regime, fontsize=9)
        ax.legend(fontsize=6)
    axes[0].set_ylabel(r"$\|\nabla h(x)\|^2$, closed form")
    return {"bilevel": figure}


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


def _solver(
    config: Config, problem: Simulated, name: SolverName, regime: Regime
) -> bilevel.Solver:
    """A solver as the config has it: this is all that a user writes."""
    size = None if regime == "full batch" else config.batch
    inner = bilevel.oracle(loss, problem.inner, size=size)
    outer = bilevel.oracle(loss, problem.outer, size=size)

    def sgd(rate: float) -> optax.GradientTransformation:
        if regime != "falling rates":
            return optax.sgd(rate)
        after, power = config.decay_after, config.decay
        return optax.sgd(lambda count: rate * (1.0 + count / after) ** -power)

    inner_sgd, outer_sgd = sgd(config.inner_rate), sgd(config.outer_rate)
    often = {"inner_optimizer": inner_sgd, "outer_optimizer": outer_sgd}
    seldom = {
        "inner_optimizer": inner_sgd,
        "outer_optimizer": sgd(5 * config.outer_rate),
    }
    count = config.inner_steps
    if name == "SOBA":
        return bilevel.SOBA(inner, outer, **often)
    if name == "MA-SOBA":
        averaged = optax.chain(optax.ema(0.9, debias=False), outer_sgd)
        return bilevel.SOBA(
            inner, outer, inner_optimizer=inner_sgd, outer_optimizer=averaged
        )
    if name == "SABA":
        return bilevel.SABA(inner, outer, **often)
    if name == "StocBiO":
        return bilevel.StocBiO(
            inner,
            outer,
            neumann_rate=config.inner_rate,
            inner_steps=count,
            terms=count,
            **seldom,
        )
    if name == "AmIGO":
        return bilevel.AmIGO(
            inner, outer, inner_steps=count, linear_steps=count, **seldom
        )
    if size is not None:  # the penalty multiplies the noise
        seldom["outer_optimizer"] = sgd(5 * config.outer_rate / config.penalty)
    return bilevel.F2SA(
        inner, outer, penalty=config.penalty, inner_steps=count, **seldom
    )


def _by_solver(
    config: Config, problem: Simulated, name: SolverName, regime: Regime
) -> Trace:
    solver = _solver(config, problem, name, regime)
    zeros = jnp.zeros(config.dimension, config.dtype)
    start = jax.jit(solver.init)(zeros, zeros, jax.random.key(config.seed))
    full = regime == "full batch"
    part = 1.0 if full else config.batch / config.rows
    spent = config.full_passes if full else config.passes
    each = int(solver.update(start).calls - start.calls) * part
    updates = max(1, int(spent / each / config.points))

    def point(state: Any, _: None) -> tuple[Any, tuple]:
        state = jax.lax.fori_loop(
            0, updates, lambda _, state: solver.update(state), state
        )
        return state, (state.hyper, state.calls)

    scan = lambda state: jax.lax.scan(point, state, length=config.points)[1]
    (hypers, calls), seconds = _timed(scan, start)
    return Trace(hypers, np.asarray(calls) * part, seconds)


def _by_outer_loop(config: Config, problem: Simulated, name: OuterName) -> Trace:
    """Outer gradient descent; the inner run is an `Unrolled`, with full batches."""
    warm, steps = name.endswith("warm"), 2 * config.inner_steps
    zeros = jnp.zeros(config.dimension, config.dtype)

    def make(params: Any) -> metalr.Unrolled:
        return metalr.Unrolled(
            lambda z, x, _: loss(z, x, problem.inner),
            lambda _: optax.sgd(config.inner_rate),
            params,
            steps=steps,
            outer_loss=lambda z, x: loss(z, x, problem.outer),
        )

    if name.startswith("implicit"):
        engine: Any = metalr.Implicit("cg", iterations=steps, rtol=0.0)
        each = steps + steps + 2  # gradients, Hessian products; cross, outer gradient
    else:
        engine = metalr.Reverse()
        each = steps + 2 * steps + 1  # gradients, both products of each step; outer
    count = max(config.points, int(config.full_passes / each))

    def loop(start: Any) -> Any:
        return outer_loop(
            make,
            start,
            start,
            engine=engine,
            optimizer=optax.sgd(5 * config.outer_rate),
            steps=count,
            warm=warm,
        ).hyper

    hypers, seconds = _timed(loop, zeros)
    kept = np.unique(np.linspace(0, count - 1, config.points).astype(int))
    return Trace(hypers[kept], (kept + 1.0) * each, seconds)


def _timed(function: Callable[[Any], Any], argument: Any) -> tuple[Any, float]:
    """What it returns, and the seconds of a compiled run."""
    compiled = jax.jit(function).lower(argument).compile()
    begin = time.perf_counter()
    result = jax.block_until_ready(compiled(argument))
    return result, time.perf_counter() - begin


def _record(
    config: Config, problem: Simulated, name: str, regime: str, trace: Trace
) -> Record:
    truth = problem.truth
    square = lambda gradient: jax.vmap(lambda x: jnp.sum(gradient(x) ** 2))
    gradients = np.asarray(square(truth.gradient)(trace.hypers))
    start = float(jnp.sum(truth.gradient(jnp.zeros(config.dimension)) ** 2))
    early, late = len(gradients) // 10, len(gradients) // 3  # past the transient
    last = float(np.median(gradients[-max(1, late) :]))
    before = float(np.median(gradients[early : early + max(1, late // 2)]))
    middle = float(np.median(gradients[late:-late])) if late else before
    flat = gradients[-1] > 0.99 * gradients[int(0.85 * len(gradients))]
    flat = flat and regime == "full batch"  # without noise, no median is needed
    verdict = "stalls"
    if not np.isfinite(last) or last > 1e3 * start:
        verdict = "diverges"
    elif last <= config.tolerance * start:
        verdict = "converged"
    elif last < 0.5 * before and last < 0.85 * middle and not flat:
        verdict = "still falling"
    record: dict[str, Any] = {
        "method": name,
        "batches": regime,
        "gradient²": last,
        "verdict": verdict,
        "why": _why(name, regime) if verdict == "stalls" else "",
        "passes": float(trace.passes[-1]),
        "seconds": trace.seconds,
        "of_start": last / start,
    }
    if name == "F2SA":
        penalized = square(lambda x: truth.penalized_gradient(x, config.penalty))
        record["penalized gradient²"] = float(penalized(trace.hypers[-1:])[0])
    curve = {"passes": trace.passes.tolist(), "gradient²": gradients.tolist()}
    return {**record, "curve": curve}


def _why(name: str, regime: str) -> str:
    """What keeps a method from ∇h = 0 in a regime, as its theory has it."""
    noise = "" if regime == "full batch" else "noise of the minibatches"
    bias = {
        "StocBiO": "terms left out of the Neumann series",
        "F2SA": "bias O(1/λ) of the penalty",
        "unrolled, cold": "minimizes the loss after T steps, which is not h",
        "unrolled, warm": "the past of a warm start is not differentiated",
        "implicit, warm": "the products of cg are too few to solve the system",
        "implicit, cold": "the theorem is taken at w_T, which is not the minimum",
    }.get(name, "")
    return " and ".join(filter(None, (noise, bias)))


if __name__ == "__main__":
    from experiments._command.cli import module_main

    raise SystemExit(module_main("bilevel"))
