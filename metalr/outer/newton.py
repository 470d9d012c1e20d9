"""Newton's method on the hypergradient of one scalar, safeguarded by a bracket."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._types import PyTree, Scalar
from .rules import Measures, Point, Rule, finite, select


@dataclasses.dataclass(frozen=True)
class Newton:
    r"""Newton's method on $L'(z) = 0$ for one scalar, safeguarded by a bracket.

    $z \leftarrow z - L'(z)/L''(z)$ where that stays inside the bracket (the nearest
    points left and right with $L' < 0$ and $L' > 0$) and the steps at least halve;
    otherwise the middle of the bracket. While one side is still open, steps that make
    slow progress, or where $L'' \le 0$, grow twofold. It stops as converged also when
    the bracket has shrunk to the resolution of the dtype. Ends at a minimum; with a
    projection, whose set is an interval here, at one of the ends where it is there.

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


class _Bracket(NamedTuple):
    low: Scalar  # the largest z seen with L' < 0
    high: Scalar  # the smallest z seen with L' > 0, or that diverged
    last: Scalar  # length of the last step
    slow: Array  # the last step did not halve the gradient


def newton(options: Newton, measures: Measures) -> Rule:
    """Safeguarded Newton steps on a single scalar leaf, of one and the same draw."""
    project = measures.project or (lambda z: z)

    def evaluate(z: PyTree, draw: Array) -> Point:
        def grad_value(z: PyTree) -> tuple[PyTree, tuple[Scalar, Scalar]]:
            value, grad, lost = measures.value_and_grad(z, draw)
            return grad, (value, lost)

        ones = jax.tree.map(jnp.ones_like, z)
        grad, curvature, (value, lost) = jax.jvp(
            grad_value, (z,), (ones,), has_aux=True
        )
        return Point(z, value, grad, curvature, lost, draw)

    def init(point: Point) -> _Bracket:
        z, slope = _scalars(point)[:2]
        infinity = jnp.full_like(z, jnp.inf)
        first = jnp.full_like(z, 0.5 * options.first_step)
        return _tighten(_Bracket(-infinity, infinity, first, jnp.array(True)), z, slope)

    def step(point: Point, state: _Bracket, draw: Array) -> tuple[Point, _Bracket]:
        z, slope, curvature = _scalars(point)
        proposed = _propose(z, slope, curvature, state)
        trial = evaluate(
            project(jax.tree.map(lambda leaf: proposed.astype(leaf.dtype), point.z)),
            draw,
        )
        (trial_z,) = jax.tree.leaves(trial.z)
        moved = state._replace(last=jnp.abs(trial_z - z))
        slope_there = _scalars(trial)[1]
        slow = jnp.abs(slope_there) > 0.5 * jnp.abs(slope)
        accepted = _tighten(moved._replace(slow=slow), trial_z, slope_there)
        # A diverged trial bounds the side it lies on.
        refused = _tighten(moved, trial_z, trial_z - z)
        good = finite(trial) & (trial.lost <= point.lost)
        return select(good, (trial, accepted), (point, refused))

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
