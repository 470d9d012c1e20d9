"""Whatever is typed, the command line answers in a line, and loses no result."""

import errno
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from experiments._command import cli, plain_yaml, run_folder, strict_json, tables
from experiments._command.config import (
    MAX_BYTES,
    MAX_SIZE,
    ConfigError,
    digest,
    read_yaml,
    to_yaml,
    validate,
)
from experiments._command.plain_yaml import MAX_DEPTH, dump, parse
from experiments._command.registry import load, names
from experiments._command.streams import Stream, forgiving, say
from experiments._settings.data import CsvData, load_regression
from experiments._store import results
from experiments.learning_rate import Config

ROOT = Path(__file__).parents[2]
CSV = {"kind": "csv", "path": "a", "target": "t"}

# YAML.


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", 10),
        ("0o10", 8),
        ("0x1F", 31),
        ("10_000", 10000),
        ("-7", -7),
        ("1:30", "1:30"),
        ("1e-3", 0.001),
        (".5", 0.5),
        ("1.", 1.0),
        ("-.inf", float("-inf")),
        ("yes", "yes"),
        ("no", "no"),
        ("true", True),
        ("2026-01-02", "2026-01-02"),
        ("0b1", "0b1"),
        ("~", None),
        ("", None),
        ("=", "="),
        ("'010'", "010"),
        ("{<<: 1}", {"<<": 1}),
        ("[&a [1], *a]", [[1], [1]]),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text, value):
    found = parse(text, "here")
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("!!python/object/apply:os.getcwd []", "not allowed"),
        ("!!binary aGk=", "not allowed"),
        ("!!set {a}", "not allowed"),
        ("!!map [a]", "not allowed"),
        ("1: 2", "key 1 is no text"),
        ("? [a]\n: b", "is no text"),
        ("{a: 1, a: 2}", "a is set twice"),
        ("&a [*a]", "refers to what contains it"),
        ("[" * 10_000 + "]" * 10_000, "nested deeper"),
        ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), "nested deeper"),
        ("9" * 5000, "5000 digits"),
        ("a\0b", "not allowed"),
        ("\x1b[31m", "not allowed"),
        ("a: b: c", "not allowed here"),
        ("!!int x", "x"),
    ],
    ids=range(15),
)
def test_what_is_no_plain_data_is_refused(text, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        parse(text, "here")


def test_aliases_are_counted_before_they_are_unfolded():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    for i in range(1, 20):
        lines.append(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]")
    with pytest.raises(ConfigError, match="unfolds to"):
        parse("\n".join(lines), "here")


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False)
    | st.text()
    | st.sampled_from(["010", "1:30", "1e3", "yes", "~", "0x1", "\x85", "<<", "="]),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4)
    ),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None)
@given(PLAIN)
def test_what_is_dumped_is_read_back(value):
    found = parse(dump(value), "here")
    assert found == value
    assert type(found) is type(value)


# Configs.


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"a: \xff\xfe", "not UTF-8"),
        ("experiment: learning_rate".encode("utf-16"), "not UTF-8"),
        (b"x" * (MAX_BYTES + 1), "larger than"),
        (b"[1]", "must hold a mapping"),
        (b"", "must hold a mapping"),
    ],
    ids=["bytes", "utf-16", "large", "list", "empty"],
)
def test_a_file_that_is_no_config_is_refused(tmp_path, raw, message):
    path = tmp_path / "a.yaml"
    path.write_bytes(raw)
    with pytest.raises(ConfigError, match=message):
        read_yaml(path)


def test_a_device_without_end_is_no_config():
    with pytest.raises(ConfigError, match="larger than"):
        read_yaml(Path("/dev/zero"))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("steps", [10**20], "no whole number here is beyond"),
        ("steps", [MAX_SIZE + 1], "must be within"),
        ("steps", [], "at least one entry"),
        ("start", float("inf"), "finite number"),
        ("start", float("nan"), "finite number"),
        ("seed", -1, "greater than or equal to 0"),
        ("seed", 2**32, "less than 4294967296"),
        (
            "data",
            {**CSV, "columns": []},
            "one entry",
        ),
    ],
)
def test_odd_values_are_mistakes(field, value, message):
    with pytest.raises(ConfigError, match=message):
        validate(Config, {"experiment": "learning_rate", field: value})


