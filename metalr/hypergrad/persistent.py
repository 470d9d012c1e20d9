"""Persistent evolution strategies: fresh noise in each window, accumulated."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from .._checks import expand_prefix
from .._types import Hyper, Objective, Scalar
from ..runs.unrolled import State, Unrolled
from ._parts import unrolled_with
from ._smoothing import SmoothedHyperGradient, Smoothing, normal, shifted, weighted


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class PersistentES(Smoothing):
    r"""Antithetic evolution strategies with new noise in each window of the run.

    The T steps are cut into windows of W (the last may be shorter). A pair of
    particles carries its states from window to window; in window k it runs at
    $\eta \pm \sigma\varepsilon_k$, with $\varepsilon_k$ drawn anew, and keeps the sum
    $\xi = \sum_k\varepsilon_k$ of all perturbations that its state has seen:

    $$\hat g = \frac1N\sum_{i=1}^N \frac{L_T^{+i} - L_T^{-i}}{2\sigma}\,\xi_i$$

    What it estimates, without bias, is the gradient of

    $$E\,L_T(\eta+\sigma\varepsilon_1,\,\dots,\,\eta+\sigma\varepsilon_K),$$

    the loss of a run whose hyperparameters are jittered from window to window: the
    derivative in the common η is the sum of those in each window's copy, and by Stein's
    identity each of these is $E[L_T\,\varepsilon_k]/\sigma$. Here the outer loss is
    that of the end alone, so that of the published sum over windows only the last term
    stays. The start, and the optimizer's state at first, see the noise of the first
    window; the outer loss sees that of the last. One window (W ≥ T) is
    `EvolutionStrategies`; W = 1 on quadratics is the gradient of
    `metalr.theory.estimators.per_step_smoothed_loss`, which is much closer to L_T than
    the smoothing of a whole run is. Its price is variance, in proportion to T at a
    given W: every window's noise counts, whether or not its influence is still felt.

    A truncated gradient, by contrast, has less variance and a bias: see `Truncated`.
    Everything else (value, standard error, what a key means, diverged runs) is as in
    `EvolutionStrategies`.

    Memory: constant in `steps`; 2·`chunk` states at once, and N estimates of the size
    of hyper. Time: 2N + 1 runs. Works for every optimizer, for objectives without a
    derivative, under `jit` and `vmap`, and can be differentiated again wherever the
    objective can. For a `per_step` hyperparameter it is unbiased and wasteful:
    each entry matters in one window only, but gets the noise of all.

    Args:
        sigma: deviation σ of the noise: a positive number, or a pytree that is a prefix
            of hyper, with leaves that broadcast to its leaves.
        pairs: number N ≥ 1 of antithetic pairs; at least 2 for a standard error.
        window: number W ≥ 1 of steps that share one perturbation.
        key: a random key or an int seed.
        chunk: pairs that run at once; None runs all of them.

    Returns:
        When called: a `SmoothedHyperGradient`, with `standard_error` and `smoothed`
        beside value and gradient.

    Raises:
        ValueError: for options out of range; when called, if the objective is not an
            `Unrolled`, for a `sigma` that does not fit hyper, or a hyperparameter that
            no path, differentiable or not, joins to the value.

    Example:
        >>> import jax, optax, metalr
        >>> loss = lambda params, hyper, batch: 0.5 * params**2
        >>> L = metalr.Unrolled(loss, optax.sgd, 1.0, steps=2)
        >>> engine = metalr.PersistentES(0.01, 1000, 1, jax.random.key(0))
        >>> result = metalr.hypergradient(L, 0.5, engine)
        >>> print(bool(abs(result.grad + 0.25) < 4 * result.standard_error))
        True

    References:
        Vicol, Metz, Sohl-Dickstein (2021), Unbiased gradient estimation in unrolled
        computation graphs with persistent evolution strategies.
    """

    static: ClassVar[tuple[str, ...]] = ("pairs", "window", "chunk")

    sigma: Any
    pairs: int
    window: int
    key: Any
    _: dataclasses.KW_ONLY
    chunk: int | None = None

    def __post_init__(self) -> None:
        self.check()

    def __call__(self, objective: Objective, hyper: Hyper) -> SmoothedHyperGradient:
        """Run the pairs window by window, and the unperturbed run for the value."""
        unrolled = unrolled_with(objective, self)
        sigma = expand_prefix(self.sigma, hyper, "sigma")

        def pair(key: Any) -> tuple[Hyper, Scalar]:
            draw = lambda index: normal(jax.random.fold_in(key, index), hyper)
            return persistent(unrolled, hyper, sigma, self.window, draw)

        return self.estimate(unrolled(hyper), pair)


def persistent(
    objective: Unrolled,
    hyper: Hyper,
    sigma: Hyper,
    window: int,
    draw: Callable[[Any], Hyper],
) -> tuple[Hyper, Scalar]:
    """The estimate of one pair, and its mean value; `draw` gives a window's noise."""
    signs = jnp.array([1.0, -1.0])
    full, rest = divmod(objective.steps, window)

    def both(run: Callable[..., Any], noise: Hyper, *states: State) -> Any:
        def one(sign: jax.Array, *state: State) -> Any:
            return run(objective.prepare(shifted(hyper, sigma, noise, sign)), *state)

        return jax.vmap(one)(signs, *states)

    def unroll(
        carry: tuple[State, Hyper, Hyper], index: jax.Array, length: int
    ) -> tuple[State, Hyper, Hyper]:
        states, total, _ = carry
        noise, first = draw(index), index * window
        run = lambda h, state: _steps(objective, h, state, first, length)
        return both(run, noise, states), jax.tree.map(jnp.add, total, noise), noise

    first = draw(0)
    none = jax.tree.map(jnp.zeros_like, first)
    carry = both(objective.init, first), none, first
    carry, _ = jax.lax.scan(
        lambda c, index: (unroll(c, index, window), None), carry, jnp.arange(full)
    )
    if rest:
        carry = unroll(carry, jnp.asarray(full), rest)
    states, total, last = carry
    total = total if objective.steps else first  # nothing but start and outer loss
    end = lambda h, state: objective.evaluate(h, state.params)
    plus, minus = both(end, last, states)
    return weighted(total, sigma, plus, minus), 0.5 * (plus + minus)


def _steps(
    objective: Unrolled, hyper: Hyper, state: State, first: jax.Array, length: int
) -> State:
    def body(state: State, offset: jax.Array) -> tuple[State, None]:
        return objective.step(hyper, state, first + offset)[0], None

    return jax.lax.scan(body, state, jnp.arange(length))[0]
