"""Persistent evolution strategies: fresh noise in each window, accumulated."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._types import Hyper, Objective, Scalar
from ..runs.run import State, advance
from ._engine import run_of
from ._smoothing import SmoothedHyperGradient, Smoothing, normal, shifted, weighted
from .persistent_online import Ensemble, ensemble_of, perturbed_window


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
    identity each of these is $E[L_T\,\varepsilon_k]/\sigma$. Of the published sum over
    windows only the last term stays where the value is that of the end alone; with
    `outer_weights` each window's part of it meets the ξ of that window. The start, and
    the optimizer's state at first, see the noise of the first window; the outer loss
    sees that of the last. One window (W ≥ T) is `EvolutionStrategies`; W = 1 on
    quadratics is the gradient of `metalr.theory.estimators.per_step_smoothed_loss`,
    which is much closer to L_T than the smoothing of a whole run is. Its price is
    variance, in proportion to T at a given W: every window's noise counts, whether or
    not its influence is still felt.

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
            run, for a `sigma` that does not fit hyper, or a hyperparameter that
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

    def pair(
        self, objective: Objective, hyper: Hyper, sigma: Hyper, key: Any
    ) -> tuple[Hyper, Scalar]:
        """The estimate of one pair, and its mean value."""
        draw = lambda index: normal(jax.random.fold_in(key, index), hyper)
        return persistent(run_of(objective, self), hyper, sigma, self.window, draw)

    def refuse_window(self, length: int) -> None:
        """Refuse windows of another length than its own."""
        if self.window != length:
            msg = (
                f"{self} perturbs windows of {self.window} steps, but length = "
                f"{length}: give both the same"
            )
            raise ValueError(msg)

    def begin(self, run: Any, hyper: Hyper) -> Ensemble:
        """The particles at the start of a run."""
        return ensemble_of(run, self, hyper)

    def through_window(
        self, window: Any, carried: Ensemble, hyper: Hyper
    ) -> tuple[State, Ensemble, SmoothedHyperGradient]:
        """The run and all particles through one window, and the estimate there."""
        return perturbed_window(window, carried, hyper, self)


class Particles(NamedTuple):
    """A pair on its way; leaves of `states` lead with an axis of two signs."""

    states: State
    total: Hyper  # ξ, all the noise that the states have seen
    noise: Hyper  # that of the last window
    grad: Hyper  # what the windows so far have contributed


def persistent(
    objective: Any,
    hyper: Hyper,
    sigma: Hyper,
    window: int,
    draw: Callable[[Any], Hyper],
) -> tuple[Hyper, Scalar]:
    """The estimate of one pair, and its mean value; `draw` gives a window's noise."""
    full, rest = divmod(objective.steps, window)
    both = functools.partial(_both, objective, hyper, sigma)

    def unroll(carry: Particles, index: Array, length: int) -> Particles:
        noise, first = draw(index), index * window
        run = lambda h, state: advance(objective, h, state, first, length)[0]
        states = both(run, noise, carry.states)
        total = jax.tree.map(jnp.add, carry.total, noise)
        known = both(lambda _, state: objective.accumulated(state), noise, states)
        before = both(lambda _, s: objective.accumulated(s), noise, carry.states)
        grad = jax.tree.map(
            jnp.add, carry.grad, weighted(total, sigma, *(known - before))
        )
        return Particles(states, total, noise, grad)

    first = draw(0)
    none = jax.tree.map(jnp.zeros_like, first)
    carry = Particles(both(objective.init, first), none, first, none)
    carry, _ = jax.lax.scan(
        lambda c, index: (unroll(c, index, window), None), carry, jnp.arange(full)
    )
    if rest:
        carry = unroll(carry, jnp.asarray(full), rest)
    total = carry.total if objective.steps else first  # only start and outer loss
    values = both(objective.evaluate, carry.noise, carry.states)
    known = both(lambda _, s: objective.accumulated(s), carry.noise, carry.states)
    last = weighted(total, sigma, *(values - known))
    return jax.tree.map(jnp.add, carry.grad, last), jnp.mean(values)


def _both(
    objective: Any,
    hyper: Hyper,
    sigma: Hyper,
    function: Callable[..., Any],
    noise: Hyper,
    *states: State,
) -> Any:
    r"""`function(hyper, *state)` of both particles, at $\eta \pm \sigma\varepsilon$."""

    def one(sign: Array, *state: State) -> Any:
        return function(objective.prepare(shifted(hyper, sigma, noise, sign)), *state)

    return jax.vmap(one)(jnp.array([1.0, -1.0]), *states)
