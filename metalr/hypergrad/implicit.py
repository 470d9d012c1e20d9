"""The derivative of the minimum itself, by the implicit function theorem."""

import dataclasses
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from .._checks import int_at_least
from .._programs.dependence import independent_leaves
from .._types import Hyper, Objective, Params, Scalar
from ..runs.gradient import trained
from ..runs.precision import widest
from ..runs.unrolled import Unrolled
from ._engine import Options, unrolled_of
from ._minimum import End, gradient_at, linearized, minimizer_of, shapes_at_end
from .facts import PULL_BACK


class ImplicitHyperGradient(NamedTuple):
    r"""Value and gradient by the implicit function theorem, and how far to trust them.

    The theorem holds where `stationarity` is 0; the linear system is solved where
    `linear_residual` is.
    """

    value: Scalar
    grad: Hyper
    linear_residual: Float[Array, "*batch"]
    r"""$\|Hq - \nabla_w F\| / \|\nabla_w F\|$ of the q used; 0 where both are 0."""
    stationarity: Float[Array, "*batch"]
    r"""$\|\nabla_w \ell(w_T)\|$, of the mean over batches where there are some."""


@dataclasses.dataclass(frozen=True, repr=False)
class Implicit(Options):
    r"""The derivative of $F(w^*(\eta), \eta)$ at $w^* = w_T$, not through the run.

    $$\frac{dF}{d\eta} = \frac{\partial F}{\partial\eta} -
      \frac{\partial^2\ell}{\partial\eta\,\partial w}\,q, \qquad
      Hq = \frac{\partial F}{\partial w},\quad
      H = \frac{\partial^2\ell}{\partial w^2}$$

    exact where $w_T$ is a minimum of the inner loss with $H \succ 0$; what that takes
    is returned: see `ImplicitHyperGradient`. The inner loss ℓ is that of the objective
    or, where there are batches, its mean over all batches of the run, one
    pass over them in each iteration (a single batch is not stationary at $w_T$).

    - `"cg"`: conjugate gradients on $Hq = \nabla_w F$, at most `iterations` of them,
      until the residual is `rtol` (at least one rounding) times the right-hand side.
    - `"neumann"`: $q = \alpha\sum_{j<K}(I - \alpha H)^j\,\nabla_w F$ with $\alpha$ =
      `rate` and K = `iterations` terms, convergent for $\alpha < 2/\lambda_{\max}$.
      Exactly the derivative of K steps of gradient descent of that rate from $w_T$.

    A hyperparameter that only steers the optimizer, or the start, has no implicit
    derivative (the minimum does not depend on it): it is refused, decided on the traced
    program. One that enters the outer loss alone is fine, since $w_T$ does not depend
    on it either; and of one that enters both the inner loss and the optimizer the
    implicit derivative is that through the loss.

    Memory: a few gradients, whatever `steps` is. Time: that of the run, and a
    Hessian-vector product for each iteration. Works under `jit` and `vmap`.
    Differentiated again, in either mode, $w_T$ moves by the same theorem: the
    Hessian is that of $F(w^*(\eta), \eta)$ (each inner solve to `rtol`, or K terms).

    Args:
        solver: `"cg"` or `"neumann"`.
        iterations: most iterations of cg, or the number of terms K.
        rtol: where cg stops.
        rate: the rate α of `"neumann"`.

    Returns:
        When called: an `ImplicitHyperGradient`, with `linear_residual` and
        `stationarity` beside value and gradient. Nothing is raised where they are
        large: compare them with the accuracy that is needed.

    Raises:
        ValueError: for options out of range, or a `rate` without `"neumann"` (or none
            with it). When called: if the objective is not an `Unrolled`, or a
            hyperparameter only steers the optimizer, naming it.

    Example:
        >>> import optax, metalr
        >>> loss = lambda params, hyper, batch: (params - 3.0) ** 2 + hyper * params**2
        >>> outer = lambda params, hyper: params**2
        >>> optimizer = lambda hyper: optax.sgd(0.2)
        >>> L = metalr.Unrolled(loss, optimizer, 0.0, steps=99, outer_loss=outer)
        >>> result = metalr.hypergradient(L, 0.5, metalr.Implicit())
        >>> print(f"{result.value:.4f} {result.grad:.4f}")  # w* = 3 / (1 + hyper)
        4.0000 -5.3333

    References:
        Bengio (2000), Gradient-based optimization of hyperparameters. Pedregosa (2016),
        Hyperparameter optimization with approximate gradient. Lorraine, Vicol,
        Duvenaud (2020), Optimizing millions of hyperparameters by implicit
        differentiation (Neumann series).
    """

    solver: Literal["cg", "neumann"] = "cg"
    _: dataclasses.KW_ONLY
    iterations: int = 100
    rtol: float = 1e-6
    rate: float | None = None

    def __post_init__(self) -> None:
        if self.solver not in ("cg", "neumann"):
            msg = f"solver = {self.solver!r} must be 'cg' or 'neumann'"
            raise ValueError(msg)
        count = int_at_least(self.iterations, "iterations", 1)
        object.__setattr__(self, "iterations", count)
        if not self.rtol >= 0.0:
            msg = f"rtol = {self.rtol!r} must be ≥ 0"
            raise ValueError(msg)
        if (self.solver == "neumann") != (self.rate is not None):
            msg = (
                f"rate = {self.rate!r} with solver={self.solver!r}: the Neumann series "
                "needs the rate of its steps, conjugate gradients take none"
            )
            raise ValueError(msg)
        if self.rate is not None and not self.rate > 0.0:
            msg = f"rate = {self.rate!r} must be positive"
            raise ValueError(msg)

    def refuse(self, objective: Objective, hyper: Hyper) -> None:
        """Refuse another run, a Hessian that is not symmetric, and what only steers.

        Raises:
            ValueError: naming what was found.
        """
        run = unrolled_of(objective, self, "it differentiates a minimum of the loss")
        if run.outer_weights is not None:
            msg = (
                f"{self} knows the end of the run alone, and the objective has "
                "outer_weights along the run: take metalr.Reverse() or Forward()"
            )
            raise ValueError(msg)
        _refuse_rules(run, hyper, self)
        _refuse_steering(run, hyper, self)

    exact: ClassVar[bool] = False  # of the run; it is the minimum's derivative

    def cost(self, objective: Objective, hyper: Hyper) -> float:
        """The run, and 2.7 for each product: of one step, or of all the batches."""
        del hyper
        run = unrolled_of(objective, self, "its inner loss is minimized")
        pass_ = 1.0 / max(run.steps, 1) if run.batches is None else 1.0
        return 1.0 + PULL_BACK * (self.iterations + 1) * pass_

    def kept_bytes(self, objective: Objective, hyper: Hyper) -> int:
        """Nothing of the run."""
        del objective, hyper
        return 0

    def __call__(self, objective: Objective, hyper: Hyper) -> ImplicitHyperGradient:
        """Run without derivative, then solve one linear system at the end."""
        self.refuse(objective, hyper)
        assert isinstance(objective, Unrolled)
        prepared = objective.prepare(hyper)
        end = minimizer_of(objective, prepared, self.solve)
        value, (by_hyper, by_params) = jax.value_and_grad(
            lambda h, w: objective.evaluate(h, end.at(w)), argnums=(0, 1)
        )(prepared, end.params)

        gradient, hessian, mixed = linearized(objective, prepared, end)
        solution = self.solve(hessian, by_params)
        grad = jax.tree.map(
            lambda direct, through, h: (direct - through).astype(h.dtype),
            by_hyper,
            mixed(solution),
            hyper,
        )
        residual = optax.tree.norm(optax.tree.sub(hessian(solution), by_params))
        size = optax.tree.norm(by_params)
        relative = residual / jnp.where(size > 0.0, size, 1.0)
        stationarity = optax.tree.norm(gradient)
        return ImplicitHyperGradient(value, grad, relative, stationarity)

    def solve(self, hessian: Any, target: Params) -> Params:
        """Solve H q = target; transposed and differentiated as an exact solve."""

        def conjugate_gradients(hessian: Any, target: Params) -> Params:
            # Below one rounding the residual's recurrence ends in 0/0.
            least = float(jnp.finfo(widest(target)).eps)
            return jax.scipy.sparse.linalg.cg(
                hessian, target, tol=max(self.rtol, least), maxiter=self.iterations
            )[0]

        def neumann(hessian: Any, target: Params) -> Params:
            assert self.rate is not None
            rate = self.rate

            def term(_: Array, carry: tuple[Params, Params]) -> tuple[Params, Params]:
                total, power = carry
                power = optax.tree.add_scale(power, -rate, hessian(power))
                return optax.tree.add(total, power), power

            total, _ = jax.lax.fori_loop(1, self.iterations, term, (target, target))
            return optax.tree.scale(rate, total)

        method = conjugate_gradients if self.solver == "cg" else neumann
        return jax.lax.custom_linear_solve(hessian, target, method, symmetric=True)


