"""What an outer step measures: value and gradient in the outer variables z.

Between z and the objective stand, in this order: the logarithm of some leaves, the draw
of this step's objective and noise, and the mean over those tasks that came through.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._types import Hyper, PyTree, Scalar
from ..hypergrad import Forward, HyperGradient, Reverse, hypergradient
from ..hypergrad.hypergradient import is_derivative_free
from ..tasks import Each, Mean, TaskHyperGradient
from .reparametrized import Reparametrized
from .rules import Measures, all_finite


class Problem(NamedTuple):
    """What is learned, all of it pytrees."""

    objective: Any  # or, with a key, what makes it
    engine: Any
    key: Any  # of the draws; None for one objective
    project: Any  # None, or a function of hyper


def measures(problem: Problem, logs: Sequence[bool]) -> Measures:
    """The objective of each draw as a function of z."""
    to_hyper = exponential(logs)

    def value(z: PyTree, draw: Array) -> Scalar:
        objective, _ = _drawn(problem, draw)
        return objective(to_hyper(z))

    def value_and_grad(z: PyTree, draw: Array) -> tuple[Scalar, PyTree, Scalar]:
        objective, engine = _drawn(problem, draw)
        whole = to_hyper
        if isinstance(objective, Reparametrized) and not is_derivative_free(engine):
            # Here and not in `hypergradient`, for the tasks of a Mean within it.
            inner, objective = objective.function, objective.objective
            whole = lambda z: inner(to_hyper(z))
        hyper, pull_back = jax.vjp(whole, z)
        plain = isinstance(getattr(engine, "func", engine), Reverse | Forward)
        if isinstance(objective, Mean) and plain:
            engine = Each(engine)  # the same mean, and each task's part of it
        result = hypergradient(objective, hyper, engine)
        if isinstance(result, TaskHyperGradient):
            value, grad, lost = _over_finite_tasks(objective, result)
            if problem.key is not None:
                most = result.values.shape[0] / 2
                value = jnp.where(lost > most, jnp.nan, value)
        else:
            value, grad, lost = result.value, result.grad, jnp.zeros_like(result.value)
        return value, pull_back(grad)[0], lost

    def project(z: PyTree) -> PyTree:
        hyper = to_hyper(z)
        back = jax.tree.map(
            lambda p, h: jnp.asarray(p, h.dtype), problem.project(hyper), hyper
        )
        return logarithm(logs)(back)

    fresh = problem.key is not None
    return Measures(value, value_and_grad, problem.project and project, fresh)


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

    return objective, folded(problem.engine, draw)


def folded(tree: PyTree, number: Array) -> PyTree:
    """Every random key in a pytree folded with a number."""

    def fold(leaf: Any) -> Any:
        dtype = getattr(leaf, "dtype", None)
        is_key = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
        return jax.random.fold_in(leaf, number) if is_key else leaf

    return jax.tree.map(fold, tree)


def _over_finite_tasks(
    objective: Any, result: TaskHyperGradient
) -> tuple[Scalar, Hyper, Scalar]:
    """The means over the tasks that are finite, and how many are not."""
    good = jax.vmap(lambda v, g: all_finite((v, g)))(result.values, result.grads)
    (inner, weights), structure = objective.tree_flatten()
    some = jnp.ones_like(result.values) if weights is None else weights
    counted = Mean.tree_unflatten(structure, (inner, jnp.where(good, some, 0.0)))
    value, grad = counted.average(HyperGradient(result.values, result.grads))
    return value, grad, jnp.sum(~good).astype(value.dtype)


def _map_marked(function: Any, marks: Sequence[bool], tree: PyTree) -> PyTree:
    leaves, structure = jax.tree.flatten(tree)
    mapped = [
        function(leaf) if mark else leaf
        for leaf, mark in zip(leaves, marks, strict=True)
    ]
    return jax.tree.unflatten(structure, mapped)
