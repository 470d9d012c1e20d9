"""Another engine in every task, then the mean."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._programs.dependence import check_dependence
from .._types import Hyper, Objective, Scalar
from ..hypergrad import Engine
from ..hypergrad.facts import as_stated, cost, family, is_exact, kept_bytes
from ..hypergrad.hypergradient import as_pytree


class TaskHyperGradient(NamedTuple):
    """The mean over tasks, and what it is the mean of.

    What the engine measured is found here under its own name, one entry a task:
    `standard_error`, `stationarity`, …. Their draws are independent: the standard error
    of the mean of N tasks is the root of the sum of their squares, over N.
    """

    value: Scalar
    grad: Hyper
    tasks: Any
    """The engine's own result in every task; its leaves lead with the axis of tasks."""

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
        if name.startswith("_"):
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
        mean = self._of_tasks(objective)

        def task(objective: Any, index: Array, given: tuple[Hyper, Engine]) -> Any:
            hyper, engine = given
            return with_own_noise(engine, index)(objective, hyper)

        found = mean.each_numbered(task, (hyper, as_pytree(self.engine)))
        value, grad = mean.average((found.value, found.grad))
        return TaskHyperGradient(value, grad, found)

    def _of_tasks(self, objective: Any) -> Any:
        if not hasattr(objective, "each_numbered"):
            msg = f"{self} needs a metalr.tasks.Mean, not {objective!r}"
            raise ValueError(msg)
        return objective

    # What it says of itself is what its engine says.

    @property
    def derivative_free(self) -> bool:
        """Whether the engine takes objectives that have no derivative."""
        return getattr(as_stated(self.engine), "derivative_free", False)

    def exact(self, objective: Objective) -> bool:
        """Whether the engine is, in a task."""
        return is_exact(self.engine, self._of_tasks(objective).task(0))

    def cost(self, objective: Objective, hyper: Hyper) -> float:
        """That of the engine, in runs of the mean."""
        return cost(self.engine, self._of_tasks(objective).task(0), hyper)

    def kept_bytes(self, objective: Objective, hyper: Hyper) -> int:
        """Those of the engine, times the tasks on a device."""
        mean = self._of_tasks(objective)
        kept = kept_bytes(self.engine, mean.task(0), hyper)
        return mean.tasks_on_a_device * (kept or 0)

    @property
    def family(self) -> Any:
        """That of the engine."""
        return Each, family(self.engine)

    def refuse(self, objective: Objective, hyper: Hyper) -> None:
        """Refuse what the engine refuses of one task."""
        mean = self._of_tasks(objective)
        refuse = getattr(as_stated(self.engine), "refuse", None)
        if refuse is None:
            check_dependence(mean, hyper, smooth=not self.derivative_free)
        else:
            refuse(mean.task(0), hyper)

    def verify(self, result: TaskHyperGradient) -> None:
        """Raise where the engine's own check of its results does."""
        verify = getattr(as_stated(self.engine), "verify", None)
        if verify is not None:
            verify(result.tasks)

    def tree_flatten(self) -> tuple[tuple[Any], None]:
        """An engine that is a pytree is a child; any other is static."""
        return (as_pytree(self.engine),), None

    @classmethod
    def tree_unflatten(cls, aux: None, children: tuple[Any]) -> "Each":
        """The engine again."""
        del aux
        return cls(children[0])


def with_own_noise(engine: Any, number: Array) -> Any:
    """The engine with every random key that it holds folded with a number."""

    def fold(leaf: Any) -> Any:
        dtype = getattr(leaf, "dtype", None)
        is_key = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
        return jax.random.fold_in(leaf, number) if is_key else leaf

    return jax.tree.map(fold, engine)