def _refuse_rules(objective: Unrolled, hyper: Hyper, engine: Implicit) -> None:
    state = shapes_at_end(objective, hyper)
    found = objective.rules(objective.prepare(hyper), state, 0)
    if found:
        msg = (
            f"the inner loss has its own derivatives ({', '.join(found)}), so that the "
            f"derivative of its gradient need not be symmetric, as {engine} takes it "
            "to be: take an engine that differentiates the run, such as "
            "metalr.Reverse()"
        )
        raise ValueError(msg)


def _refuse_steering(objective: Unrolled, hyper: Hyper, engine: Implicit) -> None:
    """Refuse a leaf that moves the run but not the minimum, or nothing at all."""
    state = shapes_at_end(objective, hyper)
    end = End(trained(state.params), state)

    def gradient(hyper: Hyper) -> Params:
        return gradient_at(objective, objective.prepare(hyper), end.params, end)

    def outer(hyper: Hyper) -> Scalar:
        return objective.evaluate(objective.prepare(hyper), state)

    silent = independent_leaves(outer, hyper)
    outside = independent_leaves(objective.final_params, hyper)
    steering = [
        name
        for name in independent_leaves(gradient, hyper)
        if name in silent or name not in outside
    ]
    if steering:
        msg = (
            f"the inner loss does not depend on {', '.join(steering)}, which only "
            "steers the optimizer or the start: its minimum does not move, so there is "
            f"no implicit derivative, and {engine} would return a silent 0. "
            "Take an engine that differentiates the run, such as metalr.Reverse()"
        )
        raise ValueError(msg)
