"""Forward mode: tangents carried along with the run, in memory constant in steps."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from .._checks import positive_int
from .._types import Hyper, Objective
from ._engine import HyperGradient
from ._parts import Options, unrolled_with


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
        microbatch: as in `Unrolled`, for the inner gradient; the objective must be one.

    Raises:
        ValueError: if an option is not a positive int.

    References:
        Franceschi et al. (2017), Forward and reverse gradient-based hyperparameter
        optimization.
    """

    chunk: int | None = None
    microbatch: int | None = None

    def __post_init__(self) -> None:
        positive_int(self.chunk, "chunk")
        positive_int(self.microbatch, "microbatch")

    def __call__(self, objective: Objective, hyper: Hyper) -> HyperGradient:
        """Value and gradient by `jax.jvp` along each coordinate of hyper."""
        if self.microbatch is not None:
            objective = unrolled_with(objective, self, microbatch=self.microbatch)
        flat, unravel = ravel_pytree(hyper)

        def along(index: jax.Array) -> tuple[jax.Array, jax.Array]:
            basis = jax.nn.one_hot(index, flat.size, dtype=flat.dtype)
            return jax.jvp(lambda h: objective(unravel(h)), (flat,), (basis,))

        indices = jnp.arange(flat.size)
        if self.chunk is None or self.chunk >= flat.size:
            value, slopes = jax.vmap(along, out_axes=(None, 0))(indices)
        else:
            values, slopes = jax.lax.map(along, indices, batch_size=self.chunk)
            value = values[0]
        return HyperGradient(value, unravel(slopes.astype(flat.dtype)))
