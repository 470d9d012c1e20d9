r"""What a run is: the seam between what is unrolled and how it is differentiated.

Engines know a run by its parts alone (`Run`'s class body below, `Unroll`), never by
what it is made of. A new kind of run is a class with these parts; whatever it is,
every engine works on it, or says by name what it needs.

    steps                                            T
    prepare(hyper) -> hyper                          checked; its cotangents' dtypes
    init(hyper) -> state                             any pytree
    step(hyper, state, index) -> (state, record)
    pull_back(hyper, state, index, bar) -> (bar, hyper_bar)
    evaluate(hyper, state) -> scalar
    public(hyper, state) -> state                    as users see it

A cotangent of a state is a list along `jax.tree.leaves(state)`, with None for each leaf
that carries no derivative (an int, a key, what hyper does not move): `moving`.
"""

import dataclasses
import functools
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._checks import float_leaves, int_at_least
from .._programs.compiled import Frozen, compiled
from .._programs.dependence import differentiable
from .._types import Hyper, PyTree, Scalar
from .checkpointing import scan

State: TypeAlias = PyTree
Bar: TypeAlias = list[Array | None]
"""Cotangents of a state's leaves; None where there is no derivative."""


class Run(NamedTuple):
    """One run: its value, where it ended, and what each step recorded."""

    value: Scalar  # what the objective returns
    state: State  # after the last step
    records: PyTree  # each leaf leads with an axis of steps; None if not kept


class Unroll(Frozen):
    """What every run can do, given its parts. Base of `Unrolled` and `Rollout`."""

    steps: int
    checkpoints: int | None = None

    def prepare(self, hyper: Hyper) -> Hyper:
        """`hyper` checked, its leaves at least float32: cotangents are summed there."""
        return jax.tree.map(at_least_float32, hyper)

    def init(self, hyper: Hyper) -> State:
        """The state before the first step; `hyper` is prepared."""
        raise NotImplementedError

    def step(
        self, hyper: Hyper, state: State, index: int | Array
    ) -> tuple[State, PyTree]:
        """The state after step `index`, and what the step records."""
        raise NotImplementedError

    def evaluate(self, hyper: Hyper, state: State) -> Scalar:
        """The value of a run that ends in `state`."""
        raise NotImplementedError

    def public(self, hyper: Hyper, state: State) -> State:
        """A state as users see it, in the dtypes that they gave."""
        del hyper
        return state

    def accepted(self, state: State) -> State:
        """The inverse of `public`."""
        return state

    def accumulated(self, state: State) -> Scalar | float:
        """The part of the value that is already known in `state`."""
        del state
        return 0.0

    def pull_back(
        self, hyper: Hyper, state: State, index: int | Array, bar: Bar
    ) -> tuple[Bar, Hyper]:
        """Cotangents of state and hyper before step `index`, given those after it.

        `jax.vjp` of the one step: right for every step; keeps what that step computes.
        """
        leaves, rebuild = moving(state, bar)

        def forward(leaves: list[Array], hyper: Hyper) -> list[Array]:
            return moving(self.step(hyper, rebuild(leaves), index)[0], bar)[0]

        _, transpose = jax.vjp(forward, leaves, hyper)
        leaves_bar, hyper_bar = transpose([x for x in bar if x is not None])
        return refilled(bar, leaves_bar), hyper_bar

    def __call__(self, hyper: Hyper) -> Scalar:
        """The value after all `steps` steps at `hyper`."""
        return _value(self, float_leaves(hyper, "hyper"))

    def run(self, hyper: Hyper) -> Run:
        """The value, the end of the run that it comes from, and all records.

        One run, differentiable and batched like the value. Memory: that of the run and
        the records.
        """
        return _whole(self, float_leaves(hyper, "hyper"))

    def continued(self, state: State, first_step: int = 0) -> "Continued":
        """The same run from a state on: the steps `first_step`, …, `steps` − 1.

        Args:
            state: as `run(hyper).state` has it; a constant of the new objective, whose
                derivatives see the steps from there on.
            first_step: index of its first step, which sees that step's batch;
                0 is a whole further run, a warm start.

        Raises:
            ValueError: if `first_step` is not between 0 and `steps`.
        """
        first = int_at_least(first_step, "first_step", 0)
        if first > self.steps:
            msg = f"first_step = {first} is past the end: the run has {self.steps}"
            raise ValueError(msg)
        return Continued(self, state, first)


