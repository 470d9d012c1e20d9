"""XLA's accounting of a compiled hypergradient, and its time."""

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from .._checks import float_leaves, positive_int
from .._types import Hyper, Objective
from ..hypergrad import Engine, hypergradient
from ..hypergrad.facts import state_bytes
from ..hypergrad.hypergradient import as_pytree
from .model import Temp, predicted_bytes


class Program(NamedTuple):
    """A compiled function, and XLA's account of it."""

    run: Any  # the compiled function: call it with arguments of the same shapes
    temp_bytes: int  # everything that is neither argument nor result
    argument_bytes: int
    output_bytes: int
    compile_seconds: float  # of XLA
    trace_seconds: float  # before that: tracing and lowering


class Memory(NamedTuple):
    """Bytes, deterministic for one version of XLA and one device."""

    temp_bytes: int  # everything that is neither argument nor result
    argument_bytes: int  # hyper, and the arrays of the objective
    output_bytes: int
    predicted_bytes: int | None  # of temp, by the model; None where there is none
    state_bytes: int  # parameters, optimizer state, …, once; 0 where there are none
    compile_seconds: float


class Timing(NamedTuple):
    """Wall-clock seconds; compare only within one run on one machine."""

    seconds: float  # median
    runs: tuple[float, ...]
    compile_seconds: float


def compiled(function: Callable[..., Any], *arguments: Any) -> Program:
    """Compile a function (or what `jax.jit` made of one) for arguments, and account.

    Nothing is run. The bytes are those of one device.

    Raises:
        RuntimeError: if the backend does not report the memory of a program.
    """
    lower = getattr(function, "lower", None) or jax.jit(function).lower
    start = time.perf_counter()
    lowered = lower(*arguments)
    middle = time.perf_counter()
    program = lowered.compile()
    end = time.perf_counter()
    account = program.memory_analysis()
    if account is None:
        msg = f"{jax.default_backend()} does not report the memory of a program"
        raise RuntimeError(msg)
    return Program(
        program,
        account.temp_size_in_bytes,
        account.argument_size_in_bytes,
        account.output_size_in_bytes,
        compile_seconds=end - middle,
        trace_seconds=middle - start,
    )


def memory(objective: Objective, hyper: Hyper, engine: Engine | None) -> Memory:
    r"""What the compiled hypergradient takes, without running it.

    From `memory_analysis()` of the compiled program: deterministic, unlike the memory
    of a process. Beside it the prediction of a stated model,

    $$\text{states kept} \times \text{bytes of a state} + \text{one step's work},$$

    see `model.predicted_bytes`.

    Args:
        objective: what is differentiated.
        hyper: the point; only shapes and dtypes matter.
        engine: how; None is the run itself, without a derivative ("training").

    Raises:
        ValueError: as `hypergradient`, before anything is compiled.
    """
    hyper = float_leaves(hyper, "hyper")
    program = program_of(objective, hyper, engine)
    return account(program, objective, hyper, engine)


def account(
    program: Program,
    objective: Objective,
    hyper: Hyper,
    engine: Engine | None,
    temp: Temp | None = None,
) -> Memory:
    """`memory` of a program that is compiled already; `temp` as in the model."""
    return Memory(
        temp_bytes=program.temp_bytes,
        argument_bytes=program.argument_bytes,
        output_bytes=program.output_bytes,
        predicted_bytes=predicted_bytes(
            objective, hyper, engine, temp or compiled_temp
        ),
        state_bytes=state_bytes(objective, hyper) if hasattr(objective, "steps") else 0,
        compile_seconds=program.compile_seconds,
    )


def timing(
    objective: Objective, hyper: Hyper, engine: Engine | None, *, repeats: int = 5
) -> Timing:
    """Seconds of the compiled hypergradient: compilation apart, median of `repeats`.

    Args:
        objective: what is differentiated.
        hyper: the point.
        engine: how; None is the run itself, without a derivative.
        repeats: runs that count, after one that does not.
    """
    positive_int(repeats, "repeats")
    hyper = float_leaves(hyper, "hyper")
    program = program_of(objective, hyper, engine)
    runs = timed(program.run, objective, hyper, repeats)
    return Timing(statistics.median(runs), runs, program.compile_seconds)


def timed(
    run: Callable[..., Any], objective: Objective, hyper: Hyper, repeats: int
) -> tuple[float, ...]:
    """Seconds of `repeats` runs of a compiled program, after one that warms up."""
    runs = []
    for repeat in range(repeats + 1):
        start = time.perf_counter()
        jax.block_until_ready(run(as_pytree(objective), hyper))
        if repeat:
            runs.append(time.perf_counter() - start)
    return tuple(runs)


def compiled_temp(objective: Objective, hyper: Hyper, engine: Engine | None) -> int:
    """Temporary bytes of the compiled program."""
    return program_of(objective, hyper, engine).temp_bytes


def remembering() -> Temp:
    """`compiled_temp` that compiles each program once, told apart by its shapes.

    For several engines or horizons of one problem: the same losses and optimizers.
    """
    known: dict[Any, int] = {}

    def temp(objective: Objective, hyper: Hyper, engine: Engine | None) -> int:
        leaves = jax.tree.leaves((objective, hyper))
        shapes = tuple((leaf.shape, str(leaf.dtype)) for leaf in leaves)
        options = [getattr(objective, n, None) for n in ("steps", "checkpoints")]
        key = (engine, *options, shapes)
        if key not in known:
            known[key] = compiled_temp(objective, hyper, engine)
        return known[key]

    return temp


def program_of(objective: Objective, hyper: Hyper, engine: Engine | None) -> Program:
    """The compiled hypergradient; None is the run itself."""

    def run(objective: Objective, hyper: Hyper) -> Any:
        if engine is None:
            return objective(hyper)
        return hypergradient(objective, hyper, engine)

    return compiled(run, as_pytree(objective), hyper)
