"""A model and how it is trained: the run that the weights are learned through."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import metalr
from experiments._hyper_cleaning import by_hand
from experiments._hyper_cleaning.problem import Problem, accuracy, network, unrolled


class Training(NamedTuple):
    """T steps of minibatches, or of full batches, with momentum 0.9."""

    problem: Problem
    hidden: tuple[int, ...]
    batch: int | None
    rate: float
    steps: int
    seed: int

    @property
    def names(self) -> dict[str, str]:
        """Columns that say which it is."""
        sizes = self._sizes()
        return {
            "model": "-".join(map(str, sizes)) if self.hidden else "softmax",
            "batch": "full batch" if self.batch is None else f"batch {self.batch}",
        }

    def params(self) -> list:
        """Where training starts."""
        dtype = str(self.problem.inputs.dtype)
        return network(self._sizes(), seed=self.seed, dtype=dtype)

    def objective(self) -> metalr.Unrolled:
        """The validation loss after the steps, as a function of the weights."""
        return unrolled(
            self.problem,
            self.params(),
            steps=self.steps,
            optimizer=optax.sgd(self.rate, momentum=0.9),
            batch=self.batch,
            seed=self.seed,
        )

    def by_hand(self) -> Callable[[Any], Any]:
        """Its value and gradient in plain JAX."""
        return functools.partial(
            by_hand.hypergradient,
            self.problem,
            self.params(),
            steps=self.steps,
            rate=self.rate,
            batch=self.batch,
            key=jax.random.key(self.seed),
        )

    def retrained(self, kept: np.ndarray) -> float:
        """Test accuracy after T steps on what is kept, and on the validation set."""
        inputs, labels, (further, more), test = (
            self.problem.inputs[kept],
            self.problem.given[kept],
            self.problem.validation,
            self.problem.test,
        )
        inputs = jnp.concatenate([inputs, further])
        labels = jnp.concatenate([labels, more])
        both = self.problem._replace(inputs=inputs, given=labels)
        ones = jnp.ones(len(labels), inputs.dtype)
        end = self._replace(problem=both).objective().final_params(ones)
        return accuracy(end, *test)

    def _sizes(self) -> tuple[int, ...]:
        return (self.problem.inputs.shape[1], *self.hidden, self.problem.classes)
