"""Inner training that goes on over outer steps: a hypergradient for each window."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array

from .._checks import float_leaves, int_at_least
from .._types import Hyper, Objective, PyTree, Scalar
from ..hypergrad import Engine, Reverse
from ..hypergrad.hypergradient import hypergradient_and_run
from ..runs.run import Bar, State, Within, is_run, refilled
from ..tasks.each import with_own_noise
from .rules import select

_REVERSE = Reverse()


class Windows(NamedTuple):
    """A pair of pure functions, as in optax."""

    init: Callable[..., Any]  # (hyper, first_step=0) -> carry
    update: Callable[[Any, Hyper], tuple[Any, Any]]  # carry, hyper -> carry, result


class Carry(NamedTuple):
    """An inner run on its way."""

    state: State  # the run's own; after the last window that of the end
    step: Array  # steps made since the start; 0 means that the next window starts anew
    made: Array  # windows so far, over all runs
    ensemble: Any  # what the engine itself carries; None for most


def windows(objective: Objective, length: Any, engine: Engine = _REVERSE) -> Windows:
    r"""Hypergradients of an inner run that goes on while hyper changes.

    Window k is the steps $s$ to $s + K$, from the state that the window before left:

    $$\hat\nabla_k = \nabla_\eta\, F\bigl(w_{s+K}(\eta;\, w_s),\, \eta\bigr)
      \quad\text{with } w_s \text{ (and the optimizer's state) held fixed}$$

    so that an outer step costs K inner steps and not T: truncated back-propagation with
    carried state, or online meta-gradients. After `objective.steps` steps the run
    starts anew, at the hyper of then; the first window differentiates the start as
    well. Its value is that of the state where it ends (the outer loss there); with
    `outer_weights`, what the window adds to the weighted sum, so that the values of a
    run add up to it. Where K does not divide T, the last window is shorter.

    Biased: what hyper did before the window is not seen. On a quadratic with a constant
    rate and no momentum the last window has $K/T$ of the gradient; elsewhere even the
    sign can be wrong.

    With `PersistentES` (its `window` = `length`) it is the published online estimator,
    without that bias: each of N pairs of particles carries its own two states, at
    $\eta \pm \sigma\varepsilon_k$ in window k, and the sum $\xi_k$ of the perturbations
    since the last start,

    $$\hat g_k = \frac1N \sum \xi_k\, \frac{L_k^+ - L_k^-}{2\sigma}, \qquad
      E \sum_k \hat g_k = \nabla_\eta \sum_k E\, L_k \text{ at fixed } \eta,$$

    with fresh noise in every window.

    Memory: the engine's for K steps, and the carry: one state (PersistentES: 2N + 1).
    Pure functions: use them within `jit`, `scan` and `vmap`. Several tasks: `vmap` over
    the objectives and their carries; staggered, so that at any time some are young and
    some are old, by `init(hyper, first_step)`. Works on every run and with every engine
    that takes a run apart.

    Args:
        objective: an `Unrolled` or a `Rollout`.
        length: steps K ≥ 1 of a window.
        engine: how a window is differentiated; its random keys, if it has any, are
            folded with the number of the window.

    Returns:
        `Windows(init, update)`. `init(hyper, first_step=0)` makes the carry of a run
        that has made so many steps at `hyper` (with PersistentES a multiple of K).
        `update(carry, hyper)` returns the next carry, and the engine's result of this
        window.

    Raises:
        ValueError: for a length that is no int from 1 to `objective.steps`, an
            objective that is not a run, a PersistentES of another window; when called,
            for hyper that is not floating, or does not act within a window.

    Example: a rate that follows the training by Adam.

        >>> import optax, metalr
        >>> loss = lambda params, hyper, batch: 0.5 * params**2
        >>> L = metalr.Unrolled(loss, optax.sgd, 1.0, steps=4)
        >>> training, outer = metalr.windows(L, 2), optax.adam(0.05)
        >>> rate = 0.1
        >>> carry, state = training.init(rate), outer.init(rate)
        >>> for _ in range(3):
        ...     carry, (value, grad) = training.update(carry, rate)
        ...     updates, state = outer.update(grad, state)
        ...     rate = optax.apply_updates(rate, updates)
        ...     print(f"{value:.4f} {grad:.4f} {rate:.4f}")
        0.3281 -1.4580 0.1500
        0.1712 -0.8059 0.1973
        0.2076 -1.0343 0.2453

    References:
        Williams & Peng (1990), An efficient gradient-based algorithm for on-line
        training of recurrent network trajectories. Xu, van Hasselt, Silver (2018),
        Meta-gradient reinforcement learning. Vicol, Metz, Sohl-Dickstein (2021),
        Unbiased gradient estimation in unrolled computation graphs with persistent
        evolution strategies.
    """
    if not is_run(objective):
        msg = (
            f"objective = {objective!r} must be a run, whose steps can be taken one by "
            "one: a metalr.Unrolled or a metalr.Rollout"
        )
        raise ValueError(msg)
    run: Any = objective
    length = int_at_least(length, "length", 1, note=": it counts steps")
    if length > run.steps:
        msg = f"length = {length} is longer than the run: it has {run.steps} steps"
        raise ValueError(msg)
    own: Any = engine if hasattr(engine, "through_window") else None
    if own is not None:
        own.refuse_window(length)

    def init(hyper: Hyper, first_step: Any = 0) -> Carry:
        hyper = float_leaves(hyper, "hyper")
        first = _checked_start(first_step, run.steps, length if own else 1)
        prepared, zero = run.prepare(hyper), jnp.zeros((), jnp.int32)
        ensemble = None if own is None else own.begin(run, hyper)
        start = Carry(_strong(run.init(prepared)), zero, zero, ensemble)
        if isinstance(first, int) and first == 0:  # no step is compiled for nothing
            return start
        if own is not None:
            again = lambda _, carry: update(carry, hyper)[0]
            return jax.lax.fori_loop(0, first // length, again, start)
        onward = lambda i, state: run.step(prepared, state, i)[0]
        state = jax.lax.fori_loop(0, first, onward, start.state)
        return start._replace(state=state, step=jnp.asarray(first, jnp.int32))

    def update(carry: Carry, hyper: Hyper) -> tuple[Carry, Any]:
        hyper = float_leaves(hyper, "hyper")
        window = Window(run, carry.state, carry.step, length)
        drawn: Any = with_own_noise(engine, carry.made)
        if own is not None:
            state, kept, result = drawn.through_window(window, carry.ensemble, hyper)
        else:
            result, end = hypergradient_and_run(window, hyper, drawn)
            state, kept = end.state, None
        step = carry.step + length
        step = jnp.where(step >= run.steps, 0, step)
        return Carry(state, step, carry.made + 1, kept), result

    return Windows(init, update)


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True, eq=False)
class Window(Within):
    """The next `length` steps of a run, as a run of its own; `first` may be traced."""

    objective: Any
    state: State
    first: Array
    length: int

    @property
    def steps(self) -> int:
        """Those of the window."""
        return self.length

    def init(self, hyper: Hyper) -> State:
        """The given state, or the start of the run."""
        start = _strong(self.objective.init(hyper))
        return select(self.first == 0, start, self.state)

    def step(
        self, hyper: Hyper, state: State, index: int | Array
    ) -> tuple[State, PyTree]:
        """That of the whole run; past its end the state stays."""
        at = self.first + index
        after, record = self.objective.step(hyper, state, at)
        return select(at < self.objective.steps, after, state), record

    def pull_back(
        self, hyper: Hyper, state: State, index: int | Array, bar: Bar
    ) -> tuple[Bar, Hyper]:
        """That of the whole run."""
        at = self.first + index
        before, hyper_bar = self.objective.pull_back(hyper, state, at, bar)
        inside = at < self.objective.steps
        pairs = zip(before, bar, strict=True)
        kept = [jnp.where(inside, a, b) for a, b in pairs if b is not None]
        zero = lambda x: jnp.where(inside, x, jnp.zeros_like(x))
        return refilled(bar, kept), jax.tree.map(zero, hyper_bar)

    def evaluate(self, hyper: Hyper, state: State) -> Scalar:
        """The value at its end; of a weighted sum, what it adds."""
        known = self.objective.accumulated(state)
        if isinstance(known, float):  # nothing is summed on the way
            return self.objective.evaluate(hyper, state)
        before = jnp.where(self.first == 0, 0.0, self.objective.accumulated(self.state))
        last = self.first + self.steps >= self.objective.steps
        whole = self.objective.evaluate(hyper, state)
        return jnp.where(last, whole, known.astype(whole.dtype)) - before

    def tree_flatten(self) -> tuple[tuple[Any, Any, Any], int]:
        """All but the number of steps are children."""
        return (self.objective, self.state, self.first), self.length

    @classmethod
    def tree_unflatten(cls, aux: int, children: tuple[Any, Any, Any]) -> "Window":
        """Rebuild."""
        return cls(*children, aux)


def _checked_start(first_step: Any, steps: int, multiple: int) -> Any:
    """A step to start from; a traced one passes, unseen."""
    if isinstance(first_step, Tracer | jax.Array):
        return first_step
    first = int_at_least(first_step, "first_step", 0)
    if first >= steps or first % multiple:
        further = "" if multiple == 1 else f", a multiple of {multiple}"
        msg = f"first_step = {first} must be less than the run's {steps} steps{further}"
        raise ValueError(msg)
    return first


def _strong(tree: PyTree) -> PyTree:
    """Arrays without weak types, so that a carry keeps its form."""
    return jax.tree.map(lambda x: jnp.asarray(x).astype(jnp.asarray(x).dtype), tree)
