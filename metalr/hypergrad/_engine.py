"""What every engine is: objective and hyper in, value and gradient out."""

from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

from .._types import Hyper, Objective, Scalar


class HyperGradient(NamedTuple):
    """An objective and its derivative at one point."""

    value: Scalar  # L_T(hyper)
    grad: Hyper  # the structure of hyper


Result_co = TypeVar("Result_co", bound=HyperGradient, covariant=True)


@runtime_checkable
class Engine(Protocol[Result_co]):
    """How a hypergradient is computed: frozen, hashable, printable options.

    An engine may be a pytree: then its leaves (a random key) are arguments of the
    compiled program, and only the rest is static. One that takes no derivative has an
    attribute `derivative_free = True`, and takes objectives that have none.
    """

    def __call__(self, objective: Objective, hyper: Hyper) -> Result_co:
        """Value and gradient at a `hyper` whose leaves are floating arrays."""
        ...
