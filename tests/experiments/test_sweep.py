"""A sweep computes each point of its axes once, and says what it did."""

import csv
import itertools
import json
import math
import os
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, strategies as st
from rich.console import Console

from experiments._command import cli
from experiments._command.config import ConfigError, validate
from experiments._command.progress import describe, sweep_progress
from experiments._command.sources import _behind, code_version
from experiments._store import store
from experiments._sweep import jobs, supervised
from experiments._sweep.axes import Sweep, assignments
from experiments._sweep.batches import Point, batches
from experiments._sweep.cluster import _cards
from experiments._sweep.plan import make_plan, point_key
from tests.experiments import sweep_points

ROOT = Path(__file__).parents[2]


@pytest.fixture
def log(tmp_path, monkeypatch):
    """The experiment's log; the experiment can be found by its name."""
    path = tmp_path / "log"
    path.touch()
    monkeypatch.setenv("SWEEP_LOG", str(path))
    monkeypatch.setenv("METALR_EXPERIMENTS", "tests.experiments.sweep_points")
    return path


@pytest.fixture
def sweep(tmp_path, log):
    """Run a sweep in this process: overrides to exit code."""

    def run(*arguments, text="", command="sweep"):
        path = tmp_path / "tiny.yaml"
        path.write_text(f"experiment: sweep_points\n{text}", encoding="utf-8")
        runs = ["--runs", str(tmp_path / "runs")]
        return cli.main([command, str(path), *runs, *arguments])

    return run


def rows(tmp_path):
    return store.read(tmp_path / "runs" / "tiny.sqlite")


def section(**content):
    return validate(Sweep, content)


def expand(**content):
    return list(assignments(section(**content)))


# The axes.


def test_points_are_the_product_of_axes_zips_samples_and_seeds():
    found = expand(
        axes={"a": [1, 2], "b.c": {"range": [0, 3, 1]}},
        zip=[{"d": [1, 10], "e": ["x", "y"]}],
        random={"samples": 3, "axes": {"f": {"uniform": [0, 1]}}},
        seeds=2,
    )
    assert len(found) == 2 * 3 * 2 * 3 * 2
    assert len({json.dumps(point) for point in found}) == len(found)
    assert {(point["d"], point["e"]) for point in found} == {(1, "x"), (10, "y")}
    assert found[0].keys() == {"a", "b.c", "d", "e", "f", "seed"}
    assert [point["seed"] for point in found[:4]] == [0, 1, 0, 1]
    assert expand() == [{}]


@pytest.mark.parametrize(
    ("axis", "expected"),
    [
        ({"range": [1, 10, 4]}, [1, 5, 9]),
        ({"range": [0, 0.4, 0.1]}, [0.0, 0.1, 0.2, 0.3]),
        ({"range": [3, 0, -1]}, [3, 2, 1]),
        ({"range": [0, 2.1, 0.7]}, [0.0, 0.7, 1.4]),
        ({"range": [1e-3, 3e-3, 1e-3]}, [0.001, 0.002]),
        ({"linspace": [0, 1, 3]}, [0.0, 0.5, 1.0]),
        ({"log_range": [1e-4, 1e-2, 3]}, [1e-4, 1e-3, 1e-2]),
        ([None, "a", [1], {"b": 2}], [None, "a", [1], {"b": 2}]),
    ],
)
def test_axes_have_the_values_that_they_say(axis, expected):
    found = [point["a"] for point in expand(axes={"a": axis})]
    if "log_range" in axis:
        np.testing.assert_allclose(found, expected, rtol=1e-14)
    else:
        assert found == expected
        assert [type(value) for value in found] == [type(value) for value in expected]


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32))
def test_more_samples_and_further_axes_keep_the_earlier_ones(few, more, seed):
    axes = {
        "a": {"log_uniform": [1e-3, 10]},
        "b": {"choice": ["x", "y", "z"]},
        "c": {"integers": [-2, 2]},
    }
    short = {"samples": few, "seed": seed, "axes": {"a": axes["a"]}}
    long = {"samples": few + more, "seed": seed, "axes": axes}
    first = [p["a"] for p in expand(random=short)]
    found = expand(random=long)
    assert [p["a"] for p in found][:few] == first
    assert all(1e-3 <= p["a"] < 10 for p in found)
    assert {p["b"] for p in found} <= {"x", "y", "z"}
    assert {p["c"] for p in found} <= {-2, -1, 0, 1, 2}