class Within(Unroll):
    """A run that is that of its `objective`, but for what a subclass says."""

    objective: Any

    @property
    def steps(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As in the objective, and so is all that follows."""
        return self.objective.steps

    @property
    def checkpoints(self) -> int | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As in the objective."""
        return getattr(self.objective, "checkpoints", None)

    def prepare(self, hyper: Hyper) -> Hyper:
        """As in the objective."""
        return self.objective.prepare(hyper)

    def init(self, hyper: Hyper) -> State:
        """As in the objective."""
        return self.objective.init(hyper)

    def step(
        self, hyper: Hyper, state: State, index: int | Array
    ) -> tuple[State, PyTree]:
        """As in the objective."""
        return self.objective.step(hyper, state, index)

    def pull_back(
        self, hyper: Hyper, state: State, index: int | Array, bar: Bar
    ) -> tuple[Bar, Hyper]:
        """As in the objective."""
        return self.objective.pull_back(hyper, state, index, bar)

    def evaluate(self, hyper: Hyper, state: State) -> Scalar:
        """As in the objective."""
        return self.objective.evaluate(hyper, state)

    def public(self, hyper: Hyper, state: State) -> State:
        """As in the objective."""
        return self.objective.public(hyper, state)

    def accepted(self, state: State) -> State:
        """As in the objective."""
        return self.objective.accepted(state)

    def accumulated(self, state: State) -> Scalar | float:
        """As in the objective."""
        return self.objective.accumulated(state)


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True, eq=False)
class Continued(Within):
    """A run from a given state on: see `Unroll.continued`. Its arrays are children."""

    objective: Any
    state: State
    first_step: int

    @property
    def steps(self) -> int:
        """The steps that are left."""
        return self.objective.steps - self.first_step

    def init(self, hyper: Hyper) -> State:
        """The given state."""
        del hyper
        return self.objective.accepted(self.state)

    def step(
        self, hyper: Hyper, state: State, index: int | Array
    ) -> tuple[State, PyTree]:
        """Step `first_step` + `index` of the whole run."""
        return super().step(hyper, state, self.first_step + index)

    def pull_back(
        self, hyper: Hyper, state: State, index: int | Array, bar: Bar
    ) -> tuple[Bar, Hyper]:
        """That of the whole run."""
        return super().pull_back(hyper, state, self.first_step + index, bar)

    def tree_flatten(self) -> tuple[tuple[Any, Any], int]:
        """Objective and state are children."""
        return (self.objective, self.state), self.first_step

    @classmethod
    def tree_unflatten(cls, aux: int, children: tuple[Any, Any]) -> "Continued":
        """Rebuild."""
        return cls(*children, aux)


def is_run(objective: Any) -> bool:
    """Whether it has the parts of a run."""
    parts = ("steps", "prepare", "init", "step", "pull_back", "evaluate")
    return all(hasattr(objective, part) for part in parts)


@functools.partial(compiled, inline=True)
def stepped(
    objective: Any, hyper: Hyper, state: State, index: Array
) -> tuple[State, PyTree]:
    """`objective.step`, traced once however often a program has it."""
    return objective.step(hyper, state, index)


@functools.partial(compiled, inline=True)
def started(objective: Any, hyper: Hyper) -> State:
    """`objective.init` of a hyper that is not prepared yet, traced once."""
    return objective.init(objective.prepare(hyper))


@functools.partial(compiled, inline=True)
def pulled_back(
    objective: Any, hyper: Hyper, state: State, index: Array, bar: Bar
) -> tuple[Bar, Hyper]:
    """`objective.pull_back`, traced once however often a program has it."""
    return objective.pull_back(hyper, state, index, bar)


