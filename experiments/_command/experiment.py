"""What an experiment is: a module with a question, a `Config` and a `run`.

All else is optional, and only `experiment` reads it:

- `size(config)`: how many records `run` yields, for the progress bar;
- `figures(records)`: matplotlib figures by name;
- `headline(records)`: the run's result in a line, for the gallery;
- `BATCHED`, `run_batch(configs)`, `point_bytes(config)`: the dotted fields of the
  config that are numbers inside one traced program; one list of records for each
  config, in order; the memory of a point in such a batch.

An experiment imports this module and none of the machinery that runs it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal, NamedTuple, Protocol, TypeAlias

from pydantic import Field

from experiments._command.config import Model
from experiments._command.errors import ConfigError

__all__ = [
    "ConfigError",
    "Experiment",
    "ExperimentConfig",
    "Record",
    "Required",
    "experiment",
    "kept_in",
    "output_folder",
]

Record: TypeAlias = Mapping[str, Any]
"""One result. Numbers and text are shown; lists and mappings are kept for figures.
Records with a `table` entry are shown in a table of that name."""


class ExperimentConfig(Model):
    """What every experiment's config has."""

    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    dtype: Literal["float64", "float32"] = "float64"

    def describe(self) -> dict[str, Any] | None:
        """What data a run reads and how it is standardized, if it reads any.

        Raises:
            ConfigError: if the data cannot be used; a run stops there.
        """
        return None


class Required(Protocol):
    """What a module must have to be an experiment."""

    Config: type[Any]

    def run(self, config: Any) -> Iterable[Record]:
        """Yield records, each as soon as it is known."""
        ...


class Experiment(NamedTuple):
    """An experiment, its optional parts filled in."""

    name: str
    question: str
    Config: type[Any]
    run: Callable[[Any], Iterable[Record]]
    size: Callable[[Any], int | None]
    figures: Callable[[Sequence[Record]], Mapping[str, Any]]
    headline: Callable[[Sequence[Record]], str | None]
    batched: tuple[str, ...]  # empty unless there is a run_batch
    run_batch: Callable[[Sequence[Any]], Iterable[Iterable[Record]]] | None
    point_bytes: Callable[[Any], int] | None


def experiment(module: ModuleType) -> Experiment:
    """Read what a module defines.

    Raises:
        ConfigError: if it lacks a `Config` or a `run`.
    """
    parts = vars(module)
    missing = [name for name in ("Config", "run") if name not in parts]
    name = module.__name__.rpartition(".")[2]
    if missing:
        msg = (
            f"{module.__name__} is no experiment: it has no {' and no '.join(missing)}"
        )
        raise ConfigError(msg)
    return Experiment(
        name=name,
        question=asked(module.__doc__),
        Config=parts["Config"],
        run=parts["run"],
        size=parts.get("size", lambda _: None),
        figures=parts.get("figures", lambda _: {}),
        headline=parts.get("headline", lambda _: None),
        batched=tuple(parts.get("BATCHED", ())),
        run_batch=parts.get("run_batch"),
        point_bytes=parts.get("point_bytes"),
    )


def asked(doc: str | None) -> str:
    """The question that a docstring begins with."""
    first = (doc or "").partition("\n")[0].removeprefix("Question: ")
    return first[:1].upper() + first[1:]


_kept_in: ContextVar[Path | None] = ContextVar("_kept_in", default=None)


def output_folder() -> Path | None:
    """`runs/<experiment>/` while a run keeps its results there, else None.

    The same for each run: for what an experiment keeps from one to the next, such as
    checkpoints.
    """
    return _kept_in.get()


@contextmanager
def kept_in(folder: Path) -> Iterator[None]:
    """Within it, `output_folder()` is this folder."""
    token = _kept_in.set(folder)
    try:
        yield
    finally:
        _kept_in.reset(token)