def test_samples_fill_their_ranges():
    random = {
        "samples": 400,
        "axes": {"c": {"integers": [-2, 2]}, "a": {"log_uniform": [1e-3, 10]}},
    }
    found = expand(random=random)
    counts = Counter(point["c"] for point in found)
    assert set(counts) == {-2, -1, 0, 1, 2}
    assert min(counts.values()) > 400 / 5 - 5 * math.sqrt(400 * 0.16)  # five deviations
    below = sum(point["a"] < 0.1 for point in found)
    assert abs(below - 200) < 5 * math.sqrt(400 * 0.25)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"axes": {"a": []}}, "sweep.axes.a"),
        ({"axes": {"a": {"range": [0, 1, 0]}}}, "with at least one value"),
        ({"axes": {"a": {"log_range": [0, 1, 3]}}}, "log_range.0 = 0"),
        ({"axes": {"a": 3}}, "must be a list, or one of"),
        ({"axes": {"a": {"rang": [1]}}}, "a = {'rang': 1}: unknown key"),
        ({"axis": {"a": [1]}}, "sweep.axis = {'a': [1]}: unknown key"),
        ({"axes": {"a": [1]}, "zip": [{"a": [1]}]}, "set by more than one axis"),
        ({"axes": {"a": [1], "a.b": [1]}}, "a and a field inside it"),
        ({"axes": {"seed": [1]}, "seeds": 2}, "set by more than one axis"),
        ({"axes": {"experiment": ["x"]}}, "one sweep, one experiment"),
        ({"zip": [{"a": [1], "b": [1, 2]}]}, "equal lengths"),
        ({"seeds": 10**7}, "10,000,000 points"),
        ({"axes": {"a": {"range": [0, 10**9, 1]}}}, "1,000,000,000 points"),
        ({"axes": {"a": {"range": [0, 1, 1e-300]}}}, "far too many points"),
        ({"axes": {"a": {"range": [-1e308, 1e308, 5e-324]}}}, "far too many points"),
        ({"axes": {"a": {"linspace": [0, 1, 10**9]}}}, "1,000,000,000 points"),
        ({"axes": {"a": {"log_range": [1, 2, 10**9]}}}, "1,000,000,000 points"),
        ({"axes": {"a": {"linspace": [-1e308, 1e308, 3]}}}, "than a float can say"),
        ({"zip": [{"a": {"linspace": [0, 1, 10**9]}}]}, "1,000,000,000 points"),
        (
            {"random": {"samples": 10**9, "axes": {"a": {"uniform": [0, 1]}}}},
            "1,000,000,000 points",
        ),
        (
            {"random": {"samples": 1, "axes": {"a": {"uniform": [-1e308, 1e308]}}}},
            "than a float can say",
        ),
        (
            {"random": {"samples": 1, "axes": {"a": {"integers": [0, 10**20]}}}},
            "integers.1 = 100000000000000000000",
        ),
        ({"random": {"samples": 2, "axes": {"a": [1]}}}, "must be one of {uniform"),
        ({"exclude": [{"x": {"gtt": 1}}]}, "gtt = 1: unknown key"),
        ({"exclude": [{"x": {}}]}, "needs one of lt"),
    ],
)
def test_a_wrong_sweep_section_is_explained_before_anything_runs(
    sweep, tmp_path, capsys, content, message
):
    assert sweep(text=f"sweep: {json.dumps(content)}") == 2
    error = capsys.readouterr().err
    assert message in error
    assert not (tmp_path / "runs").exists()


