"""Many runs on one regression: targets, starts and momenta differ, X does not."""

import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._types import Matrix
from ._directions import Directions
from .global_rates import (
    Local,
    Momentum,
    Optimum,
    Spectrum,
    momentum_local,
    momentum_optima,
)
from .quadratic import Quadratic

_AXES = Spectrum(None, 0, 0)


class Runs(NamedTuple):
    """B runs of one X: `Quadratic.from_regression` of each, by one decomposition.

    Directions along which a start is optimal stay, with weight 0, so that all runs have
    one shape. NumPy in and out.

    Example:
        >>> import numpy as np
        >>> from metalr.theory.runs import on
        >>> runs = on(np.array([[1.0, 1.0]]))(
        ...     np.array([[3.0], [1.0]]), np.zeros((2, 2))
        ... )
        >>> print(runs.optimal_rates(7).rate)
        [0.25 0.25]
    """

    spectrum: Spectrum

    def optimal_rates(self, steps: int) -> Optimum:
        """η*_T of each run without momentum: `Quadratic.optimal_rate`, there is one."""
        some = np.any(self.spectrum.weights > 0.0, axis=1)
        rates = np.full(len(some), np.nan)
        if np.any(some):
            rates = np.where(some, _optimal_rates(self.spectrum, steps), np.nan)
        return Optimum(rates, some.astype(int))

    def momentum_optima(
        self, method: Momentum, momentum: np.ndarray, steps: int
    ) -> Optimum:
        """See `metalr.theory.global_rates.momentum_optima`."""
        return momentum_optima(self.spectrum, method, momentum, steps)

    def at(
        self,
        method: Literal["sgd"] | Momentum,
        rates: np.ndarray,
        momentum: np.ndarray,
        steps: int,
    ) -> Local:
        """Loss, slope and curvature of each run at its rate."""
        if method != "sgd":
            return momentum_local(self.spectrum, method, rates, momentum, steps)
        plain = _plain(self.spectrum, jnp.asarray(rates), steps)
        return Local(*(np.asarray(x) for x in plain))


class On(NamedTuple):
    """A regression whose X is decomposed: called with targets and starts, the runs."""

    directions: Directions

    def __call__(
        self, t: Float[np.ndarray, "b n"], w0: Float[np.ndarray, "b d"]
    ) -> Runs:
        """The runs from starts (B, d) to targets (B, n)."""
        weights, minimum = self.directions.project(t, w0)
        return Runs(Spectrum(self.directions.eigenvalues, weights, minimum))


def on(X: Matrix) -> On:
    """Decompose X once, for any number of runs on it.

    Args:
        X: inputs, one example a row.
    """
    return On(Directions.of(X))


def _one(run: Spectrum) -> Quadratic:
    return Quadratic(
        eigenvalues=jnp.asarray(run.eigenvalues),
        weights=jnp.asarray(run.weights),
        minimum=jnp.asarray(run.minimum),
    )


@functools.partial(jax.jit, static_argnames="steps")
def _optimal_rates(runs: Spectrum, steps: int) -> Array:
    return jax.vmap(lambda run: _one(run).optimal_rate(steps), in_axes=(_AXES,))(runs)


@functools.partial(jax.jit, static_argnames="steps")
def _plain(runs: Spectrum, rates: Array, steps: int) -> Local:
    def one(run: Spectrum, rate: Array) -> Local:
        quadratic = _one(run)
        forms = (quadratic.loss, quadratic.slope, quadratic.curvature)
        return Local(*(form(rate, steps) for form in forms))

    return jax.vmap(one, in_axes=(_AXES, 0))(runs, rates)
