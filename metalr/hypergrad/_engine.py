"""What every engine is: objective and hyper in, value and gradient out."""

import dataclasses
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

from .._programs.compiled import Frozen
from .._types import Hyper, Objective, Scalar
from ..runs.run import Run, is_run
from ..runs.unrolled import Unrolled


class HyperGradient(NamedTuple):
    """An objective and its derivative at one point."""

    value: Scalar  # L_T(hyper)
    grad: Hyper  # the structure of hyper


if TYPE_CHECKING:  # Python 3.13 has defaults; to a checker, a bare Engine is of Any
    from typing_extensions import TypeVar

    Result_co = TypeVar("Result_co", covariant=True, default=Any)
else:
    from typing import TypeVar

    Result_co = TypeVar("Result_co", covariant=True)


@runtime_checkable
class Engine(Protocol[Result_co]):
    """How a hypergradient is computed: a function with frozen, hashable options.

    An engine of one's own is any such function that returns a NamedTuple beginning
    `value, grad`. It may take a run apart (`metalr.runs.run`). What it says of itself
    is optional:

    - `derivative_free = True`: it takes no derivative, and objectives that have none.
    - `with_run(objective, hyper) -> (result, Run)`: see `hypergradient_and_run`.
    - `refuse(objective, hyper)`: raises for what it cannot do, at trace time.
    - `verify(result)`: raises where a concrete result shows that it is wrong.
    - `exact`, `additive`, `cost(objective, hyper)`, `kept_bytes(objective, hyper)`: of
      its result, time and memory: see `hypergrad.facts`.
    - `refuse_window(length)`, `begin(run, hyper) -> carried`, `through_window(window,
      carried, hyper) -> (state, carried, result)`: it carries something of its own from
      window to window of `metalr.windows`.

    An engine may be a pytree: then its leaves (a random key) are arguments of the
    compiled program, and only the rest is static.

    Example: Reptile (Nichol et al. 2018), whose field is the way that the run goes.

        >>> import jax, optax, metalr
        >>> def reptile(objective, hyper):
        ...     run = objective.run(hyper)
        ...     way = jax.tree.map(lambda h, w: h - w, hyper, run.state.params)
        ...     return metalr.HyperGradient(run.value, way)
        >>> loss = lambda params, hyper, batch: (params - 3.0) ** 2
        >>> rate = lambda hyper: optax.sgd(0.25)
        >>> L = metalr.Unrolled(loss, rate, lambda start: start, steps=1)
        >>> print(metalr.hypergradient(L, 1.0, reptile).grad)
        -1.0
    """

    def __call__(self, objective: Objective, hyper: Hyper) -> Result_co:
        """Value and gradient at a `hyper` whose leaves are floating arrays."""
        ...


class Options(Frozen):
    """Base of the engines: prints what was set, e.g. `Reverse(checkpoints=8)`."""

    def __repr__(self) -> str:
        fields = dataclasses.fields(self)  # pyright: ignore[reportArgumentType]
        options = {field.name: getattr(self, field.name) for field in fields}
        chosen = [f"{k}={v!r}" for k, v in options.items() if v is not None]
        return f"{type(self).__name__}({', '.join(chosen)})"


def run_of(objective: Objective, engine: Any) -> Any:
    """The objective as a run.

    Raises:
        ValueError: if it is another kind of function.
    """
    if not is_run(objective):
        msg = (
            f"{engine} takes the run apart step by step and needs a metalr.Unrolled or "
            f"metalr.Rollout, not {objective!r}: use Reverse() or Forward() for other "
            "functions, and metalr.tasks.Each(engine) for a tasks.Mean"
        )
        raise ValueError(msg)
    return objective


def unrolled_of(objective: Objective, engine: Any, reason: str) -> Unrolled:
    """The objective as an `Unrolled` without a state of the model.

    Raises:
        ValueError: if it is another run, or carries a model_state.
    """
    if not isinstance(objective, Unrolled):
        found = repr(objective)
    elif objective.model_state is not None:
        found = "one with a model_state"
    else:
        return objective
    msg = (
        f"{engine} needs a metalr.Unrolled, not {found}: {reason}. Take "
        "metalr.Reverse() or metalr.Forward()"
    )
    raise ValueError(msg)


__all__ = ["Engine", "HyperGradient", "Options", "Run", "run_of", "unrolled_of"]
