"""The derivative through the last K steps only: cheap, and biased by a known amount."""

import dataclasses

import jax
import jax.numpy as jnp

from .._programs.dependence import independent_leaves
from .._types import Hyper, Objective, Scalar
from ..runs.unrolled import State, Unrolled
from ._engine import HyperGradient
from ._parts import Options, unrolled_with


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
            not an `Unrolled`, or if a hyperparameter acts only before the last K
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
        if (
            isinstance(self.last, bool)
            or not isinstance(self.last, int)
            or self.last < 1
        ):
            msg = f"last = {self.last!r} must be an int ≥ 1: it counts steps"
            raise ValueError(msg)

    def __call__(self, objective: Objective, hyper: Hyper) -> HyperGradient:
        """Run without derivative up to step T − K, then `jax.value_and_grad`."""
        unrolled = unrolled_with(objective, self)
        if self.last >= unrolled.steps:
            return HyperGradient(*jax.value_and_grad(unrolled)(hyper))
        split = unrolled.steps - self.last
        fixed = jax.lax.stop_gradient((unrolled, unrolled.prepare(hyper)))
        state = jax.lax.stop_gradient(_run(*fixed, None, 0, split))

        def surrogate(hyper: Hyper) -> Scalar:
            hyper = unrolled.prepare(hyper)
            end = _run(unrolled, hyper, state, split, unrolled.steps)
            return unrolled.evaluate(hyper, end.params)

        missing = independent_leaves(surrogate, hyper)
        if missing:
            msg = (
                f"{', '.join(missing)} acts only before the last {self.last} of "
                f"{unrolled.steps} steps, so that {self} would return a silent 0: take "
                "an engine that differentiates the whole run, such as metalr.Reverse()"
            )
            raise ValueError(msg)
        return HyperGradient(*jax.value_and_grad(surrogate)(hyper))


def _run(
    objective: Unrolled, hyper: Hyper, state: State | None, start: int, stop: int
) -> State:
    """The state after steps `start` to `stop - 1`; `hyper` is prepared."""

    def body(state: State, index: jax.Array) -> tuple[State, None]:
        return objective.step(hyper, state, index)[0], None

    state = objective.init(hyper) if state is None else state
    return jax.lax.scan(body, state, jnp.arange(start, stop))[0]
