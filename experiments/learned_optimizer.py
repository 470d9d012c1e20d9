r"""Question: can an update rule be learned, and what do short windows teach it?

The rule is a small network that sees, for each parameter, its gradient, averages of it
and the step, as the MLP of learned_optimization does; it is an optax transformation, so
that it stands where Adam does. It is meta-trained on noisy quadratics with random axes
(the mean loss of a run of T steps) in three ways of equal inner steps: through the full
unroll, by truncated windows, and by persistent evolution strategies (PES) over the same
windows.
Claim: truncated windows of one step teach greed (the short-horizon bias) and end far
above the full unroll, on the problems trained on and on larger ones. PES over the same
windows is without that bias; what that is worth beside its noise is in the table. The
hypergradient is that of hand-written JAX.

`check_hypergrad` (d = 4, T = 20, float64, after a random step of the weights) agrees:
the engines to 9e-17, finite differences to 4e-10. `diagnose` there finds nothing: 90 %
of the derivative needs the last 19 of the 20 steps.

Published, in other settings, beside which no number of ours stands: PES escapes where
truncation fails (Vicol, Metz, Sohl-Dickstein 2021, figures 3 to 5).
"""

import functools
import sys
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from matplotlib.figure import Figure
from pydantic import PositiveFloat, PositiveInt, model_validator

import metalr
from experiments._command.experiment import ExperimentConfig, Record
from experiments._learned_optimizer import by_hand, by_windows, figures as drawings
from experiments._learned_optimizer.problems import Family, draw, problems
from experiments._learned_optimizer.rule import first_rule, update_rule
from experiments._settings import outer_loop
from experiments._settings.beside import beside

Way = Literal["full", "truncated", "pes"]


class Config(ExperimentConfig):
    """Options of this experiment."""

    experiment: Literal["learned_optimizer"] = "learned_optimizer"
    dtype: Literal["float64", "float32"] = "float32"
    dimension: PositiveInt = 10  # of the problems that are trained on
    held_out: tuple[PositiveInt, ...] = (10, 40)  # dimensions of the problems of tests
    condition: PositiveFloat = 100.0
    noise: PositiveFloat = 2.0
    start: PositiveFloat = 3.0
    steps: PositiveInt = 100  # T
    windows: tuple[PositiveInt, ...] = (1, 5)  # of truncation and of PES
    tasks: PositiveInt = 8  # drawn anew for each run of T steps
    rounds: PositiveInt = 200  # runs of T steps for each way
    hidden: PositiveInt = 16
    outer_learning_rate: PositiveFloat = 3e-3  # of the full unroll; decays to 0
    window_learning_rate: PositiveFloat = 1e-3  # of windows, with many more steps
    sigma: PositiveFloat = 0.1  # of PES
    pairs: PositiveInt = 8
    ways: tuple[Way, ...] = ("full", "truncated", "pes")
    adam_rates: PositiveInt = 25  # tried in [0.003, 3]
    tests: PositiveInt = 64  # problems held out, of each dimension
    checkpoint_every: PositiveInt = 20

    @property
    def family(self) -> Family:
        """What the problems have in common."""
        return Family(self.condition, self.noise, self.start, self.steps, self.dtype)

    @model_validator(mode="after")
    def _whole_windows(self) -> "Config":
        for window in self.windows:
            if self.steps % window:
                msg = f"windows: {window} must divide steps = {self.steps}"
                raise ValueError(msg)
        return self

    def trainings(self) -> list[tuple[Way, int]]:
        """Each way of meta-training, with the length of its windows."""
        short: list[Way] = [way for way in self.ways if way != "full"]
        found: list[tuple[Way, int]] = []
        if "full" in self.ways:
            found.append(("full", self.steps))
        found.extend((way, window) for window in self.windows for way in short)
        return found


def size(config: Config) -> int:
    """Records that `run` yields."""
    return (len(config.trainings()) + 2) * len(config.held_out) + 1


def run(config: Config) -> Iterator[Record]:
    """Yield each way of training on each held-out dimension; then the price."""
    tests = {d: held_out(config, d) for d in config.held_out}
    cosine = functools.partial(_cosine, steps=config.steps)
    for name, optimizer in (("Adam", optax.adam), ("Adam, cosine", cosine)):
        for dimension, keys in tests.items():
            rates = jnp.logspace(-2.5, 0.5, config.adam_rates, dtype=config.dtype)
            mean = metalr.tasks.Mean.of(
                problems(config.family, dimension, optimizer), keys
            )
            values = jax.lax.map(mean, rates)
            best = int(jnp.nanargmin(values))
            yield _record(config, dimension, name, optimizer, rates[best], keys)
    for way, window in config.trainings():
        learned = meta_train(config, way, window)
        name = way if way == "full" else f"{way}, windows of {window}"
        for dimension, keys in tests.items():
            row = _record(config, dimension, name, update_rule, learned.hyper, keys)
            yield {**row, "meta_training": learned.history.value[1:].tolist()}
    yield {
        "table": "an outer step of the full unroll beside hand-written JAX, same draws",
        **price(config),
    }


