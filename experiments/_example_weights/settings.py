"""The options of `example_weights`."""

from typing import Annotated, Literal, TypeAlias

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from experiments._command.config import Model
from experiments._settings.images import BundledImages, ImageData, ImagesConfig

Fraction: TypeAlias = Annotated[float, Field(gt=0.0, lt=1.0)]
Activation: TypeAlias = Literal["tanh", "relu", "gelu", "softplus"]
Pooling: TypeAlias = Literal["average", "max"]
Part: TypeAlias = Literal[
    "score", "orders", "poison", "selection", "smoothness", "cost", "by hand"
]


class Vision(Model):
    """The conv net: conv3-c, pool, conv3-2c, pool, dense."""

    examples: PositiveInt | None = 800  # of the training set; null: all there are
    held_out: PositiveInt = 400  # of the outer loss; the test is `data.test`
    steps: PositiveInt = 100
    batch: PositiveInt = 100
    channels: PositiveInt = 8
    shrink: PositiveInt = 1  # the images are averaged over such squares first
    learning_rate: PositiveFloat = 0.05
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    activation: Activation = "tanh"
    pooling: Pooling = "average"


class Text(Model):
    """The transformer: windows of characters are the examples."""

    examples: PositiveInt = 256
    held_out: PositiveInt = 64
    length: PositiveInt = 32
    width: PositiveInt = 16
    blocks: PositiveInt = 1
    batch: PositiveInt = 16
    steps: PositiveInt = 64  # of the retrainings
    cost_steps: tuple[PositiveInt, ...] = (16, 64, 256)
    learning_rate: PositiveFloat = 3e-3
    eps_root: NonNegativeFloat = 1e-4  # of Adam: the larger, the smoother the run


class Settings(ImagesConfig):
    """Options of the experiment."""

    data: ImageData = BundledImages(test=400)
    parts: tuple[Part, ...] = (
        "score",
        "orders",
        "poison",
        "selection",
        "smoothness",
        "cost",
        "by hand",
    )
    vision: Vision = Vision()
    text: Text | None = Text()  # null: the conv net alone
    left_out: tuple[Fraction, ...] = (0.01, 0.05)
    retrainings: Annotated[int, Field(ge=3)] = 100  # of each fraction
    together: PositiveInt = 5  # retrainings side by side
    checkpoints: PositiveInt = 128  # states kept by the engines; more are faster
    wrong: Fraction = 0.1  # part of the labels made wrong, in `poison` and `selection`
    outer_steps: PositiveInt = 10  # of the weights, in `selection`
    outer_rate: PositiveFloat = 0.1
    directions: PositiveInt = 3  # in `smoothness`
    repeats: NonNegativeInt = 3  # timed runs; 0 is bytes only
