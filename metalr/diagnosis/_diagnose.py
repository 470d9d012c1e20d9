"""`diagnose`: sharpness, growth, contributions and burn-in along an unroll."""

import contextlib
import math
import textwrap
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .._checks import float_leaves, positive_int
from .._programs.compiled import compiled
from .._programs.dependence import check_dependence
from .._programs.limits import limiting_dtype
from .._types import Hyper
from ..hypergrad import Mixed
from ..runs.run import is_run
from ..runs.unrolled import Unrolled
from ._contributions import Parts, contributions, default_checkpoints, horizon
from ._edge import (
    At,
    Buffer,
    Kind,
    buffer_of,
    equivalent_rates,
    is_plain_average,
    weights_of,
)
from ._findings import Finding, findings
from ._forward import Ends, Steps, forward
from ._rough import metasmoothness, moved_starts, random_direction


class Diagnosis(NamedTuple):
    """What was seen along a run of T steps; numpy arrays and Python numbers.

    Attributes:
        losses: (T + 1,) inner losses L_s, as in `trajectory`.
        slopes: (T + 1,) dL_s/dη, along `direction`.
        gradient_norms: (T,) ‖∇ℓ(w_s)‖.
        tangent_norms: (T,) ‖dw_{s+1}/dη‖, along `direction`.
        sharpness: (T,) largest eigenvalue of the Hessian of step s's loss, in `metric`.
        sharpness_residual: (T,) an eigenvalue lies within this of `sharpness`.
        edge: (T,) the sharpness beyond which the optimizer oscillates apart; nan where
            it is not known.
        metric: what `sharpness` is the eigenvalue of, and how the edge was found.
        growth: (T,) log of the factor by which step s stretches a random tangent.
        lyapunov: mean of `growth` over the second half: the largest Lyapunov exponent.
        hypergradient_rate: growth of |dL_s/dη| a step, in log: `lyapunov` plus that of
            the gradient's norm, over the second half.
        contributions: (T,) what each step adds to the derivative of the outer loss.
        direct: what η adds to it directly, not through w_T.
        start: what it adds through a start that depends on it.
        total: derivative of the outer loss along `direction`, by forward mode.
        horizon_90: number of last steps whose derivative is within 10 % of the total,
            and stays so for more; None where there is no such number.
        horizon_99: the same, within 1 %.
        slope_peak: s where |dL_s/dη| is largest.
        first_not_finite: for "loss", "params" (with the optimizer's state) and
            "tangent" the first number of updates after which it isn't finite, or None.
        moved_totals: (3,) `total` where the start is moved at random by 1e-6, 1e-4 and
            1e-2 of each leaf's root mean square; near `total` where it is smooth.
        scale: what `total` would be if nothing canceled: ‖∇F(w_T)‖ ‖dw_T/dη‖.
        metasmoothness: of what the run ends in, along a random direction of hyper (see
            `metalr.diagnosis.metasmoothness`); 1 is smooth, 0 noise.
        direction: where in hyper the derivatives are taken.
        findings: what limits the hypergradient, and what to do; empty if nothing.
    """

    losses: np.ndarray
    slopes: np.ndarray
    gradient_norms: np.ndarray
    tangent_norms: np.ndarray
    sharpness: np.ndarray
    sharpness_residual: np.ndarray
    edge: np.ndarray
    metric: str
    growth: np.ndarray
    lyapunov: float
    hypergradient_rate: float
    contributions: np.ndarray
    direct: float
    start: float
    total: float
    horizon_90: int | None
    horizon_99: int | None
    slope_peak: int
    first_not_finite: dict[str, int | None]
    moved_totals: np.ndarray
    scale: float
    metasmoothness: float
    direction: Hyper
    findings: tuple[Finding, ...]

    def __str__(self) -> str:
        last = self.growth.size - 1
        lines = [
            f"loss {self.losses[0]:.6g} -> {self.losses[-1]:.6g} in {last + 1} steps, "
            f"derivative {self.total:.6g}",
            f"sharpness {self.sharpness[0]:.4g} -> {self.sharpness[last]:.4g}, edge "
            f"{self.edge[last]:.4g} ({self.metric})",
            f"growth a step, in log: perturbation {self.lyapunov:.4g}, "
            f"hypergradient {self.hypergradient_rate:.4g}",
            f"90 % of the derivative in the last {self.horizon_90} steps, "
            f"99 % in the last {self.horizon_99}; |slope| is largest at step "
            f"{self.slope_peak}",
            *(str(finding) for finding in self.findings),
        ]
        lines = lines if self.findings else [*lines, "nothing found"]
        fold = lambda line: textwrap.fill(line, 80, subsequent_indent="    ")
        return "\n".join(map(fold, lines))


