"""The experiments on memory run small, and say what they found."""

import json

import pytest

from experiments._command import cli
from experiments._command.fresh_peak import read_engine
from metalr import Forward, Reverse


def records(name, tmp_path, *options):
    assert cli.module_main(name, [*options, "--runs", str(tmp_path)]) == 0
    (path,) = tmp_path.glob(f"{name}/*/records.jsonl")
    assert list(path.parent.glob("*.png"))
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.mark.slow
def test_memory_grows_as_predicted_on_a_small_run(tmp_path):
    found = records(
        "memory",
        tmp_path,
        "cases=[{problem: mlp_momentum}]",
        "steps=[16, 64, 256]",
        "repeats=0",
        "check_steps=0",
    )
    exponents = {r["engine"]: r for r in found if "exponent" in r}
    for row in exponents.values():
        assert abs(row["exponent"] - row["predicted"]) < 0.15, row
    for engine, power in {"Forward()": 0, "Reverse()": 1, "Mixed()": 1}.items():
        assert abs(exponents[engine]["predicted"] - power) < 0.3
    # Of T = 64 … 256 the buffers are a part that grows: between none and all.
    assert 0.02 < exponents["Reversible()"]["predicted"] < 1.0


@pytest.mark.slow
def test_a_long_unroll_is_planned_within_its_limit(tmp_path):
    found = records(
        "long_unroll", tmp_path, "steps=40", "memory_limit=10.5MB", "outer_steps=2"
    )
    (chosen,) = [row for row in found if row.get("chosen")]
    assert chosen["fits"]
    assert not next(row for row in found if row.get("engine") == "Reverse()")["fits"]
    losses = [row["held_out_loss"] for row in found if "held_out_loss" in row]
    assert losses[-1] < losses[0]


@pytest.mark.slow
def test_the_engines_are_compared_on_a_small_run(tmp_path):
    small = ["steps=20", "long_steps=50", "repeats=1", "hidden=8", "batch=4"]
    found = records("engines", tmp_path, *small, "parts=[scalar, bits, mixed, call]")
    exact = [row["bit_exact"] for row in found if "bit_exact" in row]
    assert exact
    assert all(exact)
    (mixed,) = [row for row in found if row.get("way") == "Mixed()"]
    assert mixed["reached"]
    (call,) = [row for row in found if row.get("way") == "hypergradient"]
    assert call["trivial_calls"] > 1.0


def test_a_limit_that_cannot_be_kept_is_a_wrong_config(tmp_path, capsys):
    options = ["steps=2", "memory_limit=1kB", "--runs", str(tmp_path)]
    assert cli.module_main("long_unroll", options) == 2
    assert "the least is" in capsys.readouterr().err


def test_engines_are_read_as_they_are_printed():
    for engine in (None, Forward(), Forward(chunk=3), Reverse(checkpoints=8)):
        assert read_engine(str(engine)) == engine
    with pytest.raises(ValueError, match="must be one of"):
        read_engine("Backward()")
