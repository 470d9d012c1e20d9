"""README cannot rot: its example runs, its configs exist, set-up is two commands."""

import re
from pathlib import Path

from tests.helpers import assert_close

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


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


def test_every_command_names_a_config_that_exists():
    names = re.findall(r"experiments run (configs/\S+?\.yaml)", TEXT)
    assert names
    for name in names:
        assert (ROOT / name).is_file(), name
