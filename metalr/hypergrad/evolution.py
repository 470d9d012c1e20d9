"""Evolution strategies: the gradient of a smoothed objective, from values alone."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from .._types import Hyper, Objective, Scalar
from ._smoothing import Smoothing, normal, shifted, weighted


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class EvolutionStrategies(Smoothing):
    r"""Antithetic evolution strategies: one perturbation for a whole run.

    $$\hat g = \frac1N\sum_{i=1}^N
      \frac{L(\eta + \sigma\varepsilon_i) - L(\eta - \sigma\varepsilon_i)}{2\sigma}\,
      \varepsilon_i, \qquad \varepsilon_i \sim N(0, I),$$

    an unbiased estimate of the gradient of $E\,L(\eta + \sigma\varepsilon)$: not of
    L itself, but of L smoothed over a width σ. That is finite where L has no derivative
    (an accuracy, a rounding), and gentle where the derivative explodes. On quadratics
    the smoothed loss is `metalr.theory.estimators.smoothed_loss`.

    The value is that of the unperturbed run. With `grad` comes its `standard_error`;
    it falls like $1/\sqrt N$ and grows with the number of hyperparameters. The noise is
    a function of `key`: the same key gives the same noise, at every hyper, so that the
    estimate is a deterministic function, fit for an outer loop (`learn`), whose
    optimum carries the noise of that key. For fresh noise in each call pass a new key:
    nothing is compiled anew. A run that diverges, one of 2N, makes the estimate inf or
    nan: choose σ so that the whole cloud is stable.

    Memory: constant in `steps`; 2·`chunk` states at once, and N estimates of the size
    of hyper. Time: 2N + 1 runs. Works on any traceable scalar function, under `jit`
    and `vmap` (over hyper, keys or sigmas), and can be differentiated again wherever
    the objective can.

    Args:
        sigma: deviation σ of the noise: a positive number, or a pytree that is a prefix
            of hyper, with leaves that broadcast to its leaves.
        pairs: number N ≥ 1 of antithetic pairs; at least 2 for a standard error.
        key: a random key or an int seed.
        chunk: pairs that run at once; None runs all of them.

    Returns:
        When called: a `SmoothedHyperGradient`, with `standard_error` and `smoothed`
        beside value and gradient.

    Raises:
        ValueError: for options out of range; when called, for a `sigma` that does not
            fit hyper, or a hyperparameter that no path, differentiable or not, joins
            to the value.

    Example:
        >>> import jax, optax, metalr
        >>> loss = lambda params, hyper, batch: 0.5 * params**2
        >>> L = metalr.Unrolled(loss, optax.sgd, 1.0, steps=2)
        >>> engine = metalr.EvolutionStrategies(0.01, 1000, jax.random.key(0))
        >>> result = metalr.hypergradient(L, 0.5, engine)
        >>> print(bool(abs(result.grad + 0.25) < 4 * result.standard_error))
        True

    References:
        Salimans et al. (2017), Evolution strategies as a scalable alternative to
        reinforcement learning. Metz et al. (2019), Understanding and correcting
        pathologies in the training of learned optimizers.
    """

    static: ClassVar[tuple[str, ...]] = ("pairs", "chunk")

    sigma: Any
    pairs: int
    key: Any
    _: dataclasses.KW_ONLY
    chunk: int | None = None

    def __post_init__(self) -> None:
        self.check()

    def pair(
        self, objective: Objective, hyper: Hyper, sigma: Hyper, key: Any
    ) -> tuple[Hyper, Scalar]:
        """The estimate of one pair, and its mean value."""
        return antithetic(objective, hyper, sigma, normal(key, hyper))


def antithetic(
    objective: Objective, hyper: Hyper, sigma: Hyper, noise: Hyper
) -> tuple[Hyper, Scalar]:
    """The estimate of one pair, and its mean value."""
    run = lambda sign: objective(shifted(hyper, sigma, noise, sign))
    plus, minus = jax.vmap(run)(jnp.array([1.0, -1.0]))
    return weighted(noise, sigma, plus, minus), 0.5 * (plus + minus)
