"""A user under pyright strict sees no `Unknown` in our names."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# What a newcomer writes: every line asks for the type of something public.
PROGRAM = """
import jax
import optax

import metalr


def loss(params: jax.Array, hyper: jax.Array, batch: None) -> jax.Array:
    return (params - hyper) ** 2


def optimizer(hyper: jax.Array) -> optax.GradientTransformation:
    return optax.sgd(0.1)


def step(state: jax.Array, hyper: jax.Array, x: None) -> tuple[jax.Array, None]:
    return hyper * state, None


def make(key: jax.Array) -> metalr.Unrolled:
    return L


L = metalr.Unrolled(loss, optimizer, 0.0, steps=50)
print(L(0.1), L.final_params(0.1), L.trajectory(0.1), L.derivatives(0.1).slopes)
print(L.run(0.1).value, L.run(0.1).state, L.run(0.1).records, L.continued(0.1, 1))
R = metalr.Rollout(step, 1.0, steps=3, value=loss)
print(R(0.1), R.run(0.1).state)
result = metalr.hypergradient(L, 0.1)
print(result.value, result.grad)
forward = metalr.hypergradient(L, 0.1, metalr.Forward())
print(forward.value, forward.grad)
print(metalr.hypergradient(L, 0.1, metalr.Reverse(checkpoints=3)).grad)
print(metalr.hypergradient(L, 0.1, metalr.Mixed()).grad)
print(metalr.hypergradient(L, 0.1, metalr.Truncated(last=3)).grad)
print(metalr.hypergradient(L, 0.1, metalr.Implicit()).stationarity)
print(metalr.hypergradient(L, 0.1, metalr.Reversible()).bits)
smoothed = metalr.hypergradient(L, 0.1, metalr.EvolutionStrategies(0.1, 4, 0))
print(smoothed.standard_error)
print(metalr.hypergradient(L, 0.1, metalr.PersistentES(0.1, 4, 1, 0)).grad)
gradient, run = metalr.hypergradient_and_run(L, 0.1, metalr.Mixed())
print(gradient, run.value, run.state, run.records)
learned = metalr.learn(L, 0.1, outer_optimizer=optax.adam(0.1), steps=5, log=True)
print(learned.hyper, learned.value, learned.history, learned.converged, learned.state)
check = metalr.check_hypergrad(L, 0.1)
print(check.verdict, check.grad, check.rows, check.reason)
diagnosis = metalr.diagnose(L, 0.1)
print(diagnosis.findings, diagnosis.lyapunov, diagnosis.losses, diagnosis.direction)
plan = metalr.profiling.plan(L, 0.1, memory_limit="1GiB")
print(plan.engine, plan.cost, plan.candidates)
print(metalr.profiling.memory(L, 0.1, metalr.Reverse()).temp_bytes)
print(metalr.profiling.growth(lambda steps: L, [1, 2], 0.1, [metalr.Forward()]).rows)
mean = metalr.tasks.Mean([L, L])
print(mean(0.1), mean.values(0.1), metalr.tasks.Mean.of(make, jax.random.key(0)))
print(metalr.hypergradient(mean, 0.1, metalr.tasks.Each(metalr.Reverse())).grads)
windows = metalr.windows(L, 5)
print(windows.init(0.1), windows.update(windows.init(0.1), 0.1))
online = metalr.online(L, 0.1, outer_learning_rate=0.1)
print(online.hypers, online.params, online.hypergradients)
print(metalr.reparametrized(L, jax.nn.sigmoid)(0.1))
print(metalr.per_step(optimizer, over=True), metalr.guard(optimizer), metalr.Newton())
print(metalr.convexity.check(L, 0.0, 0.1).witness)
print(metalr.graph.computation_graph(L, 0.1), metalr.guides.__all__)
"""


@pytest.mark.slow
def test_no_public_name_is_unknown(tmp_path):
    pytest.importorskip("pyright")
    (tmp_path / "user.py").write_text(PROGRAM)
    settings = {
        "typeCheckingMode": "strict",
        "pythonVersion": "3.11",
        "extraPaths": [str(ROOT)],
        "reportMissingTypeStubs": "none",  # optax has no types
        "reportUnusedParameter": "none",
    }
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath"]
    done = subprocess.run(
        [*command, sys.executable, "-p", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    if not done.stdout.startswith("{"):
        pytest.skip(f"pyright did not run: {done.stderr[-200:]}")
    found = json.loads(done.stdout)
    assert found["summary"]["filesAnalyzed"] == 1
    said = [
        f"{x['range']['start']['line'] + 1}: {x['message']}"
        for x in found["generalDiagnostics"]
    ]
    assert said == []


def test_the_type_marker_is_shipped():
    assert (ROOT / "metalr" / "py.typed").is_file()
