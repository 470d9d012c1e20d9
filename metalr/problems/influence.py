"""A dynamical system whose truncated derivatives have the wrong sign."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from .._types import Hyper, Scalar


class System(NamedTuple):
    """What `Rollout` takes: `Rollout(*system[:2], value=system.value, steps=T)`."""

    step: Callable[[Any, Hyper, Any], tuple[Any, Any]]
    init: Any
    value: Callable[[Any, Hyper], Scalar]


def influence_balancing(n: int = 23, positive: int = 10) -> System:
    r"""A parameter that acts one way at first, and the other way in the long run.

    $$s_{t+1} = A s_t + \theta\,c, \qquad A = \tfrac12(I + \text{superdiagonal}),
      \quad c = (1, \dots, 1, -1, \dots, -1), \qquad L = \tfrac12(s[0] - 1)^2$$

    with `positive` entries + 1 and the rest − 1, from $s_0 = 1$. The state at 0 feels θ
    through ever more entries: the negative ones win, but late. Truncated
    derivatives have the wrong sign (published: up to 40 steps; at θ = ½ and 1000 steps
    the loss is 8, the derivative 24, and −4 through the last step alone).

    Args:
        n: number of states.
        positive: entries of c that are + 1.

    Returns:
        `System(step, init, value)`, in the default dtype of JAX; hyper is θ.

    Raises:
        ValueError: if a count is out of range.

    Example:
        >>> import metalr
        >>> step, init, value = metalr.problems.influence_balancing()
        >>> L = metalr.Rollout(step, init, value=value, steps=1000)
        >>> print(f"{metalr.hypergradient(L, 0.5).grad:.3f}")
        24.000
        >>> print(metalr.hypergradient(L, 0.5, metalr.Truncated(last=1)).grad)
        -4.0

    References:
        Tallec & Ollivier (2018), Unbiased online recurrent optimization. Vicol, Metz,
        Sohl-Dickstein (2021), Unbiased gradient estimation in unrolled computation
        graphs with persistent evolution strategies.
    """
    if n < 1 or not 0 <= positive <= n:
        msg = f"n = {n} and positive = {positive} must satisfy 0 ≤ positive ≤ n, n ≥ 1"
        raise ValueError(msg)
    A = 0.5 * (jnp.eye(n) + jnp.eye(n, k=1))
    signs = jnp.where(jnp.arange(n) < positive, 1.0, -1.0)

    def step(
        state: Float[Array, " n"], theta: Scalar, x: Any
    ) -> tuple[Float[Array, " n"], None]:
        del x
        return A @ state + theta * signs, None

    def value(state: Float[Array, " n"], theta: Hyper) -> Scalar:
        del theta
        return 0.5 * (state[0] - 1.0) ** 2

    return System(step, jnp.ones(n), value)
