"""Every config runs; wrong input stops before anything runs; results stay on disk."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import yaml

from experiments._command import cli, config as configs
from experiments._settings import data
from experiments._sweep.plan import make_plan
from experiments.learning_rate import Config

ROOT = Path(__file__).parents[2]
CSV = "a,b,y\n1,2,3\n4,5,6\n7,8,10\n"


def run(*arguments, runs):
    return cli.main(["run", *map(str, arguments), "--runs", str(runs)])


def small(tmp_path, name="learning_rate", text="steps: [1, 3]\n"):
    path = tmp_path / "small.yaml"
    path.write_text(f"experiment: {name}\n{text}", encoding="utf-8")
    return path


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=str)
def test_every_config_is_valid_and_says_how_it_is_run(path):
    content = configs.read_yaml(path)
    assert content["experiment"] in cli.names()
    verb = "sweep" if "sweep" in content else "run"
    if verb == "sweep":
        assert make_plan(content).points
    else:
        module = __import__(f"experiments.{content['experiment']}", fromlist=["Config"])
        configs.validate(module.Config, content)
    command = f"# python -m experiments {verb} configs/{path.name}"
    assert path.read_text(encoding="utf-8").startswith(command)


@pytest.mark.slow
def test_learned_and_closed_form_rates_agree_and_the_run_is_on_disk(tmp_path):
    assert run(small(tmp_path), runs=tmp_path) == 0
    (folder,) = (tmp_path / "learning_rate").iterdir()
    lines = (folder / "records.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["T"] for record in records] == [1, 3]
    for record in records:
        assert record["relative_error"] < 1e-6
        assert record["autodiff_error"] < 1e-9
        assert record["min_curvature"] > 0.0
    provenance = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
    assert provenance["status"] == "finished"
    assert provenance["x64"]
    described = json.loads((folder / "data.json").read_text(encoding="utf-8"))
    assert described["n"] == 442
    assert len(described["columns"]) == 10
    for suffix in ("png", "svg"):
        assert (folder / f"learning_rate.{suffix}").stat().st_size > 1000
    # The kept config is complete and runs again, into a folder of its own.
    kept = configs.read_yaml(folder / "config.yaml")
    assert configs.validate(Config, kept) == configs.validate(
        Config, configs.read_yaml(small(tmp_path))
    )
    again = ("learning_rate", "steps=[1]", "grid=2")
    assert cli.module_main(again[0], [*again[1:], "--runs", str(tmp_path)]) == 0
    assert len(list((tmp_path / "learning_rate").iterdir())) == 2


@pytest.mark.slow
def test_the_graph_experiment_runs(tmp_path):
    path = small(tmp_path, "two_step_graph", "horizons: [1, 2]\n")
    assert run(path, runs=tmp_path) == 0
    assert list((tmp_path / "two_step_graph").glob("*/two_step_graph.png"))


def test_a_run_that_fails_keeps_its_records_and_says_so(tmp_path, monkeypatch):
    from experiments import learning_rate

    def broken(config):
        del config
        yield {"T": 1}
        message = "lost power"
        raise RuntimeError(message)

    monkeypatch.setattr(learning_rate, "run", broken)
    with pytest.raises(RuntimeError, match="lost power"):
        run(small(tmp_path), runs=tmp_path)
    (folder,) = (tmp_path / "learning_rate").iterdir()
    assert (folder / "records.jsonl").read_text(encoding="utf-8") == '{"T": 1}\n'
    status = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
    assert status["status"] == "failed: RuntimeError: lost power"


def test_a_float32_run_leaves_the_precision_of_the_process_as_it_was(tmp_path):
    text = "dtype: float32\nsteps: [1]\ngrid: 2\n"
    assert run(small(tmp_path, text=text), runs=tmp_path) == 0
    assert jnp.ones(()).dtype == "float64"


def test_all_mistakes_are_reported_at_once_and_nothing_runs(tmp_path, capsys):
    code = run(
        small(tmp_path),
        "data.nam=digits",
        "steps=[0, two]",
        "colour=red",
        "start=-1",
        'seed="7"',
        runs=tmp_path / "runs",
    )
    message = capsys.readouterr().err
    assert code == 2
    assert "6 mistake(s)" in message
    for part in (
        "data.nam = 'digits': unknown key",
        "steps.0 = 0",
        "steps.1 = 'two'",
        "colour = 'red': unknown key",
        "start = -1",
        "seed = '7'",
    ):
        assert part in message
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["experiment=learning_rates"], "must be one of bias"),
        (["steps"], "write key=value"),
        (["seed=1", "seed.deep=1"], "which has no keys"),
        (["data.kind=parquet"], "data = {'kind': 'parquet'}"),
        (["data={kind: csv, path: no.csv, target: y}"], "cannot be read"),
        (["data.samples=10000"], "has only 442 rows"),
        (["data={name: digits, positive_class: 77}"], "has labels"),
        (["steps=[1"], "not valid YAML"),
    ],
)
def test_wrong_input_is_explained_with_exit_code_2(
    tmp_path, capsys, arguments, message
):
    assert run(small(tmp_path), *arguments, runs=tmp_path) == 2
    assert message in capsys.readouterr().err


def test_a_missing_config_and_python_objects_in_yaml_are_refused(tmp_path, capsys):
    assert run(tmp_path / "none.yaml", runs=tmp_path) == 2
    assert "cannot read" in capsys.readouterr().err
    evil = small(tmp_path, text="start: !!python/object/apply:os.getcwd []\n")
    assert run(evil, runs=tmp_path) == 2
    assert "not valid YAML" in capsys.readouterr().err
    assert run(small(tmp_path, text="seed: 1\nseed: 2\n"), runs=tmp_path) == 2
    assert "seed is set twice" in capsys.readouterr().err


def test_overrides_and_yaml_floats_mean_what_they_say():
    content = {"experiment": "learning_rate", "data": {"name": "diabetes"}}
    assignments = ["data.name=digits", "start=1e-3", "steps=[1,10]"]
    found = configs.validate(Config, configs.override(content, assignments))
    assert found.data == data.BundledData(name="digits")
    assert found.start == 1e-3
    assert found.steps == (1, 10)
    assert configs.digest(found) == configs.digest(
        configs.validate(Config, yaml.safe_load(configs.to_yaml(found)))
    )


def test_the_list_and_the_help_name_every_experiment(capsys):
    assert cli.main([]) == 0
    listed = capsys.readouterr().out
    for name in cli.names():
        assert name in listed
        with pytest.raises(SystemExit) as done:
            cli.module_main(name, ["--help"])
        assert done.value.code == 0
        assert "experiment: " + name in capsys.readouterr().out


def load(text, tmp_path, *, dtype="float64", **options):
    path = tmp_path / "table.csv"
    path.write_text(text, encoding="utf-8")
    table = data.CsvData(kind="csv", path=str(path), target="y", **options)
    return data.load_regression(table, seed=0, dtype=dtype)


def test_a_csv_is_read_and_its_standardization_recorded(tmp_path):
    X, t, description = load(CSV, tmp_path, standardize=False)
    np.testing.assert_array_equal(X, [[1, 2], [4, 5], [7, 8]])
    np.testing.assert_array_equal(t, [3, 6, 10])
    assert not description["standardized"]
    X, t, description = load(CSV, tmp_path, columns=("b",))
    np.testing.assert_allclose(X[:, 0], [-1.224745, 0, 1.224745], rtol=1e-6)
    assert description["columns"] == [
        {"name": "b", "mean": 5.0, "scale": pytest.approx(6**0.5)}
    ]
    assert description["target"]["mean"] == pytest.approx(19 / 3)


def test_time_stamps_survive_float32_and_what_is_dropped_is_named(tmp_path):
    text = "time,same,y\n1700000000,7,1\n1700000001,7,2\n1700000003,7,4\n"
    X, t, description = load(text, tmp_path, dtype="float32")
    assert X.dtype == "float32"
    np.testing.assert_allclose(X[:, 0], t, rtol=1e-6)
    np.testing.assert_allclose(np.std(X[:, 0]), 1.0, rtol=1e-6)
    assert description["constant_columns"] == ["same"]
    assert not np.any(X[:, 1])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("a,b,z\n1,2,3\n", r"column 'y' .* is not there; its columns: \['a', 'b'"),
        ("a,a,y\n1,2,3\n4,5,6\n", "column 'a' .* is there twice"),
        ("a,y\n1,2\n", "has 1 row"),
        ("a,y\n1,2\n3,2\n", "target of .* is constant"),
        ("a,y\n1,2\nred,3\n", "row 3, column 'a': 'red'"),
        ("a,y\n1,nan\n2,3\n", "row 2, column 'y': 'nan'"),
        ("a,y\n1,2\n2,\n", "row 3, column 'y': ''"),
        ("a,y\n1,2\n2\n", "row 3 of .* has 1 cells, not 2"),
        ("y\n1\n2\n", "needs inputs other than the target"),
    ],
)
def test_a_csv_that_is_no_regression_is_a_clear_error(tmp_path, text, message):
    with pytest.raises(configs.ConfigError, match=message):
        load(text, tmp_path)


@pytest.mark.parametrize(
    ("name", "shape"), [("digits", (40, 64)), ("breast_cancer", (40, 30))]
)
def test_bundled_classes_become_0_1_targets(name, shape):
    section = data.BundledData(name=name, samples=40, standardize=False)
    X, t, _ = data.load_regression(section, seed=0, dtype="float32")
    assert X.shape == shape
    assert X.dtype == "float32"
    assert set(np.asarray(t)) == {0.0, 1.0}