def advance(
    objective: Any,
    hyper: Hyper,
    state: State,
    first: int | Array,
    count: int,
    *,
    records: bool = False,
    checkpoints: int | None = None,
) -> tuple[State, PyTree]:
    """The state after steps `first` to `first + count − 1`, and their records."""

    def body(state: State, offset: Array) -> tuple[State, PyTree]:
        state, record = stepped(objective, hyper, state, first + offset)
        return state, record if records else None

    return scan(body, state, count, checkpoints)


def whole(objective: Any, hyper: Hyper, *, records: bool = True) -> Run:
    """The run itself, traced; its state is that of `step`, not yet `public`."""
    hyper = objective.prepare(hyper)
    state, kept = advance(
        objective,
        hyper,
        objective.init(hyper),
        0,
        objective.steps,
        records=records,
        checkpoints=getattr(objective, "checkpoints", None),
    )
    return Run(objective.evaluate(hyper, state), state, kept)


@compiled
def _value(objective: Any, hyper: Hyper) -> Scalar:
    return whole(objective, hyper, records=False).value


@compiled
def _whole(objective: Any, hyper: Hyper) -> Run:
    run = whole(objective, hyper)
    state = objective.public(objective.prepare(hyper), run.state)
    return run._replace(state=state)


def at_least_float32(leaf: Array) -> Array:
    """A float that sums may be kept in."""
    return leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))


def is_float(leaf: Any) -> bool:
    """Whether an array is of a real floating dtype."""
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)


def floats_of(tree: PyTree) -> tuple[list[Array], Any]:
    """The float leaves of a pytree, and how to put others in their place."""
    leaves = jax.tree.leaves(tree)
    return moving(tree, [x if is_float(x) else None for x in leaves])


def moving(state: State, bar: Bar) -> tuple[list[Array], Any]:
    """The leaves that carry derivatives, and how to put them back."""
    leaves, structure = jax.tree.flatten(state)

    def rebuild(given: list[Array]) -> State:
        left = iter(given)
        return jax.tree.unflatten(
            structure,
            [x if b is None else next(left) for x, b in zip(leaves, bar, strict=True)],
        )

    return [x for x, b in zip(leaves, bar, strict=True) if b is not None], rebuild


def refilled(bar: Bar, given: list[Array]) -> Bar:
    """`bar` with other cotangents."""
    left = iter(given)
    return [None if b is None else next(left) for b in bar]


def at_rest(objective: Any, hyper: Hyper) -> Bar:
    """Zero cotangents of the leaves between hyper and the value, None for the others.

    `hyper` is prepared. Judged on the traced programs: a leaf has one if differentiable
    paths join hyper to it and it to the value, through however many steps. An engine
    need not pull back through what makes the others (a line search's record, say).
    """
    start, state = jax.make_jaxpr(objective.init, return_shape=True)(hyper)
    leaves = jax.tree.leaves(state)
    every = [frozenset({place}) for place in range(len(leaves))]
    still = [frozenset[Any]() for _ in jax.tree.leaves(hyper)]
    given = [frozenset({"hyper"}) for _ in still]

    def reached(function: Any, of_hyper: list) -> list:
        program = jax.make_jaxpr(function)(hyper, state)
        return differentiable(program, [*of_hyper, *every])

    made = differentiable(start, given)
    moved = {place for place, known in enumerate(made) if known}
    (value,) = reached(objective.evaluate, still)
    matters = set(value)
    if objective.steps:
        first = jnp.zeros((), jnp.int32)
        step = lambda hyper, state: stepped(objective, hyper, state, first)[0]
        through = reached(step, given)
        for _ in leaves:
            before = len(moved) + len(matters)
            moved |= {i for i, known in enumerate(through) if known & {"hyper", *moved}}
            matters |= {j for i in matters for j in through[i] if j != "hyper"}
            if len(moved) + len(matters) == before:
                break
    return [
        jnp.zeros(x.shape, x.dtype)
        if is_float(x) and place in moved & matters
        else None
        for place, x in enumerate(leaves)
    ]