def test_a_list_may_be_empty_where_it_is_so_by_default():
    config = load("optimizer_census").Config
    assert validate(config, {"optimizers": []}).optimizers == ()


def test_the_kept_config_of_every_experiment_is_read_back(tmp_path):
    assert len(names()) > 20
    for name in names():
        model = load(name).Config
        path = tmp_path / f"{name}.yaml"
        path.write_text(to_yaml(model()), encoding="utf-8")
        assert digest(validate(model, read_yaml(path))) == digest(model())


# Fuzz: no input is answered by a traceback.

ODD = (
    *("1e400", "-1", "0", "10000000000000000000000", ".nan", ".inf", "010", "1:30"),
    *("[]", "[[]]", "[null]", "{}", "{a: b}", "{", "[", "null", "true", "~", "''"),
    *("'\\0'", '"\\0"', "'x", "!!set", "*a", "&a", "-", "?", ","),
)
KEYS = (
    *("experiment", "seed", "dtype", "data", "data.kind", "data.samples", "data.path"),
    *("steps", "grid", "start", "sweep", "a.b", ".", "..", "seed.x"),
)
MARKS = (": ", "\n", "  ", "- ", "\x1b[31m", "\udc80", "é")
PIECES = st.sampled_from([*ODD, *KEYS, *MARKS])
TEXTS = st.lists(PIECES, max_size=12).map("".join)
ASSIGNMENTS = st.builds(
    lambda key, sign, value: f"{key}{sign}{value}",
    st.sampled_from(KEYS),
    st.sampled_from(["=", "=", "=", ""]),
    st.sampled_from(ODD) | TEXTS,
)


@pytest.fixture
def nothing_runs(monkeypatch):
    from experiments._command import runner
    from experiments._sweep import sweep

    monkeypatch.setattr(runner, "execute", lambda module, config, runs: None)
    monkeypatch.setattr(sweep, "preview", lambda plan, path: None)


def answer(arguments, capsys):
    """The exit code, and what was said."""
    try:
        code = cli.main(arguments)
    except SystemExit as done:  # argparse
        code = done.code
    out, err = capsys.readouterr()
    assert code in (0, 2), (arguments, err)
    assert (code == 2) == bool(err)
    assert not set(out + err) & {chr(c) for c in range(32) if c != 10}
    assert "Traceback" not in err


FUZZ = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@FUZZ
@given(text=TEXTS | st.binary(max_size=30), overrides=st.lists(ASSIGNMENTS, max_size=2))
def test_no_config_is_answered_by_a_traceback(
    text, overrides, nothing_runs, tmp_path, capsys
):
    raw = text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape")
    path = tmp_path / "any.yaml"
    path.write_bytes(raw)
    answer(["run", str(path), "--", *overrides], capsys)
    answer(["sweep", str(path), "--dry-run", "--", *overrides], capsys)


@FUZZ
@given(data=st.data())
def test_no_override_is_answered_by_a_traceback(data, nothing_runs, tmp_path, capsys):
    name = data.draw(st.sampled_from(names()))
    fields = [*load(name).Config.model_fields, "data.name", "data.samples", "data.kind"]
    pairs = data.draw(
        st.lists(st.tuples(st.sampled_from(fields), st.sampled_from(ODD)), max_size=3)
    )
    path = tmp_path / "any.yaml"
    path.write_text(f"experiment: {name}\n", encoding="utf-8")
    answer(["run", str(path), "--", *(f"{k}={v}" for k, v in pairs)], capsys)


def test_what_is_no_option_is_said_without_control_characters(capsys):
    with pytest.raises(SystemExit):
        cli.main(["results", "a.sqlite", "--\x1b[31m"])
    err = capsys.readouterr().err
    assert "\x1b" not in err
    assert r"\x1b[31m" in err


# What the machine refuses.