def test_all_mistakes_of_all_points_are_reported_at_once(sweep, tmp_path, capsys, log):
    code = sweep(
        "sweep.axes.x=[1, two, 3.5]",
        "sweep.axes.part.y=[0.5, high]",
        "sweep.exclude=[{speed: 3}]",
        "sweep.seeds=2",
    )
    error = capsys.readouterr().err
    assert code == 2
    assert "(10 points are wrong)" in error
    for part in (
        "x = 'two'",
        "x = 3.5",
        "part.y = 'high'",
        "sweep.exclude.0.speed: no point has such a field",
    ):
        assert part in error
    assert not (tmp_path / "runs").exists()
    assert log.read_text() == ""


def test_the_command_line_replaces_axes_by_their_dotted_names(sweep, tmp_path):
    text = "sweep: {axes: {part.y: [0.0, 1.0], x: [1]}}"
    assert sweep("sweep.axes.part.y=[2.0]", "sweep.axes.x=[5]", text=text) == 0
    (row,) = rows(tmp_path)
    assert (row.config["part"]["y"], row.config["x"]) == (2.0, 5)


def test_excluded_points_are_gone_and_need_not_be_valid(sweep, tmp_path):
    exclude = "[{x: {ge: 2}, part.y: 0.5}, {x: [wrong]}, {x: {lt: 1}, dtype: float64}]"
    code = sweep(
        "sweep.axes.x=[0, 1, 2, 3, wrong]",
        "sweep.axes.part.y=[0.5, 1.0]",
        f"sweep.exclude={exclude}",
    )
    assert code == 0
    found = [(row.config["x"], row.config["part"]["y"]) for row in rows(tmp_path)]
    assert found == [(1, 0.5), (1, 1.0), (2, 1.0), (3, 1.0)]


# What is computed, and once.


def test_the_same_command_again_computes_nothing_and_a_longer_one_the_rest(
    sweep, tmp_path, log, capsys
):
    few, more = "sweep.axes.x=[1, 2]", "sweep.axes.x=[2, 3, 1, 1]"
    assert sweep(few, "executor.batch=1") == 0
    assert sweep(few, "executor.batch=1") == 0
    assert "0 computed, 2 skipped" in capsys.readouterr().out
    assert sweep(more, "executor.batch=1") == 0
    assert "1 computed, 2 skipped" in capsys.readouterr().out
    assert Counter(log.read_text().split("\n"))["start 1"] == 1
    found = rows(tmp_path)
    assert [row.config["x"] for row in found] == [1, 2, 3]
    assert [row.records[0]["square"] for row in found] == [1.0, 4.0, 9.0]
    assert found[0].records[1]["curve"] == [1, 2]
    assert found[0].provenance["code_version"] == code_version(sweep_points)
    assert found[0].provenance["x64"] is True
    assert found[0].provenance["seed"] == 0
    noted = store.read_meta(tmp_path / "runs" / "tiny.sqlite")["sweep"]
    assert noted["sweep"]["axes"]["x"] == [2, 3, 1, 1]


def test_points_run_in_the_precision_of_their_config(sweep, tmp_path):
    assert sweep("sweep.axes.dtype=[float32, float64]", "executor.batch=1") == 0
    found = {row.config["dtype"]: row.records[0] for row in rows(tmp_path)}
    assert {name: r["dtype_of_one"] for name, r in found.items()} == {
        "float32": "float32",
        "float64": "float64",
    }


