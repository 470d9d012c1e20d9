r"""The noisy quadratic model: schedules, and what a short horizon costs.

Coordinate i has curvature $h_i$ and receives the gradient $h_i(\theta_i - c_i)$ with
$c_i$ drawn anew in each step around the optimum, with variance $\sigma_i^2$. The second
moments $m_i = E[(\theta_i - \theta^*_i)^2]$ obey

$$m_i' = (1 - \alpha h_i)^2 m_i + \alpha^2 h_i^2\sigma_i^2$$

under a step with rate α: the expected loss of any schedule is exact.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._types import Scalar, ScalarLike
from ._checks import check_steps

_ITERATIONS = 500
"""Newton steps from one start at most; in practice some tens."""

_SCATTERED = 12
"""Starts scattered around the greedy schedule."""

_ROUNDS = 4
"""Times that each minimum is reordered and solved for again."""

_SWEEPS = 20
"""Rounds of one rate at a time, for the starts far from greedy."""

_HALVINGS = 12
"""Lengths of Newton's step that are tried."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NoisyQuadratic:
    r"""Curvatures, noise and start of a noisy quadratic.

    A pytree: it passes through `jit` and `vmap`. Losses and greedy rates are
    differentiable in its arrays, any order and mode; `optimal_schedule` says its own.

    Args:
        curvatures: $h_i > 0$.
        noise: variances $\sigma_i^2 \ge 0$ of the noise in the optimum's place.
        start: second moments $m_{0,i} \ge 0$ of the distance to the optimum at first.

    Raises:
        ValueError: if the three are not vectors of one length.

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

        Args:
            moments: the m to step from; those of the start by default.
        """
        m = self.start if moments is None else moments
        h = self.curvatures
        return jnp.sum(h**2 * m) / jnp.sum(h**3 * (m + self.noise))

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
            return self._step(m, rate), rate

        return jax.lax.scan(step, self.start, length=steps)[1]

    def optimal_schedule(
        self, steps: int, *, tolerance: float = 1e-10
    ) -> Float[Array, " steps"]:
        r"""The schedule with the least expected loss after T steps.

        In one dimension $\alpha_s = 1/\bigl(h(s + 1 + \sigma^2/m_0)\bigr)$, s = 0, 1,
        …, in closed form; it is the greedy one. In several it is solved for, by
        Newton's method on the logarithms of the rates (with the absolute Hessian, never
        uphill). Solved when Newton's model promises a decrease,
        $\tfrac12 g^\top|H|^{-1}g$, of at most `tolerance` times the loss (or eps times
        that of the start): then the loss is that of the minimum to this relative
        accuracy. The loss is not convex in the schedule and has many local minima (in
        which order the long and the short steps come). This is the best of those found
        from the greedy schedule, 12 scattered around it, a decreasing one, what moving
        one rate at a time to the vertex of its parabola makes of these, and of each
        after moving single rates to better places in the order. The same each time, but
        not proved to be the global minimum.

        Memory T² (the Hessian); T³ + d T² operations for each of some tens of steps
        from each of 18 starts, and d T³ for each move.
        Differentiable in the model's arrays, once, in both modes, by the implicit
        function theorem (where the Hessian is regular).

        Args:
            steps: number of rates T ≥ 1.
            tolerance: of the loss, relative.

        Returns:
            The rates; nan where the tolerance was not reached.

        Raises:
            ValueError: if `steps` is not an int ≥ 1 or `tolerance` is not positive.
        """
        check_steps(steps, least=1)
        if not tolerance > 0.0:
            msg = f"tolerance = {tolerance} must be positive; 1e-10 is reached easily"
            raise ValueError(msg)
        if self.curvatures.size == 1:
            h, ratio = self.curvatures[0], self.noise[0] / self.start[0]
            return 1.0 / (h * (jnp.arange(1.0, steps + 1.0) + ratio))
        return jax.lax.custom_root(
            jax.grad(self.loss),
            jax.lax.stop_gradient(self.greedy_schedule(steps)),
            lambda *_: _best(jax.lax.stop_gradient(self), steps, tolerance),
            lambda g, y: jnp.linalg.solve(jax.jacfwd(g)(jnp.zeros_like(y)), y),
        )

    def short_horizon_bias(self, steps: int, *, tolerance: float = 1e-10) -> Scalar:
        r"""What greed costs: $L(\text{greedy})/L(\text{optimal}) - 1$ after T steps.

        0 in one dimension and for T = 1. Arguments and errors as `optimal_schedule`.
        """
        optimal = self.optimal_schedule(steps, tolerance=tolerance)
        return self.loss(self.greedy_schedule(steps)) / self.loss(optimal) - 1.0

    def _step(self, m: Array, rate: Array) -> Array:
        reduced = rate * self.curvatures
        return (1.0 - reduced) ** 2 * m + reduced**2 * self.noise

    def _moments(self, schedule: Array) -> Array:
        step = lambda m, rate: (self._step(m, rate), None)
        start = self.start.astype(jnp.result_type(self.start, schedule))
        return jax.lax.scan(step, start, schedule)[0]

    def _best_minimum(self, steps: int, tolerance: ScalarLike) -> Array:
        """The best of the minima found from several starts."""
        greedy = self.greedy_schedule(steps)
        counts = jnp.arange(1.0, steps + 1.0, dtype=greedy.dtype)
        decreasing = 1.0 / (jnp.min(self.curvatures) * counts)
        noise = (
            jax.random.normal(jax.random.key(0), (_SCATTERED, steps), greedy.dtype)
            * jnp.geomspace(0.01, 1.0, _SCATTERED, dtype=greedy.dtype)[:, None]
        )
        near = jnp.stack([greedy, decreasing, *(greedy * jnp.exp(noise))])
        far = jax.lax.map(self._swept, jnp.stack([greedy, decreasing]))
        starts = jnp.concatenate([near, far, jnp.sort(far, axis=1, descending=True)])

        def search(schedule: Array, count: Array) -> tuple[Array, Array]:
            start = jnp.where(count == 0, schedule, self._reordered(schedule))
            found = self._solve(start, tolerance)
            return found, found

        rounds = jnp.arange(_ROUNDS)
        found = jax.lax.map(
            lambda start: jax.lax.scan(search, start, rounds)[1], starts
        )
        found = found.reshape(-1, steps)
        values = jax.lax.map(self.loss, found)
        return found[jnp.argmin(jnp.where(jnp.isnan(values), jnp.inf, values))]

    def _reordered(self, schedule: Array) -> Array:
        """Single rates moved to other places in the order, while that helps."""
        places = jnp.arange(schedule.size)

        def moved(move: Array) -> Array:  # indices
            source, target = move // schedule.size, move % schedule.size
            rest = jnp.where(places < target, places, places - 1)
            order = jnp.where(rest >= source, rest + 1, rest)
            return jnp.where(places == target, source, order)

        def improve(state: tuple[Array, Array]) -> tuple[Array, Array]:
            schedule, _ = state
            moves = jnp.arange(schedule.size**2)
            value = lambda move: self.loss(schedule[moved(move)])
            values = jax.lax.map(value, moves, batch_size=256)
            best = jnp.argmin(jnp.where(jnp.isnan(values), jnp.inf, values))
            better = values[best] < (1.0 - 1e-9) * self.loss(schedule)
            return jnp.where(better, schedule[moved(best)], schedule), better

        state = schedule, jnp.array(True)
        return jax.lax.while_loop(lambda state: state[1], improve, state)[0]

    def _swept(self, schedule: Array) -> Array:
        return jax.lax.fori_loop(0, _SWEEPS, lambda _, s: self._sweep(s), schedule)

    def _solve(self, schedule: Array, tolerance: ScalarLike) -> Array:
        """Newton steps downhill until Newton's model promises no improvement."""
        initial = 0.5 * jnp.sum(self.curvatures * self.start)
        negligible = jnp.finfo(schedule.dtype).eps * initial

        def improve(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            schedule, _, count = state
            value = self.loss(schedule)
            step, promise = self._newton(schedule)
            # The full step in the logarithms, or a part of it: never uphill.
            parts = 0.5 ** jnp.arange(_HALVINGS, dtype=step.dtype)
            trials = schedule * jnp.exp(jnp.clip(parts[:, None] * step, -1.0, 1.0))
            values = jax.lax.map(self.loss, trials)
            best = jnp.argmin(jnp.where(jnp.isnan(values), jnp.inf, values))
            new = jnp.where(values[best] < value, trials[best], schedule)
            return new, promise <= tolerance * value + negligible, count + 1

        def going(state: tuple[Array, Array, Array]) -> Array:
            return ~state[1] & (state[2] < _ITERATIONS)

        state = schedule, jnp.array(False), jnp.zeros((), jnp.int32)
        schedule, reached, _ = jax.lax.while_loop(going, improve, state)
        return jnp.where(reached, schedule, jnp.nan)

    def _newton(self, schedule: Array) -> tuple[Array, Scalar]:
        """Newton's step in the log rates, and the decrease it promises.

        With the absolute Hessian, so that it goes downhill.
        """
        loss = lambda z: self.loss(jnp.exp(z))
        z = jnp.log(schedule)
        slopes, hessian = jax.grad(loss)(z), jax.hessian(loss)(z)
        # Rates differ by orders of magnitude in what they matter: unit diagonal.
        curvature = jnp.abs(jnp.diag(hessian))
        scale = jax.lax.rsqrt(jnp.where(curvature > 0.0, curvature, 1.0))
        values, vectors = jnp.linalg.eigh(scale[:, None] * hessian * scale)
        along = vectors.T @ (scale * slopes)
        least = schedule.size * jnp.finfo(schedule.dtype).eps
        values = jnp.maximum(jnp.abs(values), least)
        return -scale * (vectors @ (along / values)), 0.5 * jnp.sum(along**2 / values)

    def _sweep(self, schedule: Array) -> Array:
        """Each rate in turn at the vertex of its parabola, the last one first."""
        h = self.curvatures
        before = jax.lax.scan(
            lambda m, rate: (self._step(m, rate), m), self.start, schedule
        )[1]

        def back(b: Array, m: Array) -> tuple[Array, Array]:
            best = jnp.sum(b * h * m) / jnp.sum(b * h**2 * (m + self.noise))
            return b * (1.0 - best * h) ** 2, best

        # b = ∂L/∂m after the step; the moments before it do not depend on later rates.
        return jax.lax.scan(back, h, before, reverse=True)[1]


@functools.partial(jax.jit, static_argnames="steps")
def _best(model: NoisyQuadratic, steps: int, tolerance: ScalarLike) -> Array:
    return model._best_minimum(steps, tolerance)
