r"""Gradient descent on a quadratic, recognized on the traced programs.

If the inner loss is a convex quadratic in the parameters that does not see the
hyperparameter, and the update is $c\,\eta\,\nabla L$ with a constant c, then
$L_T(\eta) = \text{affine} + \sum_i q_i(1 + c\eta\lambda_i)^{2T}$, $q_i \ge 0$: convex
on the whole line, for every T at once.
"""

import itertools
import math
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from .._types import Hyper, Params
from ..optimizers.update import standard, update
from ..runs.unrolled import Unrolled
from ._degree import Degrees, degrees, primitives
from ._exact import Exact, NotRationalError
from ._interpret import interpret
from ._run import NotCoveredError, OverBudgetError, Run

_NO_TRUE_GRADIENT = {"stop_gradient", "custom_jvp_call", "custom_vjp_call"}
"""What makes JAX's gradient another function than the derivative of the loss."""


class Spectral(NamedTuple):
    """The proof succeeded; strictly convex unless the start is stationary."""

    strict: bool


def recognize(objective: Unrolled, hyper: jax.Array, work: float) -> Spectral | str:
    """Prove that `objective` is gradient descent on a convex quadratic.

    Args:
        objective: what to recognize.
        hyper: any scalar, for its dtype.
        work: multiplications of 64 bits to spend on exact arithmetic.

    Returns:
        `Spectral`, or why it is not recognized.
    """
    reason = _shape_of_the_problem(objective)
    if reason is not None:
        return reason
    hyper = objective.prepare(hyper)
    reason = _loss_degrees(objective, hyper) or _update_degrees(objective, hyper)
    if reason is not None:
        return reason
    run = Run(Exact.lift, None, exact=True, work=work)
    try:
        if _multiple_of_gradient(objective, hyper, run) is None:
            return "the update is not one multiple of the gradient"
        constant, hessian, start = _quadratic(objective, hyper, run)
        if constant and not _positive_semidefinite(hessian, run):
            return "the inner loss is not convex"
    except (NotCoveredError, NotRationalError, OverBudgetError) as error:
        return f"exact arithmetic met {error}"
    moved = [sum(a * b for a, b in zip(row, start, strict=True)) for row in hessian]
    return Spectral(strict=objective.steps > 0 and any(moved))


def _shape_of_the_problem(objective: Unrolled) -> str | None:
    if objective.batches is not None:
        return "the inner loss changes with the batch"
    if objective.outer_loss is not None:
        return "the outer loss is not the inner loss"
    if not jax.tree.leaves(objective.params) or callable(objective.params):
        return "the start is a function of the hyperparameter"
    return None


def _loss_degrees(objective: Unrolled, hyper: jax.Array) -> str | None:
    """The loss: degree ≤ 2 in params, 0 in hyper, with its true gradient."""

    def loss(params: Params, hyper: Hyper) -> Any:
        return objective.inner_loss(hyper, 0)(params)

    program = jax.make_jaxpr(loss)(objective.params, hyper)
    special = primitives(program) & _NO_TRUE_GRADIENT
    if special:
        return f"the inner loss has the primitive `{min(special)}`"
    count = len(jax.tree.leaves(objective.params))
    groups: list[Degrees] = [(1.0, 0.0)] * count + [(0.0, 1.0)]
    ((in_params, in_hyper),) = degrees(program, groups)
    if in_params > 2 or in_hyper > 0:
        return (
            f"the traced inner loss has degree {_text(in_params)} in params, "
            f"{_text(in_hyper)} in hyper"
        )
    return None


def _update_degrees(objective: Unrolled, hyper: jax.Array) -> str | None:
    """The update: degree ≤ 1 in the gradient and in hyper, 0 in all else."""
    params = objective.params
    state = jax.jit(lambda h: standard(objective.optimizer(h)).init(params))(hyper)
    program = jax.make_jaxpr(lambda *a: _update(objective, *a[:-1], value=a[-1]))(
        params, hyper, state, params, jnp.zeros((), hyper.dtype)
    )
    rest = len(jax.tree.leaves(params)), len(jax.tree.leaves(state))
    groups: list[Degrees] = [
        *[(1.0, 0.0, 0.0)] * rest[0],
        (0.0, 1.0, 0.0),
        *[(0.0, 0.0, 1.0)] * (rest[1] + rest[0] + 1),
    ]
    in_grad, in_hyper, in_rest = (
        max(column) for column in zip(*degrees(program, groups), strict=True)
    )
    if in_grad > 1 or in_hyper > 1 or in_rest > 0:
        return (
            f"the traced update has degree {_text(in_grad)} in the gradient, "
            f"{_text(in_hyper)} in hyper, {_text(in_rest)} in state and params"
        )
    return None


def _update(
    objective: Unrolled,
    grads: PyTree,
    hyper: Hyper,
    state: Any,
    params: Params,
    *,
    value: Any,
) -> PyTree:
    """The update as a function of all that an optimizer is given."""
    optimizer, inner_loss = objective.optimizer(hyper), objective.inner_loss(hyper, 0)
    updates, _ = update(
        optimizer, grads, state, params, value=value, value_fn=inner_loss
    )
    return updates


