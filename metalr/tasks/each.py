"""Another engine in every task, then the mean."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._types import Hyper, Objective, Scalar
from ..hypergrad import Engine
from ..hypergrad.hypergradient import as_pytree
from .mean import Mean


class TaskHyperGradient(NamedTuple):
    """The mean over tasks, and what it is the mean of.

    `tasks` is the engine's own result in every task: a NamedTuple whose leaves lead
    with the axis of tasks. What it measured is found here too, under its own name and
    one entry a task: `standard_error`, `stationarity`, ….
    """

    value: Scalar
    grad: Hyper
    tasks: Any

    @property
    def values(self) -> Float[Array, "*batch tasks"]:
        """The value of each task."""
        return self.tasks.value

    @property
    def grads(self) -> Hyper:
        """The gradient of each task; every leaf leads with the axis of tasks."""
        return self.tasks.grad

    def __getattr__(self, name: str) -> Any:
        """A measurement of the engine, of each task."""
        if name.startswith("_") or name == "tasks":
            raise AttributeError(name)
        return getattr(self.tasks, name)


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True)
class Each:
    r"""An engine for a `Mean`: another engine in every task, then the mean.

    $$\nabla\bar L = \frac1N\sum_i \nabla L_T^{(i)}$$

    (or by the weights of the `Mean`). Works with every engine that works under `vmap`,
    and supports the derivatives that the engine does. `metalr.learn(mean, …,
    engine=Each(Reverse(checkpoints=8)))` learns from the mean over all tasks. An engine
    with a random key (a leaf of the engine's own pytree) draws noise of its own in each
    task: task i has `jax.random.fold_in(key, i)`, so that errors average out.

    Args:
        engine: how the hypergradient of one task is computed.

    Returns:
        When called: a `TaskHyperGradient`, with `values` and `grads` of every task
        beside the means, and all that the engine measured.

    Raises:
        ValueError: when called, if the objective is not a `Mean`.
    """

    engine: Any

    def __call__(self, objective: Objective, hyper: Hyper) -> TaskHyperGradient:
        """The engine's result in every task, and its means."""
        if not isinstance(objective, Mean):
            msg = f"{self} needs a metalr.tasks.Mean, not {objective!r}"
            raise ValueError(msg)

        def task(objective: Any, index: Array, given: tuple[Hyper, Engine]) -> Any:
            hyper, engine = given
            return _with_own_noise(engine, index)(objective, hyper)

        found = objective.each_numbered(task, (hyper, as_pytree(self.engine)))
        value, grad = objective.average((found.value, found.grad))
        return TaskHyperGradient(value, grad, found)

    def verify(self, result: TaskHyperGradient) -> None:
        """Raise where the engine's own check of its results does."""
        verify = getattr(getattr(self.engine, "func", self.engine), "verify", None)
        if verify is not None:
            verify(result.tasks)

    @property
    def derivative_free(self) -> bool:
        """Whether the engine takes objectives that have no derivative."""
        engine = getattr(self.engine, "func", self.engine)
        return getattr(engine, "derivative_free", False)

    def tree_flatten(self) -> tuple[tuple[Any], None]:
        """An engine that is a pytree is a child; any other is static."""
        return (as_pytree(self.engine),), None

    @classmethod
    def tree_unflatten(cls, aux: None, children: tuple[Any]) -> "Each":
        """The engine again."""
        del aux
        return cls(children[0])


def _with_own_noise(engine: Any, index: Array) -> Any:
    """The engine with every random key that it holds folded with the task's number."""

    def fold(leaf: Any) -> Any:
        dtype = getattr(leaf, "dtype", None)
        is_key = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
        return jax.random.fold_in(leaf, index) if is_key else leaf

    return jax.tree.map(fold, engine)