def test_a_point_that_raises_is_recorded_and_the_others_are_computed(
    sweep, tmp_path, log, capsys
):
    bad = ("behavior=raise", "bad=2", "sweep.axes.x=[1, 2, 3]")
    assert sweep(*bad, "executor.batch=1", "executor.retries=1") == 1
    printed = capsys.readouterr()
    assert "2 computed, 0 skipped, 1 failed" in printed.out
    assert "[bold]point 2 is broken" in printed.err
    assert log.read_text().count("start 2") == 2  # one retry
    found = {row.config["x"]: row for row in rows(tmp_path)}
    assert {x: row.status for x, row in found.items()} == {
        1: "finished",
        2: "failed",
        3: "finished",
    }
    assert found[2].error
    assert "Traceback" in found[2].error
    assert "in _behave" in found[2].error
    assert found[2].attempts == 2
    # Failed points are tried again by the next sweep, finished ones are not.
    assert sweep(*bad, "executor.batch=1", "executor.retries=0") == 1
    assert log.read_text().count("start 2") == 3
    assert log.read_text().count("start 1") == 1
    assert {row.config["x"]: row.attempts for row in rows(tmp_path)} == {
        1: 1,
        2: 3,
        3: 1,
    }


HOSTILE = {
    "surrogate": r"a lone \ud800 in point",
    "escapes": "red\0 in point",
    "unprintable": "Unprintable",
    "exit": "SystemExit: 0",
    "base": "neither an Exception nor a signal",
    "no mapping": "record 2 is a list, not a mapping",
    "no list": "record 2, 'square': a set is no JSON value",
    "lone surrogate": r"record 2, 'text': '\ud800' is no text",
    "huge": "record 2, 'square': an int of 1329 bits",
    "deep": "more than 50 levels deep",
    "odd": "record 2: a key is a tuple",
}


def test_whatever_a_point_does_is_its_own_row(sweep, tmp_path, capsys):
    names = ["ok", *HOSTILE, "nan"]
    arguments = (f"sweep.axes.behavior={json.dumps(names)}", "executor.batch=1")
    assert sweep(*arguments, "executor.retries=0") == 1
    printed = capsys.readouterr()
    assert f"2 computed, 0 skipped, {len(HOSTILE)} failed" in printed.out
    assert "\x1b" not in printed.err
    found = {row.config["behavior"]: row for row in rows(tmp_path)}
    assert list(found) == names
    for name, text in HOSTILE.items():
        assert found[name].status == "failed"
        assert text in str(found[name].error)
    assert found["nan"].status == "finished"
    for form in ("table", "csv", "json"):
        assert results(tmp_path, "--format", form) == 0
        out = capsys.readouterr().out
        assert ("\x1b" in out) == (form == "csv")  # a file, unless a terminal reads it
    assert sweep(*arguments, "executor.retries=0") == 1  # and it goes on
    assert "0 computed, 2 skipped" in capsys.readouterr().out


def test_a_batch_that_cannot_be_sized_or_ends_oddly_is_run_one_by_one(
    sweep, tmp_path, monkeypatch
):
    def broken(config):
        raise KeyError(config.x)

    def endless(configs):
        yield [{"square": 0.0}]
        raise GeneratorExit

    axis = "sweep.axes.x=[1, 2]"
    monkeypatch.setattr(sweep_points, "point_bytes", broken)
    assert sweep(axis, "part.y=1.0") == 0
    monkeypatch.undo()
    monkeypatch.setenv("SWEEP_LOG", str(tmp_path / "log"))
    monkeypatch.setenv("METALR_EXPERIMENTS", "tests.experiments.sweep_points")
    monkeypatch.setattr(sweep_points, "run_batch", endless)
    assert sweep(axis) == 0
    squares = [row.records[0]["square"] for row in rows(tmp_path)]
    assert squares == [1.0, 4.0, 0.0, 4.0]


def test_input_that_is_wrong_is_not_tried_again(sweep, log):
    assert sweep("behavior=refuse", "executor.batch=1", "executor.retries=5") == 1
    assert log.read_text() == "start 0\n"


def test_nan_is_a_result(sweep, tmp_path):
    assert sweep("behavior=nan", "executor.batch=1") == 0
    (row,) = rows(tmp_path)
    assert row.status == "finished"
    assert math.isnan(row.records[0]["square"])