def diagnose(
    objective: Any,
    hyper: Hyper,
    *,
    direction: Hyper | None = None,
    iterations: int = 8,
    checkpoints: int | None = None,
    key: Array | None = None,
) -> Diagnosis:
    r"""Look along an unroll for what makes its hypergradient useless, and say why.

    - *Sharpness* $\lambda_{\max}(\nabla^2\ell(w_s))$ against the *edge of stability*:
      2/η for gradient descent, 2(1 + β)/η with momentum β, 2(1 + β)/((1 + 2β)η) for
      Nesterov's, read off the linearized update, so schedules, per-step rates and
      weight decay are covered. Where weights have rates of their own (Adam) it is
      the Hessian $M^{1/2}\nabla^2\ell M^{1/2}$ weighted with the rates M that gradient
      descent would need for the same edge, which is 2; for Adam
      $M = \frac{1-\beta_1}{1+\beta_1}\eta P^{-1}$, so that the edge is that of Cohen et
      al., $\lambda_{\max}(P^{-1}\nabla^2\ell) = 38/\eta$ at β₁ = 0.9. Other optimizers:
      the plain Hessian, `edge` nan.
    - *Growth* of a random perturbation of the start under the steps' Jacobians
      (`lyapunov`), and of the hypergradient: beyond 2/λ_max on a quadratic
      $\log|1 - \eta\lambda_{\max}|$ and twice that.
    - *Contributions* $g_T^\top \frac{\partial w_T}{\partial w_{s+1}}
      \frac{\partial u_s}{\partial\eta}$ of each step s; their sums over the
      last K steps are what `Truncated(last=K)` returns.
    - *Burn-in*: where $|dL_s/d\eta|$ is largest before it falls.
    - *Kinks*: the derivative again where the start is moved by 1e-6, 1e-4 and 1e-2. A
      run that is linear between kinks (ReLU, max pooling) may grow no perturbation
      and yet have another derivative at once.
    - *Metasmoothness* of the final weights in hyper, along a random direction.
    - The first step at which loss, parameters or tangent are not finite.

    Not to be traced: returns numpy arrays. Compiles four programs. One pass forward
    (about 2 · `iterations` + 6 runs' time; in memory the state, two tangents, and
    `iterations` vectors of the size of params, whatever T), one reverse sweep with
    `checkpoints` states (about 6 runs' time), three runs forward with their
    derivative, three without; 10 numbers a step. With several hyperparameters and no
    direction, one more sweep.

    Args:
        objective: an `Unrolled`, or another run (a `Rollout`: then losses are the
            values of runs that end at step s, and what belongs to an inner loss is
            nan), with at least one step. Its step is pushed forward: a `custom_vjp`
            in it is refused.
        hyper: the point.
        direction: of the structure of `hyper`: the derivatives are taken along it. By
            default 1 for a scalar; for several numbers their normalized hypergradient
            (or all equal, where that is 0 or not finite).
        iterations: of Lanczos, a Hessian-vector product each, from the vector of the
            step before: the sharpness becomes exact within a few steps.
        checkpoints: states kept in the reverse sweep; about √(2T) by default.
        key: of the random tangent; `jax.random.key(0)` by default.

    Raises:
        ValueError: if the objective is not a run of at least one step, has no forward
            derivative, does not depend on a hyperparameter, `direction` is not of the
            structure of `hyper`, or a number is not a positive int.

    Example:
        >>> import optax, metalr
        >>> loss = lambda params, hyper, batch: 0.5 * params**2
        >>> L = metalr.Unrolled(loss, optax.sgd, 1.0, steps=20)
        >>> d = metalr.diagnose(L, 3.0)
        >>> print(f"{d.sharpness[-1]:.3f} > {d.edge[-1]:.3f}: {d.lyapunov:.3f}")
        1.000 > 0.667: 0.693
        >>> [finding.kind for finding in d.findings]
        ['explosion', 'beyond the edge']

    References:
        Cohen et al. (2021), Gradient descent on neural networks typically occurs at the
        edge of stability. Cohen et al. (2022), Adaptive gradient methods at the edge of
        stability. Metz et al. (2021), Gradients are not all you need. Scieur et al.
        (2022), The curse of unrolling: rate of differentiating through optimization.
        Engstrom et al. (2025), Optimizing ML training with metagradient descent.
    """
    if not is_run(objective) or objective.steps < 1:
        msg = f"diagnose follows a metalr.Unrolled of steps ≥ 1, not {objective!r}"
        raise ValueError(msg)
    positive_int(iterations, "iterations")
    positive_int(checkpoints, "checkpoints")
    hyper = float_leaves(hyper, "hyper")
    check_dependence(objective, hyper)
    dtype = limiting_dtype(objective, hyper)
    key = jax.random.key(0) if key is None else key
    checkpoints = checkpoints or default_checkpoints(objective.steps)
    direction = _direction(objective, hyper, direction, checkpoints)
    smooth = metasmoothness(objective, hyper, random_direction(hyper, key))
    # From here on in what the parts of the run take, which may be another pytree.
    hyper, along = jax.jvp(objective.prepare, (hyper,), (direction,))
    kind, uniform = _kind(objective, hyper)
    options = {"kind": kind, "uniform": uniform, "iterations": iterations}
    with _named_refusal():
        steps, ends = _forward(objective, hyper, along, key, **options)
    parts = _parts(objective, hyper, along, checkpoints=checkpoints)
    seen = _Seen(
        *jax.tree.map(np.asarray, (steps, ends, parts)),
        moved_totals=moved_starts(objective, hyper, along, key),
        metasmoothness=smooth,
    )
    d = _assemble(seen, direction, _METRICS[kind, uniform])
    return d._replace(findings=findings(d, dtype))


