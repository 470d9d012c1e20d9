"""Guides cannot rot: every block of code in them runs and prints what it says."""

import ast
import contextlib
import importlib
import io
import json
import math
import re
from pathlib import Path

import pytest

import metalr

FOLDER = Path(metalr.__file__).parent / "guides"
NAMES = importlib.import_module("metalr.guides").__all__
BLOCK = re.compile(
    r"(?P<mark><!-- not run: needs (?P<needs>[^>]+) -->\n)?```python\n(?P<code>.*?)```",
    re.DOTALL,
)
EXPECTED = re.compile(r"print\(.*\)  # (.+)$", re.MULTILINE)
ELSEWHERE = ("torch", "jaxopt", "learn2learn", "higher", "torchopt")


def text_of(name):
    return (FOLDER / f"{name}.md").read_text(encoding="utf-8")


def run_block(code, names, title):
    """Statement by statement: what is printed is what the comment beside it says."""
    for statement in ast.parse(code, title).body:
        out = io.StringIO()
        lines = code.splitlines()[statement.lineno - 1 : statement.end_lineno]
        with contextlib.redirect_stdout(out):
            module = ast.Module([statement], [])
            exec(compile(module, title, "exec"), names)
        expected = EXPECTED.findall("\n".join(lines))
        if expected:
            printed = ", ".join(out.getvalue().splitlines())
            assert printed == ", ".join(expected), statement.lineno


@pytest.mark.filterwarnings("default::DeprecationWarning")  # of the model libraries
@pytest.mark.parametrize("name", NAMES)
def test_the_code_of_a_guide_runs(name):
    if name == "your_model":
        for library in ("flax", "equinox", "haiku"):
            pytest.importorskip(library)
    blocks = list(BLOCK.finditer(text_of(name)))
    assert blocks
    names = {}
    for number, block in enumerate(blocks):
        if block["mark"]:
            assert any(library in block["needs"] for library in ELSEWHERE)
            ast.parse(block["code"])
        else:
            run_block(block["code"], names, f"{name}.md, block {number + 1}")


def test_a_wrong_comment_is_seen():
    run_block("print(1 + 1)  # 2", {}, "right")
    with pytest.raises(AssertionError):
        run_block("print(1 + 1)  # 3", {}, "wrong")


def test_every_fence_is_a_block_that_was_looked_at():
    for name in NAMES:
        text = text_of(name)
        assert text.count("```") == 2 * len(BLOCK.findall(text)), name


def test_every_guide_is_listed_and_included():
    assert {path.stem for path in FOLDER.glob("*.md")} == set(NAMES)
    index = importlib.import_module("metalr.guides").__doc__ or ""
    for name in NAMES:
        module = importlib.import_module(f"metalr.guides.{name}")
        title, _, include = (module.__doc__ or "").partition("\n\n")
        assert include.strip() == f".. include:: {name}.md"
        heading = text_of(name).splitlines()[0]
        assert heading == f"# {title.removesuffix('.')}"
        assert f"]({name}.md)" in index


def test_what_the_guides_name_is_there():
    """`metalr.a.b` in the prose is a name of the library."""
    for name in NAMES:
        prose = BLOCK.sub("", text_of(name))
        for path in re.findall(r"`(metalr(?:\.\w+)+)", prose):
            thing = metalr
            for part in path.split(".")[1:]:
                thing = getattr(thing, part)


def test_the_commands_of_the_guides_are_there():
    """A config that is named is in the clone, and so is an experiment."""
    root = FOLDER.parents[1]
    found = set()
    for name in NAMES:
        text = " ".join(text_of(name).split())
        found |= set(re.findall(r"experiments (?:run|sweep) (configs/\w+\.yaml)", text))
        for module in re.findall(r"-m experiments\.(\w+)", text):
            assert (root / "experiments" / f"{module}.py").is_file()
    assert "configs/engines.yaml" in found
    for config in found:
        assert (root / config).is_file(), config


def test_the_numbers_of_the_guides_are_those_of_kept_records():
    records = FOLDER.parents[1] / "configs" / "records"
    published = (records / "published.json").read_text()
    ratio = re.search(r"17\.15 ×", text_of("memory"))
    assert ratio
    assert re.search(r"17\.1[45]\d", published)
    assert "only 1.01" in published
    assert "1.01 ×" in text_of("memory")
    diagnosed = json.loads((records / "diagnose.json").read_text())
    (row,) = (
        row
        for row in rows_of(diagnosed)
        if row.get("problem") == "network, chaotic" and "steepest_chord" in row
    )
    assert 5 < row["loss"] < 20
    assert round(math.log10(abs(row["derivative"]))) == 61
    assert round(math.log10(row["steepest_chord"])) == 4


def rows_of(tree):
    """All mappings within a record."""
    if isinstance(tree, dict):
        yield tree
        tree = list(tree.values())
    if isinstance(tree, list):
        for part in tree:
            yield from rows_of(part)
