"""One name for each mathematical object that crosses a module boundary."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import optax
from jaxtyping import Array, Float

if TYPE_CHECKING:  # jaxtyping's is unknown to a type checker
    PyTree: TypeAlias = Any
else:
    from jaxtyping import PyTree

Scalar: TypeAlias = Float[Array, ""]
"""A real number under trace: a loss, a learning rate."""

ScalarLike: TypeAlias = float | int | Scalar
"""A real number as a user writes it."""

Matrix: TypeAlias = Float[Array | np.ndarray, "n d"]
"""Inputs as a user has them, one example a row."""

Vector: TypeAlias = Float[Array | np.ndarray, " n"]
"""Targets as a user has them."""

Hyper: TypeAlias = PyTree
"""The outer variables: any pytree of floating-point leaves."""

Params: TypeAlias = PyTree
"""The inner variables: any pytree of arrays of one floating-point dtype."""

Batch: TypeAlias = Any
"""What one inner step sees: a pytree without the leading `steps` axis, or None."""

Loss: TypeAlias = Callable[..., Any]
"""`loss(params, hyper, batch) -> scalar`: what the inner optimizer descends; with a
model_state `loss(params, hyper, batch, model_state) -> (scalar, new_model_state)`."""

OuterLoss: TypeAlias = Callable[..., Any]
"""`outer_loss(params, hyper) -> scalar`: what the outer variables are judged by; with a
model_state a third argument, and `opt_state=` where it has a parameter of that name."""

Optimizer: TypeAlias = Callable[[Hyper], optax.GradientTransformation]
"""`optimizer(hyper)`: an optax transformation made from the outer variables."""
Objective: TypeAlias = Callable[[Any], Any]
"""An `Unrolled`, or (for engines that say so) any traceable scalar function."""
