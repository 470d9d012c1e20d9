"""Where experiments are found: the modules of this package, and those a user names.

They are found in the source text (`ast`), so that listing them runs none of their code.
"""

import ast
import functools
import importlib
import importlib.util
import os
import pkgutil
import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import experiments
from experiments._command.errors import ConfigError

VARIABLE = "METALR_EXPERIMENTS"
"""Environment variable: dotted names of further modules, comma-separated.

An experiment has the last part of its module's name. Configs cannot name modules, since
importing one runs its code."""


def questions() -> dict[str, str]:
    """The experiments, and the first line of each one's docstring."""
    return {name: _first_line(path) for name, path in _experiments().items()}


def names() -> list[str]:
    """The experiments: modules that define a `Config` and a `run`."""
    return list(_experiments())


def load(name: str) -> ModuleType:
    """The module of an experiment."""
    return importlib.import_module(_experiments()[name])


def find(name: object) -> ModuleType:
    """The experiment of that name.

    Raises:
        ConfigError: if there is none; the message lists those that there are.
    """
    if isinstance(name, str) and name in _experiments():
        return load(name)
    msg = f"experiment = {name!r}: must be one of {', '.join(names())}"
    raise ConfigError(msg)


def docstring(module: str) -> str:
    """The docstring of a module, read without importing it."""
    tree = _parsed(module)
    return (ast.get_docstring(tree) if tree else None) or ""


def claim(name: str) -> str:
    """What an experiment claims, from its docstring, in one line; may be empty.

    It begins with `Claim: `, `Claims: ` or `Claims, …: ` and ends with its paragraph.
    """
    if name not in _experiments():
        return ""
    text = docstring(_experiments()[name])
    found = re.search(r"\bClaims?\b[^:.]*:\s(.+?)(?:\n\n|\Z)", text, re.DOTALL)
    return " ".join(found[1].split()) if found else ""


def _first_line(module: str) -> str:
    first = docstring(module).partition("\n")[0]
    return first.removeprefix("Question: ")


def _experiments() -> Mapping[str, str]:
    """Names, and the modules that hold them."""
    own = sorted(info.name for info in pkgutil.iter_modules(experiments.__path__))
    further = filter(None, os.environ.get(VARIABLE, "").replace(" ", "").split(","))
    modules = [f"experiments.{name}" for name in own if not name.startswith("_")]
    return {
        module.rpartition(".")[2]: module
        for module in [*modules, *further]
        if _defines(module, "Config", "run")
    }


def _defines(module: str, *wanted: str) -> bool:
    tree = _parsed(module)
    found = {
        node.name
        for node in (tree.body if tree else [])
        if isinstance(node, ast.ClassDef | ast.FunctionDef)
    }
    return found.issuperset(wanted)


@functools.cache
def _parsed(module: str) -> ast.Module | None:
    """The source of a module, parsed; None where there is none."""
    try:
        spec = importlib.util.find_spec(module)
        return ast.parse(Path(spec.origin or "").read_bytes()) if spec else None
    except (ImportError, OSError, ValueError, SyntaxError):
        return None
