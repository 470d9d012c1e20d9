"""Mixed mode: reverse over the unroll, forward over reverse within each step."""

import dataclasses
from typing import ClassVar

from .._checks import positive_int
from .._types import Hyper, Objective
from ..runs.run import Run
from ._engine import HyperGradient, Options, run_of
from .binomial import forward_steps
from .facts import PULL_BACK, state_bytes
from .sweep import binomial, every_state


@dataclasses.dataclass(frozen=True, repr=False)
class Mixed(Options):
    r"""Reverse mode whose Hessian-vector products are forward-over-reverse.

    A step's pullback needs $\nabla^2\ell\,\bar g$. The Hessian is symmetric, so that
    product is a forward-mode derivative of the inner gradient, and nothing within the
    inner gradient is stored: memory is one state a step (`Mixed()`), without
    recomputing the run, or n states (`Mixed(checkpoints=n)`, the same sweep as
    `Reverse(checkpoints=n)`). Against plain reverse mode, which stores the
    activations of every step, this gains most where these are large; against
    per-step rematerialization it gains little in memory, and some time.

    Where the field is not a gradient (a `stop_gradient`, a `custom_vjp` or a
    `custom_jvp` in the loss), with `model_state`, and for a `Rollout`, whose step has
    no loss of its own, the pullback is `jax.vjp` of one step: right for every step, and
    it keeps what that one step computes. The result can be batched by `vmap` and
    differentiated again: `Mixed()` in both modes, `Mixed(checkpoints=n)` in forward
    mode.

    Args:
        checkpoints: states to keep; None keeps all.

    Raises:
        ValueError: if `checkpoints` is not a positive int, or the objective is no run.

    References:
        Kemaev et al. (2025), Scalable meta-learning via mixed-mode differentiation,
        arXiv 2505.00793.
    """

    checkpoints: int | None = None

    def __post_init__(self) -> None:
        checkpoints = positive_int(self.checkpoints, "checkpoints")
        object.__setattr__(self, "checkpoints", checkpoints)

    exact: ClassVar[bool] = True

    @property
    def family(self) -> str | None:
        """With `checkpoints` it is the sweep that `Reverse` is."""
        return None if self.checkpoints is None else "sweep"

    def cost(self, objective: Objective, hyper: Hyper) -> float:
        """The steps that are run forward, and 2.7 to pull back through them."""
        del hyper
        steps = max(run_of(objective, self).steps, 1)
        if self.checkpoints is None:
            return 1.0 + PULL_BACK
        return (forward_steps(steps, self.checkpoints) + 1) / steps + PULL_BACK

    def kept_bytes(self, objective: Objective, hyper: Hyper) -> int:
        """The states that are kept: all, or `checkpoints` of them."""
        run = run_of(objective, self)
        places = min(self.checkpoints or run.steps, run.steps)
        return places * state_bytes(run, hyper)

    def __call__(self, objective: Objective, hyper: Hyper) -> HyperGradient:
        """Value and gradient by an explicit reverse sweep."""
        if self.checkpoints is None:
            return every_state(run_of(objective, self), hyper)[0]
        return binomial(run_of(objective, self), hyper, self.checkpoints)[0]

    def with_run(self, objective: Objective, hyper: Hyper) -> tuple[HyperGradient, Run]:
        """And the run; its records are kept where every state is."""
        if self.checkpoints is None:
            return every_state(run_of(objective, self), hyper, records=True)
        return binomial(run_of(objective, self), hyper, self.checkpoints)
