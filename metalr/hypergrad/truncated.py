"""The derivative through the last K steps only: cheap, and biased by a known amount."""

import dataclasses

import jax
import jax.numpy as jnp

from .._checks import int_at_least
from .._programs.dependence import independent_leaves
from .._types import Hyper, Objective, Scalar
from ..runs.run import Run, advance, whole
from ._engine import HyperGradient, Options, run_of
from .facts import PLAIN_REVERSE, residual_bytes


@dataclasses.dataclass(frozen=True, repr=False)
class Truncated(Options):
    r"""Back-propagation through the last `last` steps; earlier ones are held fixed.

    $$\hat\nabla L_T = \nabla_\eta\, F\bigl(w_T(\eta;\, w_{T-K}),\, \eta\bigr)
      \quad\text{with } w_{T-K} \text{ (and the optimizer's state) constant}$$

    The value is that of the whole run. `last=1` is the step of hypergradient descent:
    $-g_T^\top g_{T-1}$ for the rate of `optax.sgd`. `last >= steps` is the exact
    derivative. The direct dependence of the outer loss on hyper is always kept.

    Bias: on a quadratic with a constant rate and no momentum the result is $K/T$ times
    the gradient; in general it can even have the wrong sign. The entries of a
    `per_step` hyperparameter are exact for the last K steps and 0 for those before.

    Memory: linear in `last`, whatever `steps` is. Time: about that of the run, and
    three times that of `last` more steps. Works with every optimizer, and under `jit`
    and `vmap`. Differentiated again, in either mode, it gives the derivatives of the
    same surrogate, $w_{T-K}$ constant: the Hessian is symmetric, and is that of
    $L_T$ only where `last >= steps`.

    Args:
        last: number K ≥ 1 of steps that are differentiated.

    Raises:
        ValueError: if `last` is not a positive int; when called, if the objective is
            not a run, or if a hyperparameter acts only before the last K
            steps (a learned start, say), whose derivative would be a silent 0.

    Example:
        >>> import optax, metalr
        >>> loss = lambda params, hyper, batch: 0.5 * params**2
        >>> L = metalr.Unrolled(loss, optax.sgd, 1.0, steps=4)
        >>> print(metalr.hypergradient(L, 0.5).grad)
        -0.03125
        >>> print(metalr.hypergradient(L, 0.5, metalr.Truncated(last=1)).grad)
        -0.0078125

    References:
        Williams & Peng (1990), An efficient gradient-based algorithm for on-line
        training of recurrent network trajectories. Shaban et al. (2019), Truncated
        back-propagation for bilevel optimization. Baydin et al. (2018), Online
        learning rate adaptation with hypergradient descent.
    """

    last: int

    def __post_init__(self) -> None:
        last = int_at_least(self.last, "last", 1, note=": it counts steps")
        object.__setattr__(self, "last", last)

    def exact(self, objective: Objective) -> bool:
        """Where no step is left out."""
        return self.last >= run_of(objective, self).steps

    def cost(self, objective: Objective, hyper: Hyper) -> float:
        """The run, and 2.3 for each step that is differentiated."""
        del hyper
        steps = max(run_of(objective, self).steps, 1)
        return 1.0 + PLAIN_REVERSE * min(self.last, steps) / steps

    def kept_bytes(self, objective: Objective, hyper: Hyper) -> int:
        """What plain reverse keeps of the last steps."""
        run = run_of(objective, self)
        split = max(run.steps - self.last, 0)

        def late(hyper: Hyper) -> Scalar:
            prepared = run.prepare(hyper)
            state = jax.lax.stop_gradient(run.init(prepared))
            end, _ = advance(run, prepared, state, split, run.steps - split)
            return run.evaluate(prepared, end)

        return residual_bytes(late, hyper)

    def __call__(self, objective: Objective, hyper: Hyper) -> HyperGradient:
        """Run without derivative up to step T − K, then `jax.value_and_grad`."""
        return self.with_run(objective, hyper)[0]

    def with_run(self, objective: Objective, hyper: Hyper) -> tuple[HyperGradient, Run]:
        """And the run, all of it."""
        run = run_of(objective, self)
        split = max(run.steps - self.last, 0)
        fixed, prepared = jax.lax.stop_gradient((run, run.prepare(hyper)))
        start = fixed.init(prepared)
        state, early = jax.lax.stop_gradient(
            advance(fixed, prepared, start, 0, split, records=True)
        )

        def surrogate(hyper: Hyper) -> tuple[Scalar, Run]:
            if not split:
                whole_run = whole(run, hyper)
                return whole_run.value, whole_run
            prepared = run.prepare(hyper)
            end, late = advance(
                run, prepared, state, split, run.steps - split, records=True
            )
            records = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), early, late)
            value = run.evaluate(prepared, end)
            return value, Run(value, end, records)

        missing = split and independent_leaves(lambda h: surrogate(h)[0], hyper)
        if missing:
            msg = (
                f"{', '.join(missing)} acts only before the last {self.last} of "
                f"{run.steps} steps, so that {self} would return a silent 0: take "
                "an engine that differentiates the whole run, such as metalr.Reverse()"
            )
            raise ValueError(msg)
        (value, end), grad = jax.value_and_grad(surrogate, has_aux=True)(hyper)
        return HyperGradient(value, grad), end
