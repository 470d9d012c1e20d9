"""Reverse mode: one sweep back through the run, for any number of hyperparameters."""

import dataclasses
from typing import ClassVar

import jax

from .._checks import positive_int
from .._types import Hyper, Objective, Scalar
from ..runs.run import Run, whole
from ._engine import HyperGradient, Options, run_of
from .binomial import forward_steps
from .facts import (
    PLAIN_REVERSE,
    PULL_BACK,
    nested_levels,
    residual_bytes,
    state_bytes,
)
from .sweep import binomial


@dataclasses.dataclass(frozen=True, repr=False)
class Reverse(Options):
    r"""Back-propagation through the unroll, in as much memory as you give it.

    $$\bar w_s = \Bigl(\frac{\partial w_{s+1}}{\partial w_s}\Bigr)^{\!\top}
      \bar w_{s+1}, \qquad \nabla L_T = \frac{\partial F}{\partial\eta} + \sum_s
      \Bigl(\frac{\partial w_{s+1}}{\partial\eta}\Bigr)^{\!\top}\bar w_{s+1}$$

    `Reverse()` is `jax.value_and_grad`: memory linear in `steps`, of all that each step
    computes (or as the objective's own `checkpoints` say). Works on any traceable
    scalar function; its result can be differentiated again in both modes.

    `Reverse(checkpoints=n)` keeps at most n states, plus the work of one step, for any
    `steps` and n ≥ 1. It runs `forward_steps(steps, n)` steps (`binomial`, the
    least possible; about $\sqrt{2T}$ states cost one further run, $\log_2 T$ about
    two and a half), and pulls back through each: with one Hessian-vector product where
    the inner field is a gradient, else (a `Rollout`, a `stop_gradient` or a rule of
    one's own in the loss) by `jax.vjp` of the step. It is an explicit sweep: its result
    can be batched by `vmap` and differentiated in forward mode (`jax.jacfwd`: a Hessian
    in bounded memory); reverse mode through it raises JAX's error on loops.

    Args:
        checkpoints: states to keep, or None.

    Raises:
        ValueError: if `checkpoints` is not a positive int, or is given for an objective
            that is not a run.

    References:
        Griewank, Walther (2000), Algorithm 799: Revolve. Maclaurin et al. (2015),
        Gradient-based hyperparameter optimization through reversible learning. Kemaev
        et al. (2025), Scalable meta-learning via mixed-mode differentiation.
    """

    checkpoints: int | None = None

    def __post_init__(self) -> None:
        checkpoints = positive_int(self.checkpoints, "checkpoints")
        object.__setattr__(self, "checkpoints", checkpoints)

    exact: ClassVar[bool] = True
    additive: ClassVar[bool] = True

    @property
    def family(self) -> str | None:
        """With `checkpoints` it is the sweep that `Mixed` is."""
        return None if self.checkpoints is None else "sweep"

    def cost(self, objective: Objective, hyper: Hyper) -> float:
        """The run and 2.3; a sweep: the steps run forward, and 2.7 to pull back."""
        del hyper
        if self.checkpoints is None:
            return 1.0 + PLAIN_REVERSE + len(nested_levels(objective))
        steps = max(run_of(objective, self).steps, 1)
        return (forward_steps(steps, self.checkpoints) + 1) / steps + PULL_BACK

    def kept_bytes(self, objective: Objective, hyper: Hyper) -> int:
        """The states kept; plain: all residuals, or the states of nested scans."""
        if self.checkpoints is not None:
            run = run_of(objective, self)
            return min(self.checkpoints, run.steps) * state_bytes(run, hyper)
        levels = nested_levels(objective)
        if levels:
            return sum(levels) * state_bytes(objective, hyper)
        return residual_bytes(objective, hyper)

    def __call__(self, objective: Objective, hyper: Hyper) -> HyperGradient:
        """Value and gradient by a reverse sweep."""
        if self.checkpoints is None:
            return HyperGradient(*jax.value_and_grad(objective)(hyper))
        return binomial(run_of(objective, self), hyper, self.checkpoints)[0]

    def with_run(self, objective: Objective, hyper: Hyper) -> tuple[HyperGradient, Run]:
        """And the run; its records are kept where all of it is."""
        if self.checkpoints is not None:
            return binomial(run_of(objective, self), hyper, self.checkpoints)

        def value(hyper: Hyper) -> tuple[Scalar, Run]:
            run = whole(objective, hyper)
            return run.value, run

        (value_, run), grad = jax.value_and_grad(value, has_aux=True)(hyper)
        return HyperGradient(value_, grad), run
