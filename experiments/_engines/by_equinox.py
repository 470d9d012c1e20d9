"""The same runs through equinox's checkpointed scan (extra `bench`)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import metalr
from experiments._command.experiment import ConfigError


def equinox() -> Any:
    """Its scans.

    Raises:
        ConfigError: if it is not installed.
    """
    try:
        import equinox.internal as eqxi
    except ImportError as error:
        msg = "per_step and compile compare with equinox: pip install -e '.[bench]'"
        raise ConfigError(msg) from error
    return eqxi


def loss_of(
    objective: metalr.Unrolled, checkpoints: int | None
) -> Callable[[Any], jax.Array]:
    """The value of a run, its steps those of the objective."""

    def loss(hyper: Any) -> jax.Array:
        def step(state: Any, index: jax.Array) -> tuple[Any, None]:
            return objective.step(hyper, state, index)[0], None

        last, _ = equinox().scan(
            step,
            objective.init(hyper),
            jnp.arange(objective.steps),
            kind="checkpointed",
            checkpoints=checkpoints,
        )
        return objective.evaluate(hyper, last)

    return loss
