"""The truth: the training made again with each row of weights, and kept as it comes."""

import contextlib
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import metalr
from experiments._command.errors import ConfigError
from experiments._command.scan_progress import scan_progress

_CHUNKS = 20
"""Calls that retrainings are made in: a kill loses at most one of them."""


class Kept(NamedTuple):
    """Arrays in a folder of one problem and one version of the code; None keeps none.

    A file appears under its name complete or not at all.
    """

    folder: Path | None

    def __truediv__(self, name: str) -> "Kept":
        """A folder within."""
        return Kept(self.folder and self.folder / name.replace(" ", "_"))

    def once(self, name: str, compute: Callable[[], Any]) -> np.ndarray:
        """An array that an earlier process has kept, or that is computed now."""
        found = self.read(name)
        return self.write(name, np.asarray(compute())) if found is None else found

    def read(self, name: str) -> np.ndarray | None:
        """None where there is none, or what is there is damaged."""
        if self.folder is not None:
            with contextlib.suppress(OSError, ValueError, EOFError):
                return np.load(self.folder / f"{name}.npy")
        return None

    def write(self, name: str, array: np.ndarray) -> np.ndarray:
        """Keep an array, and return it.

        Raises:
            ConfigError: if the folder cannot be written.
        """
        if self.folder is None:
            return array
        draft = self.folder / "new"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with draft.open("wb") as file:
                np.save(file, array)
            draft.replace(self.folder / f"{name}.npy")
        except OSError as error:
            msg = f"cannot keep results in {self.folder}: {error.strerror}"
            raise ConfigError(msg) from error
        return array


def retrained(
    objective: metalr.Unrolled,
    weights: jax.Array,
    *,
    together: int,
    kept: Kept,
    name: str,
) -> np.ndarray:
    """The outer loss of a training with each row of weights.

    Args:
        objective: the loss as a function of the weights.
        weights: (count, n).
        together: trainings that are run side by side.
        kept: where the losses are kept; those found there are not computed again.
        name: of these retrainings, there and in the progress.

    Returns:
        (count,) losses in float64.
    """
    count, found = len(weights), kept.read(name)
    losses = np.empty(0) if found is None else found
    size = together * max(1, round(count / (together * _CHUNKS)))
    with scan_progress(name, total=count, counts="retraining") as tell:
        while len(losses) < count:
            # The last rows again, so that every call has one shape.
            places = np.minimum(np.arange(size) + len(losses), count - 1)
            values = _values(objective, weights[places], together)
            fresh = np.asarray(values, np.float64)[: count - len(losses)]
            losses = kept.write(name, np.append(losses, fresh))
            tell(len(losses))
    return losses


@functools.partial(jax.jit, static_argnames="together")
def _values(objective: Any, weights: jax.Array, together: int) -> jax.Array:
    return jax.lax.map(objective, weights, batch_size=together)
