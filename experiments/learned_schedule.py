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
The hypergradient is that of hand-written JAX.

The net is smooth (tanh), as the derivative of a long run is to say what a step of the
outer loop does. Through ReLU, whose gradient jumps, a mean of hypergradients promised
more than a step gave, and what was learned was worse than the cosine it began with.

SGD's best cosine begins near where training is chaotic: the hypergradients of some runs
explode (the table of both starts: the noise is above the signal), and what is learned
from there is worse. The other start is quiet: `start=constant`.

`check_hypergrad` (Adam, T = 30, 3 knots, 8 hidden units, float64) agrees: the engines
to 1.3e-16, finite differences to 1e-10.

Runs: constant and cosine are tuned with R = 2 · `outer_steps` · `tasks` of them each,
all on the same draws. The learning starts at the best of every other rate of the
cosine (R/2 runs) and makes R/2 more, with their hypergradients.
"""

import functools
import sys
from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import optax
from matplotlib.figure import Figure
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

import metalr
from experiments._command.experiment import Record
from experiments._learned_schedule import by_hand, figures as drawings
from experiments._learned_schedule.held_against import (
    REPEATS,
    Case,
    Shape,
    gradient_norm,
    judged,
    of_steps,
    shaped,
    tuned,
)
from experiments._learned_schedule.recipe import (
    Method,
    Problem,
    Sizes,
    entropy,
    init,
    objective,
    schedule,
)
from experiments._settings import outer_loop
from experiments._settings.beside import beside
from experiments._settings.images import ImagesConfig


class Config(ImagesConfig):
    """Options of this experiment."""

    experiment: Literal["learned_schedule"] = "learned_schedule"
    dtype: Literal["float64", "float32"] = "float32"
    methods: tuple[Method, ...] = ("adam", "sgd")
    start: Shape = "cosine"  # where learning starts
    steps: PositiveInt = 1000  # T
    batch: PositiveInt = 8
    hidden: PositiveInt = 32
    dropout: NonNegativeFloat = 0.3
    knots: PositiveInt | None = 10
    tasks: PositiveInt = 8  # runs in each outer step
    outer_steps: PositiveInt = 60
    outer_learning_rate: PositiveFloat = 0.1  # of Adam; decays to 0
    outer_eps: PositiveFloat = 0.01  # of Adam: knots of smaller gradients move slower
    checkpoints: PositiveInt = 128  # states that a run keeps
    tests: PositiveInt = 64  # fresh runs that each schedule is judged by
    checkpoint_every: PositiveInt = 20


def size(config: Config) -> int:
    """Records that `run` yields."""
    return 6 * len(config.methods)


def run(config: Config) -> Iterator[Record]:
    """Yield each method's constant rate, cosine and learned schedule, and its price."""
    problem, test = arrays(config)
    sizes = Sizes(config.steps, config.batch, config.hidden, config.checkpoints)
    fresh, grid = keys(config, 4, config.tests), keys(config, 2, REPEATS)
    runs = 2 * config.outer_steps * config.tasks
    for method in config.methods:
        case = Case(problem, method, sizes)
        starts: dict[Shape, tuple[Any, Any]] = {}
        hyper: Any = None
        for shape in get_args(Shape):
            best, starts[shape] = tuned(case, shape, runs, grid)
            hyper = of_steps(config.steps, shape, *best)
            yield row(case, shape, hyper, judged(case, hyper, fresh, *test))
        known = gradient_norm(case, hyper, fresh[0], guarded=True)
        plain = gradient_norm(case, hyper, fresh[0], guarded=False)
        for shape, point in starts.items():
            z = knots(config, shape, *point)
            yield {
                "table": f"hypergradients at both starts; noise of {config.tasks} runs",
                "method": method,
                "start": shape,
                **signal(case, z, grid, config.tasks),
            }
        start = knots(config, config.start, *starts[config.start])
        learned = learn(config, case, start)
        hyper = schedule(jnp.linspace(0.0, 1.0, config.steps), learned.hyper)
        yield {
            **row(case, "learned", hyper, judged(case, hyper, fresh, *test)),
            "gradient": known,
            "gradient_plain_optax": plain,
            "history": learned.history.value.tolist(),
        }
        yield {
            "table": "an outer step beside hand-written JAX, the same draws",
            "method": method,
            **price(case, start, keys(config, 5, config.tasks)),
        }


