"""Mixed mode: reverse over the unroll, forward over reverse within each step."""

import dataclasses

from .._checks import positive_int
from .._types import Hyper, Objective
from ._engine import HyperGradient
from ._parts import Options, unrolled_with
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

    Needs an `Unrolled`. Its result can be batched by `vmap` and differentiated again:
    `Mixed()` in both modes, `Mixed(checkpoints=n)` in forward mode.

    Args:
        checkpoints: states to keep; None keeps all.
        microbatch: as in `Unrolled`, for the inner gradient.

    Raises:
        ValueError: if an option is not a positive int, or the objective is not an
            `Unrolled`.

    References:
        Kemaev et al. (2025), Scalable meta-learning via mixed-mode differentiation,
        arXiv 2505.00793.
    """

    checkpoints: int | None = None
    microbatch: int | None = None

    def __post_init__(self) -> None:
        positive_int(self.checkpoints, "checkpoints")
        positive_int(self.microbatch, "microbatch")

    def __call__(self, objective: Objective, hyper: Hyper) -> HyperGradient:
        """Value and gradient by an explicit reverse sweep."""
        changes = {} if self.microbatch is None else {"microbatch": self.microbatch}
        run = unrolled_with(objective, self, **changes)
        if self.checkpoints is None:
            return every_state(run, hyper)
        return binomial(run, hyper, self.checkpoints)