class _Seen(NamedTuple):
    """All that was computed; numpy arrays."""

    steps: Any  # Steps
    ends: Any  # Ends
    parts: Any  # Parts
    moved_totals: np.ndarray
    metasmoothness: float


@contextlib.contextmanager
def _named_refusal() -> Iterator[None]:
    """What JAX can't push forward, in words."""
    try:
        yield
    except TypeError as error:
        if "custom_vjp" not in str(error):
            raise
        msg = (
            "diagnose pushes perturbations forward along the run, and a custom_vjp in "
            "the loss or the optimizer has a reverse rule only: give it a custom_jvp "
            "(JAX derives the reverse rule), or compare engines with "
            "metalr.check_hypergrad, where Reverse() applies"
        )
        raise ValueError(msg) from error


@compiled
def _forward(
    objective: Any,
    hyper: Hyper,
    direction: Hyper,
    key: Array,
    *,
    kind: Kind,
    uniform: bool,
    iterations: int,
) -> tuple[Steps, Ends]:
    buffer = _buffer(objective, hyper)._replace(kind=kind)
    options = {"buffer": buffer, "uniform": uniform, "iterations": iterations}
    return forward(objective, hyper, direction, key, **options)


@compiled
def _parts(
    objective: Any, hyper: Hyper, direction: Hyper, *, checkpoints: int
) -> Parts:
    return contributions(objective, hyper, direction, checkpoints)


@compiled
def _gradient(objective: Any, hyper: Hyper, *, checkpoints: int) -> Hyper:
    return Mixed(checkpoints=checkpoints)(objective, hyper).grad


_METRICS = {
    ("plain", True): "Hessian; edge 2/η",
    ("plain", False): "Hessian weighted with the rates; edge 2",
    ("trace", True): "Hessian; edge of the momentum",
    ("trace", False): "Hessian weighted with equivalent rates; edge 2",
    ("average", True): "Hessian weighted with equivalent rates; edge 2",
    ("average", False): "Hessian weighted with equivalent rates; edge 2",
    ("unknown", True): "Hessian; edge unknown for this optimizer",
    ("unknown", False): "Hessian; edge unknown for this optimizer",
}


def _buffer(objective: Any, hyper: Hyper) -> Buffer:
    if isinstance(objective, Unrolled):
        return buffer_of(objective, hyper)
    return Buffer("unknown", lambda _: (), lambda state, _: state)


