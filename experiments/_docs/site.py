"""The site: guides and docstrings as pages that need no network to be read."""

import importlib
import inspect
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from experiments._command.errors import ConfigError
from experiments._docs.formulas import with_formulas
from experiments._docs.guides_first import guides_first

TEMPLATES = Path(__file__).parent / "templates"
PAGES = (
    "metalr",
    "metalr.guides",
    "metalr.hypergrad",
    "metalr.tasks",
    "metalr.bilevel",
    "metalr.profiling",
    "metalr.theory",
    "metalr.convexity",
    "metalr.bias",
    "metalr.graph",
    "metalr.problems",
    "metalr.convnet",
    "metalr.runs.run",
)
"""The modules that users import from, and the protocol of a run."""
_MARK = "search.js"


def write_site(folder: Path) -> Path:
    """The site in `folder`, which is made where it is missing; returns its first page.

    Raises:
        ConfigError: if pdoc is not installed, `folder` holds something else, or cannot
            be written.
    """
    try:
        import latex2mathml  # noqa: F401
        import pdoc  # noqa: F401
    except ImportError as error:
        msg = f"{error.name} is missing: pip install -e '.[docs]', in a clone"
        raise ConfigError(msg) from error
    try:
        if folder.is_dir() and any(folder.iterdir()) and not (folder / _MARK).exists():
            msg = f"{folder} is not empty and holds no site: choose another folder"
            raise ConfigError(msg)
        for name, page in pages().items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(page, encoding="utf-8")
    except OSError as error:
        msg = f"cannot write to {folder}: {error.strerror}"
        raise ConfigError(msg) from error
    return folder / "index.html"


def pages() -> dict[str, str]:
    """The files of the site: path below its folder, and content."""
    from pdoc import render

    with warnings.catch_warnings(), _configured():
        # Names of chex that exist for type checkers alone.
        warnings.filterwarnings("ignore", "Error parsing type annotation")
        every = {module.modulename: module for module in _modules()}
        made = {
            f"{name.replace('.', '/')}.html": _relinked(
                name, render.html_module(each, every)
            )
            for name, each in every.items()
        }
        made["index.html"] = render.html_index(every)
        below = [f"metalr.guides.{name}" for name in guides()]
        first = guides_first({n: made[f"{n.replace('.', '/')}.html"] for n in below})
        made[_MARK] = f"{render.search_index(every)}\n{first}"
    return made


def guides() -> tuple[str, ...]:
    """The names of the guides, in their order."""
    return tuple(importlib.import_module("metalr.guides").__all__)


@contextmanager
def _configured() -> Iterator[None]:
    """Our options of pdoc, and formulas; as it was afterwards."""
    from pdoc import render, render_helpers

    search: Any = importlib.import_module("pdoc.search")
    kept, in_search = dict(render.env.filters), search.to_html
    convert = with_formulas(render_helpers.to_html)
    render.configure(
        docformat="google",
        show_source=False,
        search=True,
        template_directory=TEMPLATES,
        footer_text="metalr",
    )
    render.env.filters["to_html"] = convert
    search.to_html = convert
    try:
        yield
    finally:
        render.env.filters.update(kept)
        search.to_html = in_search
        render.configure()


def _modules() -> list[Any]:
    """The pages as pdoc's modules, each with the names that it offers."""
    import pdoc.doc

    below = [f"metalr.guides.{name}" for name in guides()]
    made = {}
    for name in (*PAGES, *below):
        made[name] = pdoc.doc.Module(importlib.import_module(name))
    for name, module in made.items():
        # Cached properties of pdoc, set before it looks: it would leave out what
        # is imported, which here is all that a package offers.
        module.__dict__["_member_objects"] = offered(module.obj)
        children = [m for n, m in made.items() if _parent(n) == name]
        module.__dict__["submodules"] = children
        if name in below:  # the first line is a title, which the guide has as well
            module.__dict__["docstring"] = module.docstring.partition("\n\n")[2]
    return list(made.values())


def _parent(name: str) -> str:
    return "metalr" if name == "metalr.runs.run" else name.rpartition(".")[0]


def offered(module: ModuleType) -> dict[str, Any]:
    """The public functions and classes of a module, with those of its private parts.

    In the order in which its docstring names them.
    """
    told = module.__doc__ or ""
    inside = lambda thing: getattr(thing, "__module__", "").startswith(module.__name__)
    found = {
        name: thing
        for name, thing in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(thing) or inspect.isfunction(thing))
        and inside(thing)
    }
    place = lambda name: told.find(f"`{name}`") % (len(told) + 1)  # -1: last
    return {name: found[name] for name in sorted(found, key=place)}


def _relinked(module: str, page: str) -> str:
    """Links between guides name the Markdown; on the site, its page."""
    below = "guides/" if module == "metalr.guides" else ""
    for name in guides():
        page = page.replace(f'href="{name}.md', f'href="{below}{name}.html')
    return page