def _multiple_of_gradient(
    objective: Unrolled, hyper: jax.Array, run: Run
) -> Fraction | None:
    """c, if the update is exactly c·η·g."""
    params = objective.params

    def updates(hyper: Hyper) -> PyTree:
        state = standard(objective.optimizer(hyper)).init(params)
        rest, value = (hyper, state, params), jnp.zeros_like(hyper)
        zero = jax.tree.map(jnp.zeros_like, params)
        of_zero = _update(objective, zero, *rest, value=value)
        of_unit = jax.vmap(lambda g: _update(objective, g, *rest, value=value))(
            _units(params)
        )
        return jax.tree.map(lambda u: u[None], of_zero), of_unit

    of_zero, of_unit = (_rows(part) for part in _series(updates, hyper, params, run))
    diagonal = (
        {row[i] for i, row in enumerate(of_unit[1])}
        if len(of_unit) > 1
        else {Fraction(0)}
    )
    if any(any(map(any, c)) for c in (*of_zero, of_unit[0])) or len(diagonal) != 1:
        return None
    off = any(
        x != 0 for i, r in enumerate(of_unit[1]) for j, x in enumerate(r) if i != j
    )
    (factor,) = diagonal
    return None if off or factor == 0 else factor


def _quadratic(
    objective: Unrolled, hyper: jax.Array, run: Run
) -> tuple[bool, list[list[Fraction]], list[Fraction]]:
    """Whether the Hessian is symmetric, the Hessian, and the gradient at the start."""
    gradient = jax.grad(objective.inner_loss(hyper, 0))
    params = objective.params

    def gradients(s: jax.Array) -> PyTree:
        along = jax.vmap(gradient)(jax.tree.map(lambda e: s * e, _units(params)))
        start = gradient(params)
        return jax.tree.map(lambda g: g[None], start), along

    start, along = (_rows(part) for part in _series(gradients, hyper, params, run))
    size = len(along[0])
    hessian = along[1] if len(along) > 1 else [[Fraction(0)] * size] * size
    symmetric = all(
        hessian[i][j] == hessian[j][i] for i in range(size) for j in range(i)
    )
    return symmetric, hessian, start[0][0]


def _series(function: Any, hyper: jax.Array, params: Params, run: Run) -> list[Any]:
    """Outputs of a function of one scalar as exact polynomials, leaves grouped."""
    program = jax.make_jaxpr(function)(jax.ShapeDtypeStruct((), hyper.dtype))
    variable = [Exact.lift(np.zeros(())), Exact.lift(np.ones(()))]
    outputs = [run.series(x) for x in interpret(program, [variable], run)]
    count = len(jax.tree.leaves(params))
    return [outputs[:count], outputs[count:]]


def _rows(leaves: list[Any]) -> list[list[list[Fraction]]]:
    """For each coefficient, the matrix whose rows are raveled pytrees."""
    matrices = []
    for k in range(max(len(series) for series in leaves)):
        parts = []
        for series in leaves:
            shape = series[0].shape[1:]
            rows = shape[0] if shape else 1
            flat = (
                series[k].fractions()
                if k < len(series)
                else [Fraction(0)] * math.prod(shape)
            )
            width = len(flat) // rows
            parts.append([flat[i * width : (i + 1) * width] for i in range(rows)])
        matrices.append(
            [list(itertools.chain(*row)) for row in zip(*parts, strict=True)]
        )
    return matrices


def _units(params: Params) -> PyTree:
    """The unit vectors, stacked: each leaf leads with an axis over them."""
    leaves, structure = jax.tree.flatten(params)
    size, start, units = sum(leaf.size for leaf in leaves), 0, []
    for leaf in leaves:
        rows = np.eye(size)[:, start : start + leaf.size]
        units.append(jnp.asarray(rows.reshape(size, *leaf.shape), leaf.dtype))
        start += leaf.size
    return jax.tree.unflatten(structure, units)


def _positive_semidefinite(matrix: list[list[Fraction]], run: Run) -> bool:
    """By elimination in integers (Bareiss 1968); a zero pivot needs a zero row."""
    size = len(matrix)
    multiple = math.lcm(*(x.denominator for row in matrix for x in row))
    rows = [[int(x * multiple) for x in row] for row in matrix]
    previous = 1
    for k in range(size):
        pivot = rows[k][k]
        run.spend(size * size * (pivot.bit_length() / 64 + 1) ** 2)
        if pivot < 0 or (pivot == 0 and any(rows[k][k:])):
            return False
        if pivot == 0:
            continue
        for i in range(k + 1, size):
            for j in range(k + 1, size):
                value = pivot * rows[i][j] - rows[i][k] * rows[k][j]
                rows[i][j] = value // previous
        previous = pivot
    return True


def _text(degree: float) -> str:
    return "unknown" if math.isinf(degree) else str(int(degree))
