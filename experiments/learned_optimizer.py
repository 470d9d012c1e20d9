r"""Question: can an update rule be learned, and what do short windows teach it?

The rule is a small network that sees, for each parameter, its gradient, averages of it
and the step, as the MLP of learned_optimization does; it is an optax transformation, so
that it stands where Adam does. It is meta-trained on noisy quadratics with random axes
(the mean loss of a run of T steps) in three ways of equal inner steps: through the full
unroll, by truncated windows, and by persistent evolution strategies (PES) over the same
windows.
Claim: truncated windows of one step teach greed (the short-horizon bias) and end far
above the full unroll, on the problems trained on and on larger ones; PES over the same
windows has no such bias (that it ends below them was seen in short trials at the size
trained on alone, and at a higher outer rate it diverged). With windows of five steps
little of the bias is left, and PES gains nothing.

`check_hypergrad` (d = 4, T = 20, float64, after a random step of the weights): the
engines agree to 4e-16, finite differences confirm them to 5e-11.

Published, in other settings, beside which no number of ours stands: PES escapes where
truncation fails (Vicol, Metz, Sohl-Dickstein 2021, figures 3 to 5).
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial
from matplotlib.figure import Figure
from pydantic import PositiveFloat, PositiveInt, model_validator

import metalr
from experiments._command.experiment import ExperimentConfig, Record
from experiments._report.style import panels

Way = Literal["full", "truncated", "pes"]
AVERAGES = (0.5, 0.9, 0.99)  # decays of the averages of the gradient
TIMES = (3.0, 10.0, 30.0, 100.0)  # steps, of the features tanh(t / τ)
INPUTS = 2 + len(AVERAGES) + len(TIMES)


class Config(ExperimentConfig):
    """Options of this experiment."""

    experiment: Literal["learned_optimizer"] = "learned_optimizer"
    dtype: Literal["float64", "float32"] = "float32"
    dimension: PositiveInt = 10  # of the problems that are trained on
    held_out: tuple[PositiveInt, ...] = (10, 40)  # dimensions of the problems of tests
    condition: PositiveFloat = 100.0  # λ_max / λ_min, spread evenly in the logarithm
    noise: PositiveFloat = 2.0  # deviation of the gradient's noise, times √H
    start: PositiveFloat = 3.0  # deviation of the starts, times 1/√H
    steps: PositiveInt = 100
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

    @model_validator(mode="after")
    def _whole_windows(self) -> "Config":
        for window in self.windows:
            if self.steps % window:
                msg = f"windows: {window} must divide steps = {self.steps}"
                raise ValueError(msg)
        return self

    def trainings(self) -> list[tuple[Way, int]]:
        """Each way of meta-training, with the length of its windows."""
        found: list[tuple[Way, int]] = []
        if "full" in self.ways:
            found.append(("full", self.steps))
        for window in self.windows:
            for way in self.ways:
                if way != "full":
                    found.append((way, window))
        return found


def size(config: Config) -> int:
    """Records that `run` yields."""
    return (len(config.trainings()) + 2) * len(config.held_out)


def run(config: Config) -> Iterator[Record]:
    """Yield a record for each way of training and each held-out dimension."""
    tests = {d: held_out(config, d) for d in config.held_out}
    cosine = functools.partial(_cosine, steps=config.steps)
    for name, optimizer in (("Adam", optax.adam), ("Adam, cosine", cosine)):
        for dimension, keys in tests.items():
            rates = jnp.logspace(-2.5, 0.5, config.adam_rates, dtype=config.dtype)
            mean = metalr.tasks.Mean.of(problems(config, dimension, optimizer), keys)
            values = jax.lax.map(mean, rates)
            best = int(jnp.nanargmin(values))
            yield _record(config, dimension, name, optimizer, rates[best], keys)
    for way, window in config.trainings():
        theta, curve = meta_train(config, way, window)
        name = way if way == "full" else f"{way}, windows of {window}"
        for dimension, keys in tests.items():
            record = _record(config, dimension, name, update_rule, theta, keys)
            yield {**record, "meta_training": curve.tolist()}


def held_out(config: Config, dimension: int) -> jax.Array:
    """Keys of the problems of a test: never those of training."""
    key = jax.random.fold_in(jax.random.key(config.seed), dimension)
    return jax.random.split(jax.random.fold_in(key, 1), config.tests)


# The rule.


def first_rule(key: jax.Array, hidden: int, dtype: Any) -> dict[str, jax.Array]:
    """Random features and an output of 0: the first rule does not move."""
    hold = jax.random.normal(key, (INPUTS, hidden), dtype) / INPUTS**0.5
    zeros = lambda *shape: jnp.zeros(shape, dtype)
    return {"W": hold, "b": zeros(hidden), "V": zeros(hidden, 2), "c": zeros(2)}


def update_rule(theta: Any) -> optax.GradientTransformation:
    """The learned rule as an optax transformation of its weights."""

    def init(params: Any) -> Any:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return jnp.zeros((), jnp.int32), (zeros,) * len(AVERAGES), zeros

    def update(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, Any]:
        del params, extra_args
        grads = updates
        count, averages, square = state
        blend = lambda decay, a, x: decay * a + (1.0 - decay) * x
        averages = tuple(
            jax.tree.map(lambda a, g, decay=decay: blend(decay, a, g), average, grads)
            for decay, average in zip(AVERAGES, averages, strict=True)
        )
        square = jax.tree.map(lambda a, g: blend(0.99, a, g * g), square, grads)
        updates = jax.tree.map(
            lambda g, v, *m: _move(theta, count, g, v, m), grads, square, *averages
        )
        return updates, (count + 1, averages, square)

    return optax.GradientTransformation(init, update)


def _move(theta: Any, count: Any, g: Any, v: Any, averages: Any) -> jax.Array:
    """The network at each parameter: a direction, and the logarithm of its size."""
    scaled = [x * jax.lax.rsqrt(jnp.mean(x * x) + 1e-12) for x in (g, *averages)]
    time = count.astype(g.dtype) / jnp.array(TIMES, g.dtype)
    time = jnp.broadcast_to(jnp.tanh(time), (*g.shape, len(TIMES)))
    each = jnp.stack([*scaled, averages[1] * jax.lax.rsqrt(v + 1e-12)], axis=-1)
    features = jnp.concatenate([each, time], axis=-1)
    hidden = jax.nn.relu(features @ theta["W"] + theta["b"])
    direction, size = jnp.moveaxis(hidden @ theta["V"] + theta["c"], -1, 0)
    return 0.1 * direction * jnp.exp(size)


def _cosine(rate: Any, *, steps: int) -> optax.GradientTransformation:
    return optax.adam(optax.cosine_decay_schedule(rate, steps))


# The problems.


def quadratic(root: Any, params: Any, hyper: Any) -> jax.Array:
    """½ wᵀHw, with H = AᵀA."""
    del hyper
    return 0.5 * jnp.sum((root @ params) ** 2)


def noisy(root: Any, params: Any, hyper: Any, noise: Any) -> jax.Array:
    """Its gradient is Hw + Aᵀn."""
    return quadratic(root, params, hyper) + noise @ (root @ params)


def draw(key: Any, scale: Any, index: Any) -> jax.Array:
    """The noise of a step: as many normal deviates as `scale` has entries."""
    key = jax.random.fold_in(key, index)
    return scale * jax.random.normal(key, scale.shape, scale.dtype)


def problems(config: Config, dimension: int, optimizer: Any) -> Any:
    """`key -> objective`: axes, start and noise are drawn; the spectrum is fixed."""
    h = jnp.logspace(0.0, -np.log10(config.condition), dimension, dtype=config.dtype)
    scale = jnp.full_like(h, config.noise)
    along = jnp.ones(config.steps + 1, config.dtype).at[0].set(0.0) / config.steps

    def make(key: jax.Array) -> metalr.Unrolled:
        axes, start, noise = jax.random.split(key, 3)
        Q = jnp.linalg.qr(jax.random.normal(axes, (dimension,) * 2, h.dtype))[0]
        root = jnp.sqrt(h)[:, None] * Q
        return metalr.Unrolled(
            Partial(noisy, root),
            optimizer,
            Q.T @ (config.start * jax.random.normal(start, h.shape, h.dtype) / h**0.5),
            steps=config.steps,
            batches=Partial(draw, noise, scale),
            outer_loss=Partial(quadratic, root),
            outer_weights=along,
        )

    return make


# Meta-training.


def meta_train(config: Config, way: Way, window: int) -> tuple[Any, jax.Array]:
    """Learn the rule; also the mean loss of each round's runs, on their way."""
    key, outer_key = jax.random.split(jax.random.key(config.seed))
    theta = first_rule(key, config.hidden, config.dtype)
    make = problems(config, config.dimension, update_rule)
    full = way == "full"
    rate = config.outer_learning_rate if full else config.window_learning_rate
    count = config.rounds * (config.steps // window)
    outer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adam(optax.cosine_decay_schedule(rate, count)),
    )
    if full:
        fresh = lambda key: metalr.tasks.Mean.of(
            make, jax.random.split(key, config.tasks)
        )
        learned = metalr.learn(
            fresh,
            theta,
            key=outer_key,
            outer_optimizer=outer,
            steps=config.rounds,
            history="scalars",
        )
        return learned.hyper, learned.history.value[1:]

    def one_round(state: Any, key: jax.Array) -> tuple[Any, jax.Array]:
        """A run of T steps on fresh problems, an outer step for each window."""
        task_key, noise = jax.random.split(key)
        objectives = jax.vmap(make)(jax.random.split(task_key, config.tasks))
        engine = metalr.Reverse()
        if way == "pes":
            engine = metalr.PersistentES(config.sigma, config.pairs, window, noise)
        train = lambda objective: metalr.windows(objective, window, engine)
        carries = jax.vmap(lambda o: train(o).init(state[0]))(objectives)

        def one_window(state: Any, _: Any) -> tuple[Any, jax.Array]:
            theta, outer_state, carries = state
            advance = lambda o, carry: train(o).update(carry, theta)
            carries, result = jax.vmap(advance)(objectives, carries)
            grad = jax.tree.map(lambda g: jnp.mean(g, axis=0), result.grad)
            updates, outer_state = outer.update(grad, outer_state)
            theta = optax.apply_updates(theta, updates)
            return (theta, outer_state, carries), jnp.mean(result.value)

        windows = config.steps // window
        state, values = jax.lax.scan(one_window, (*state, carries), length=windows)
        return state[:2], jnp.sum(values)

    keys = jax.random.split(outer_key, config.rounds)
    start = (theta, outer.init(theta))
    (theta, _), curve = jax.jit(lambda start: jax.lax.scan(one_round, start, keys))(
        start
    )
    return theta, curve


