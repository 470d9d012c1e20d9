"""A hypergradient held against every other way to compute it."""

from ._check import check_hypergrad as check_hypergrad
from ._rows import Row as Row, Status as Status
from ._verdict import Check as Check, HypergradientError as HypergradientError
