r"""Gradient descent on a quadratic, recognized on the traced programs.

If the inner loss is a convex quadratic in the parameters that does not see the
hyperparameter, and the update is $c\,\eta\,\nabla L$ with a constant c, then
$L_T(\eta) = \text{affine} + \sum_i q_i(1 + c\eta\lambda_i)^{2T}$, $q_i \ge 0$: convex
on the whole line, for every T at once.
"""

import math
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from .._programs.symmetry import own_derivatives
from .._types import Hyper, Params, PyTree
from ..optimizers.update import standard, update
from ..runs.unrolled import Unrolled
from ._degree import Degrees, degrees
from ._exact import Exact, NotRationalError
from ._interpret import interpret
from ._question import Question, certified, undecided
from ._report import Report
from ._run import NotCoveredError, OverBudgetError, Run

Matrix = list[list[Fraction]]


class GradientDescent(NamedTuple):
    """An `Unrolled` that was proved to be gradient descent on a convex quadratic."""

    factor: Fraction  # c of the update c·η·∇L: −1 for SGD
    hessian: Matrix
    gradient: list[Fraction]  # at the start


def spectral(question: Question) -> Report:
    """The prover for gradient descent on a convex quadratic."""
    objective = question.objective
    if not isinstance(objective, Unrolled):
        return undecided("the objective is not an Unrolled")
    hyper = jnp.asarray(question.low, jnp.result_type(float))
    found = recognize(objective, hyper, work=question.work)
    if isinstance(found, str):
        return undecided(found)
    reason = (
        "gradient descent on a convex quadratic (traced loss: degree 2 in params, "
        "positive semidefinite Hessian, 0 in hyper; traced update: a multiple of "
        "hyper · gradient): L_T is affine plus Σ q(1 − ηλ)^2T, q ≥ 0"
    )
    moved = [_dot(row, found.gradient) for row in found.hessian]
    strict = objective.steps > 0 and any(moved)
    report = certified(reason, "spectral", strict=strict)
    return report._replace(every_steps=True)


def recognize(
    objective: Unrolled, hyper: jax.Array, *, work: float
) -> GradientDescent | str:
    """Prove that `objective` is gradient descent on a convex quadratic.

    Args:
        objective: what to recognize.
        hyper: any scalar, for its dtype.
        work: multiplications of 64 bits to spend on exact arithmetic.

    Returns:
        What it is, exactly; or why it is not recognized.
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
        factor = _multiple_of_gradient(objective, hyper, run)
        if factor is None:
            return "the update is not one multiple of the gradient"
        hessian, start = _quadratic(objective, hyper, run)
        if hessian != [list(column) for column in zip(*hessian, strict=True)]:
            return "the inner field is not a gradient: its derivative is not symmetric"
        if not _positive_semidefinite(hessian, run):
            return "the inner loss is not convex"
    except (NotCoveredError, NotRationalError, OverBudgetError) as error:
        return f"exact arithmetic met {error}"
    return GradientDescent(factor, hessian, start)


def _shape_of_the_problem(objective: Unrolled) -> str | None:
    params = jax.tree.leaves(objective.params)
    if objective.batches is not None:
        return "the inner loss changes with the batch"
    if objective.outer_loss is not None:
        return "the outer loss is not the inner loss"
    if objective.model_state is not None or objective.outer_weights is not None:
        return "more than the last loss is evaluated"
    if not params or callable(objective.params):
        return "the start is a function of the hyperparameter"
    if not all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in params):
        return "not all parameters are floats"
    return None


def _loss_degrees(objective: Unrolled, hyper: jax.Array) -> str | None:
    """The loss: degree ≤ 2 in params, 0 in hyper, with its true gradient."""

    def loss(params: Params, hyper: Hyper) -> Any:
        return objective.inner_loss(hyper, 0)(params)

    program = jax.make_jaxpr(loss)(objective.params, hyper)
    special = own_derivatives(program)
    if special:
        return f"the inner loss has the primitive `{special[0]}`"
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
    """The c, if the update is exactly c·η·g."""
    flat, unravel = ravel_pytree(objective.params)

    def updates(hyper: Hyper) -> list[jax.Array]:
        state = standard(objective.optimizer(hyper)).init(objective.params)
        rest = hyper, state, objective.params

        def of(grads: jax.Array) -> jax.Array:
            value = jnp.zeros_like(hyper)
            moved = _update(objective, unravel(grads), *rest, value=value)
            return ravel_pytree(moved)[0]

        return [
            of(jnp.zeros_like(flat)),
            jax.vmap(of)(jnp.eye(flat.size, dtype=flat.dtype)),
        ]

    (of_zero, zero_slope), (of_unit, slope) = _lines(updates, hyper, run)
    factor = slope.flat[0]
    still = not any(np.any(part) for part in (of_zero, zero_slope, of_unit))
    multiple = np.array_equal(slope, factor * np.eye(flat.size, dtype=int))
    return factor if still and multiple and factor != 0 else None


def _quadratic(
    objective: Unrolled, hyper: jax.Array, run: Run
) -> tuple[Matrix, list[Fraction]]:
    """The derivative of the inner field, and the field at the start."""
    flat, unravel = ravel_pytree(objective.params)
    loss = objective.inner_loss(hyper, 0)
    field = lambda w: ravel_pytree(jax.grad(loss)(unravel(w)))[0]
    units = jnp.eye(flat.size, dtype=flat.dtype)
    along = lambda s: [field(flat), jax.vmap(lambda e: field(s * e))(units)]
    (start, _), (_, hessian) = _lines(along, hyper, run)
    return hessian.tolist(), start.tolist()


def _lines(
    function: Any, hyper: jax.Array, run: Run
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Value and slope at 0 of each output of an affine function of one number."""
    program = jax.make_jaxpr(function)(jax.ShapeDtypeStruct((), hyper.dtype))
    variable = [Exact.lift(np.zeros(())), Exact.lift(np.ones(()))]
    lines = []
    for output in interpret(program, [variable], run):
        series = run.series(output)
        shape = series[0].shape[1:]
        zero = [Fraction(0)] * math.prod(shape)
        value, slope, *_ = [*(c.fractions() for c in series), zero]
        lines.append(tuple(np.array(c, object).reshape(shape) for c in (value, slope)))
    return lines


def _dot(a: list[Fraction], b: list[Fraction]) -> Fraction:
    return sum((x * y for x, y in zip(a, b, strict=True)), Fraction(0))


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
