r"""Question: how much is a learned schedule worth, learned through a thousand steps?

A small net classifies digits, in minibatches and with dropout drawn within each step.
Learned are the rate and the momentum of each of the T steps, for Adam (b1) and for SGD
with momentum, as the logarithm and the logit at `knots` points with straight lines
between (`knots: null`: each step its own), by the hypergradient of the validation loss
after all T steps, with fresh minibatches, masks and starts in each outer step. It is
held against the best constant rate and the best cosine decay, tuned over rates and
momenta with as many runs.
Claim: through plain optax the hypergradient of Adam is nan (pixels that are always 0
have no gradient, and the square root has no slope there): `guarded=False` shows it.

Runs: the constant rate is tuned with `outer_steps · tasks` of them; the learning starts
there and makes as many more, with their hypergradients; the cosine is tuned with both
numbers together.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial
from matplotlib.figure import Figure
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

import metalr
from experiments._command.experiment import Record
from experiments._report.style import panels
from experiments._settings.images import Images, ImagesConfig

Method = Literal["adam", "sgd"]
MOMENTA = (0.8, 0.9, 0.95)  # tried for constant rates and cosines
REPEATS = 4  # runs of each that is tried
RATES = {"adam": (1e-3, 1e-1), "sgd": (1e-2, 1.0)}  # bounds of those that are tried


class Config(ImagesConfig):
    """Options of this experiment."""

    experiment: Literal["learned_schedule"] = "learned_schedule"
    dtype: Literal["float64", "float32"] = "float32"
    methods: tuple[Method, ...] = ("adam", "sgd")
    steps: PositiveInt = 1000
    batch: PositiveInt = 32
    hidden: PositiveInt = 32
    dropout: NonNegativeFloat = 0.3
    knots: PositiveInt | None = 10
    tasks: PositiveInt = 4  # runs in each outer step
    outer_steps: PositiveInt = 60
    outer_learning_rate: PositiveFloat = 0.05  # of Adam
    checkpoints: PositiveInt = 32
    tests: PositiveInt = 16  # fresh runs that each schedule is judged by


class Problem(NamedTuple):
    """Arrays that the recipe works on."""

    inputs: jax.Array
    labels: jax.Array
    held_inputs: jax.Array  # the validation set: what the schedule is learned on
    held_labels: jax.Array
    keep: jax.Array  # 1 − dropout


def size(config: Config) -> int:
    """Records that `run` yields."""
    return 3 * len(config.methods)


def run(config: Config) -> Iterator[Record]:
    """Yield a record for each method, with a constant rate, a cosine, and learned."""
    images = config.images()
    problem = _problem(config, images)
    for method in config.methods:
        for shape in ("cosine", "constant"):
            hyper = tuned(config, problem, method, shape)
            yield _record(config, problem, images, method, shape, hyper)
        z, values = learn(config, problem, method, start=knots(config, hyper))
        plain, guarded = (
            hypergradient_norm(config, problem, method, hyper, guarded=guarded)
            for guarded in (False, True)
        )
        hyper = schedule(z, steps=config.steps)
        row = _record(config, problem, images, method, "learned", hyper)
        yield {
            **row,
            "gradient": guarded,
            "gradient_plain_optax": plain,
            "history": values.tolist(),
        }


# The recipe.


def init(key: jax.Array, problem: Problem, hidden: int) -> dict[str, jax.Array]:
    """He's random weights of a net with one hidden layer."""
    first, second = jax.random.split(key)
    d, dtype = problem.inputs.shape[1], problem.inputs.dtype
    return {
        "W": jax.random.normal(first, (d, hidden), dtype) * (2.0 / d) ** 0.5,
        "b": jnp.zeros(hidden, dtype),
        "V": jax.random.normal(second, (hidden, 10), dtype) / hidden**0.5,
        "c": jnp.zeros(10, dtype),
    }


def logits(params: Any, inputs: jax.Array, mask: Any = 1.0) -> jax.Array:
    """The net; the mask multiplies its hidden layer."""
    hidden = jax.nn.relu(inputs @ params["W"] + params["b"]) * mask
    return hidden @ params["V"] + params["c"]


def loss(problem: Problem, params: Any, hyper: Any, batch: Any) -> jax.Array:
    """Cross-entropy of a minibatch, with dropout."""
    del hyper
    rows, key = batch
    shape = (*rows.shape, params["b"].size)
    mask = jax.random.bernoulli(key, problem.keep, shape) / problem.keep
    return _entropy(logits(params, problem.inputs[rows], mask), problem.labels[rows])


def validation(problem: Problem, params: Any, hyper: Any) -> jax.Array:
    """Cross-entropy of the held-out images, without dropout."""
    del hyper
    return _entropy(logits(params, problem.held_inputs), problem.held_labels)


