"""Meta-training by windows: an outer step after each, on runs that go on."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

import metalr
from metalr.outer.learn import History, LearnState

Way: TypeAlias = Literal["truncated", "pes"]


class Plan(NamedTuple):
    """How a rule is trained by windows."""

    way: Way
    window: int  # steps, a divisor of T
    tasks: int  # drawn anew for each run of T steps
    sigma: float  # of PES
    pairs: int


def loop(
    make: Callable[[jax.Array], metalr.Unrolled],
    plan: Plan,
    outer: optax.GradientTransformation,
    key: jax.Array,
) -> Callable[..., metalr.Learned]:
    """A loop in the form of `metalr.learn`, whose steps are whole runs of T steps.

    Args:
        make: draws a problem, and is how the rule is run on it.
        plan: how.
        outer: steps after each window.
        key: run i is drawn from `fold_in(key, i)`.

    Returns:
        `learn(theta, steps=, state=None)`; the history has the mean loss of each run,
        and nan before the first.
    """

    def engine(noise: jax.Array) -> Any:
        if plan.way == "truncated":
            return metalr.Reverse()
        return metalr.PersistentES(plan.sigma, plan.pairs, plan.window, noise)

    def one_run(state: Any, index: jax.Array) -> tuple[Any, jax.Array]:
        task_key, noise = jax.random.split(jax.random.fold_in(key, index))
        objectives = jax.vmap(make)(jax.random.split(task_key, plan.tasks))
        by = engine(noise)
        train = lambda objective: metalr.windows(objective, plan.window, by)
        carries = jax.vmap(lambda o: train(o).init(state[0]))(objectives)

        def one_window(state: Any, _: None) -> tuple[Any, jax.Array]:
            theta, outer_state, carries = state
            advance = lambda o, carry: train(o).update(carry, theta)
            carries, result = jax.vmap(advance)(objectives, carries)
            grad = jax.tree.map(lambda g: jnp.mean(g, axis=0), result.grad)
            updates, outer_state = outer.update(grad, outer_state)
            theta = optax.apply_updates(theta, updates)
            return (theta, outer_state, carries), jnp.mean(result.value)

        count = objectives.steps // plan.window
        state, values = jax.lax.scan(one_window, (*state, carries), length=count)
        return state[:2], jnp.sum(values)

    runs = jax.jit(lambda state, indices: jax.lax.scan(one_run, state, indices))

    def learn(theta: Any, *, steps: int, state: Any = None) -> metalr.Learned:
        first = jnp.zeros((), jnp.int32) if state is None else state.step
        outer_state = outer.init(theta) if state is None else state.rule
        (theta, outer_state), values = runs(
            (theta, outer_state), first + jnp.arange(steps, dtype=jnp.int32)
        )
        values = jnp.concatenate([jnp.full(1, jnp.nan, values.dtype), values])
        unknown = jnp.full_like(values, jnp.nan)
        return metalr.Learned(
            hyper=theta,
            value=values[-1],
            history=History(None, values, unknown, jnp.zeros_like(values)),
            converged=jnp.array(False),
            steps=jnp.array(steps, jnp.int32),
            state=LearnState(None, outer_state, first + steps, None),  # type: ignore[arg-type]
        )

    return learn
