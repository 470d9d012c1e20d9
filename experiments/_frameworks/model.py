"""What the recipes need of a model, whoever wrote it: two pytrees and a function."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax

PlainParams: TypeAlias = dict[str, jax.Array]


class Model(NamedTuple):
    """A model taken apart."""

    params: Any
    """What is trained."""
    state: Any
    """What it carries beside them (batch statistics); None if nothing."""
    logits: Callable[..., tuple[jax.Array, Any]]
    """`logits(params, state, inputs, key)` -> logits, new state. In training there is a
    key, of the dropout; None is evaluation."""
    to_plain: Callable[[Any], PlainParams]
    """The same parameters under the names of `plain`."""


class Shape(NamedTuple):
    """inputs -> hidden -> classes, with dropout behind the hidden layer."""

    inputs: int = 64
    hidden: int = 16
    classes: int = 10
    dropout: float = 0.1