def minibatch(key: Any, rows: Any, index: Any) -> Any:
    """The rows of a step, drawn from all of them, and the key of its dropout."""
    drawn, dropped = jax.random.split(jax.random.fold_in(key, index))
    count, n = len(rows), jnp.max(rows)
    return jax.random.randint(drawn, (count,), 0, n), dropped


def optimizer(method: Method) -> Any:
    """`hyper -> optax transformation`; hyper has an entry for each step."""
    return metalr.per_step(_adam if method == "adam" else _sgd)


def _adam(hyper: Any) -> optax.GradientTransformation:
    return optax.adam(hyper["rate"], b1=hyper["momentum"])


def _sgd(hyper: Any) -> optax.GradientTransformation:
    return optax.sgd(hyper["rate"], momentum=hyper["momentum"])


def unrolled(
    config: Config,
    problem: Problem,
    method: Method,
    key: jax.Array,
    *,
    guarded: bool = True,
) -> metalr.Unrolled:
    """One training run: start, minibatches and masks are drawn from the key."""
    start, noise = jax.random.split(key)
    rows = jnp.full(config.batch, len(problem.labels))
    return metalr.Unrolled(
        Partial(loss, problem),
        optimizer(method),
        init(start, problem, config.hidden),
        steps=config.steps,
        batches=Partial(minibatch, noise, rows),
        outer_loss=Partial(validation, problem),
        checkpoints=config.checkpoints,
        guarded=guarded,
    )


def schedule(z: Any, *, steps: int) -> dict[str, jax.Array]:
    """Rates and momenta of all steps: straight lines between the knots of z."""

    def each(knots: jax.Array) -> jax.Array:
        at = jnp.linspace(0.0, 1.0, steps, dtype=knots.dtype)
        known = jnp.linspace(0.0, 1.0, len(knots), dtype=knots.dtype)
        return jnp.interp(at, known, knots)

    return {
        "rate": jnp.exp(each(z["log_rate"])),
        "momentum": jax.nn.sigmoid(each(z["logit_momentum"])),
    }


def knots(config: Config, hyper: Any) -> dict[str, jax.Array]:
    """The knots of a constant schedule."""
    count = config.steps if config.knots is None else min(config.knots, config.steps)
    rate, momentum = hyper["rate"][0], hyper["momentum"][0]
    full = lambda value: jnp.full(count, value, config.dtype)
    logit = jnp.log(momentum / (1.0 - momentum))
    return {"log_rate": full(jnp.log(rate)), "logit_momentum": full(logit)}


def learn(
    config: Config, problem: Problem, method: Method, *, start: Any
) -> tuple[Any, jax.Array]:
    """The learned knots, and the validation losses on the way."""
    of_knots = Partial(_schedule_of, jnp.zeros(config.steps))

    def one(key: jax.Array) -> Any:
        return metalr.reparametrized(unrolled(config, problem, method, key), of_knots)

    def make(key: jax.Array) -> metalr.tasks.Mean:
        return metalr.tasks.Mean.of(one, jax.random.split(key, config.tasks))

    adam = optax.adam(config.outer_learning_rate)
    learned = metalr.learn(
        make,
        start,
        key=jax.random.fold_in(jax.random.key(config.seed), 1),
        outer_optimizer=optax.chain(optax.clip_by_global_norm(1.0), adam),
        steps=config.outer_steps,
        history="scalars",
    )
    return learned.hyper, learned.history.value


def _schedule_of(each: Any, z: Any) -> dict[str, jax.Array]:
    return schedule(z, steps=len(each))


# What it is held against.