@pytest.fixture
def probe(monkeypatch):
    """`learning_rate` with a run of two records and a small figure."""
    from matplotlib.figure import Figure

    from experiments import learning_rate

    rows = [
        {"T": 1, "x": float("nan")},
        {"T": 2, "x": float("-inf"), "text": "\x1b[2J"},
    ]
    monkeypatch.setattr(learning_rate, "run", lambda config: iter(rows))
    monkeypatch.setattr(
        learning_rate, "figures", lambda records: {"small": Figure(figsize=(1, 1))}
    )


def run_probe(runs):
    return cli.module_main("learning_rate", ["--runs", str(runs)])


def folder_of(runs):
    (folder,) = (runs / "learning_rate").iterdir()
    return folder


def test_records_are_strict_json_and_a_terminal_is_not_steered(probe, tmp_path, capsys):
    assert run_probe(tmp_path) == 0
    raw = (folder_of(tmp_path) / "records.jsonl").read_text(encoding="utf-8")
    for line in raw.splitlines():
        json.loads(line, parse_constant=pytest.fail)
    found = run_folder.read_run(folder_of(tmp_path)).records
    assert str(found[0]["x"]) == "nan"
    assert found[1]["x"] == float("-inf")
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert r"\x1b[2J" in out


WRITES = (
    *("config.yaml", "provenance.json", "data.json"),
    *("small.png", "small.svg", "records.jsonl"),
)


@pytest.mark.parametrize("name", WRITES)
def test_a_full_disk_is_a_line_and_earlier_records_stay(
    probe, tmp_path, capsys, monkeypatch, name
):
    """Wherever it fills up: the disk is full when `name` is written."""
    full = OSError(errno.ENOSPC, "No space left on device")
    if name == "records.jsonl":

        class Full(io.StringIO):
            def write(self, text):
                raise full

        opened = Path.open
        monkeypatch.setattr(
            Path,
            "open",
            lambda self, *a, **k: (
                Full() if self.name == name else opened(self, *a, **k)
            ),
        )
    else:
        written = Path.write_bytes

        def write_bytes(self, raw):
            if f".{name}." in self.name:
                written(self, raw[:3])
                raise full
            return written(self, raw)

        monkeypatch.setattr(Path, "write_bytes", write_bytes)
    assert run_probe(tmp_path) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert "No space left on device" in err
    assert err.count("\n") == 1
    left = folder_of(tmp_path)
    assert not list(left.glob(".*"))  # no half-written file
    if name in {"small.png", "small.svg"}:
        assert len(run_folder.read_run(left).records) == 2
    if name not in {"config.yaml", "provenance.json"}:
        status = run_folder.read_run(left).provenance["status"]
        assert status.startswith("failed: ")


def test_a_run_that_ends_on_a_really_full_disk_is_a_line(tmp_path):
    """By a limit of the process on the size of its files, which a kernel enforces."""
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "from experiments import edges;"
        "edges.run = lambda c: iter([{'a': 'x' * 9999}]);"
        "import experiments._command.runner;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000));"
        "from experiments._command.cli import module_main;"
        f"sys.exit(module_main('edges', ['--runs', {str(tmp_path)!r}]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: cannot finish edges: ")


def test_a_folder_that_cannot_be_made_is_a_line(probe, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")
    for runs in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/runs")):
        assert run_probe(runs) == 2
        assert capsys.readouterr().err.startswith("error: cannot keep results: ")
    assert run_probe(tmp_path / "dangling") in (0, 2)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError(), "out of memory"),
        (OverflowError("too large for int32"), "too large"),
        (ConnectionError("refused"), "cannot finish learning_rate: refused"),
    ],
    ids=["memory", "overflow", "connection"],
)
def test_what_the_machine_cannot_do_is_a_line(
    probe, tmp_path, capsys, monkeypatch, error, message
):
    from experiments import learning_rate

    def run(config):
        raise error
        yield

    monkeypatch.setattr(learning_rate, "run", run)
    assert run_probe(tmp_path) == 2
    assert message in capsys.readouterr().err
    trace = (folder_of(tmp_path) / "traceback.txt").read_text(encoding="utf-8")
    assert type(error).__name__ in trace


