"""What is worth an accelerator: a transformer's hypergradient, bytes and seconds.

On a machine with one, in this order, one command each:

    python -m pytest -n 0 -m gpu -s tests/profiling/test_gpu.py
    python -m experiments memory
    python -m experiments engines
    python -m experiments long_unroll

What to compare: here, for each T, the bytes and seconds of every engine with the row
`Reverse()` of the same table (plain reverse mode; it is compiled, and run where it
fits), and each row's bytes with those at the other T: `Forward()` does not grow,
`Reverse(checkpoints=n)` grows by n states alone. In the experiments the column
`temp_ratio` or `temp_bytes` with the CPU's (bytes should be close to those), and
`time_ratio` within one run on one device. Records carry the device's name.
"""

import math
import statistics

import jax
import jax.numpy as jnp
import pytest

import metalr
from metalr.profiling.measure import program_of, timed
from tests.profiling.transformer import GPT2, SMALL, training

RATE = jnp.float32(1e-4)


def engines(steps):
    """Plain reverse first: what the others are compared with."""
    return [
        metalr.Reverse(),
        metalr.Reverse(checkpoints=max(1, round(math.log2(steps)))),
        metalr.Mixed(),
        metalr.Forward(),
    ]


def table(shape, steps, room, chosen):
    """A row for each engine: bytes, then seconds and gradient where it fits."""
    objective, rows = training(shape, steps), {}
    for engine in chosen:
        program = program_of(objective, RATE, engine)
        row = {"temp_bytes": program.temp_bytes, "seconds": None, "grad": None}
        taken = program.temp_bytes + program.argument_bytes + program.output_bytes
        if taken <= room:
            seconds = timed(program.run, objective, RATE, 3)
            row["seconds"] = statistics.median(seconds)
            if engine is not None:
                row["grad"] = float(program.run(objective, RATE).grad)
        rows[str(engine or "training")] = row
    return rows


def shown(rows, steps):
    device = jax.devices()[0].device_kind
    lines = [f"{device}, T = {steps}: GB, seconds, gradient"]
    for name, row in rows.items():
        size = row["temp_bytes"] / 1e9
        lines.append(f"{name:28} {size:9.3f}  {row['seconds']}  {row['grad']}")
    return "\n".join(lines)


def agree(rows):
    """All that ran: to what float32 leaves of a derivative through Adam's roots."""
    grads = [row["grad"] for row in rows.values() if row["grad"] is not None]
    assert len(grads) >= 2
    for grad in grads:
        assert math.isfinite(grad)
        assert abs(grad - grads[-1]) <= 2e-2 * abs(grads[-1]), grads


@pytest.mark.gpu
@pytest.mark.skipif(jax.default_backend() == "cpu", reason="needs an accelerator")
@pytest.mark.parametrize("steps", [16, 32, 96])
def test_the_hypergradient_of_a_transformer_of_gpt2s_shape(steps, record_property):
    stats = jax.devices()[0].memory_stats()
    chosen = [None, *engines(steps)]
    rows = table(GPT2, steps, 0.9 * stats["bytes_limit"], chosen)
    print(shown(rows, steps))  # noqa: T201 (the result, with -s)
    for name, row in rows.items():
        record_property(f"{name}, T = {steps}", str(row))
    plain = rows["Reverse()"]["temp_bytes"]
    for name in (str(engine) for engine in engines(steps)[1:]):
        assert rows[name]["temp_bytes"] < plain, name
    agree(rows)


@pytest.mark.slow
def test_the_same_table_of_a_small_one_on_any_device():
    rows = table(SMALL, 6, math.inf, engines(6))
    agree(rows)
    plain = rows["Reverse()"]["temp_bytes"]
    assert rows["Forward()"]["temp_bytes"] < plain
    assert rows["Reverse(checkpoints=3)"]["temp_bytes"] < plain
    assert "T = 6" in shown(rows, 6)
