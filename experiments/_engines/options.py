"""What every part of `engines` is told."""

from typing import Literal

from pydantic import PositiveInt

from experiments._command.experiment import ExperimentConfig


class Options(ExperimentConfig):
    """Sizes of the problem and of the measurement."""

    dtype: Literal["float64", "float32"] = "float32"
    steps: PositiveInt = 1000
    long_steps: PositiveInt = 10_000
    repeats: PositiveInt = 3
    hidden: PositiveInt = 256
    batch: PositiveInt = 128