def _record(
    config: Config, dimension: int, way: str, optimizer: Any, hyper: Any, keys: Any
) -> Record:
    """The losses of a rule on the held-out problems of a dimension."""
    make = problems(config, dimension, optimizer)

    def path(key: jax.Array) -> tuple[Any, Any]:
        objective = make(key)
        outer = objective.outer_loss
        steps = jnp.arange(config.steps)
        step = lambda state, index: (
            (after := objective.step(hyper, state, index)[0]),
            outer(after.params, hyper),
        )
        return jax.lax.scan(step, objective.init(hyper), steps)[1]

    losses = jax.jit(jax.vmap(path))(keys)
    curve = jnp.mean(losses, axis=0)
    error = jnp.std(losses[:, -1]) / len(keys) ** 0.5
    return {
        "way": way,
        "d": dimension,
        "held_out": "same size" if dimension == config.dimension else "another size",
        "mean_loss": float(jnp.mean(losses)),
        "final_loss": float(curve[-1]),
        "final_error": float(error),
        "rate": float(hyper) if way.startswith("Adam") else None,
        "curve": curve.tolist(),
    }


def headline(records: Sequence[Record]) -> str:
    """The mean losses on the largest problems."""
    largest = max(record["d"] for record in records)
    rows = [record for record in records if record["d"] == largest]
    losses = ", ".join(f"{row['way']} {row['mean_loss']:.3g}" for row in rows)
    return f"mean loss on held-out problems of dimension {largest}: {losses}"


