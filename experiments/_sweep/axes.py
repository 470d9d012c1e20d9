"""The `sweep:` section of a config: axes, and what each point sets.

    sweep:
      axes:                                  # their product
        data.name: [diabetes, breast_cancer]
        steps: {range: [10, 50, 10]}         # the stop is left out, as in Python
        momentum: {linspace: [0, 0.9, 4]}    # both ends and a count
        start: {log_range: [1e-4, 1e-1, 4]}  # both ends and a count
      zip:                                   # fields that move together
        - {steps: [1, 10], outer_steps: [50, 100]}
      random:                                # drawn together, `samples` times
        samples: 20
        seed: 0
        axes: {start: {log_uniform: [1e-4, 1]}, optimizer: {choice: [sgd, adam]}}
      seeds: 5                               # seed, seed + 1, …
      exclude:                               # a point goes if it meets all of one entry
        - {data.name: digits, steps: {gt: 20}}

Points are the product of axes, zips, samples and seeds, the last one fastest. Asking
for more samples or seeds keeps the earlier ones, so that a store can be extended.
"""

import itertools
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Annotated, Any, Self, TypeAlias

import numpy as np
from pydantic import (
    Discriminator,
    Field,
    FiniteFloat,
    PositiveInt,
    Tag,
    model_validator,
)

from experiments._command.config import ConfigError, Model, dotted
from experiments._sweep.conditions import Condition

MAX_POINTS = 1_000_000
"""A product beyond this is taken for a mistake."""

Int: TypeAlias = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Number: TypeAlias = Int | FiniteFloat
NonEmpty: TypeAlias = Annotated[list[Any], Field(min_length=1)]


class Range(Model):
    """start, start + step, … before stop; stop itself is left out."""

    range: tuple[Number, Number, Number]

    def values(self) -> list[Any]:
        """The values, in exact arithmetic: 0.3, not 0.30000000000000004."""
        start, _, step = self._exact()
        kind = int if all(isinstance(number, int) for number in self.range) else float
        return [kind(start + index * step) for index in range(self.count())]

    def count(self) -> int:
        """How many, without making them."""
        start, stop, step = self._exact()
        return max(0, math.ceil((stop - start) / step))

    def _exact(self) -> tuple[Fraction, Fraction, Fraction]:
        """As they are written."""
        start, stop, step = (Fraction(repr(number)) for number in self.range)
        return start, stop, step

    @model_validator(mode="after")
    def _has_values(self) -> Self:
        if self.range[2] == 0 or self.count() == 0:
            msg = "must be [start, stop, step] with at least one value before stop"
            raise ValueError(msg)
        return self


class Linspace(Model):
    """Evenly spaced, both ends included."""

    linspace: tuple[Number, Number, PositiveInt]

    def values(self) -> list[Any]:
        """The values."""
        return np.linspace(*self.linspace).tolist()

    def count(self) -> int:
        """How many, without making them."""
        return self.linspace[2]

    @model_validator(mode="after")
    def _is_finite(self) -> Self:
        _check_span(*self.linspace[:2])
        return self


class LogRange(Model):
    """With a constant ratio, both ends included."""

    log_range: tuple[
        Annotated[Number, Field(gt=0)], Annotated[Number, Field(gt=0)], PositiveInt
    ]

    def values(self) -> list[Any]:
        """The values."""
        return np.geomspace(*self.log_range).tolist()

    def count(self) -> int:
        """How many, without making them."""
        return self.log_range[2]


class Uniform(Model):
    """Evenly distributed between low and high."""

    uniform: tuple[Number, Number]

    def draw(self, unit: np.ndarray) -> list[Any]:
        """From numbers evenly distributed on [0, 1)."""
        low, high = self.uniform
        return (low + unit * (high - low)).tolist()

    @model_validator(mode="after")
    def _is_finite(self) -> Self:
        _check_span(*self.uniform)
        return self


class LogUniform(Model):
    """With an evenly distributed logarithm."""

    log_uniform: tuple[Annotated[Number, Field(gt=0)], Annotated[Number, Field(gt=0)]]

    def draw(self, unit: np.ndarray) -> list[Any]:
        """From numbers evenly distributed on [0, 1)."""
        low, high = np.log(self.log_uniform)
        return np.exp(low + unit * (high - low)).tolist()


class Integers(Model):
    """Whole numbers, both ends included, all equally likely."""

    integers: tuple[Int, Int]

    def draw(self, unit: np.ndarray) -> list[Any]:
        """From numbers evenly distributed on [0, 1)."""
        low, high = self.integers
        return [low + int(u * (high - low + 1)) for u in unit]


class Choice(Model):
    """Values from a list, all equally likely."""

    choice: NonEmpty

    def draw(self, unit: np.ndarray) -> list[Any]:
        """From numbers evenly distributed on [0, 1)."""
        return [self.choice[int(u * len(self.choice))] for u in unit]


def _check_span(low: float, high: float) -> None:
    if not math.isfinite(float(high) - float(low)):
        msg = f"from {low!r} to {high!r} is further than a float can say"
        raise ValueError(msg)


def _kind(value: Any) -> str | None:
    """The tag of an axis: its only key."""
    if isinstance(value, list):
        return "values"
    if isinstance(value, Mapping) and len(value) == 1:
        return f"{next(iter(value))} axis"
    return None