def test_what_the_library_refuses_is_a_line(probe, tmp_path, capsys, monkeypatch):
    import optax

    import metalr
    from experiments import learning_rate

    def run(config):
        metalr.Unrolled(lambda p, h, b: p, optax.sgd, 1.0, steps=-1)
        yield {}

    monkeypatch.setattr(learning_rate, "run", run)
    assert run_probe(tmp_path) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert "-1" in err


def test_a_fault_of_ours_keeps_its_traceback(probe, tmp_path, monkeypatch):
    from experiments import learning_rate

    def run(config):
        message = "ours"
        raise ValueError(message)
        yield

    monkeypatch.setattr(learning_rate, "run", run)
    with pytest.raises(ValueError, match="ours"):
        run_probe(tmp_path)


# Where the output goes.


class Broken(io.StringIO):
    """A stream whose reader has gone, or whose device is full."""

    def __init__(self, number):
        super().__init__()
        self.number = number

    def write(self, text):
        raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize("number", [errno.EPIPE, errno.ENOSPC])
def test_a_stream_that_breaks_loses_no_figure(probe, tmp_path, monkeypatch, number):
    monkeypatch.setattr(sys, "stdout", Broken(number))
    assert run_probe(tmp_path) == 0
    folder = folder_of(tmp_path)
    assert (folder / "small.png").stat().st_size > 100
    assert run_folder.read_run(folder).provenance["status"] == "finished"


@pytest.mark.parametrize(("number", "code"), [(errno.EPIPE, 0), (errno.ENOSPC, 2)])
def test_what_only_prints_says_whether_it_was_printed(
    monkeypatch, capsys, number, code
):
    monkeypatch.setattr(sys, "stdout", Broken(number))
    assert cli.main([]) == code
    assert ("No space left" in capsys.readouterr().err) == (code == 2)


def test_an_ascii_terminal_gets_escapes(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    with forgiving():
        say("η \x1b[31m")
    assert raw.getvalue() == b"\\u03b7 \\x1b[31m\n"


@pytest.mark.parametrize("shell", [">&-", "2>&-", ">&- 2>&-", "> /dev/full", "| true"])
def test_a_process_without_its_streams_ends_as_it_should(shell):
    command = f"{sys.executable} -m experiments {shell}"
    env = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        ["sh", "-c", command],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=env,
    )
    assert done.returncode == (2 if "full" in shell else 0), done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_a_stream_that_broke_stays_broken():
    stream = Stream(Broken(errno.EPIPE))
    assert stream.write("abc") == 3
    stream.flush()
    assert not stream.failed
    assert stream.lost is not None


# The list of experiments.


def test_listing_imports_neither_jax_nor_machinery():
    code = (
        "import sys; from experiments._command.cli import main;"
        "main([]);"
        "\ntry: main(['sweep', '--help'])\nexcept SystemExit: pass\n"
        "heavy = {'jax', 'numpy', 'pydantic', 'yaml', 'rich', 'matplotlib', 'metalr'};"
        "sys.exit(' '.join(sorted(heavy & set(sys.modules))) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert "learning_rate" in done.stdout
    assert "log_range" in done.stdout


def test_every_question_is_listed_and_nothing_else():
    top = {path.stem for path in (ROOT / "experiments").glob("[a-z]*.py")}
    questions = {
        stem
        for stem in top
        if '"""Question: ' in (ROOT / "experiments" / f"{stem}.py").read_text()[:30]
    }
    assert set(names()) == questions
    assert {"resume", "store"} <= top - questions


@pytest.mark.parametrize("name", names())
def test_a_question_imports_none_of_the_machinery_that_runs_it(name):
    text = (ROOT / "experiments" / f"{name}.py").read_text(encoding="utf-8")
    found = set(re.findall(r"^(?:from|import) ([\w.]+)", text, re.MULTILINE))
    assert "experiments._command.experiment" in found
    machinery = {"runner", "streams", "tables", "run_folder", "registry", "plain_yaml"}
    assert not {f"experiments._command.{part}" for part in machinery} & found
    assert not {name for name in found if name.partition(".")[0] == "rich"}


def test_the_formats_offered_are_those_of_results():
    assert cli._FORMATS == results.FORMATS


# Tables.


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "yes"),
        (None, ""),
        (1 / 3, "0.3333"),
        (41.899999, "41.9"),
        (1234.56, "1235"),
        (98765.4, "98765"),
        (123456.0, "1.235e+05"),
        (1.23456e-9, "1.235e-09"),
        (0.0, "0"),
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
        (138357544, "138357544"),
        (10**5000, "an int of 16610 bits"),
        ("a\nb\x1b", r"a\nb\x1b"),
        ("\u202e", r"\u202e"),
    ],
    ids=range(15),
)
def test_a_cell_has_four_digits_and_one_line(value, text):
    assert tables.cell(value) == text