def test_a_batch_is_one_program_and_its_failure_that_of_the_guilty(
    sweep, tmp_path, log
):
    axes = ("sweep.axes.part.y=[0.0, 1.0]", "sweep.axes.x={range: [0, 6, 1]}")
    assert sweep(*axes, "executor.batch=4") == 0
    assert log.read_text() == "batch 3\n" * 4
    assert len(rows(tmp_path)) == 12
    log.write_text("")
    bad = ("behavior=raise", "bad=2", "sweep.axes.x=[1, 2, 3]", "executor.retries=0")
    assert sweep(*bad) == 1
    assert log.read_text().startswith("batch 3\nstart 1")
    statuses = Counter(row.status for row in rows(tmp_path))
    assert statuses == {"finished": 14, "failed": 1}


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), max_size=30),
    st.integers(1, 7),
    st.integers(0, 9),
)
def test_batches_hold_each_point_once_by_program_and_within_their_limits(
    pairs, most, mebibytes
):
    points = []
    for index, (x, y) in enumerate(pairs):
        content = {"x": x, "part": {"y": float(y)}}
        config = validate(sweep_points.Config, content)
        points.append(Point(str(index), config, config.model_dump(mode="json")))
    memory = mebibytes * 2**20
    found = list(batches(sweep_points, points, memory=memory, most=most))
    keys = [point.key for batch in found for point in batch]
    assert sorted(keys) == sorted(point.key for point in points)
    assert all(1 <= len(batch) <= max(1, min(most, mebibytes)) for batch in found)
    parts = [{point.content["part"]["y"] for point in batch} for batch in found]
    assert all(len(part) == 1 for part in parts)
    # A program's batches come one after the other, in almost equal lengths.
    order = [next(iter(part)) for part in parts]
    assert len(list(dict.fromkeys(order))) == sum(
        a != b for a, b in zip([None, *order], order, strict=False)
    )
    for y in set(order):
        lengths = [len(b) for b, o in zip(found, order, strict=True) if o == y]
        assert max(lengths) - min(lengths) <= 1


@pytest.mark.usefixtures("log")
def test_after_each_ten_jobs_what_jax_keeps_of_their_programs_goes(monkeypatch):
    cleared, seen = [], []
    monkeypatch.setattr(jax, "clear_caches", lambda: cleared.append(None))
    monkeypatch.setattr(jobs, "_computed", itertools.count(1))
    for x in range(25):
        point = {"x": x, "jax": False}
        job = jobs.Job(
            sweep_points.__name__, code_version(sweep_points), ("",), (point,)
        )
        assert [outcome.status for outcome in jobs.compute(job)] == ["finished"]
        seen.append(len(cleared))
    assert seen == [0] * 9 + [1] * 10 + [2] * 6


def test_a_sweep_without_axes_is_one_point_and_another_spelling_is_the_same(
    sweep, tmp_path
):
    assert sweep("x=3", "part.y=1e0") == 0
    assert sweep("part.y=1.0", "x=3") == 0
    assert len(rows(tmp_path)) == 1


def test_the_key_knows_the_config_and_the_code():
    base = {"x": 1, "y": {"z": 2}}
    assert point_key("a", base, "v") == point_key("a", {"y": {"z": 2}, "x": 1}, "v")
    keys = {
        point_key("a", base, "v"),
        point_key("b", base, "v"),
        point_key("a", base, "w"),
        point_key("a", base | {"x": 2}, "v"),
    }
    assert len(keys) == 4


def test_the_code_version_follows_what_computes_and_nothing_else():
    learning_rate = cli.load("learning_rate")
    behind = set(_behind("experiments.learning_rate"))
    assert {"experiments.learning_rate", "experiments._settings.data"} <= behind
    unrelated = {"cli", "runner", "style", "sweep", "store", "errata", "config"}
    assert not {f"experiments.{name}" for name in unrelated} & behind
    assert "tests.experiments.sweep_points" in _behind("tests.experiments.sweep_points")
    assert code_version(learning_rate) != code_version(sweep_points)


