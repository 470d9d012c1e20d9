"""The mean of the objectives of many tasks, on one device or several."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Float

from .._types import Hyper, PyTree, Scalar
from ..hypergrad.facts import state_bytes
from ..hypergrad.hypergradient import as_pytree
from ._alike import check_alike, is_shared
from ._making import made_of_keys
from ._places import checked_mesh, checked_weights, spec
from .each import Each


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Mean:
    r"""The mean of the objectives of all tasks, as an objective of its own.

    $$\bar L(\eta) = \frac1N\sum_{i=1}^N L_T^{(i)}(\eta), \qquad
      \text{or}\quad \frac{\sum_i p_i L_T^{(i)}(\eta)}{\sum_i p_i}
      \text{ with } p = \text{weights}$$

    An ordinary JAX function of the hyperparameters: `jax.grad`, `jax.hessian`,
    `metalr.learn`, `metalr.check_hypergrad`, and `metalr.hypergradient` with
    `Reverse()` or `Forward()` take it as it is; engines that take a run apart,
    `Each(engine)`. All tasks run as one program, batched by `vmap`.

    With a `mesh` every device holds the arrays of its share of the tasks and runs them
    alone (`jax.shard_map`): only values and gradients, one number and one `hyper` a
    task, cross between devices. Results are those of one device, to the rounding of
    batched products. Where the number of tasks is not a multiple of the devices, the
    last task is run again to fill the rest, and left out of the mean.

    Memory: that of one task times the tasks on a device; arrays that all tasks share
    are held once (on each device). Differentiable in both modes and any order.

    On several hosts the same code runs once `jax.distributed.initialize()` has been
    called in each process: make the mesh of all `jax.devices()`, give each process its
    own tasks, and build the global arrays from them, leaf by leaf, with
    `jax.make_array_from_process_local_data(NamedSharding(mesh, P("tasks")), leaf)`
    (each process the same number of tasks, a multiple of its devices). The mean
    is then that over all processes, and `hyper` the same on every one. This is on
    paper: one machine is what it is tested on.

    Args:
        objective: a list of `Unrolled` that differ in the values of their arrays alone
            (every array that is the same in all of them is kept once), or one whose
            arrays all lead with an axis of tasks (`stack`). See also `Mean.of`.
        mesh: devices to spread the tasks over, with one axis named "tasks", e.g.
            `jax.make_mesh((4,), ("tasks",))`.
        weights: None, or a weight p ≥ 0 of each task.

    Raises:
        ValueError: if tasks differ in more than arrays (such as `steps`), the arrays
            do not lead with one common axis, the mesh has another axis, or the
            weights are not one number ≥ 0 a task.

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
        >>> mean = metalr.tasks.Mean(tasks)
        >>> print(mean.values(0.0), mean(0.0), jax.grad(mean)(0.0))
        [1. 9.] 5.0 -40.0

    References:
        Andrychowicz et al. (2016), Learning to learn by gradient descent by gradient
        descent, for meta-learning over a distribution of problems.
    """

    objective: Any
    mesh: Mesh | None = None
    _: dataclasses.KW_ONLY
    weights: Any = None
    shared: tuple[bool, ...] = dataclasses.field(init=False)
    count: int = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        if isinstance(self.objective, Sequence):
            tasks = list(self.objective)
            check_alike(tasks)
            columns = list(zip(*(jax.tree.leaves(task) for task in tasks), strict=True))
            shared = tuple(is_shared(column) for column in columns)
            leaves = [
                column[0] if same else jnp.stack(column)
                for column, same in zip(columns, shared, strict=True)
            ]
            objective = jax.tree.unflatten(jax.tree.structure(tasks[0]), leaves)
            self._set(objective, shared, len(tasks))
            return
        if not callable(self.objective):
            msg = (
                f"objective = {self.objective!r} must be a list of metalr.Unrolled, or "
                "one whose arrays lead with an axis of tasks (metalr.tasks.stack)"
            )
            raise ValueError(msg)
        leaves = jax.tree.leaves(as_pytree(self.objective))
        sizes = {jnp.shape(leaf)[:1] for leaf in leaves}
        if len(sizes) != 1 or sizes == {()}:
            msg = (
                "the arrays of the objective must lead with one common axis of tasks, "
                f"but their first axes are {sorted(sizes)}: pass the list of tasks, or "
                "make it with metalr.tasks.stack"
            )
            raise ValueError(msg)
        self._set(self.objective, (False,) * len(leaves), sizes.pop()[0])

    @classmethod
    def of(
        cls,
        make: Callable[[Any], Any],
        keys: PyTree,
        mesh: Mesh | None = None,
        *,
        weights: Any = None,
    ) -> "Mean":
        """The mean of `make(key)` over keys, all made in one traced call.

        What `make` makes of its key is an array with an axis of tasks; what does not
        depend on the key (data captured by `make`, a common start) is kept once.
        Works under `jit`, so that `metalr.learn(lambda key: Mean.of(make,
        jax.random.split(key, 8)), …)` has fresh tasks in every outer step.

        Args:
            make: `key -> objective`, traceable in its key. The key's own data reach the
                loss as a pytree (`jax.tree_util.Partial(loss, data)`) or as batches,
                never captured in a closure.
            keys: random keys, or whatever `make` takes: a pytree whose leaves lead
                with the axis of tasks.
            mesh: as in `Mean`.
            weights: as in `Mean`.

        Raises:
            ValueError: if the leaves of `keys` have no common first axis; when called,
                if a loss captured what was made of the key.

        Example:
            >>> import jax, optax, metalr
            >>> loss = lambda params, hyper, target: (params - target) ** 2
            >>> def make(key):
            ...     t = jax.random.normal(key, (1,))
            ...     return metalr.Unrolled(loss, optax.sgd, 0.0, steps=1, batches=t)
            >>> keys = jax.random.split(jax.random.key(0), 500)
            >>> mean = metalr.tasks.Mean.of(make, keys)
            >>> print(mean.count, bool(abs(mean(0.5)) < 1e-12))
            500 True
        """
        objective, shared, count = made_of_keys(make, keys)
        new = object.__new__(cls)
        object.__setattr__(new, "mesh", mesh)
        object.__setattr__(new, "weights", weights)
        new._set(objective, shared, count)
        return new

    def _set(self, objective: Any, shared: tuple[bool, ...], count: int) -> None:
        """Check what is left, and put the arrays in their places."""
        fields = {"objective": objective, "shared": shared, "count": count}
        if self.weights is not None:
            fields["weights"] = checked_weights(self.weights, count)
        if self.mesh is not None:
            mesh = checked_mesh(self.mesh)
            fields["mesh"] = mesh
            if count % mesh.size == 0:  # else they are padded when run
                leaves, structure = jax.tree.flatten(objective)
                placed = [
                    jax.device_put(leaf, NamedSharding(mesh, spec(same)))
                    for leaf, same in zip(leaves, shared, strict=True)
                ]
                fields["objective"] = jax.tree.unflatten(structure, placed)
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    def __call__(self, hyper: Hyper) -> Scalar:
        """The mean over tasks."""
        return self.average(self.values(hyper))

    def values(self, hyper: Hyper) -> Float[Array, " tasks"]:
        """The value of each task."""
        return self.each(lambda objective, hyper: objective(hyper), hyper)

    def average(self, tree: PyTree) -> PyTree:
        """The mean over the leading axis of tasks, by `weights` where there are any."""
        if self.weights is None:
            return jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), tree)
        share = self.weights / jnp.sum(self.weights)

        def mean(leaf: Array) -> Array:
            parts = share.astype(leaf.dtype).reshape(-1, *[1] * (leaf.ndim - 1))
            # A task of weight 0 is left out, whatever became of it.
            return jnp.sum(jnp.where(parts == 0.0, 0.0, parts * leaf), axis=0)

        return jax.tree.map(mean, tree)

    def task(self, index: int) -> Any:
        """The objective of one task."""
        leaves, structure = jax.tree.flatten(self.objective)
        mine = [
            leaf if same else leaf[index]
            for leaf, same in zip(leaves, self.shared, strict=True)
        ]
        return jax.tree.unflatten(structure, mine)

    @property
    def steps(self) -> int:
        """Number of steps T of every task; 0 where they are no runs."""
        return getattr(self.objective, "steps", 0)

    @property
    def tasks_on_a_device(self) -> int:
        """Tasks that each device runs."""
        return -(-self.count // (self.mesh.size if self.mesh is not None else 1))

    def in_parts(self, engine: Any) -> Each:
        """How an engine that takes a run apart takes this apart."""
        return Each(engine)

    def state_bytes(self, hyper: Hyper) -> int:
        """Bytes that one step of all tasks on a device hands to the next."""
        return self.tasks_on_a_device * state_bytes(self.task(0), hyper)

    def shortened(
        self, cut: Callable[[Any, Hyper], tuple[Any, Hyper]], hyper: Hyper
    ) -> tuple["Mean", Hyper]:
        """What `cut` makes of a task, of all, and of hyper."""
        one, few = cut(self.task(0), hyper)
        every = self.each(lambda task, h: jax.tree.leaves(cut(task, h)[0]), hyper)
        leaves = [
            leaf[0] if same else leaf
            for leaf, same in zip(every, self.shared, strict=True)
        ]
        new = object.__new__(Mean)
        object.__setattr__(new, "mesh", self.mesh)
        object.__setattr__(new, "weights", self.weights)
        objective = jax.tree.unflatten(jax.tree.structure(one), leaves)
        new._set(objective, self.shared, self.count)
        return new, few

    def each(self, function: Callable[[Any, Hyper], Any], hyper: Hyper) -> Any:
        """`function(objective, hyper)` of every task, stacked along a first axis."""
        return self.each_numbered(
            lambda objective, _, given: function(objective, given), hyper
        )

    def each_numbered(
        self, function: Callable[[Any, Array, Any], Any], given: PyTree
    ) -> Any:
        """`function(objective, index, given)` of every task; `given` is for all."""
        leaves, structure = jax.tree.flatten(self.objective)
        pairs = list(zip(leaves, self.shared, strict=True))
        own = [leaf for leaf, same in pairs if not same]
        common = [leaf for leaf, same in pairs if same]

        def one(own: list[Any], index: Array, common: list[Any], given: PyTree) -> Any:
            mine, ours = iter(own), iter(common)
            merged = [next(ours) if same else next(mine) for same in self.shared]
            return function(jax.tree.unflatten(structure, merged), index, given)

        batched = jax.vmap(one, in_axes=(0, 0, None, None))
        indices = jnp.arange(self.count)
        try:
            if self.mesh is None:
                return batched(own, indices, common, given)
            return self._spread(batched, own, indices, common, given)
        except jax.errors.UnexpectedTracerError as error:
            msg = (
                "a task captured an array that was made of its key in a closure, where "
                "it cannot differ from task to task: data belong into a pytree loss, "
                "jax.tree_util.Partial(loss, data), or into batches"
            )
            raise ValueError(msg) from error

    def _spread(
        self, batched: Callable[..., Any], own: list, indices: Array, *given: PyTree
    ) -> Any:
        """The batched function with the tasks split over the mesh."""
        assert self.mesh is not None
        spread = jax.shard_map(
            batched,
            mesh=self.mesh,
            in_specs=(spec(False), spec(False), spec(True), spec(True)),
            out_specs=spec(False),
            check_vma=False,
        )
        missing = -self.count % self.mesh.size
        if not missing:
            return spread(own, indices, *given)
        padded = jax.tree.map(
            lambda leaf: jnp.concatenate([leaf, jnp.repeat(leaf[-1:], missing, 0)]),
            (own, indices),
        )
        return jax.tree.map(lambda leaf: leaf[: self.count], spread(*padded, *given))

    def __repr__(self) -> str:
        devices = "" if self.mesh is None else f", devices={self.mesh.size}"
        return f"Mean({self.objective!r}, tasks={self.count}{devices})"

    def tree_flatten(self) -> tuple[tuple[Any, Any], tuple[Any, ...]]:
        """The objective and the weights are the children."""
        return (self.objective, self.weights), (self.mesh, self.shared, self.count)

    @classmethod
    def tree_unflatten(cls, aux: tuple[Any, ...], children: tuple[Any, Any]) -> "Mean":
        """Rebuild without the checks: the leaves may be anything JAX puts there."""
        new = object.__new__(cls)
        names = ("objective", "weights", "mesh", "shared", "count")
        for name, value in zip(names, (*children, *aux), strict=True):
            object.__setattr__(new, name, value)
        return new
