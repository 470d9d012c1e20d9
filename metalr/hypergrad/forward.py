"""Forward mode: tangents carried along with the run, in memory constant in steps."""

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from .._checks import positive_int
from .._types import Hyper, Objective, Scalar
from ..runs.run import Run, is_run, whole
from ._engine import HyperGradient, Options
from .facts import TANGENT, count, state_bytes


@dataclasses.dataclass(frozen=True, repr=False)
class Forward(Options):
    r"""One tangent $\dot w_s = \partial w_s / \partial\eta_i$ for each hyperparameter.

    $$\dot w_{s+1} = \frac{\partial w_{s+1}}{\partial w_s}\dot w_s
      + \frac{\partial w_{s+1}}{\partial\eta_i}$$

    Memory: constant in `steps`, linear in the number of tangents carried at once. Time:
    about twice that of the run for one hyperparameter, and linear in their number.
    Works on any traceable scalar function. The result can be batched by `vmap` and
    differentiated again in both modes.

    Args:
        chunk: tangents carried at once; None carries all of them. With a chunk the run
            is repeated for each chunk.

    Raises:
        ValueError: if `chunk` is not a positive int; when called, if something in the
            run has a `jax.custom_vjp`, which cannot be pushed forward.

    References:
        Franceschi et al. (2017), Forward and reverse gradient-based hyperparameter
        optimization.
    """

    chunk: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "chunk", positive_int(self.chunk, "chunk"))

    exact: ClassVar[bool] = True
    additive: ClassVar[bool] = True

    def cost(self, objective: Objective, hyper: Hyper) -> float:
        """The run and 1.1 for each tangent, once for each chunk."""
        del objective
        width = min(self.chunk or count(hyper), count(hyper))
        return math.ceil(count(hyper) / width) * (1.0 + TANGENT * width)

    def kept_bytes(self, objective: Objective, hyper: Hyper) -> int:
        """A state for each tangent that is carried at once."""
        if not is_run(objective):
            return 0
        width = min(self.chunk or count(hyper), count(hyper))
        return width * state_bytes(objective, hyper)

    def __call__(self, objective: Objective, hyper: Hyper) -> HyperGradient:
        """Value and gradient by `jax.jvp` along each coordinate of hyper."""
        return self._along(lambda h: (objective(h), None), hyper)[0]

    def with_run(self, objective: Objective, hyper: Hyper) -> tuple[HyperGradient, Run]:
        """And the run, all of it."""

        def value(hyper: Hyper) -> tuple[Scalar, Run]:
            run = whole(objective, hyper)
            return run.value, run

        return self._along(value, hyper)

    def _along(self, function: Any, hyper: Hyper) -> tuple[HyperGradient, Any]:
        """Value and gradient of `function`, and what else it returns."""
        flat, unravel = ravel_pytree(hyper)

        def along(index: Array) -> tuple[Array, Array, Any]:
            basis = jax.nn.one_hot(index, flat.size, dtype=flat.dtype)
            return jax.jvp(
                lambda h: function(unravel(h)), (flat,), (basis,), has_aux=True
            )

        if flat.size == 1:  # no axis of tangents: it would be traced a second time
            value, slope, rest = along(jnp.asarray(0))
            return HyperGradient(value, unravel(slope.astype(flat.dtype)[None])), rest
        indices = jnp.arange(flat.size)
        if self.chunk is None or self.chunk >= flat.size:
            value, slopes, rest = jax.vmap(along, out_axes=(None, 0, None))(indices)
        else:
            values, slopes, rest = jax.lax.map(along, indices, batch_size=self.chunk)
            value, rest = values[0], jax.tree.map(lambda x: x[0], rest)
        return HyperGradient(value, unravel(slopes.astype(flat.dtype))), rest
