"""The outer loop whose inner run goes on from where the last one ended."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

import metalr


class Outer(NamedTuple):
    """What each outer step had: leaves lead with an axis of steps."""

    hyper: Any  # before the step
    value: Any
    grad: Any
    params: Any  # at the end of its inner run


def outer_loop(
    make: Callable[[Any], metalr.Unrolled],
    params: Any,
    hyper: Any,
    *,
    engine: Any,
    optimizer: optax.GradientTransformation,
    steps: int,
    warm: bool,
) -> Outer:
    """`steps` outer steps; `make(params)` is the inner run from those parameters.

    Warm: each inner run starts where the last one ended, so that K steps are enough.
    Cold: each starts at `params`.
    """

    def step(carry: tuple, _: None) -> tuple[tuple, Outer]:
        start, hyper, state = carry
        result, run = metalr.hypergradient_and_run(make(start), hyper, engine)
        updates, state = optimizer.update(result.grad, state, hyper)
        end = run.state.params
        row = Outer(hyper, result.value, result.grad, end)
        after = end if warm else start
        return (after, optax.apply_updates(hyper, updates), state), row

    return jax.lax.scan(step, (params, hyper, optimizer.init(hyper)), length=steps)[1]
