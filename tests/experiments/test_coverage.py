"""Every engine on every kind of run is right or refuses; a wrong one is seen."""

import json

import jax.numpy as jnp
import pytest

from experiments import coverage
from experiments._command import cli
from metalr import Implicit, Mixed, Reversible, Truncated, hypergradient


def test_every_cell_is_right_or_refused_by_name(tmp_path, monkeypatch):
    chosen = [Mixed(checkpoints=2), Reversible(min_momentum=0.5), Implicit()]
    monkeypatch.setattr(coverage, "engines", lambda _: chosen[:2])
    assert cli.module_main("coverage", ["steps=3", "--runs", str(tmp_path)]) == 0
    (path,) = tmp_path.glob("coverage/*/records.jsonl")
    found = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    mixed, reversible = (row for row in found if "table" not in row)
    assert all(mixed[kind].startswith("✓") for kind in coverage.kinds())
    assert reversible["Unrolled"].startswith("✓")
    assert reversible["Rollout"] == "refused"
    reasons = [row["because"] for row in found if row.get("table") == "refusals"]
    assert reasons
    assert all("Reversible" in reason for reason in reasons)


@pytest.mark.parametrize("name", ["Unrolled", "outer_weights"])
def test_a_truncated_gradient_is_called_wrong(name):
    kind, hyper = coverage.kinds()[name], jnp.array([0.3, 0.6, 0.9])
    truth = coverage._truth(kind, 3, hyper)
    found = hypergradient(kind.make(3), hyper, Truncated(last=1))
    assert coverage._judged(coverage.Config(), kind, found, truth).startswith("✗")
