r"""The single-loop solvers, their rates as the papers have them.

Constant rates: StocBiO, AmIGO, SABA, and what the benchmark of Dagréou et al. sets.
Falling ones: $t^{-1/2}$ for SOBA (theirs) and MA-SOBA, which averages its outer
direction with a share in proportion to the rate (Chen et al. 2024); for F2SA, inner
$t^{-4/7}$, outer $t^{-5/7}$ and a penalty $t^{1/7}$, which give its $\epsilon^{-7/2}$
updates (Kwon et al. 2023). t counts updates.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

from metalr import bilevel

Name: TypeAlias = Literal["SOBA", "MA-SOBA", "SABA", "StocBiO", "AmIGO", "F2SA"]


class Settings(NamedTuple):
    """The numbers of a solver; `scale` and `after` may be traced."""

    inner: float  # rate
    outer: float  # rate of an update of one inner step
    often: float  # the outer rate of an update of several, in `outer`
    steps: int  # inner ones, of those that make several
    penalty: float
    share: float = 0.1  # of the new direction in MA-SOBA's average
    scale: Any = 1.0  # of all rates
    after: float | None = None  # updates after which rates fall; None: constant

    def fall(self, power: float, every: int = 1) -> Callable[[Any], Any]:
        """The factor of a rate at the optimizer's own count, `every` a time."""
        after = self.after
        if after is None:
            return lambda _: self.scale
        return lambda count: self.scale * (1.0 + (count // every) / after) ** -power

    def sgd(self, rate: float, power: float = 0.5, every: int = 1) -> Any:
        """Gradient descent at `rate`, or at one that falls from there."""
        factor = self.fall(power, every)
        return optax.sgd(lambda count: rate * factor(count))


def soba(inner: Any, outer: Any, settings: Settings) -> bilevel.Solver:
    """One step of all three variables."""
    return bilevel.SOBA(
        inner,
        outer,
        inner_optimizer=settings.sgd(settings.inner),
        outer_optimizer=settings.sgd(settings.outer),
    )


def ma_soba(inner: Any, outer: Any, settings: Settings) -> bilevel.Solver:
    """SOBA along a moving average of its outer directions."""
    average = averaged(settings.share, settings.fall(0.5))
    return bilevel.SOBA(
        inner,
        outer,
        inner_optimizer=settings.sgd(settings.inner),
        outer_optimizer=optax.chain(average, settings.sgd(settings.outer)),
    )


def saba(inner: Any, outer: Any, settings: Settings) -> bilevel.Solver:
    """SOBA with SAGA's estimates."""
    return bilevel.SABA(
        inner,
        outer,
        inner_optimizer=settings.sgd(settings.inner),
        outer_optimizer=settings.sgd(settings.outer),
    )


def stocbio(inner: Any, outer: Any, settings: Settings) -> bilevel.Solver:
    """Inner steps, and a Neumann series of as many terms."""
    return bilevel.StocBiO(
        inner,
        outer,
        inner_optimizer=settings.sgd(settings.inner, every=settings.steps),
        outer_optimizer=settings.sgd(settings.often * settings.outer),
        neumann_rate=settings.inner,
        inner_steps=settings.steps,
        terms=settings.steps,
    )


def amigo(inner: Any, outer: Any, settings: Settings) -> bilevel.Solver:
    """Inner steps, and as many for the adjoint, from where it was."""
    return bilevel.AmIGO(
        inner,
        outer,
        inner_optimizer=settings.sgd(settings.inner, every=settings.steps),
        outer_optimizer=settings.sgd(settings.often * settings.outer),
        inner_steps=settings.steps,
        linear_steps=settings.steps,
    )


def f2sa(inner: Any, outer: Any, settings: Settings) -> bilevel.Solver:
    """First derivatives alone; a penalty that grows while the rates fall."""
    rate = settings.often * settings.outer
    if inner.minibatches > 1:  # the penalty multiplies the noise
        rate = rate / settings.penalty
    grown = settings._replace(scale=1.0).fall(-1 / 7)
    return bilevel.F2SA(
        inner,
        outer,
        inner_optimizer=settings.sgd(settings.inner, 4 / 7, every=settings.steps),
        outer_optimizer=settings.sgd(rate, 5 / 7),
        penalty=lambda update: settings.penalty * grown(update),
        inner_steps=settings.steps,
    )


def averaged(share: float, factor: Callable[[Any], Any]) -> Any:
    r"""The moving average $h \leftarrow h + \theta\,(d - h)$, θ = share · factor."""

    def init(params: Any) -> tuple:
        return jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, params)

    def update(updates: Any, state: Any, params: Any = None) -> tuple:
        del params
        count, mean = state
        move = lambda m, d: m + jnp.asarray(share * factor(count), m.dtype) * (d - m)
        mean = jax.tree.map(move, mean, updates)
        return mean, (count + 1, mean)

    return optax.GradientTransformation(init, update)


SOLVERS: dict[Name, Callable[[Any, Any, Settings], bilevel.Solver]] = {
    "SOBA": soba,
    "MA-SOBA": ma_soba,
    "SABA": saba,
    "StocBiO": stocbio,
    "AmIGO": amigo,
    "F2SA": f2sa,
}

POWERS: dict[str, float] = {
    "SOBA": 1 / 2,
    "MA-SOBA": 1 / 2,
    "StocBiO": 1 / 2,
    "AmIGO": 1 / 2,
    "F2SA": 2 / 7,  # of its bias, the square of 1 over the penalty
}
"""With which ‖·‖² is to fall at falling rates: as the noise does."""