def tuned(
    config: Config, problem: Problem, method: Method, shape: str
) -> dict[str, jax.Array]:
    """The best of a grid of rates and momenta, by as many runs as the learning has."""
    runs = config.outer_steps * config.tasks * (2 if shape == "cosine" else 1)
    count = max(1, runs // (len(MOMENTA) * REPEATS))
    low, high = np.log10(RATES[method])
    rates = jnp.logspace(low, high, count, dtype=config.dtype)
    grid = [a.ravel() for a in jnp.meshgrid(rates, jnp.array(MOMENTA, rates.dtype))]
    keys = _keys(config, 2, REPEATS)

    def judged(point: Any) -> jax.Array:
        hyper = shaped(config, shape, *point)
        return jnp.mean(
            jax.lax.map(lambda k: unrolled(config, problem, method, k)(hyper), keys)
        )

    values = jax.jit(lambda grid: jax.lax.map(judged, grid))(tuple(grid))
    best = int(jnp.nanargmin(values))
    return shaped(config, shape, grid[0][best], grid[1][best])


def shaped(config: Config, shape: str, rate: Any, momentum: Any) -> Any:
    """A constant rate, or one that decays to 0 by a cosine; a constant momentum."""
    ones = jnp.ones(config.steps, config.dtype)
    if shape == "cosine":
        done = jnp.arange(config.steps, dtype=ones.dtype) / config.steps
        ones = 0.5 * (1.0 + jnp.cos(jnp.pi * done))
    return {"rate": rate * ones, "momentum": momentum * jnp.ones_like(ones)}


def hypergradient_norm(
    config: Config, problem: Problem, method: Method, hyper: Any, *, guarded: bool
) -> float:
    """The norm of the hypergradient at a schedule; nan is what plain optax gives."""
    key = _keys(config, 3, 1)[0]
    objective = unrolled(config, problem, method, key, guarded=guarded)
    result = metalr.hypergradient(objective, hyper)
    return float(optax.tree.norm(result.grad))


def _keys(config: Config, stream: int, count: int) -> jax.Array:
    key = jax.random.fold_in(jax.random.key(config.seed), stream)
    return jax.random.split(key, count)


def _problem(config: Config, images: Images) -> Problem:
    """A third of the training images is the validation set."""
    inputs = images.train.images.reshape(len(images.train.labels), -1)
    cut = len(inputs) * 2 // 3
    keep = jnp.asarray(1.0 - config.dropout, config.dtype)
    labels = images.train.labels
    return Problem(inputs[:cut], labels[:cut], inputs[cut:], labels[cut:], keep)


def _entropy(scores: jax.Array, labels: jax.Array) -> jax.Array:
    losses = optax.softmax_cross_entropy_with_integer_labels(scores, labels)
    return jnp.mean(losses)


def _record(
    config: Config,
    problem: Problem,
    images: Images,
    method: Method,
    shape: str,
    hyper: Any,
) -> Record:
    """A schedule on fresh runs."""
    test = images.test
    inputs = test.images.reshape(len(test.labels), -1)

    def one(key: jax.Array) -> tuple[jax.Array, ...]:
        objective = unrolled(config, problem, method, key)
        params = objective.final_params(hyper)
        found = jnp.argmax(logits(params, inputs), axis=1) == test.labels
        unseen = _entropy(logits(params, inputs), test.labels)
        return validation(problem, params, hyper), unseen, jnp.mean(found)

    keys = _keys(config, 4, config.tests)
    values, unseen, found = jax.jit(lambda keys: jax.lax.map(one, keys))(keys)
    return {
        "method": method,
        "schedule": shape,
        "validation_loss": float(jnp.mean(values)),
        "standard_error": float(jnp.std(values) / config.tests**0.5),
        "test_loss": float(jnp.mean(unseen)),
        "test_accuracy": float(jnp.mean(found)),
        "rates": hyper["rate"].tolist(),
        "momenta": hyper["momentum"].tolist(),
    }


def headline(records: Sequence[Record]) -> str:
    """Validation losses of each method."""
    parts = []
    for method in dict.fromkeys(record["method"] for record in records):
        rows = [record for record in records if record["method"] == method]
        parts.append(
            f"{method}: "
            + ", ".join(f"{r['schedule']} {r['validation_loss']:.4f}" for r in rows)
        )
    return f"validation loss after T steps, {'; '.join(parts)}"


def figures(records: Sequence[Record]) -> dict[str, Figure]:
    """Rates and momenta of each method, and the losses of fresh runs."""
    methods = list(dict.fromkeys(record["method"] for record in records))
    figure, axes = panels(3, len(methods))
    for index, method in enumerate(methods):
        rates, momenta, losses = axes[3 * index : 3 * index + 3]
        rows = [record for record in records if record["method"] == method]
        for place, row in enumerate(rows):
            style = {"color": f"C{place}", "label": row["schedule"]}
            rates.plot(row["rates"], **style)
            momenta.plot(row["momenta"], **style)
            losses.bar(
                place,
                row["validation_loss"],
                yerr=2 * row["standard_error"],
                color=f"C{place}",
            )
        rates.set(yscale="log", xlabel="step s", ylabel="learning rate")
        rates.set_ylim(bottom=1e-5)
        momenta.set(xlabel="step s", ylabel="b1" if method == "adam" else "momentum")
        losses.set_xticks(range(len(rows)), [row["schedule"] for row in rows])
        losses.set(ylabel="validation loss after T steps")
        rates.set_title(method, fontsize=9)
        rates.legend(fontsize=8)
    return {"learned_schedule": figure}


if __name__ == "__main__":
    from experiments._command.cli import module_main

    raise SystemExit(module_main("learned_schedule"))
