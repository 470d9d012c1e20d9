"""What an outer step measures: value and gradient in the outer variables z.

Between z and the objective stand, in this order: the logarithm of some leaves, the draw
of this step's objective and noise, and the mean over those tasks that came through.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .._types import Hyper, PyTree, Scalar
from ..hypergrad import HyperGradient, hypergradient
from ..hypergrad.facts import is_additive
from ..hypergrad.hypergradient import is_derivative_free
from ..tasks import Each, Mean, TaskHyperGradient
from ..tasks.each import with_own_noise
from .reparametrized import Reparametrized
from .rules import Measures, all_finite

_HELD_OUT = np.uint32(2**32 - 1)
"""Number of a draw that no outer step sees."""


class Problem(NamedTuple):
    """What is learned, all of it pytrees."""

    objective: Any  # or, with a key, what makes it
    engine: Any
    key: Any  # of the draws; None for one objective
    project: Any  # None, or a function of hyper


def measures(problem: Problem, logs: Sequence[bool]) -> Measures:
    """The objective of each draw as a function of z."""
    to_hyper, fresh = exponential(logs), problem.key is not None

    def value(z: PyTree, draw: Array) -> Scalar:
        objective, _ = _drawn(problem, draw)
        return objective(to_hyper(z))

    def value_and_grad(z: PyTree, draw: Array) -> tuple[Scalar, PyTree, Scalar]:
        objective, engine = _drawn(problem, draw)
        whole = to_hyper
        if not is_derivative_free(engine):
            # Here and not in `hypergradient`, for the tasks of a Mean within it.
            objective, whole = _within(objective, to_hyper)
        hyper, pull_back = jax.vjp(whole, z)
        if isinstance(objective, Mean) and is_additive(engine):
            engine = Each(engine)  # the same mean, and each task's part of it
        result = hypergradient(objective, hyper, engine)
        if isinstance(result, TaskHyperGradient):
            every = HyperGradient(result.values, result.grads)
            (value, grad), lost = _over_finite_tasks(objective, every, fresh)
        else:
            value, grad, lost = result.value, result.grad, jnp.zeros_like(result.value)
        return value, pull_back(grad)[0], lost

    def held_out(z: PyTree) -> tuple[Scalar, Scalar]:
        objective, whole = _within(_drawn(problem, jnp.asarray(_HELD_OUT))[0], to_hyper)
        hyper = whole(z)
        if not isinstance(objective, Mean):
            found = objective(hyper)
            return found, jnp.zeros_like(found)
        (found,), lost = _over_finite_tasks(objective, (objective.values(hyper),), True)
        return found, lost

    def project(z: PyTree) -> PyTree:
        hyper = to_hyper(z)
        back = jax.tree.map(
            lambda p, h: jnp.asarray(p, h.dtype), problem.project(hyper), hyper
        )
        return logarithm(logs)(back)

    judge = held_out if fresh else None
    return Measures(value, value_and_grad, problem.project and project, judge)


def logarithm(logs: Sequence[bool]) -> Callable[[Hyper], PyTree]:
    """Hyper to z: the logarithm of the leaves that are marked."""
    return lambda hyper: _map_marked(jnp.log, logs, hyper)


def exponential(logs: Sequence[bool]) -> Callable[[PyTree], Hyper]:
    """And z to hyper."""
    return lambda z: _map_marked(jnp.exp, logs, z)


def _drawn(problem: Problem, draw: Array) -> tuple[Any, Any]:
    """Objective and engine of a draw: all their keys folded with its number."""
    if problem.key is None:
        return problem.objective, problem.engine
    objective = problem.objective(jax.random.fold_in(problem.key, draw))
    if not callable(objective) or isinstance(objective, type):
        msg = (
            f"make(key) returned {objective!r}: with key= the first argument of learn "
            "is a function of a key that returns an objective, such as "
            "lambda key: metalr.Unrolled(...)"
        )
        raise ValueError(msg)

    return objective, with_own_noise(problem.engine, draw)


def _within(objective: Any, to_hyper: Any) -> tuple[Any, Any]:
    """What is reparametrized, and z in its hyper."""
    if not isinstance(objective, Reparametrized):
        return objective, to_hyper
    inner = objective.function
    return _within(objective.objective, lambda z: inner(to_hyper(z)))


def _over_finite_tasks(mean: Mean, every: Any, fresh: bool) -> tuple[Any, Scalar]:
    """The means over the tasks that are finite, and how many are not.

    `every` is a tuple that begins with the values, of each task. Of a fresh draw that
    lost more than half of them, the first mean is nan.
    """
    values = every[0]
    good = jax.vmap(all_finite)(every)
    (inner, weights), structure = mean.tree_flatten()
    some = jnp.ones_like(values) if weights is None else weights
    counted = Mean.tree_unflatten(structure, (inner, jnp.where(good, some, 0.0)))
    value, *others = counted.average(every)
    lost = jnp.sum(~good).astype(value.dtype)
    if fresh:
        value = jnp.where(lost > values.shape[0] / 2, jnp.nan, value)
    return (value, *others), lost


def _map_marked(function: Any, marks: Sequence[bool], tree: PyTree) -> PyTree:
    leaves, structure = jax.tree.flatten(tree)
    mapped = [
        function(leaf) if mark else leaf
        for leaf, mark in zip(leaves, marks, strict=True)
    ]
    return jax.tree.unflatten(structure, mapped)
