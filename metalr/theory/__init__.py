"""Closed forms: the referee, which imports none of the players."""

from . import (
    at_zero as at_zero,
    bilevel as bilevel,
    estimators as estimators,
    global_rates as global_rates,
    implicit_bias as implicit_bias,
    momentum as momentum,
    noisy_quadratic as noisy_quadratic,
    rates as rates,
    runs as runs,
    schedules as schedules,
    stochastic as stochastic,
)
from .noisy_quadratic import NoisyQuadratic as NoisyQuadratic
from .quadratic import Quadratic as Quadratic