def _kind(objective: Any, hyper: Hyper) -> tuple[Kind, bool]:
    """The form of the optimizer, and whether all weights start with one rate."""
    buffer = _buffer(objective, hyper)
    if buffer.kind == "average":
        plain = bool(_plain_average(objective, hyper))
        return ("average", False) if plain else ("unknown", True)
    if buffer.kind == "unknown":
        return "unknown", True
    found = _first_rates(objective, hyper)
    if not bool(found.known):  # clipped, say; it may be known in later steps
        return buffer.kind, True
    low, high = float(jnp.min(found.rates)), float(jnp.max(found.rates))
    return buffer.kind, high - low <= 1e-4 * high


@compiled
def _plain_average(objective: Unrolled, hyper: Hyper) -> Array:
    return is_plain_average(objective, hyper, buffer_of(objective, hyper))


@compiled
def _first_rates(objective: Unrolled, hyper: Hyper) -> Any:
    state = objective.init(hyper)
    loss = objective.inner_loss(hyper, 0, state)
    value, grads = jax.value_and_grad(loss)(weights_of(objective, hyper, state))
    at = At(state, value, grads, jnp.array(0))
    return equivalent_rates(objective, hyper, buffer_of(objective, hyper), at)


def _direction(
    objective: Any, hyper: Hyper, direction: Hyper | None, checkpoints: int
) -> Hyper:
    if direction is not None:
        direction = float_leaves(direction, "direction")
        shapes = [jax.tree.map(jnp.shape, tree) for tree in (direction, hyper)]
        if shapes[0] != shapes[1]:
            msg = f"direction has shapes {shapes[0]}, hyper {shapes[1]}: must be equal"
            raise ValueError(msg)
        return jax.tree.map(lambda d, h: d.astype(h.dtype), direction, hyper)
    ones = jax.tree.map(jnp.ones_like, hyper)
    count = sum(leaf.size for leaf in jax.tree.leaves(hyper))
    if count == 1:
        return ones
    grad = _gradient(objective, hyper, checkpoints=checkpoints)
    size = float(np.linalg.norm([float(jnp.linalg.norm(x)) for x in _flat(grad)]))
    if not math.isfinite(size) or size == 0.0:
        return jax.tree.map(lambda x: x / math.sqrt(count), ones)
    return jax.tree.map(lambda x: x / size, grad)


def _flat(tree: Hyper) -> list[Array]:
    return [leaf.ravel() for leaf in jax.tree.leaves(tree)]


def _assemble(seen: _Seen, direction: Hyper, metric: str) -> Diagnosis:
    steps, ends, parts = seen.steps, seen.ends, seen.parts
    losses = np.append(steps.loss, ends.loss)
    slopes = np.append(steps.slope, ends.slope)
    first = {
        "loss": _first(~np.isfinite(losses), 0),
        "params": _first(~steps.finite_params, 1),
        "tangent": _first(~steps.finite_tangent, 1),
    }
    stop = min((at for at in first.values() if at is not None), default=len(losses) - 1)
    late = slice(stop // 2, max(stop, 1))
    lyapunov = float(np.mean(steps.growth[late]))
    direct, total = float(parts.direct), float(ends.total)
    size = np.where(np.isfinite(slopes), np.abs(slopes), -1.0)
    return Diagnosis(
        losses=losses,
        slopes=slopes,
        gradient_norms=steps.gradient,
        tangent_norms=steps.tangent,
        sharpness=steps.sharpness,
        sharpness_residual=steps.residual,
        edge=steps.edge,
        metric=metric,
        growth=steps.growth,
        lyapunov=lyapunov,
        hypergradient_rate=lyapunov + _rate(steps.gradient[late]),
        contributions=parts.steps,
        direct=direct,
        start=float(parts.start),
        total=total,
        horizon_90=horizon(parts.steps, direct, total, 0.9),
        horizon_99=horizon(parts.steps, direct, total, 0.99),
        slope_peak=int(np.argmax(size)),
        first_not_finite=first,
        moved_totals=seen.moved_totals,
        scale=float(ends.scale),
        metasmoothness=seen.metasmoothness,
        direction=direction,
        findings=(),
    )


def _rate(sizes: np.ndarray) -> float:
    """Mean growth in log; 0 where it is not known (a run without an inner loss)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        heights = np.log(sizes)
    rate = (heights[-1] - heights[0]) / max(heights.size - 1, 1)
    return 0.0 if np.isnan(sizes).all() else float(rate)


def _first(where: np.ndarray, offset: int) -> int | None:
    return int(np.argmax(where)) + offset if np.any(where) else None