@settings(max_examples=25, deadline=None)
@given(
    rows=st.lists(
        st.dictionaries(st.text(min_size=1, max_size=30), PLAIN, max_size=12),
        min_size=1,
        max_size=4,
    ),
    width=st.integers(20, 120),
)
def test_a_table_fits_its_terminal(rows, width):
    text = tables.render("title", rows, whole="elsewhere", width=width)
    body = text.split("Further columns")[0].splitlines()[1:]
    assert all(tables.size(line) <= width for line in body)
    assert text.replace("\n", "").isprintable()


def test_points_stand_below_each_other_and_what_is_left_out_is_named():
    rows = [{"x": 10.5, "text": "a" * 99, "y": 1, "far": 2}, {"x": 0.25, "text": "b"}]
    text = tables.render("title", rows, whole="in the folder", width=60)
    lines = text.splitlines()
    assert lines[3].index(".") == lines[4].index(".")
    assert "a" * 39 + "…" in lines[3]
    assert not any(line.startswith("Further") for line in lines)
    narrow = tables.render("title", rows, whole="in the folder", width=20)
    assert narrow.endswith("Further columns\n(text, y, far): in\nthe folder\n")


def test_json_is_strict_and_read_back():
    content = {"a": [float("nan"), float("inf"), -1.5], "b": {"c": float("-inf")}}
    text = strict_json.dumps(content)
    json.loads(text, parse_constant=pytest.fail)
    found = strict_json.loads(text)
    assert repr(found) == repr(content)


# Data.


def test_a_wide_csv_is_read_column_by_column(tmp_path):
    """1500 columns: each cell's place is looked up once, not in every row."""
    path = tmp_path / "wide.csv"
    width = 1500
    header = ",".join(["y", *(f"c{i}" for i in range(width))])
    rows = [",".join(str(i * 7 % 11 + j) for j in range(width + 1)) for i in range(30)]
    path.write_text("\n".join([header, *rows]), encoding="utf-8")
    X, t, _ = load_regression(
        CsvData(kind="csv", path=str(path), target="y", standardize=False),
        seed=0,
        dtype="float64",
    )
    assert X.shape == (30, width)
    assert X[3, 5] == 21 % 11 + 6
    assert t[3] == 21 % 11


@pytest.mark.parametrize("text", ["a\0b", "", "\x1b"])
def test_a_csv_path_of_odd_characters_is_a_mistake(text):
    table = CsvData(kind="csv", path=text, target="y")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_regression(table, seed=0, dtype="float64")


@pytest.mark.parametrize("delimiter", ["", "ab", "\n"])
def test_an_odd_delimiter_is_a_mistake(tmp_path, delimiter):
    path = tmp_path / "a.csv"
    path.write_text("a,y\n1,2\n2,3\n")
    table = CsvData(kind="csv", path=str(path), target="y", delimiter=delimiter)
    with pytest.raises(ConfigError, match=r"data\.path|column"):
        load_regression(table, seed=0, dtype="float64")


def test_the_parser_keeps_pyyaml_as_it_was():
    """Its tables of scalars are ours alone."""
    import yaml

    assert yaml.safe_load("010") == 8
    assert plain_yaml.parse("010", "here") == 10
