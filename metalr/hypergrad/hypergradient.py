"""The one entry point of all engines."""

from typing import Any, TypeVar, overload

import jax

from .._checks import float_leaves
from .._programs.compiled import compiled
from .._programs.dependence import check_dependence
from .._types import Hyper, Objective
from ._engine import Engine, HyperGradient
from ._measured import Measured
from .reverse import Reverse

_REVERSE = Reverse()
_Result = TypeVar("_Result", bound=HyperGradient)


@overload
def hypergradient(objective: Objective, hyper: Hyper) -> HyperGradient: ...
@overload
def hypergradient(
    objective: Objective, hyper: Hyper, engine: Engine[_Result]
) -> _Result: ...
def hypergradient(
    objective: Objective, hyper: Hyper, engine: Engine = _REVERSE
) -> HyperGradient:
    r"""Value and gradient of an objective: $L_T(\eta)$ and $\nabla_\eta L_T(\eta)$.

    The engine decides memory and time, not the answer (where an engine is biased, its
    docstring says by how much). Compiled once for each objective, engine and shape of
    `hyper`; composes with `jit`, `vmap`, and with differentiation where the engine says
    so.

    Args:
        objective: an `Unrolled`; `Reverse()` and `Forward()` take any traceable scalar
            function.
        hyper: pytree of floats, the point of evaluation.
        engine: how to differentiate: `Reverse()`, `Forward()`, ….

    Returns:
        `HyperGradient(value, grad)`, with `grad` in the structure and dtypes of
        `hyper`. Engines that measure themselves return a subclass of it with
        further attributes, such as `ImplicitHyperGradient`.

    Raises:
        ValueError: if a leaf of `hyper` is not a float, or if the value does not depend
            on it at all (decided on the traced program: a rate that never reached
            the optimizer is a mistake, not a derivative of 0).

    Example:
        >>> import optax, metalr
        >>> loss = lambda params, hyper, batch: 0.5 * params**2
        >>> L = metalr.Unrolled(loss, optax.sgd, 1.0, steps=2)
        >>> value, grad = metalr.hypergradient(L, 0.5, metalr.Forward())
        >>> print(value, grad)
        0.03125 -0.25
    """
    if not callable(engine) or isinstance(engine, type):
        msg = f"engine = {engine!r} must be an engine such as metalr.Reverse()"
        raise ValueError(msg)
    hyper = float_leaves(hyper, "hyper")
    result = _compiled(as_pytree(objective), hyper, as_pytree(engine))
    if isinstance(result, Measured):
        result.check()
    return result


@compiled
def _compiled(objective: Any, hyper: Hyper, engine: Any) -> HyperGradient:
    check_dependence(
        objective, hyper, smooth=not getattr(engine, "derivative_free", False)
    )
    return engine(objective, hyper)


def as_pytree(function: Any) -> Any:
    """A plain function becomes a pytree without leaves: a static argument of jit."""
    if jax.tree_util.all_leaves([function]):
        return jax.tree_util.Partial(function)
    return function