def held_out(config: Config, dimension: int) -> jax.Array:
    """Keys of the problems of a test: never those of training."""
    key = jax.random.fold_in(jax.random.key(config.seed), dimension)
    return jax.random.split(jax.random.fold_in(key, 1), config.tests)


def _cosine(rate: Any, *, steps: int) -> optax.GradientTransformation:
    return optax.adam(optax.cosine_decay_schedule(rate, steps))


def meta_train(config: Config, way: Way, window: int) -> metalr.Learned:
    """Learn the rule; its history has the mean loss of each round's runs."""
    key, outer_key = jax.random.split(jax.random.key(config.seed))
    theta = first_rule(key, config.hidden, config.dtype)
    make = problems(config.family, config.dimension, update_rule)
    rate = config.outer_learning_rate if way == "full" else config.window_learning_rate
    count = config.rounds * (config.steps // window)
    outer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adam(optax.cosine_decay_schedule(rate, count)),
    )
    if way != "full":
        plan = by_windows.Plan(way, window, config.tasks, config.sigma, config.pairs)
        loop = by_windows.loop(make, plan, outer, outer_key)
        name = f"{way}, windows of {window}"
        return outer_loop.resumed(
            sys.modules[__name__],
            config,
            name,
            loop,
            theta,
            steps=config.rounds,
            every=config.checkpoint_every,
        )

    def fresh(key: jax.Array) -> metalr.tasks.Mean:
        return metalr.tasks.Mean.of(make, jax.random.split(key, config.tasks))

    return outer_loop.learn(
        sys.modules[__name__],
        config,
        way,
        fresh,
        theta,
        key=outer_key,
        outer_optimizer=outer,
        steps=config.rounds,
        every=config.checkpoint_every,
    )


def price(config: Config) -> Record:
    """The first hypergradient through the full unroll, both ways."""
    key, weights, more = jax.random.split(jax.random.key(config.seed), 3)
    keys = jax.random.split(key, config.tasks)
    theta = first_rule(weights, config.hidden, config.dtype)
    step = jax.random.normal(more, theta["V"].shape, config.dtype)
    theta["V"] += 0.1 * step  # where the rule moves

    def ours(theta: Any) -> tuple[jax.Array, Any]:
        make = problems(config.family, config.dimension, update_rule)
        found = metalr.hypergradient(metalr.tasks.Mean.of(make, keys), theta)
        return found.value, found.grad

    theirs = functools.partial(
        by_hand.hypergradient, config.family, config.dimension, keys
    )
    return beside(
        jax.jit(ours),
        jax.jit(theirs),
        theta,
        written=[problems, update_rule],
        by_hand=[by_hand.hypergradient, draw],
    )


def _record(
    config: Config, dimension: int, way: str, optimizer: Any, hyper: Any, keys: Any
) -> Record:
    """The losses of a rule on the held-out problems of a dimension."""
    make = problems(config.family, dimension, optimizer)

    def path(key: jax.Array) -> Any:
        objective = make(key)
        outer: Any = objective.outer_loss

        def step(state: Any, index: jax.Array) -> tuple[Any, jax.Array]:
            after = objective.step(hyper, state, index)[0]
            return after, outer(after.params, hyper)

        return jax.lax.scan(step, objective.init(hyper), jnp.arange(config.steps))[1]

    losses = jax.jit(jax.vmap(path))(keys)
    curve, count = jnp.mean(losses, axis=0), len(keys)
    return {
        "table": f"mean loss along {config.steps} steps, {count} problems held out",
        "way": way,
        "d": dimension,
        "held_out": "same size" if dimension == config.dimension else "another size",
        "mean_loss": float(jnp.mean(losses)),
        "standard_error": float(jnp.std(jnp.mean(losses, axis=1)) / count**0.5),
        "final_loss": float(curve[-1]),
        "rate": float(hyper) if way.startswith("Adam") else None,
        "curve": curve.tolist(),
    }


def headline(records: Sequence[Record]) -> str:
    """The mean losses on the largest problems."""
    rows = [record for record in records if "way" in record]
    largest = max(row["d"] for row in rows)
    losses = ", ".join(
        f"{row['way']} {row['mean_loss']:.3g}" for row in rows if row["d"] == largest
    )
    return f"mean loss on held-out problems of dimension {largest}: {losses}"


def figures(records: Sequence[Record]) -> dict[str, Figure]:
    """The losses of held-out problems on their way, and meta-training."""
    rows = [record for record in records if "way" in record]
    return {"learned_optimizer": drawings.curves(rows)} if rows else {}


if __name__ == "__main__":
    from experiments._command.cli import module_main

    raise SystemExit(module_main("learned_optimizer"))
