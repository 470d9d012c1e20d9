"""All ways by name, and the cases to which each applies."""

from collections.abc import Callable
from typing import Any, NamedTuple

from experiments._peers.work import Case


class Way(NamedTuple):
    """One row of the table: who computes it, and where the user's code is."""

    name: str
    framework: str  # "jax" or "torch": the module jax_ways or torch_ways
    functions: tuple[str, ...]  # the user's code: the way, and what it calls of ours
    packages: tuple[str, ...]
    applies: Callable[[Case], bool] = lambda _: True

    @property
    def ours(self) -> bool:
        """Whether it is one of metalr's engines."""
        return self.packages[0] == "metalr"


def _engine(name: str, function: str, applies: Any = lambda _: True) -> Way:
    return Way(name, "jax", (function, "by_metalr"), ("metalr", "jax"), applies)


def _scalar(case: Case) -> bool:
    return case.learned == "scalar"


def _sgd(case: Case) -> bool:
    return case.optimizer == "sgd"


_OPTIMISTIX = ("optimistix", "equinox", "jax")

WAYS = (
    # With one rate for each step, forward mode would carry T tangents.
    _engine("metalr Forward()", "forward", _scalar),
    _engine("metalr Reverse()", "reverse"),
    _engine("metalr Reverse(2√T)", "reverse_sqrt"),
    _engine("metalr Reverse(log₂T)", "reverse_log"),
    _engine("metalr Mixed()", "mixed"),
    Way("optax scan", "jax", ("optax_scan",), ("optax", "jax")),
    Way("optimistix", "jax", ("optimistix_optax",), _OPTIMISTIX),
    Way("optimistix, default adjoint", "jax", ("optimistix_default",), _OPTIMISTIX),
    Way(
        "optimistix GradientDescent",
        "jax",
        ("optimistix_descent",),
        _OPTIMISTIX,
        lambda case: _sgd(case) and _scalar(case),  # takes one rate
    ),
    Way("jaxopt, unrolled", "jax", ("jaxopt_unrolled",), ("jaxopt", "jax")),
    Way("jaxopt, default", "jax", ("jaxopt_default",), ("jaxopt", "jax"), _sgd),
    Way(
        "jaxopt, implicit_diff",
        "jax",
        ("jaxopt_implicit",),
        ("jaxopt", "jax"),
        lambda case: not _sgd(case),
    ),
    Way("higher", "torch", ("by_higher",), ("higher", "torch")),
    Way("torchopt", "torch", ("by_torchopt",), ("torchopt", "torch")),
)

BY_NAME = {way.name: way for way in WAYS}