# Where results go, and how they are shown.


@pytest.mark.parametrize(
    "name",
    ["../x.sqlite", "/tmp/x.sqlite", "a/../../x.sqlite", "link/x", "dangling", "."],
)
def test_a_store_outside_the_folder_of_results_is_refused(
    sweep, tmp_path, capsys, name, log
):
    runs = tmp_path / "runs"
    runs.mkdir()
    (runs / "link").symlink_to(tmp_path)
    (runs / "dangling").symlink_to(tmp_path / "nothing.sqlite")
    before = sorted(tmp_path.rglob("*"))
    assert sweep(f"store={name}") == 2
    assert "store = " in capsys.readouterr().err
    assert [p for p in sorted(tmp_path.rglob("*")) if p.suffix != ".yaml"] == before
    assert log.read_text() == ""
    assert sweep("store=inner/x.sqlite") == 0
    assert len(store.read(runs / "inner" / "x.sqlite")) == 1


def test_a_sweep_that_constructs_python_objects_is_refused(sweep, tmp_path, capsys):
    text = "sweep: {axes: {x: !!python/object/apply:os.getcwd []}}"
    assert sweep(text=text) == 2
    assert sweep("sweep.axes.x=!!python/name:os.getcwd") == 2
    assert capsys.readouterr().err.count("not valid YAML") == 2
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_says_what_would_happen_and_does_nothing(
    sweep, tmp_path, capsys, log
):
    arguments = ("behavior=raise", "bad=2", "executor.batch=1", "executor.retries=0")
    sweep(*arguments, "sweep.axes.x=[1, 2]")
    before = (log.read_text(), rows(tmp_path))
    capsys.readouterr()
    assert sweep(*arguments, "--dry-run", "sweep.axes.x=[1, 2, 3, 3]") == 0
    out = capsys.readouterr().out
    assert "1 to skip, 1 to retry, 1 to run, 1 equal to another, merged" in out
    assert (log.read_text(), rows(tmp_path)) == before
    assert "other versions" not in out


def test_results_of_earlier_code_are_kept_computed_anew_and_told_apart(
    sweep, tmp_path, monkeypatch, capsys
):
    sweep("executor.batch=1", "x=2")
    monkeypatch.setattr("experiments._sweep.plan.code_version", lambda module: "newer")
    monkeypatch.setattr("experiments._sweep.jobs.code_version", lambda module: "newer")
    assert sweep("--dry-run", "x=2") == 0
    out = capsys.readouterr().out
    assert "1 to run" in out
    assert "1 results of other versions of the code stay" in out
    sweep("executor.batch=1", "x=2")
    versions = [row.provenance["code_version"] for row in rows(tmp_path)]
    assert versions == [code_version(sweep_points), "newer"]
    capsys.readouterr()
    for arguments, count in (([], 1), (["--all"], 2)):
        results(tmp_path, "--format", "json", "--where", "square=4", *arguments)
        assert len(json.loads(capsys.readouterr().out)) == count


@pytest.mark.slow
@pytest.mark.parametrize(("growth", "processes"), [(2**40, 1), (-1, 3)])
def test_a_process_that_compiled_programs_have_filled_is_replaced(
    sweep, tmp_path, monkeypatch, growth, processes
):
    monkeypatch.setattr(supervised, "_GROWTH", growth)
    axis = ("sweep.axes.x=[1, 2, 3]", "jax=false")
    assert sweep(*axis, "executor={time_limit: 60, batch: 1}") == 0
    found = rows(tmp_path)
    assert [row.status for row in found] == ["finished"] * 3
    assert len({row.provenance["process"] for row in found}) == processes


