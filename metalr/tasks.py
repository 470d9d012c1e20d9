r"""Many inner problems at once: means over tasks, on one device or several.

Meta-learning learns hyperparameters for a distribution of problems. The problems are
one `Unrolled` whose arrays lead with an axis of tasks (`stack`), and the objective is
the mean of theirs (`Mean`); with a `mesh` each device runs its own share of them.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from ._types import Hyper, Objective, Scalar
from .hypergrad._engine import Engine, HyperGradient
from .hypergrad.hypergradient import as_pytree
from .runs.unrolled import Unrolled

AXIS = "tasks"
"""The mesh axis that tasks are spread over."""


def stack(objectives: Sequence[Unrolled]) -> Unrolled:
    """One `Unrolled` whose arrays lead with an axis of tasks, to `vmap` over.

    Args:
        objectives: alike but for their arrays: one optimizer, one number of steps, and
            losses that carry their data as a pytree (`problems.least_squares`, or
            `jax.tree_util.Partial(function, data)`); a loss that captures its
            data in a closure is another function for each task.

    Raises:
        ValueError: if there is none, or two differ in more than the values of arrays,
            naming the first field that does.
    """
    if not objectives:
        msg = "objectives is empty: pass at least one metalr.Unrolled"
        raise ValueError(msg)
    first = objectives[0]
    for index, other in enumerate(objectives):
        if not isinstance(other, Unrolled):
            msg = f"objectives[{index}] = {other!r} must be a metalr.Unrolled"
            raise ValueError(msg)
        for field in dataclasses.fields(Unrolled):
            mine, theirs = getattr(first, field.name), getattr(other, field.name)
            if _form(mine) != _form(theirs):
                msg = (
                    f"objectives[{index}].{field.name} is not that of objectives[0] "
                    f"({_form(theirs)} against {_form(mine)}): tasks may differ in the "
                    "values of their arrays alone. Data belong into a pytree loss, "
                    "jax.tree_util.Partial(loss, data), not into a closure"
                )
                raise ValueError(msg)
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *objectives)


class TaskHyperGradient(NamedTuple):
    """The mean over tasks, and what it is the mean of."""

    value: Scalar
    grad: Hyper
    values: Float[Array, "*batch tasks"]
    grads: Hyper


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Mean:
    r"""The mean of the objectives of all tasks, as an objective of its own.

    $$\bar L(\eta) = \frac1N\sum_{i=1}^N L_T^{(i)}(\eta)$$

    An ordinary JAX function of the hyperparameters: `jax.grad`, `jax.hessian`,
    `metalr.learn` and `metalr.hypergradient` with `Reverse()` or `Forward()` take it as
    it is; engines that take a run apart, `Each(engine)`. All tasks run as one
    program, batched by `vmap`.

    With a `mesh` every device holds the arrays of its share of the tasks and runs them
    alone (`jax.shard_map`): only values and gradients, one number and one `hyper` a
    task, cross between devices. Results are those of one device, to the rounding of
    batched products. Where the number of tasks is not a multiple of the devices, the
    last task is run again to fill the rest, and left out of the mean.

    Memory: that of one task times the tasks on a device. Differentiable in both modes
    and any order.

    On several hosts the same code runs once `jax.distributed.initialize()` has been
    called in each process: make the mesh of all `jax.devices()`, give each process its
    own tasks, and build the global arrays from them, leaf by leaf, with
    `jax.make_array_from_process_local_data(NamedSharding(mesh, P("tasks")), leaf)`
    (each process the same number of tasks, a multiple of its devices). The mean
    is then that over all processes, and `hyper` the same on every one. This is on
    paper: one machine is what it is tested on.

    Args:
        objective: an `Unrolled` whose arrays lead with an axis of tasks (`stack`).
        mesh: devices to spread the tasks over, with one axis named "tasks", e.g.
            `jax.make_mesh((4,), ("tasks",), axis_types=(AxisType.Auto,))`.

    Raises:
        ValueError: if the objective is not an `Unrolled`, its arrays do not lead with
            one common axis, or the mesh has another axis.

    Example:
        >>> import jax, jax.numpy as jnp, optax, metalr
        >>> X = jnp.ones((1, 2))
        >>> tasks = [
        ...     metalr.Unrolled(
        ...         metalr.problems.least_squares(X, jnp.array([t])),
        ...         optax.sgd,
        ...         jnp.zeros(2),
        ...         steps=1,
        ...     )
        ...     for t in (1.0, 3.0)
        ... ]
        >>> mean = metalr.tasks.Mean(metalr.tasks.stack(tasks))
        >>> print(mean.values(0.0), mean(0.0), jax.grad(mean)(0.0))
        [1. 9.] 5.0 -40.0

    References:
        Andrychowicz et al. (2016), Learning to learn by gradient descent by gradient
        descent, for meta-learning over a distribution of problems.
    """

    objective: Any
    mesh: Mesh | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.objective, Unrolled):
            msg = (
                f"objective = {self.objective!r} must be a metalr.Unrolled (see stack)"
            )
            raise ValueError(msg)
        sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(self.objective)}
        if len(sizes) != 1 or sizes == {()}:
            msg = (
                "the arrays of the objective must lead with one common axis of tasks, "
                f"but their first axes are {sorted(sizes)}: make it with "
                "metalr.tasks.stack"
            )
            raise ValueError(msg)
        if self.mesh is None:
            return
        if self.mesh.axis_names != (AXIS,):
            msg = (
                f"mesh has the axes {self.mesh.axis_names}: it must have the one axis "
                f"{AXIS!r}, e.g. jax.make_mesh((4,), ({AXIS!r},), "
                "axis_types=(AxisType.Auto,))"
            )
            raise ValueError(msg)
        if self.count % self.mesh.size == 0:  # else they are padded when run
            place = NamedSharding(self.mesh, PartitionSpec(AXIS))
            object.__setattr__(self, "objective", jax.device_put(self.objective, place))

    @property
    def count(self) -> int:
        """Number of tasks."""
        return jax.tree.leaves(self.objective)[0].shape[0]

    def __call__(self, hyper: Hyper) -> Scalar:
        """The mean over tasks."""
        return jnp.mean(self.values(hyper))

    def values(self, hyper: Hyper) -> Float[Array, " tasks"]:
        """The value of each task."""
        return self.each(lambda objective, hyper: objective(hyper), hyper)

    def each(self, function: Callable[[Unrolled, Hyper], Any], hyper: Hyper) -> Any:
        """`function(objective, hyper)` of every task, stacked along a first axis."""
        batched = jax.vmap(function, in_axes=(0, None))
        if self.mesh is None:
            return batched(self.objective, hyper)
        spread = jax.shard_map(
            batched,
            mesh=self.mesh,
            in_specs=(PartitionSpec(AXIS), PartitionSpec()),
            out_specs=PartitionSpec(AXIS),
            check_vma=False,
        )
        missing = -self.count % self.mesh.size
        if not missing:
            return spread(self.objective, hyper)
        padded = jax.tree.map(
            lambda leaf: jnp.concatenate([leaf, jnp.repeat(leaf[-1:], missing, 0)]),
            self.objective,
        )
        return jax.tree.map(lambda leaf: leaf[: self.count], spread(padded, hyper))

    def __repr__(self) -> str:
        devices = "" if self.mesh is None else f", devices={self.mesh.size}"
        return f"Mean({self.objective!r}, tasks={self.count}{devices})"

    def tree_flatten(self) -> tuple[tuple[Any], Mesh | None]:
        """The objective is the child."""
        return (self.objective,), self.mesh

    @classmethod
    def tree_unflatten(cls, aux: Mesh | None, children: tuple[Any]) -> "Mean":
        """Rebuild without the checks: the leaves may be anything JAX puts there."""
        new = object.__new__(cls)
        object.__setattr__(new, "objective", children[0])
        object.__setattr__(new, "mesh", aux)
        return new


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True)
class Each:
    r"""An engine for a `Mean`: another engine in every task, then the mean.

    $$\nabla\bar L = \frac1N\sum_i \nabla L_T^{(i)}$$

    Works with every engine that works under `vmap`, and supports the derivatives that
    the engine does. `metalr.learn(mean, …, engine=Each(Reverse(checkpoints=8)))`
    learns from the mean over all tasks.

    Args:
        engine: how the hypergradient of one task is computed.

    Returns:
        When called: a `TaskHyperGradient`, with `values` and `grads` of every task
        beside the means.

    Raises:
        ValueError: when called, if the objective is not a `Mean`.
    """

    engine: Any

    def __call__(self, objective: Objective, hyper: Hyper) -> TaskHyperGradient:
        """The engine's result in every task, and its means."""
        if not isinstance(objective, Mean):
            msg = f"{self} needs a metalr.tasks.Mean, not {objective!r}"
            raise ValueError(msg)
        engine: Engine = self.engine

        def task(objective: Unrolled, hyper: Hyper) -> HyperGradient:
            result = engine(objective, hyper)
            return HyperGradient(result.value, result.grad)

        values, grads = objective.each(task, hyper)
        grad = jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), grads)
        return TaskHyperGradient(jnp.mean(values), grad, values, grads)

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


def _form(value: Any) -> Any:
    """What two tasks must share of a field: structure, functions, shapes, dtypes."""
    leaves, structure = jax.tree.flatten(value)
    arrays = all(hasattr(leaf, "dtype") for leaf in leaves)
    if not arrays:
        return value
    return structure, tuple((leaf.shape, str(leaf.dtype)) for leaf in leaves)
