"""Which version of the code a result comes from: a hash of the sources behind it."""

import ast
import functools
import hashlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

_PRESENTATION = ("experiments._command", "experiments._report")
"""What experiments import that cannot change a result: it only runs and shows them.
`config` is one: what it makes of a config is in the key of the result, validated."""


def code_version(module: ModuleType) -> str:
    """A hash of everything here that can change what an experiment computes.

    That is: all of metalr/, the experiment's module, and what it imports (anywhere in
    its source, and further from there) of its own package and of experiments/, except
    what only runs and shows them, and modules named `figures`. A changed comment
    counts as a change; versions of other packages do not: they are in the provenance.
    """
    return _version(module.__name__)


@functools.cache
def _version(module: str) -> str:
    digest = hashlib.sha256()
    for name, path in sorted((_library() | _behind(module)).items()):
        digest.update(f"{name}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def _shows(name: str) -> bool:
    return name.startswith(_PRESENTATION) or name.endswith(".figures")


def _library() -> dict[str, Path]:
    spec = importlib.util.find_spec("metalr")  # importing it would import JAX
    assert spec
    assert spec.origin
    root = Path(spec.origin).parent
    files = root.rglob("*.py")
    return {f"metalr/{path.relative_to(root).as_posix()}": path for path in files}


def _behind(module: str) -> dict[str, Path]:
    roots = {"experiments", module.partition(".")[0]}
    found: dict[str, Path] = {}
    queue = [module]
    while queue:
        name = queue.pop()
        path = _source(name)
        if name in found or path is None or _shows(name):
            continue
        found[name] = path
        queue += [n for n in _imports(name, path) if n.partition(".")[0] in roots]
    return found


def _imports(name: str, path: Path) -> Iterator[str]:
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = importlib.util.resolve_name("." * node.level + base, package)
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _source(name: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(name)
    except (ModuleNotFoundError, ValueError):  # an attribute, not a module
        return None
    origin = spec.origin if spec else None
    return Path(origin) if origin and origin.endswith(".py") else None