def _told_apart(what: str) -> Discriminator:
    """Which kind of axis is meant; where it is none, what it must be."""
    return Discriminator(
        _kind, custom_error_type="axis", custom_error_message=f"must be {what}"
    )


Axis = Annotated[
    Annotated[NonEmpty, Tag("values")]
    | Annotated[Range, Tag("range axis")]
    | Annotated[Linspace, Tag("linspace axis")]
    | Annotated[LogRange, Tag("log_range axis")],
    _told_apart(
        "a list, or one of {range: [start, stop, step]}, "
        "{linspace: [low, high, count]}, {log_range: [low, high, count]}"
    ),
]

RandomAxis = Annotated[
    Annotated[Uniform, Tag("uniform axis")]
    | Annotated[LogUniform, Tag("log_uniform axis")]
    | Annotated[Integers, Tag("integers axis")]
    | Annotated[Choice, Tag("choice axis")],
    _told_apart(
        "one of {uniform: [low, high]}, {log_uniform: [low, high]}, "
        "{integers: [low, high]}, {choice: [a, b, …]}"
    ),
]


class Random(Model):
    """Samples: each draws all its axes."""

    samples: PositiveInt
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    axes: Annotated[dict[str, RandomAxis], Field(min_length=1)]

    def drawn(self) -> list[dict[str, Any]]:
        """What each sample sets.

        An axis has a stream of its own, so that it does not depend on the others.
        """
        columns = {}
        for name, axis in self.axes.items():
            rng = np.random.default_rng([self.seed, zlib.crc32(name.encode())])
            columns[name] = axis.draw(rng.random(self.samples))
        return _rows(columns)


class Sweep(Model):
    """The section."""

    axes: dict[str, Axis] = Field(default_factory=dict)
    zip: tuple[Annotated[dict[str, Axis], Field(min_length=1)], ...] = ()
    random: Random | None = None
    seeds: PositiveInt | None = None
    exclude: tuple[Annotated[dict[str, Condition], Field(min_length=1)], ...] = ()

    @model_validator(mode="after")
    def _is_sound(self) -> Self:
        names = self.names()
        for name in names:
            if names.count(name) > 1:
                msg = f"{name} is set by more than one axis"
                raise ValueError(msg)
            if any(other.startswith(f"{name}.") for other in names):
                msg = f"{name} and a field inside it are both axes: choose one"
                raise ValueError(msg)
        if "experiment" in names:
            msg = "experiment cannot be an axis: one sweep, one experiment"
            raise ValueError(msg)
        for axes in self.zip:
            lengths = {name: count(axis) for name, axis in axes.items()}
            if len(set(lengths.values())) > 1:
                msg = f"zipped axes must have equal lengths, not {lengths}"
                raise ValueError(msg)
        if self.count() > MAX_POINTS:
            number = f"{self.count():,}" if self.count() < 10**30 else "far too many"
            msg = f"{number} points; at most {MAX_POINTS:,} are allowed"
            raise ValueError(msg)
        return self

    def names(self) -> list[str]:
        """The dotted fields that vary."""
        return [
            *self.axes,
            *(name for axes in self.zip for name in axes),
            *(self.random.axes if self.random else ()),
            *(("seed",) if self.seeds else ()),
        ]

    def count(self) -> int:
        """Points, before exclusion."""
        lengths = [count(axis) for axis in self.axes.values()]
        lengths += [count(next(iter(axes.values()))) for axes in self.zip]
        lengths += [self.random.samples] if self.random else []
        return math.prod(lengths) * (self.seeds or 1)


_KINDS = {"range", "linspace", "log_range"}


def flatten(section: Any) -> Any:
    """The section with nested axes under dotted names.

    `axes: {data: {name: […]}}` is what `sweep.axes.data.name=[…]` on a command line
    makes; it means `axes: {data.name: […]}`.
    """
    if not isinstance(section, Mapping) or not isinstance(section.get("axes"), Mapping):
        return section
    whole = lambda axis: not axis or bool(axis.keys() & _KINDS)
    axes = dotted(section["axes"], whole=whole)
    return {**section, "axes": axes}


def values(axis: Any) -> list[Any]:
    """The values of an axis, in order."""
    return axis if isinstance(axis, list) else axis.values()


def count(axis: Any) -> int:
    """How many values an axis has, without making them."""
    return len(axis) if isinstance(axis, list) else axis.count()


def assignments(sweep: Sweep, seed: Any = 0) -> Iterator[dict[str, Any]]:
    """For each point, the values of the fields that vary.

    Args:
        sweep: the section.
        seed: the config's own seed, at which `seeds` start.

    Raises:
        ConfigError: if `seeds` are asked for and `seed` is not a whole number.
    """
    factors = [
        [{name: value} for value in values(axis)] for name, axis in sweep.axes.items()
    ]
    for axes in sweep.zip:
        factors.append(_rows({name: values(axis) for name, axis in axes.items()}))
    if sweep.random:
        factors.append(sweep.random.drawn())
    if sweep.seeds:
        if type(seed) is not int:
            msg = f"seed = {seed!r}: must be a whole number, from which seeds count"
            raise ConfigError(msg)
        factors.append([{"seed": seed + index} for index in range(sweep.seeds)])
    for parts in itertools.product(*factors):
        yield {name: value for part in parts for name, value in part.items()}


def _rows(columns: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    together = zip(*columns.values(), strict=True)
    return [dict(zip(columns, entry, strict=True)) for entry in together]
