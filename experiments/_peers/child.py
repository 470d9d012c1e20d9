"""One measurement in a process of its own: `python -m experiments._peers.child JSON`.

The JSON names the way, the case, the file with the work and the limits; what is printed
is JSON: the answer and the figures, or why there is none. All ways go through the same
steps: import, build, warm up the thread pools, call once, then call until `seconds` or
`calls` are used up.
"""

import gc
import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from experiments._command.peak import peak, reset_peak
from experiments._peers import work
from experiments._peers.ways import BY_NAME, Way


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """What `main` prints; a peer that fails is a result."""
    case = work.Case(*request["case"])
    if request["way"] == "reference":
        from experiments._peers.reference import reference

        return reference(case, work.load(request["work"]), request["seed"])
    way = BY_NAME[request["way"]]
    run = _jax if way.framework == "jax" else _torch
    try:
        return run(way, case, work.load(request["work"]), request)
    except ModuleNotFoundError as error:
        return {"not_installed": error.name}
    except Exception as error:  # noqa: BLE001 (whatever a peer raises is its row)
        return {"failed": _reason(error)}


def _jax(
    way: Way, case: work.Case, data: work.Work, request: dict[str, Any]
) -> dict[str, Any]:
    import jax
    import jax.numpy as jnp

    from experiments._peers import jax_ways
    from metalr.profiling import compiled

    this = jax_ways.setting(case, data)
    hypergradient = getattr(jax_ways, way.functions[0])(this)
    hyper = jnp.asarray(work.hyper(case))
    # One gradient first: what XLA sets up once (threads, kernels) is not the peer's.
    jax.block_until_ready(jax.jit(jax.grad(this.loss))(this.params))
    jitted = jax.jit(hypergradient)
    start = time.perf_counter()
    program = compiled(jitted, hyper)
    before_first = time.perf_counter() - start  # what a user waits: tracing as well

    def call() -> Any:
        try:
            return jax.block_until_ready(program.run(hyper))
        except TypeError:  # a leaked tracer became an argument: say what a user sees
            return jax.block_until_ready(jitted(hyper))

    return {
        **_measure(call, request, before_first),
        "xla_temp_bytes": program.temp_bytes,
        **_about(way, jax_ways),
    }


def _torch(
    way: Way, case: work.Case, data: work.Work, request: dict[str, Any]
) -> dict[str, Any]:
    import torch  # pyright: ignore[reportMissingImports] (extra `bench`)

    from experiments._peers import torch_ways

    torch.set_num_threads(request["threads"])
    make = getattr(torch_ways, way.functions[0])
    # Two steps first: what PyTorch sets up once is not the peer's memory.
    short = case._replace(steps=2)
    make(torch_ways.setting(short, data))(torch.tensor(work.hyper(short)))
    hypergradient = make(torch_ways.setting(case, data))

    def call() -> Any:
        value, grad = hypergradient(torch.tensor(work.hyper(case)))
        return value.detach().numpy(), grad.numpy()

    return {**_measure(call, request, 0.0), **_about(way, torch_ways)}


def _measure(
    call: Callable[[], Any], request: dict[str, Any], compile_seconds: float
) -> dict[str, Any]:
    gc.collect()
    before = reset_peak()
    start = time.perf_counter()
    value, grad = call()
    first = time.perf_counter() - start
    peak_bytes = peak() - before
    seconds: list[float] = []
    while len(seconds) < request["calls"] and (
        not seconds or sum(seconds) + first < request["seconds"]
    ):
        gc.collect()  # an earlier call's graph, where a peer leaves cycles
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return {
        "value": float(value),
        "grad": np.asarray(grad, np.float64).tolist(),
        "seconds": seconds,
        "first_seconds": compile_seconds + first,
        "peak_bytes": peak_bytes,
    }


def _about(way: Way, module: Any) -> dict[str, Any]:
    from experiments._peers.judge import code_lines

    lines = sum(code_lines(getattr(module, name)) for name in way.functions)
    versions = {name: importlib.metadata.version(name) for name in way.packages}
    return {"lines": lines, "versions": versions}


def _reason(error: Exception) -> str:
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first[:160]}"


def main() -> None:
    """Read the request, keep to its threads, print the result."""
    request = json.loads(sys.argv[1])
    cores = sorted(os.sched_getaffinity(0))[: request["threads"]]
    os.sched_setaffinity(0, cores)  # XLA takes all it may
    sys.stdout.write(json.dumps(measure(request)) + "\n")


if __name__ == "__main__":
    main()