def figures(records: Sequence[Record]) -> dict[str, Figure]:
    """The losses of held-out problems on their way, and meta-training."""
    dimensions = sorted({record["d"] for record in records})
    ways = list(dict.fromkeys(record["way"] for record in records))
    figure, axes = panels(len(dimensions) + 1)
    for record in records:
        panel, color = axes[dimensions.index(record["d"])], ways.index(record["way"])
        panel.plot(record["curve"], color=f"C{color}", label=record["way"])
    for panel, dimension in zip(axes, dimensions, strict=False):
        panel.set(yscale="log", xlabel="inner step s", ylabel="loss after s steps")
        panel.set_title(f"held-out problems, d = {dimension}", fontsize=9)
        panel.legend(fontsize=8)
    for record in records:
        if record["d"] == dimensions[0] and "meta_training" in record:
            color = f"C{ways.index(record['way'])}"
            axes[-1].plot(record["meta_training"], color=color, label=record["way"])
    axes[-1].set(xlabel="round of T inner steps", ylabel="mean loss of its runs")
    axes[-1].set(yscale="log")
    axes[-1].legend(fontsize=8)
    return {"learned_optimizer": figure}


if __name__ == "__main__":
    from experiments._command.cli import module_main

    raise SystemExit(module_main("learned_optimizer"))
