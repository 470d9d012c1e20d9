"""A network as a list of layers: what each does, nothing about how it is computed."""

import dataclasses
from typing import Literal, TypeAlias

from .._checks import int_at_least

Padding: TypeAlias = Literal["same", "valid"] | int
"""Zeros at the border: "same" keeps ⌈size/stride⌉ positions (the odd zero goes at the
end), "valid" adds none, an int adds that many on every side."""


@dataclasses.dataclass(frozen=True)
class Conv:
    """A square convolution over height and width.

    Args:
        channels: output channels.
        kernel: side of the kernel in taps.
        stride: positions moved between outputs.
        padding: "same", "valid", or zeros on every side.
        dilation: distance between taps; 1 is a dense kernel.
        groups: parts that the channels are split into, each convolved by itself; equal
            to the input channels, a depthwise convolution.
        bias: one number added for each output channel.
        name: shown in tables and errors; e.g. `conv3-64` by default.

    Raises:
        ValueError: if a number is not a positive int, or the padding unknown.

    Example:
        >>> from metalr.convnet import Conv
        >>> print(Conv(64, 3).label)
        conv3-64
    """

    channels: int
    kernel: int
    stride: int = 1
    padding: Padding = "same"
    dilation: int = 1
    _: dataclasses.KW_ONLY
    groups: int = 1
    bias: bool = True
    name: str | None = None

    def __post_init__(self) -> None:
        names = ("channels", "kernel", "stride", "dilation", "groups")
        _check_positive(self, *names)
        _check_padding(self)

    @property
    def label(self) -> str:
        """Its name in tables and errors."""
        return self.name or f"conv{self.kernel}-{self.channels}"

    @property
    def extent(self) -> int:
        """Side of the window with its holes: (kernel − 1)·dilation + 1."""
        return (self.kernel - 1) * self.dilation + 1


@dataclasses.dataclass(frozen=True)
class Pool:
    """The maximum, or the average, over a square window of each channel.

    Args:
        size: side of the window.
        stride: positions moved between outputs; `size` by default.
        padding: "valid", "same", or an int. Padding never wins a maximum and counts as
            0 in an average.
        kind: "max" or "average".
        name: `max-pool` or `average-pool` by default.

    Raises:
        ValueError: if a number is not a positive int, or an option unknown.
    """

    size: int
    stride: int | None = None
    _: dataclasses.KW_ONLY
    padding: Padding = "valid"
    kind: Literal["max", "average"] = "max"
    name: str | None = None

    def __post_init__(self) -> None:
        if self.stride is None:
            object.__setattr__(self, "stride", self.size)
        _check_positive(self, "size", "stride")
        _check_padding(self)
        if self.kind not in {"max", "average"}:
            msg = f"Pool: kind = {self.kind!r} must be 'max' or 'average'"
            raise ValueError(msg)
        if isinstance(self.padding, int) and self.padding >= self.size:
            msg = (
                f"Pool: padding = {self.padding} must be less than size = {self.size}: "
                "a window of padding alone has no maximum"
            )
            raise ValueError(msg)

    @property
    def label(self) -> str:
        """Its name in tables and errors."""
        return self.name or f"{self.kind}-pool"

    @property
    def extent(self) -> int:
        """Side of the window."""
        return self.size

    @property
    def dilation(self) -> int:
        """Distance between the positions of a window: 1."""
        return 1


@dataclasses.dataclass(frozen=True)
class GlobalPool:
    """The maximum, or the average, of each channel over the whole image.

    Args:
        kind: "average" or "max".
        name: `global-average-pool` or `global-max-pool` by default.
    """

    kind: Literal["average", "max"] = "average"
    _: dataclasses.KW_ONLY
    name: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in {"max", "average"}:
            msg = f"GlobalPool: kind = {self.kind!r} must be 'average' or 'max'"
            raise ValueError(msg)

    @property
    def label(self) -> str:
        """Its name in tables and errors."""
        return self.name or f"global-{self.kind}-pool"


@dataclasses.dataclass(frozen=True)
class Dense:
    """A fully connected layer on everything before it.

    Args:
        units: outputs.
        bias: one number added for each output.
        name: e.g. `FC-100` by default.

    Raises:
        ValueError: if `units` is not a positive int.
    """

    units: int
    _: dataclasses.KW_ONLY
    bias: bool = True
    name: str | None = None

    def __post_init__(self) -> None:
        _check_positive(self, "units")

    @property
    def label(self) -> str:
        """Its name in tables and errors."""
        return self.name or f"FC-{self.units}"


Layer: TypeAlias = Conv | Pool | GlobalPool | Dense
"""One layer of a description."""

Window: TypeAlias = Conv | Pool
"""A layer whose outputs each see a window of the layer below."""


def _check_positive(layer: object, *names: str) -> None:
    for name in names:
        int_at_least(getattr(layer, name), f"{type(layer).__name__}: {name}", 1)


def _check_padding(layer: Window) -> None:
    padding = layer.padding
    number = isinstance(padding, int) and not isinstance(padding, bool)
    if not ((number and int(padding) >= 0) or padding in {"same", "valid"}):
        kind = type(layer).__name__
        msg = f"{kind}: padding = {padding!r} must be 'same', 'valid' or an int ≥ 0"
        raise ValueError(msg)
