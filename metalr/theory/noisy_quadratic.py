r"""The noisy quadratic model: schedules, and what a short horizon costs.

Coordinate i has curvature $h_i$ and receives the gradient $h_i(\theta_i - c_i)$ with
$c_i$ drawn anew in each step around the optimum, with variance $\sigma_i^2$. The second
moments $m_i = E[(\theta_i - \theta^*_i)^2]$ obey

$$m_i' = (1 - \alpha h_i)^2 m_i + \alpha^2 h_i^2\sigma_i^2$$

under a step with rate α: the expected loss of any schedule is exact.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._types import Scalar, ScalarLike
from ._checks import check_not_negative, check_positive, check_steps


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True)
class NoisyQuadratic:
    r"""Curvatures, noise and start of a noisy quadratic.

    A pytree: it passes through `jit` and `vmap`. Losses and rates are differentiable in
    its arrays, any order and mode.

    Args:
        curvatures: $h_i > 0$.
        noise: variances $\sigma_i^2 \ge 0$ of the noise in the optimum's place.
        start: second moments $m_{0,i} \ge 0$ of the distance to the optimum at first.

    Raises:
        ValueError: if the three are not vectors of one length, a curvature is not
            positive, or a moment is negative.

    Example:
        >>> import jax.numpy as jnp
        >>> from metalr.theory import NoisyQuadratic
        >>> model = NoisyQuadratic(jnp.ones(1), jnp.ones(1), jnp.ones(1))
        >>> print([round(float(rate), 4) for rate in model.optimal_schedule(3)])
        [0.5, 0.3333, 0.25]

    References:
        Wu, Ren, Liao, Grosse (2018), Understanding short-horizon bias in stochastic
        meta-optimization. Schaul, Zhang, LeCun (2013), No more pesky learning rates.
    """

    curvatures: Float[Array, " d"]
    noise: Float[Array, " d"]
    start: Float[Array, " d"]

    def __post_init__(self) -> None:
        shapes = [jnp.shape(x) for x in (self.curvatures, self.noise, self.start)]
        if len(set(shapes)) != 1 or len(shapes[0]) != 1 or shapes[0][0] == 0:
            msg = (
                f"curvatures, noise and start have shapes {shapes}: they must be "
                "vectors of one length, at least 1"
            )
            raise ValueError(msg)
        check_positive("curvatures", self.curvatures)
        check_not_negative("noise", self.noise)
        check_not_negative("start", self.start)

    def tree_flatten_with_keys(self) -> tuple[list[tuple[Any, Any]], None]:
        """Its three arrays."""
        names = [field.name for field in dataclasses.fields(self)]
        return [(jax.tree_util.GetAttrKey(n), getattr(self, n)) for n in names], None

    @classmethod
    def tree_unflatten(cls, _: None, children: Any) -> "NoisyQuadratic":
        """Unchecked: a gradient in the model is a tree of this kind, of any sign."""
        new = object.__new__(cls)
        for field, child in zip(dataclasses.fields(cls), children, strict=True):
            object.__setattr__(new, field.name, child)
        return new

    def loss(self, schedule: Float[Array, " steps"]) -> Scalar:
        r"""Expected loss above its minimum after the schedule, $\tfrac12\sum h_i m_i$.

        The noise itself adds $\tfrac12\sum h\sigma^2$ to every loss that is measured
        against $c$, whatever the schedule; it is left out.

        Args:
            schedule: one learning rate a step.
        """
        return 0.5 * jnp.sum(self.curvatures * self._moments(schedule))

    def greedy_rate(self, moments: Float[Array, " d"] | None = None) -> Scalar:
        r"""The rate that is best for the next step alone.

        $$\alpha = \frac{\sum h^2 m}{\sum h^3(m+\sigma^2)}$$

        0 where nothing is left to move: every m is 0.

        Args:
            moments: the m to step from; those of the start by default.
        """
        m = self.start if moments is None else moments
        h = self.curvatures
        gain, cost = jnp.sum(h**2 * m), jnp.sum(h**3 * (m + self.noise))
        return gain / jnp.where(cost > 0.0, cost, 1.0)

    def greedy_schedule(self, steps: int) -> Float[Array, " steps"]:
        """The schedule that takes `greedy_rate` in every step.

        Args:
            steps: number of rates T ≥ 1.

        Raises:
            ValueError: if `steps` is not an int ≥ 1.
        """
        check_steps(steps, least=1)

        def step(m: Array, _: None) -> tuple[Array, Array]:
            rate = self.greedy_rate(m)
            return self.step(m, rate), rate

        return jax.lax.scan(step, self.start, length=steps)[1]

    def optimal_schedule(self, steps: int) -> Float[Array, " steps"]:
        r"""The schedule with the least expected loss after T steps, in one dimension.

        $$\alpha_s = \frac{1}{h(s + 1 + \sigma^2/m_0)}, \qquad s = 0, 1, …$$

        It is the greedy one: in one dimension a short horizon costs nothing. In several
        there is no closed form, and greed does cost (see
        `python -m experiments.short_horizon`, which searches).

        Args:
            steps: number of rates T ≥ 1.

        Raises:
            ValueError: if `steps` is not an int ≥ 1, or there are several dimensions.
        """
        check_steps(steps, least=1)
        if self.curvatures.size != 1:
            msg = (
                f"{self.curvatures.size} dimensions have no optimal schedule in closed "
                "form: search from greedy_schedule, as experiments.short_horizon does"
            )
            raise ValueError(msg)
        (h,), (noise,), (m,) = self.curvatures, self.noise, self.start
        counts = jnp.arange(1.0, steps + 1.0, dtype=h.dtype)
        # Without noise the first step arrives: the others are free, and m may be 0.
        m = jnp.where((m > 0.0) | (noise > 0.0), m, 1.0)
        return m / (h * (counts * m + noise))

    def short_horizon_bias(
        self, steps: int, optimal: Float[Array, " steps"] | None = None
    ) -> Scalar:
        r"""What greed costs: $L(\text{greedy})/L(\text{optimal}) - 1$ after T steps.

        0 in one dimension, for T = 1, and where greed itself leaves no loss.

        Args:
            steps: number of rates T ≥ 1.
            optimal: the schedule to compare with; in one dimension by default that of
                `optimal_schedule`.

        Raises:
            ValueError: as `optimal_schedule`.
        """
        greedy = self.loss(self.greedy_schedule(steps))
        best = self.loss(self.optimal_schedule(steps) if optimal is None else optimal)
        some = greedy > 0.0
        return jnp.where(some, greedy / jnp.where(some, best, 1.0) - 1.0, 0.0)

    def step(self, moments: Float[Array, " d"], rate: ScalarLike) -> Float[Array, " d"]:
        r"""The second moments after one step, $(1-\alpha h)^2m + \alpha^2h^2\sigma^2$.

        Args:
            moments: m before the step.
            rate: α.
        """
        reduced = rate * self.curvatures
        return (1.0 - reduced) ** 2 * moments + reduced**2 * self.noise

    def _moments(self, schedule: Array) -> Array:
        step = lambda m, rate: (self.step(m, rate), None)
        start = jnp.asarray(self.start, jnp.result_type(self.start, schedule))
        return jax.lax.scan(step, start, schedule)[0]