def learn(config: Config, case: Case, start: Any) -> metalr.Learned:
    """The knots that fresh runs in each outer step lead to."""

    def make(key: jax.Array) -> metalr.tasks.Mean:
        return objective(*case, jax.random.split(key, config.tasks))

    decay = optax.cosine_decay_schedule(config.outer_learning_rate, config.outer_steps)
    adam = optax.adam(decay, eps=config.outer_eps)
    return outer_loop.learn(
        sys.modules[__name__],
        config,
        case.method,
        make,
        start,
        key=jax.random.fold_in(jax.random.key(config.seed), 1),
        outer_optimizer=optax.chain(optax.clip_by_global_norm(1.0), adam),
        steps=config.outer_steps,
        every=config.checkpoint_every,
    )


def knots(config: Config, shape: Shape, rate: Any, momentum: Any) -> dict[str, Any]:
    """The knots of a schedule; one that ends at 0 does so at a thousandth."""
    count = config.steps if config.knots is None else min(config.knots, config.steps)
    done = jnp.linspace(0.0, 1.0, count, dtype=rate.dtype)
    known = shaped(shape, rate, momentum, done)
    return {
        "log_rate": jnp.log(jnp.maximum(known["rate"], 1e-3 * rate)),
        "logit_momentum": jax.scipy.special.logit(known["momentum"]),
    }


def signal(case: Case, z: Any, draws: jax.Array, tasks: int) -> Record:
    """The norms of a mean hypergradient, and of the standard error of fewer runs."""
    each = metalr.tasks.Each(metalr.Reverse())
    found: Any = metalr.hypergradient(objective(*case, draws), z, each)
    mean = jax.tree.map(lambda g: jnp.mean(g, axis=0), found.grads)
    noise = jax.tree.map(lambda g: jnp.std(g, axis=0) / tasks**0.5, found.grads)
    row = {}
    for name in z:
        row |= {
            name: float(jnp.linalg.norm(mean[name])),
            f"{name}_noise": float(jnp.linalg.norm(noise[name])),
        }
    return row


def price(case: Case, start: Any, draws: jax.Array) -> Record:
    """A hypergradient of an outer step, both ways."""

    def ours(z: Any) -> tuple[jax.Array, Any]:
        found = metalr.hypergradient(objective(*case, draws), z)
        return found.value, found.grad

    theirs = functools.partial(by_hand.hypergradient, *case, draws)
    return beside(
        jax.jit(ours),
        jax.jit(theirs),
        start,
        written=[objective],
        by_hand=[by_hand.hypergradient, init, entropy],
        rounds=2,
    )


def arrays(config: Config) -> tuple[Problem, tuple[jax.Array, jax.Array]]:
    """The problem, a third of the training images its validation set; the test set."""
    train, test, _ = config.images()
    flat = lambda images: images.reshape(len(images), -1)
    inputs, labels = flat(train.images), train.labels
    cut = len(labels) * 2 // 3
    keep = jnp.asarray(1.0 - config.dropout, config.dtype)
    problem = Problem(inputs[:cut], labels[:cut], inputs[cut:], labels[cut:], keep)
    return problem, (flat(test.images), test.labels)


def keys(config: Config, stream: int, count: int) -> jax.Array:
    """Random keys; each stream has its own."""
    key = jax.random.fold_in(jax.random.key(config.seed), stream)
    return jax.random.split(key, count)


def row(case: Case, name: str, hyper: Any, found: Any) -> Record:
    """A schedule, and what fresh runs with it end at."""
    return {
        "table": "fresh runs with each schedule",
        "method": case.method,
        "schedule": name,
        "validation_loss": float(jnp.mean(found.validation)),
        "standard_error": float(jnp.std(found.validation) / len(found.test) ** 0.5),
        "test_loss": float(jnp.mean(found.test)),
        "test_accuracy": float(jnp.mean(found.accuracy)),
        "first_rate": float(hyper["rate"][0]),
        "first_momentum": float(hyper["momentum"][0]),
        "rates": hyper["rate"].tolist(),
        "momenta": hyper["momentum"].tolist(),
    }


def headline(records: Sequence[Record]) -> str:
    """Validation losses of each method."""
    parts = []
    for method in dict.fromkeys(record["method"] for record in records):
        rows = [r for r in records if r["method"] == method and "schedule" in r]
        parts.append(
            f"{method}: "
            + ", ".join(f"{r['schedule']} {r['validation_loss']:.4f}" for r in rows)
        )
    return f"validation loss after T steps, {'; '.join(parts)}"


def figures(records: Sequence[Record]) -> dict[str, Figure]:
    """Rates and momenta of each method, and the losses of fresh runs."""
    rows = [record for record in records if "schedule" in record]
    return {"learned_schedule": drawings.schedules(rows)} if rows else {}


if __name__ == "__main__":
    from experiments._command.cli import module_main

    raise SystemExit(module_main("learned_schedule"))