def test_a_worker_with_other_sources_stops_the_sweep(sweep, monkeypatch, capsys, log):
    monkeypatch.setattr(
        "experiments._sweep.plan.code_version", lambda module: "driver's"
    )
    assert sweep() == 2
    assert "install the same metalr there" in capsys.readouterr().err
    assert log.read_text() == ""


def results(tmp_path, *arguments):
    return cli.main(["results", str(tmp_path / "runs" / "tiny.sqlite"), *arguments])


def test_results_are_chosen_and_written_in_every_format(sweep, tmp_path, capsys):
    sweep("executor.batch=1", "sweep.axes.x=[1, 2, 3]")
    sweep("executor.batch=1", "behavior=nan", "x=7")
    capsys.readouterr()
    where = ("--where", "x<=2", "dtype=float64", "status!=failed")
    assert results(tmp_path, *where, "--format", "json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [(e["x"], e.get("square"), e.get("table")) for e in found] == [
        (1, 1.0, None),
        (1, None, "second"),
        (2, 4.0, None),
        (2, None, "second"),
    ]
    assert found[0]["part.y"] == 0.5
    assert results(tmp_path, "--format", "csv", "--where", "square>0") == 0
    lines = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert [line["square"] for line in lines] == ["1.0", "4.0", "9.0"]
    assert (
        results(tmp_path, "--format", "json", "--where", "x=7", "dtype_of_one=float64")
        == 0
    )
    assert json.loads(capsys.readouterr().out)[0]["square"] == "NaN"
    assert results(tmp_path, "--where", "x=3", "dtype_of_one=float64") == 0
    assert "square" in capsys.readouterr().out


def test_parquet_has_the_columns(sweep, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    sweep("executor.batch=1", "sweep.axes.x=[1, 2]")
    out = tmp_path / "out" / "results.parquet"
    assert results(tmp_path, "--format", "parquet", "--out", str(out)) == 0
    table = parquet.read_table(out).to_pydict()
    assert table["x"] == [1, 1, 2, 2]
    assert table["curve"][1] == "[1, 2]"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--where", "speed=1"], "no such field; there are"),
        (["--where", "x"], "write KEY=VALUE"),
        (["--where", "x<two"], "cannot be compared"),
        (["--where", "x<[1]"], "has no order"),
        (["--format", "parquet"], "needs --out"),
        (["--format", "csv", "--out", "{store}"], "not one of these tables"),
    ],
)
def test_wrong_questions_about_results_are_explained(
    sweep, tmp_path, capsys, arguments, message
):
    sweep()
    place = str(tmp_path / "runs" / "tiny.sqlite")
    assert results(tmp_path, *(a.format(store=place) for a in arguments)) == 2
    assert message in capsys.readouterr().err
    assert len(rows(tmp_path)) == 1
    assert cli.main(["results", str(tmp_path / "none.sqlite")]) == 2


@pytest.mark.parametrize("form", ["table", "csv", "json", "parquet"])
def test_tables_replace_tables_and_nothing_else(sweep, tmp_path, form, capsys):
    if form == "parquet":
        pytest.importorskip("pyarrow")
    sweep("executor.batch=1", "sweep.axes.x=[1, 2]")
    out = tmp_path / "out" / "table"
    arguments = ("--format", form, "--out", str(out))
    assert results(tmp_path, *arguments, "--where", "x=1") == 0
    first = out.read_bytes()
    assert results(tmp_path, *arguments) == 0
    assert out.read_bytes() != first
    config = tmp_path / "tiny.yaml"
    for other in (config, Path(__file__)):
        link = tmp_path / "link"
        link.symlink_to(other)
        for path in (other, link):
            before = other.read_bytes()
            assert results(tmp_path, "--format", form, "--out", str(path)) == 2
            assert "not overwritten" in capsys.readouterr().err
            assert other.read_bytes() == before
        link.unlink()
    assert sorted(path.name for path in out.parent.iterdir()) == ["table"]
    assert results(tmp_path, "--format", form, "--out", "/dev/null") == 0


