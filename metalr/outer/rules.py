"""The two ways to make an outer step: an optax optimizer, or safeguarded Newton.

Both are a `Rule` of pure functions, so that one compiled loop serves both.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from .._types import Scalar
from ..optimizers.update import standard, update

_SHRINK, _GROW = 0.25, 2.0
"""How an optax step is scaled after a diverged trial, and after an accepted one."""


class Point(NamedTuple):
    """A place in the outer variables, and what is known there."""

    z: PyTree
    value: Scalar
    grad: PyTree
    curvature: PyTree  # of a scalar z, for Newton; None otherwise


class Rule(NamedTuple):
    """An outer method."""

    evaluate: Callable[[PyTree], Point]
    init: Callable[[Point], Any]
    step: Callable[[Point, Any], tuple[Point, Any]]
    exhausted: Callable[[Point, Any], Array]  # located to the dtype's resolution


@dataclasses.dataclass(frozen=True)
class Newton:
    r"""Newton's method on $L'(z) = 0$ for one scalar, safeguarded by a bracket.

    $z \leftarrow z - L'(z)/L''(z)$ where that stays inside the bracket (the nearest
    points left and right with $L' < 0$ and $L' > 0$) and the steps at least halve;
    otherwise the middle of the bracket. While one side is still open, steps that make
    slow progress, or where $L'' \le 0$, grow twofold. It stops as converged also when
    the bracket has shrunk to the resolution of the dtype. Ends at a minimum.

    The second derivative is the forward-mode derivative of the engine's gradient.

    Args:
        first_step: longest first step while no bracket is known, in the outer variable
            (with `log=True`, 1.0 is a factor of e).

    Raises:
        ValueError: if `first_step` is not positive.

    References:
        Press et al., Numerical Recipes, section 9.4 (rtsafe). On quadratics $L_T'$ is
        concave, then convex, so that plain Newton would converge as well, but
        linearly with rate $(2T-2)/(2T-1)$ from afar.
    """

    first_step: float = 1.0

    def __post_init__(self) -> None:
        if not self.first_step > 0.0:
            msg = f"first_step = {self.first_step!r} must be positive"
            raise ValueError(msg)


def finite(point: Point) -> Array:
    """Whether the inner run and its derivatives came through."""
    checked = (point.value, point.grad, point.curvature)
    return jnp.all(
        jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(checked)])
    )


def gradient(
    optimizer: optax.GradientTransformation,
    value_and_grad: Callable[[PyTree], tuple[Scalar, PyTree]],
    value_fn: Callable[[PyTree], Scalar],
) -> Rule:
    """Steps of an optax optimizer, a quarter as long after each that diverged.

    A trial has diverged if it is not finite, or if its value is 1/eps times that of the
    point: of what the gradient there says, nothing holds at the scale of the point.
    """
    optimizer = standard(optimizer)

    def evaluate(z: PyTree) -> Point:
        return Point(z, *value_and_grad(z), None)

    def init(point: Point) -> tuple[optax.OptState, Scalar]:
        return optimizer.init(point.z), jnp.ones_like(point.value)

    def step(point: Point, state: Any) -> tuple[Point, Any]:
        opt_state, scale = state
        updates, new_opt_state = update(
            optimizer,
            point.grad,
            opt_state,
            point.z,
            value=point.value,
            value_fn=value_fn,
            grad_fn=lambda z: value_and_grad(z)[1],
        )
        scaled = jax.tree.map(lambda u: scale.astype(u.dtype) * u, updates)
        trial = evaluate(optax.apply_updates(point.z, scaled))
        accepted = (trial, (new_opt_state, jnp.minimum(1.0, _GROW * scale)))
        lost = jnp.finfo(scale.dtype).eps * jnp.abs(trial.value) > jnp.abs(point.value)
        good = finite(trial) & ~(lost & (point.value != 0.0))
        return _select(good, accepted, (point, (opt_state, _SHRINK * scale)))

    return Rule(evaluate, init, step, lambda *_: jnp.array(False))


class _Bracket(NamedTuple):
    low: Scalar  # the largest z seen with L' < 0
    high: Scalar  # the smallest z seen with L' > 0, or that diverged
    last: Scalar  # length of the last step
    slow: Array  # the last step did not halve the gradient


def newton(
    options: Newton, value_and_grad: Callable[[PyTree], tuple[Scalar, PyTree]]
) -> Rule:
    """Safeguarded Newton steps on a single scalar leaf."""

    def evaluate(z: PyTree) -> Point:
        def grad_value(z: PyTree) -> tuple[PyTree, Scalar]:
            value, grad = value_and_grad(z)
            return grad, value

        ones = jax.tree.map(jnp.ones_like, z)
        grad, curvature, value = jax.jvp(grad_value, (z,), (ones,), has_aux=True)
        return Point(z, value, grad, curvature)

    def init(point: Point) -> _Bracket:
        z, slope = _scalars(point)[:2]
        infinity = jnp.full_like(z, jnp.inf)
        first = jnp.full_like(z, 0.5 * options.first_step)
        return _tighten(_Bracket(-infinity, infinity, first, jnp.array(True)), z, slope)

    def step(point: Point, state: _Bracket) -> tuple[Point, _Bracket]:
        z, slope, curvature = _scalars(point)
        trial_z = _propose(z, slope, curvature, state)
        trial = evaluate(jax.tree.map(lambda leaf: trial_z.astype(leaf.dtype), point.z))
        moved = state._replace(last=jnp.abs(trial_z - z))
        slope_there = _scalars(trial)[1]
        slow = jnp.abs(slope_there) > 0.5 * jnp.abs(slope)
        accepted = _tighten(moved._replace(slow=slow), trial_z, slope_there)
        # A diverged trial bounds the side it lies on.
        refused = _tighten(moved, trial_z, trial_z - z)
        return _select(finite(trial), (trial, accepted), (point, refused))

    def exhausted(point: Point, state: _Bracket) -> Array:
        z, slope, _ = _scalars(point)
        resolution = 4.0 * jnp.finfo(z.dtype).eps * jnp.maximum(jnp.abs(z), 1.0)
        return (slope == 0.0) | (state.high - state.low <= resolution)

    return Rule(evaluate, init, step, exhausted)


def _propose(z: Scalar, slope: Scalar, curvature: Scalar, state: _Bracket) -> Scalar:
    """The next point: Newton's, the middle of the bracket, or further out."""
    direction = -jnp.sign(slope)
    end = jnp.where(slope < 0.0, state.high, state.low)
    convex = curvature > 0.0
    length = jnp.where(
        convex, jnp.abs(slope) / jnp.where(convex, curvature, 1.0), jnp.inf
    )
    closed = jnp.isfinite(end)
    room = jnp.abs(jnp.where(closed, end, z) - z)
    inside = jnp.where(
        (length < room) & (length <= 0.5 * state.last), length, 0.5 * room
    )
    outward = jnp.where(state.slow, 2.0 * state.last, jnp.minimum(length, state.last))
    return z + direction * jnp.where(closed, inside, outward)


def _tighten(state: _Bracket, z: Scalar, slope: Scalar) -> _Bracket:
    return state._replace(
        low=jnp.where(slope < 0.0, jnp.maximum(state.low, z), state.low),
        high=jnp.where(slope > 0.0, jnp.minimum(state.high, z), state.high),
    )


def _scalars(point: Point) -> tuple[Scalar, Scalar, Scalar]:
    z, slope, curvature = jax.tree.leaves((point.z, point.grad, point.curvature))
    return z, slope, curvature


def _select(condition: Array, yes: Any, no: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)
