"""Data as arrays: scikit-learn's bundled sets, a user's CSV, a made-up spectrum."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Discriminator, NonNegativeFloat, PositiveFloat, PositiveInt, Tag

from experiments._command.config import ConfigError, Model
from experiments._command.experiment import ExperimentConfig
from metalr.problems import regression

_SHOWN = 5
"""Bad cells named in an error."""


class BundledData(Model):
    """A data set that scikit-learn ships."""

    kind: Literal["bundled"] = "bundled"
    name: Literal["diabetes", "digits", "breast_cancer"] = "diabetes"
    positive_class: int | None = None  # digits, breast_cancer: the label that becomes 1
    samples: PositiveInt | None = (
        None  # a random subset of the rows, e.g. to make n < d
    )
    standardize: bool = True  # columns and target to mean 0, deviation 1


class CsvData(Model):
    """A user's table: a header line, numbers below."""

    kind: Literal["csv"]
    path: str
    target: str
    columns: tuple[str, ...] | None = None  # inputs; all but the target by default
    delimiter: str = ","
    samples: PositiveInt | None = None
    standardize: bool = True


class SpectrumData(Model):
    """A made-up regression with a prescribed spectrum."""

    kind: Literal["spectrum"]
    eigenvalues: tuple[PositiveFloat, ...]
    weights: NonNegativeFloat | tuple[NonNegativeFloat, ...] = 1.0
    n: PositiveInt
    d: PositiveInt | None = None
    minimum: NonNegativeFloat = 0.0


def _kind(value: Any) -> str | None:
    if isinstance(value, dict):
        return value.get("kind", "bundled")
    return getattr(value, "kind", None)


RegressionData = Annotated[
    Annotated[BundledData, Tag("bundled")]
    | Annotated[CsvData, Tag("csv")]
    | Annotated[SpectrumData, Tag("spectrum")],
    Discriminator(_kind),
]
"""`data:` of a config; `kind` says which, bundled by default."""

Data: TypeAlias = BundledData | CsvData | SpectrumData


class RegressionConfig(ExperimentConfig):
    """The config of an experiment on a regression."""

    data: RegressionData = BundledData()

    def regression(self) -> "Regression":
        """Read the data."""
        return load_regression(self.data, seed=self.seed, dtype=self.dtype)

    def describe(self) -> dict[str, Any]:
        """What was read, and how it was standardized."""
        return self.regression().description


class Regression(NamedTuple):
    """A regression problem, and how it was made."""

    X: jax.Array
    t: jax.Array
    description: dict[str, Any]  # name, sizes, and the standardization that was applied


class Host(NamedTuple):
    """A regression problem in float64 on the host, before anything was rounded."""

    X: np.ndarray
    t: np.ndarray
    description: dict[str, Any]


def load_regression(data: Data, *, seed: int, dtype: str) -> Regression:
    """Read, subsample and (where asked) standardize; the cast to `dtype` comes last.

    Args:
        data: the validated `data:` section of a config.
        seed: of the random subset or spectrum.
        dtype: of the arrays.

    Raises:
        ConfigError: if the data cannot be a regression, saying why.
    """
    X, t, description = on_host(data, seed=seed)
    return Regression(jnp.asarray(X, dtype), jnp.asarray(t, dtype), description)


def on_host(data: Data, *, seed: int) -> Host:
    """`load_regression` before the cast: in float32, time stamps may all be equal.

    Raises:
        ConfigError: if the data cannot be a regression, saying why.
    """
    if isinstance(data, SpectrumData):
        return _spectrum(data, seed)
    if isinstance(data, CsvData):
        name, columns, X, t = data.path, *_read_csv(data)
    else:
        name, columns, X, t = data.name, *_bundled(data)
    if data.samples is not None:
        if data.samples > len(t):
            msg = f"data.samples = {data.samples}: {name} has only {len(t)} rows"
            raise ConfigError(msg)
        rows = np.random.default_rng(seed).permutation(len(t))[: data.samples]
        X, t = X[rows], t[rows]
    if len(t) < 2:
        msg = f"{name} has {len(t)} row(s): at least two are needed"
        raise ConfigError(msg)
    if np.all(t == t[0]):
        msg = f"the target of {name} is constant ({t[0]:g}): nothing can be learned"
        raise ConfigError(msg)
    description: dict[str, Any] = {"name": name, "n": X.shape[0], "d": X.shape[1]}
    description["standardized"] = data.standardize
    if data.standardize:
        map_X, map_t = regression.columns(X), regression.columns(t[:, None])
        X, t = map_X.on_host(X), map_t.on_host(t[:, None])[:, 0]
        description |= _standardization(columns, map_X, map_t)
    return Host(X, t, description)


