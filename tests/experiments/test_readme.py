"""README cannot rot: its example runs, its commands exist, set-up is two commands."""

import re
from pathlib import Path

import pytest

from experiments._command import cli
from experiments._command.config import read_yaml, validate
from experiments._command.registry import load, names
from experiments._sweep.plan import make_plan
from tests.helpers import assert_close

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
GENERATED = re.compile(r"<!-- record .*?<!-- end -->", re.DOTALL)


def test_the_example_runs_and_learns_the_optimal_rate(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    best = names["exact"].optimal_rate(5)
    assert_close(names["learned"].hyper, best, rtol=1e-6)
    assert str(float(best))[:7] in capsys.readouterr().out


def test_set_up_is_exactly_two_commands():
    commands = re.findall(r"```sh\n(python3 -m venv .*?)\n```", TEXT)
    assert len(commands) == 2
    assert all(c.startswith("python3 -m venv .venv && ") for c in commands)


@pytest.mark.parametrize("verb", ["run", "sweep"])
def test_every_command_names_a_config_that_is_valid(verb):
    found = re.findall(rf"experiments {verb} (configs/[a-z0-9_]+\.yaml)", TEXT)
    assert found
    for name in found:
        content = read_yaml(ROOT / name)
        if verb == "sweep":
            assert make_plan(content).points
        else:
            validate(load(content["experiment"]).Config, content)


def test_every_subcommand_and_experiment_named_is_there(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    listed = capsys.readouterr().out
    verbs = re.findall(r"experiments ([a-z]+)\b", GENERATED.sub("", TEXT))
    assert {"run", "sweep", "report"} <= set(verbs)
    for verb in verbs:
        assert verb in listed
    modules = re.findall(r"-m experiments\.([a-z_]+)", TEXT)
    assert modules
    assert set(modules) <= set(names())


def test_every_file_that_is_linked_is_there():
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", TEXT)
    assert "configs/RESULTS.md" in links
    for link in links:
        assert (ROOT / link).is_file(), link


def test_numbers_in_tables_are_generated():
    """What was measured stands between the marks of a record, and nowhere else."""
    assert GENERATED.search(TEXT)
    by_hand = GENERATED.sub("", TEXT)
    rows = [line for line in by_hand.splitlines() if line.startswith("|")]
    assert rows  # the table of engines
    assert not [row for row in rows if re.search(r"\d\.\d|\d{3}", row)]