def test_a_table_goes_into_a_pipe_as_it_is(sweep, tmp_path, capsys):
    sweep()
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ThreadPoolExecutor() as pool:
        read = pool.submit(pipe.read_bytes)
        assert results(tmp_path, "--format", "csv", "--out", str(pipe)) == 0
        assert read.result(timeout=30).startswith(b"key,experiment,")
    assert pipe.is_fifo()


def test_an_empty_store_has_0_results(tmp_path, capsys):
    path = tmp_path / "runs" / "tiny.sqlite"
    with store.writing(path):
        pass
    for form, text in (("table", "0 results\n"), ("csv", "\n"), ("json", "[]\n")):
        assert results(tmp_path, "--format", form) == 0
        assert capsys.readouterr().out == text


def test_parquet_without_pyarrow_says_what_to_install(
    sweep, tmp_path, capsys, monkeypatch
):
    sweep()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    out = tmp_path / "table.parquet"
    assert results(tmp_path, "--format", "parquet", "--out", str(out)) == 2
    assert "pip install 'metalr[parquet]'" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("command", [[], ["run"], ["sweep"], ["results"]])
def test_every_command_has_its_help(capsys, command):
    with pytest.raises(SystemExit) as done:
        cli.main([*command, "--help"])
    assert done.value.code == 0
    assert "usage" in capsys.readouterr().out


def test_strange_arguments_are_still_refused(capsys):
    for arguments in (["results", "x", "y=1"], ["sweep", "x", "--stor", "y", "--a=b"]):
        with pytest.raises(SystemExit):
            cli.main(arguments)
    assert "unrecognized arguments: y=1" in capsys.readouterr().err


def test_progress_without_a_terminal_is_plain_lines_now_and_then(tmp_path):
    with (tmp_path / "log").open("w+", encoding="utf-8") as file:
        console = Console(file=file)
        options = {"total": 9, "skipped": 2, "console": console}
        with sweep_progress("tiny", **options, every=0.0) as tell:
            for status in ("finished", "failed", "finished"):
                tell(status)
        with sweep_progress("rare", **options) as tell:
            tell("finished")
        file.seek(0)
        lines = file.read().splitlines()
    assert len([line for line in lines if line.startswith("tiny")]) == 4
    assert len([line for line in lines if line.startswith("rare")]) == 1
    assert lines[2].startswith("tiny: 2 of 7 done, 1 failed, 2 skipped, ")
    assert all(line.isprintable() for line in lines)


def test_progress_on_a_terminal_is_a_bar(tmp_path):
    with (tmp_path / "log").open("w+", encoding="utf-8") as file:
        console = Console(file=file, force_terminal=True, width=100)
        with sweep_progress("tiny", total=3, skipped=1, console=console) as tell:
            tell("timed_out")
        file.seek(0)
        assert "1 timed out, 1 skipped" in file.read()


def test_rate_and_remaining_time_are_of_this_run():
    counts = Counter({"finished": 3, "failed": 1})
    assert describe(counts, 10, 90, 2.0) == (
        "3 of 10 done, 1 failed, 90 skipped, 2 points/s, 0:03 remaining"
    )


def test_cards_are_those_that_the_process_may_see(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-7")
    assert _cards() == ["3", "GPU-7"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert _cards() == []
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setenv("PATH", "")
    assert _cards() == []


def test_a_plan_leaves_a_sound_config_alone():
    content = {"experiment": "learning_rate", "sweep": {"axes": {"steps": [[1], [2]]}}}
    plan = make_plan(content)
    assert [point.content["steps"] for point in plan.points] == [[1], [2]]
    with pytest.raises(ConfigError, match="must be one of"):
        make_plan({"experiment": "tests.experiments.sweep_points"})
    with pytest.raises(ConfigError, match="leaves none of the 2 points"):
        make_plan(content | {"sweep": {"seeds": 2, "exclude": [{"seed": {"ge": 0}}]}})
