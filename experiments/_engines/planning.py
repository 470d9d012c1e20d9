"""What `plan` takes beside one training run, compiled before: a conv net, Adam."""

import time
from collections.abc import Iterator

import jax

from experiments._command.experiment import Record
from experiments._engines.options import Options
from experiments._settings.workloads import Learned, workload
from metalr import profiling

_LIMITS: tuple[tuple[Learned, str], ...] = (
    ("scalar", "1GiB"),
    ("per_step", "1GiB"),
    ("per_step", "100MB"),
)
"""Where forward mode, plain reverse mode, and a sweep with checkpoints are chosen."""


def planning(options: Options) -> Iterator[Record]:
    """`steps` steps on digits in minibatches of 64."""
    steps = options.steps
    for learned, limit in _LIMITS:
        work = workload("conv_adam", learned, dtype=options.dtype, seed=options.seed)
        objective, hyper = work.make(steps), work.hyper(steps)
        jax.clear_caches()
        begin = time.perf_counter()
        plan = profiling.plan(objective, hyper, memory_limit=limit)
        planned = time.perf_counter() - begin
        program = profiling.compiled(objective, hyper)
        begin = time.perf_counter()
        jax.block_until_ready(program.run(hyper))
        run = time.perf_counter() - begin
        yield {
            "table": f"plan: a conv net on digits, Adam, T = {steps}",
            "learned": learned,
            "memory_limit": limit,
            "engine": str(plan.engine),
            "compiled": sum(candidate.compiled for candidate in plan.candidates),
            "plan_seconds": planned,
            "training_seconds": run,
            "plan_over_training": planned / run,
            "target": "≤ 1",
            "reached": planned <= run,
        }