def _standardization(
    columns: Sequence[str],
    map_X: regression.Standardization,
    map_t: regression.Standardization,
) -> dict[str, Any]:
    """What was done to each column, and which ones held nothing and are zeros now."""
    return {
        "columns": [
            {"name": name, "mean": float(mean), "scale": float(scale)}
            for name, mean, scale in zip(columns, map_X.mean, map_X.scale, strict=True)
        ],
        "constant_columns": [
            name for name, gone in zip(columns, map_X.constant, strict=True) if gone
        ],
        "target": {"mean": float(map_t.mean[0]), "scale": float(map_t.scale[0])},
    }


def _bundled(data: BundledData) -> tuple[list[str], np.ndarray, np.ndarray]:
    from sklearn import datasets

    bunch: Any = getattr(datasets, f"load_{data.name}")()
    t = np.asarray(bunch.target, float)
    if data.name == "diabetes":
        if data.positive_class is not None:
            msg = "data.positive_class: diabetes has a real target, not classes"
            raise ConfigError(msg)
    else:
        positive = (
            data.positive_class if data.positive_class is not None else int(t.max())
        )
        if positive not in t:
            labels = sorted({int(label) for label in t})
            msg = f"data.positive_class = {positive}: {data.name} has labels {labels}"
            raise ConfigError(msg)
        t = (t == positive).astype(float)
    return list(bunch.feature_names), np.asarray(bunch.data, float), t


def _spectrum(data: SpectrumData, seed: int) -> Host:
    try:
        X, t = regression.with_spectrum(
            jax.random.key(seed),
            data.eigenvalues,
            n=data.n,
            d=data.d,
            weights=data.weights,
            minimum=data.minimum,
        )
    except (ValueError, TypeError) as error:
        msg = f"data: {error}"
        raise ConfigError(msg) from error
    name = f"spectrum of {len(data.eigenvalues)}"
    description = {
        "name": name,
        "n": X.shape[0],
        "d": X.shape[1],
        "standardized": False,
    }
    return Host(np.asarray(X), np.asarray(t), description)


def _read_csv(data: CsvData) -> tuple[list[str], np.ndarray, np.ndarray]:
    header, lines = _lines(data)
    positions: dict[str, list[int]] = {}
    for index, name in enumerate(header):
        positions.setdefault(name, []).append(index)
    inputs = data.columns or tuple(name for name in header if name != data.target)
    for name in (data.target, *inputs):
        if len(positions.get(name, ())) != 1:
            found = "is there twice" if name in positions else "is not there"
            msg = f"column {name!r} of {data.path} {found}; its columns: {header}"
            raise ConfigError(msg)
    if data.target in inputs or not inputs:
        msg = f"data.columns = {inputs}: needs inputs other than the target"
        raise ConfigError(msg)
    # Rows are numbered as in the file: the header is row 1; blank rows are skipped.
    rows = [(number, line) for number, line in enumerate(lines, start=2) if line]
    for number, line in rows:
        if len(line) != len(header):
            msg = (
                f"row {number} of {data.path} has {len(line)} cells, not {len(header)}"
            )
            raise ConfigError(msg)
    taken = {name: positions[name][0] for name in (data.target, *inputs)}
    values = _numbers(data, taken, rows)
    return list(inputs), values[:, 1:], values[:, 0]


def _lines(data: CsvData) -> tuple[list[str], list[list[str]]]:
    """The header, and what is below it."""
    try:
        with Path(data.path).open(newline="", encoding="utf-8-sig") as file:
            lines = list(csv.reader(file, delimiter=data.delimiter))
    except (OSError, ValueError, csv.Error, TypeError) as error:
        msg = f"data.path = {data.path!r} cannot be read: {error}"
        raise ConfigError(msg) from error
    if not lines:
        msg = f"data.path = {data.path!r} is empty: a header line is needed"
        raise ConfigError(msg)
    return [name.strip() for name in lines[0]], lines[1:]


def _numbers(
    data: CsvData, taken: dict[str, int], rows: list[tuple[int, list[str]]]
) -> np.ndarray:
    """The cells of the columns that are taken: `taken` says where each is."""
    values = np.full((len(rows), len(taken)), math.nan)
    for i, (_, line) in enumerate(rows):
        values[i] = [_number(line[place]) for place in taken.values()]
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        names = list(taken)
        cells = [
            f"row {rows[i][0]}, column {names[j]!r}: "
            f"{rows[i][1][taken[names[j]]].strip()!r}"
            for i, j in bad[:_SHOWN]
        ]
        more = f" … and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        msg = (
            f"{data.path} has cells that are not finite numbers: "
            f"{'; '.join(cells)}{more}. Mend them, or choose data.columns"
        )
        raise ConfigError(msg)
    return values


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return math.nan
