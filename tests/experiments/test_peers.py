"""Peers are judged by exact references; what is said of them is tested as a theorem."""

import importlib.util
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments._command import cli
from experiments._peers import jax_ways, judge, parent, reference, work
from experiments._peers.judge import Answer, code_lines, verdict
from experiments._peers.ways import BY_NAME, WAYS

REFERENCES = {
    steps: Answer(1.0 / steps, np.array([1.0, 2.0]) / steps) for steps in (99, 100, 101)
}
IN_PROCESS = ["forward", "reverse", "reverse_sqrt", "mixed", "optax_scan"]


def judged(value, grad):
    return verdict(Answer(value, np.asarray(grad)), REFERENCES, 100, 1e-3)


def test_an_answer_within_the_tolerance_is_right_and_beyond_it_wrong():
    exact = REFERENCES[100]
    assert judged(*exact) == ("right", 0.0)
    assert judged(exact.value, exact.grad * (1 + 9e-4)).text == "right"
    found = judged(exact.value, exact.grad * 1.5)
    assert found.text == "wrong by 5.0e-01"
    assert found.error == pytest.approx(0.5)


@pytest.mark.parametrize("other", [99, 101])
def test_the_answer_of_a_neighbor_is_off_by_one_step(other):
    found = judged(*REFERENCES[other])
    assert found.text == f"off by one step: T{other - 100:+d}"
    assert found.error == pytest.approx(abs(1 / other - 1 / 100) * 100)


def test_off_by_one_needs_the_loss_of_the_neighbor_as_well():
    assert judged(REFERENCES[100].value, REFERENCES[99].grad).text == "wrong by 1.0e-02"


def test_zero_nan_and_another_shape_are_named():
    assert judged(0.01, [0.0, 0.0]).text == "0.0"
    assert judged(0.01, [np.nan, 0.0]).text == "nan"
    assert judged(0.01, 1.0).text == "wrong shape ()"
    assert judged(0.01, [np.inf, 0.0]).text == "wrong by inf"


def test_lines_are_those_with_code():
    def function(a):
        """Not counted."""
        import math

        # Nor this.
        rate = {
            "lr": a,
        }

        def inner(b):
            return b + a

        return inner(math.pi), rate

    assert code_lines(function) == 6


@pytest.mark.parametrize(
    ("problem", "optimizer", "learned"),
    [
        ("regression", "sgd", "scalar"),
        ("regression", "adam", "per_step"),
        ("mlp", "sgd", "per_step"),
    ],
)
def test_the_ways_in_jax_agree_with_the_reference(problem, optimizer, learned):
    case = work.Case(problem, optimizer, learned, 5)
    data = work.make_work(problem, 0)
    found = reference.reference(case, data, 0)
    assert found["difference_error"] < 1e-6
    references = {
        int(steps): Answer(answer["value"], np.asarray(answer["grad"]))
        for steps, answer in found["answers"].items()
    }
    names = IN_PROCESS if problem == "regression" else ["mixed", "optax_scan"]
    for name in names:
        if name == "forward" and learned == "per_step":
            continue
        this = jax_ways.setting(case, data)
        hypergradient = jax.jit(getattr(jax_ways, name)(this))
        value, grad = hypergradient(jnp.asarray(work.hyper(case)))
        assert grad.dtype == "float32"
        said = verdict(Answer(float(value), np.asarray(grad)), references, 5, 1e-5)
        assert said.text == "right", (name, said)


def test_the_work_survives_its_file_and_is_float32(tmp_path):
    made = work.make_work("mlp", 3)
    path = str(tmp_path / "work.npz")
    work.save(made, path)
    jax.tree.map(np.testing.assert_array_equal, work.load(path), made)
    assert {leaf.dtype for leaf in jax.tree.leaves(made)} == {np.dtype("float32")}


def test_every_case_has_engines_and_names_are_unique():
    assert len(BY_NAME) == len(WAYS)
    combinations = itertools.product(("sgd", "adam"), ("scalar", "per_step"))
    for optimizer, learned in combinations:
        case = work.Case("mlp", optimizer, learned, 10)
        assert any(way.ours for way in WAYS if way.applies(case))


def ask(**changes):
    request = {"way": "optax scan", "case": ["regression", "sgd", "scalar", 3]}
    request |= {"work": "none.npz", "seed": 0, "threads": 1, "calls": 1, "seconds": 1.0}
    limits = {"time_limit": 60.0, "memory_limit": 12e9}
    options = {key: changes.pop(key) for key in list(changes) if key in limits}
    return parent.fresh(request | changes, **(limits | options))


def test_a_process_beyond_its_limits_or_that_fails_is_a_result():
    assert ask(time_limit=0.0) == {"too_slow": "over 0 s"}
    assert ask(memory_limit=1.0) == {"failed": "over 1e-09 GB of memory"}
    assert "FileNotFoundError" in ask()["failed"]


def test_a_way_that_is_not_there_is_a_wrong_config(tmp_path, capsys):
    options = ["ways=[pytorch]", "--runs", str(tmp_path)]
    assert cli.module_main("peers", options) == 2
    assert "'pytorch' must be one of" in capsys.readouterr().err
    assert cli.module_main("peers", ["steps=[1]", "--runs", str(tmp_path)]) == 2


@pytest.mark.slow
def test_a_small_run_says_who_is_right_and_who_is_not_there(tmp_path):
    options = ["problems=[regression]", "steps=[5]", "optimizers=[sgd]", "calls=1"]
    options += ["learned=[scalar]", "aim_repeats=1", "seconds=1"]
    options += ["ways=['metalr Forward()', 'optax scan', higher]"]
    assert cli.module_main("peers", [*options, "--runs", str(tmp_path)]) == 0
    (path,) = tmp_path.glob("peers/*/records.jsonl")
    assert list(path.parent.glob("peers.png"))
    found = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert sum(row["table"] == "measurements" for row in found) == 3
    rows = {row["way"]: row for row in found if "way" in row}
    there = importlib.util.find_spec("higher") and importlib.util.find_spec("torch")
    expected = "right" if there else "not installed"
    assert rows["higher"]["verdict"].startswith(expected)
    for way in ("metalr Forward()", "optax scan"):
        assert rows[way]["verdict"] == "right"
        assert rows[way]["ms"] > 0
        assert rows[way]["first_call_s"] > rows[way]["ms"] / 1e3
    assert rows["metalr Forward()"]["times_slower"] == 1.0
    assert rows["metalr Forward()"]["lines"] == 9
    assert judge.code_lines(jax_ways.optax_scan) == rows["optax scan"]["lines"]
