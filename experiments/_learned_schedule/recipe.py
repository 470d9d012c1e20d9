"""A run with a rate and a momentum for each step, by metalr: net, noise, schedule."""

from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial

import metalr

Method: TypeAlias = Literal["adam", "sgd"]


class Problem(NamedTuple):
    """Arrays that the recipe works on."""

    inputs: jax.Array
    labels: jax.Array
    held_inputs: jax.Array  # the validation set: what the schedule is learned on
    held_labels: jax.Array
    keep: jax.Array  # 1 − dropout


class Sizes(NamedTuple):
    """Numbers that the shapes depend on."""

    steps: int
    batch: int
    hidden: int
    checkpoints: int | None


def objective(
    problem: Problem, method: Method, sizes: Sizes, keys: jax.Array
) -> metalr.tasks.Mean:
    """Of the knots z: the mean validation loss of runs drawn from the keys."""
    of_knots = Partial(schedule, jnp.linspace(0.0, 1.0, sizes.steps))

    def make(key: jax.Array) -> Any:
        return metalr.reparametrized(unrolled(problem, method, sizes, key), of_knots)

    return metalr.tasks.Mean.of(make, keys)


def unrolled(
    problem: Problem,
    method: Method,
    sizes: Sizes,
    key: jax.Array,
    *,
    guarded: bool = True,
) -> metalr.Unrolled:
    """One training run: start, minibatches and masks are drawn from the key."""
    start, noise = jax.random.split(key)
    rows = jnp.full(sizes.batch, len(problem.labels))
    return metalr.Unrolled(
        Partial(loss, problem),
        metalr.per_step(_adam if method == "adam" else _sgd),
        init(start, problem, sizes.hidden),
        steps=sizes.steps,
        batches=Partial(minibatch, noise, rows),
        outer_loss=Partial(validation, problem),
        checkpoints=sizes.checkpoints,
        guarded=guarded,
    )


def schedule(done: jax.Array, z: Any) -> dict[str, jax.Array]:
    """The rates and momenta of all steps: straight lines between the knots of z.

    Args:
        done: for each step, the part of the run before it, in [0, 1].
        z: `log_rate` and `logit_momentum` at knots spread evenly over the run.
    """

    def each(knots: jax.Array) -> jax.Array:
        known = jnp.linspace(0.0, 1.0, len(knots), dtype=knots.dtype)
        return jnp.interp(done.astype(knots.dtype), known, knots)

    return {
        "rate": each(jnp.exp(z["log_rate"])),
        "momentum": each(jax.nn.sigmoid(z["logit_momentum"])),
    }


def _adam(hyper: Any) -> optax.GradientTransformation:
    return optax.adam(hyper["rate"], b1=hyper["momentum"])


def _sgd(hyper: Any) -> optax.GradientTransformation:
    return optax.sgd(hyper["rate"], momentum=hyper["momentum"])


# The net, and what is drawn.


def init(key: jax.Array, problem: Problem, hidden: int) -> dict[str, jax.Array]:
    """LeCun's random weights of a net with one hidden layer."""
    first, second = jax.random.split(key)
    d, dtype = problem.inputs.shape[1], problem.inputs.dtype
    return {
        "W": jax.random.normal(first, (d, hidden), dtype) * (1.0 / d) ** 0.5,
        "b": jnp.zeros(hidden, dtype),
        "V": jax.random.normal(second, (hidden, 10), dtype) / hidden**0.5,
        "c": jnp.zeros(10, dtype),
    }


def logits(params: Any, inputs: jax.Array, mask: Any = 1.0) -> jax.Array:
    """The net; the mask multiplies its hidden layer."""
    hidden = jnp.tanh(inputs @ params["W"] + params["b"]) * mask
    return hidden @ params["V"] + params["c"]


def loss(problem: Problem, params: Any, hyper: Any, batch: Any) -> jax.Array:
    """Cross-entropy of a minibatch, with dropout."""
    del hyper
    rows, key = batch
    shape = (*rows.shape, params["b"].size)
    mask = jax.random.bernoulli(key, problem.keep, shape) / problem.keep
    return entropy(logits(params, problem.inputs[rows], mask), problem.labels[rows])


def validation(problem: Problem, params: Any, hyper: Any) -> jax.Array:
    """Cross-entropy of the held-out images, without dropout."""
    del hyper
    return entropy(logits(params, problem.held_inputs), problem.held_labels)


def minibatch(key: Any, rows: Any, index: Any) -> Any:
    """The rows of a step, drawn from all of them, and the key of its dropout."""
    drawn, dropped = jax.random.split(jax.random.fold_in(key, index))
    count, n = len(rows), jnp.max(rows)
    return jax.random.randint(drawn, (count,), 0, n), dropped


def entropy(scores: jax.Array, labels: jax.Array) -> jax.Array:
    """The mean cross-entropy."""
    losses = optax.softmax_cross_entropy_with_integer_labels(scores, labels)
    return jnp.mean(losses)
