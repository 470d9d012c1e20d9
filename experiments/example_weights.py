r"""Question: which training examples made a model what it is?

One derivative through a whole training says it: $L(w)$ is the held-out loss after T
steps on $\sum_i w_i\ell_i$, and its gradient at w = 1 predicts, to first order, every
retraining without some of the examples. Claims, each with its truth in the same run:
the predicted losses rank as retrainings do where the run is smooth (linear datamodeling
score ≥ 0.95 for 1 % of the examples left out), and not through ReLU kinks; derivatives
through the last steps alone do not predict it; wrong labels are those with the largest
derivatives; the memory is a small part of plain reverse mode's.

Inner runs: a conv net on scikit-learn's digits (momentum), a tiny transformer on
Python's documentation (Adam). Engstrom et al. (2025), Optimizing ML training with
metagradient descent; Ilyas and Engstrom (2025), MAGIC.
"""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

import metalr
from experiments._command.config import Model
from experiments._command.experiment import ConfigError, ExperimentConfig, Record
from experiments._example_weights import runs, score, text
from experiments._report.style import panels
from metalr import profiling
from metalr.diagnosis import metasmoothness

Fraction = Annotated[float, Field(gt=0.0, lt=1.0)]
Activation = Literal["tanh", "relu", "gelu", "softplus"]
Pooling = Literal["average", "max"]
Part = Literal["score", "poison", "selection", "smoothness", "memory"]


class Vision(Model):
    """The conv net: conv3-c, pool, conv3-2c, pool, dense."""

    examples: PositiveInt = 800  # of the training set
    held_out: PositiveInt = 400  # of the outer loss, and as many to test on
    steps: PositiveInt = 100
    batch: PositiveInt = 100
    channels: PositiveInt = 8
    learning_rate: PositiveFloat = 0.05
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    activation: Activation = "tanh"
    pooling: Pooling = "average"


class Text(Model):
    """The transformer: windows of characters are the examples."""

    examples: PositiveInt = 256
    held_out: PositiveInt = 64
    length: PositiveInt = 32
    width: PositiveInt = 16
    blocks: PositiveInt = 1
    batch: PositiveInt = 16
    steps: PositiveInt = 64  # of the retrainings
    memory_steps: tuple[PositiveInt, ...] = (16, 64, 256)
    learning_rate: PositiveFloat = 3e-3


class Config(ExperimentConfig):
    """Options of this experiment."""

    experiment: Literal["example_weights"] = "example_weights"
    parts: tuple[Part, ...] = ("score", "poison", "selection", "smoothness", "memory")
    vision: Vision = Vision()
    text: Text | None = Text()  # null: the conv net alone
    left_out: tuple[Fraction, ...] = (0.01, 0.05)
    retrainings: Annotated[int, Field(ge=3)] = 100  # of each fraction
    checkpoints: PositiveInt = 20  # states kept by the engines
    wrong: Fraction = 0.1  # part of the labels made wrong, in `poison` and `selection`
    outer_steps: PositiveInt = 10  # of the weights, in `selection`
    outer_rate: PositiveFloat = 0.1
    directions: PositiveInt = 3  # in `smoothness`
    repeats: NonNegativeInt = 0  # in `memory`: timed runs; 0 is bytes only


_POOLS: tuple[tuple[Activation, Pooling], ...] = (
    ("tanh", "average"),
    ("tanh", "max"),
    ("relu", "average"),
    ("relu", "max"),
)


def size(config: Config) -> int:
    """Records that `run` yields."""
    fractions = len(config.left_out)
    texts = config.text is not None
    horizons = len(config.text.memory_steps) if config.text else 1
    each = {
        "score": (3 + texts) * fractions,
        "poison": 2,
        "selection": 3,
        "smoothness": len(_POOLS),
        "memory": 4 * horizons,
    }
    return sum(each[part] for part in config.parts)


def run(config: Config) -> Iterator[Record]:
    """Yield the records of each part in turn."""
    every = {
        "score": _scores,
        "poison": _poison,
        "selection": _selection,
        "smoothness": _smoothness,
        "memory": _memory,
    }
    for part in config.parts:
        yield from every[part](config)


def headline(records: Sequence[Record]) -> str | None:
    """The score of the first engine."""
    first = next((r for r in records if "score" in r), None)
    if first is None:
        return None
    return (
        f"score {first['score']:.3f} ± {first['standard_error']:.3f} by retraining "
        f"without {first['left_out']:.0%} of the examples"
    )


def figures(records: Sequence[Record]) -> dict[str, Figure]:
    """Predicted against retrained losses; bytes against the horizon."""
    scored = [r for r in records if "points" in r]
    bytes_ = [r for r in records if "temp_bytes" in r]
    if not scored and not bytes_:
        return {}
    exact = [r for r in scored if r["points"]]
    titles = list(dict.fromkeys((r["run"], r["left_out"]) for r in exact))
    figure, axes = panels(len(titles) + bool(bytes_))
    for panel, (name, left_out) in zip(axes, titles, strict=False):
        for r in exact:
            if (r["run"], r["left_out"]) == (name, left_out):
                label = f"{r['engine']}: {r['score']:.2f} ± {r['standard_error']:.2f}"
                panel.plot(
                    r["points"]["predicted"], r["points"]["retrained"], ".", label=label
                )
        ends = panel.get_ylim()
        panel.plot(ends, ends, "k:", linewidth=1)
        panel.set(xlabel="predicted held-out loss", ylabel="retrained held-out loss")
        panel.set_title(f"{name}, {left_out:.0%} left out", fontsize=9)
        panel.legend(fontsize=7)
    for way in dict.fromkeys(r["way"] for r in bytes_):
        mine = [r for r in bytes_ if r["way"] == way]
        axes[-1].plot(
            [r["T"] for r in mine], [r["temp_bytes"] for r in mine], "o-", label=way
        )
    if bytes_:
        axes[-1].set(xscale="log", yscale="log", xlabel="horizon T (steps)")
        axes[-1].set(ylabel="temporary memory (bytes)")
        axes[-1].legend(fontsize=7)
    return {"example_weights": figure}


def _engines(config: Config, steps: int) -> tuple[Any, ...]:
    return (
        metalr.Mixed(checkpoints=config.checkpoints),
        metalr.Reverse(checkpoints=config.checkpoints),
        metalr.Truncated(last=max(1, steps // 10)),
    )


def _scores(config: Config) -> Iterator[Record]:
    """Predicted losses against retrainings, for each engine and fraction."""
    settings = [("conv net", _vision(config), config.vision.steps, slice(None))]
    if config.text:
        settings.append(("transformer", _text(config), config.text.steps, slice(1)))
    for name, training, steps, which in settings:
        objective, ones = runs.objective(training, steps), runs.uniform(training)
        engines = _engines(config, steps)[which]
        found = [metalr.hypergradient(objective, ones, engine) for engine in engines]
        for fraction in config.left_out:
            subsets = score.subsets(
                config.seed, len(ones), fraction, config.retrainings
            )
            truth = score.retrained(objective, jnp.asarray(subsets, ones.dtype))
            truth = np.asarray(truth, np.float64)
            for engine, (value, grad) in zip(engines, found, strict=True):
                guess = score.predicted(value, grad, subsets)
                scored = score.score(guess, truth, seed=config.seed)
                yield {
                    "table": "linear datamodeling score",
                    "run": name,
                    "T": steps,
                    "engine": str(engine),
                    "left_out": fraction,
                    "retrainings": len(truth),
                    "score": scored.value,
                    "standard_error": scored.error,
                    "slope": scored.slope,
                    "points": {
                        "predicted": guess.tolist(),
                        "retrained": truth.tolist(),
                    },
                }


def _poison(config: Config) -> Iterator[Record]:
    """Wrong labels found: those whose weight, made larger, raises the held-out loss."""
    training, wrong = _poisoned(config)
    objective = runs.objective(training, config.vision.steps)
    ones = runs.uniform(training)
    grad = metalr.hypergradient(objective, ones, _engines(config, 1)[0]).grad
    own = training.each(objective.final_params(ones), training.train)
    guesses = {"metagradient": grad, "own loss at the end": own}
    for name, guess in jax.tree.map(np.asarray, guesses).items():
        flagged = np.argsort(-guess)[: wrong.sum()]
        kept = np.ones(len(guess))
        kept[flagged] = 0.0
        yield {
            "table": f"wrong labels, {config.wrong:.0%} of them",
            "ranked by": name,
            "area_under_roc": score.ranked_above(guess, wrong),
            "precision": float(np.mean(wrong[flagged])),
            "test_accuracy": _accuracy(training, objective, ones),
            "test_accuracy_without_flagged": _accuracy(training, objective, kept),
            "test_accuracy_without_wrong": _accuracy(training, objective, 1.0 - wrong),
        }


def _selection(config: Config) -> Iterator[Record]:
    """Weights in [0, 1] learned by sign steps: metagradient descent."""
    training, wrong = _poisoned(config)
    objective = runs.objective(training, config.vision.steps)
    ones = runs.uniform(training)
    learned = metalr.learn(
        objective,
        ones,
        outer_optimizer=optax.sign_sgd(config.outer_rate),
        steps=config.outer_steps,
        engine=_engines(config, 1)[0],
        project=_in_box,
        history="scalars",
    )
    candidates = {"all": ones, "learned": learned.hyper, "true labels": 1.0 - wrong}
    for name, weights in candidates.items():
        flagged = np.asarray(weights) < 0.5
        yield {
            "table": "selection of data",
            "weights": name,
            "held_out_loss": float(objective(jnp.asarray(weights, ones.dtype))),
            "test_accuracy": _accuracy(training, objective, weights),
            "f1_of_wrong": float(
                2 * np.sum(flagged & wrong) / np.sum(flagged + wrong * 1)
            ),
        }


def _in_box(weights: jax.Array) -> jax.Array:
    return jnp.clip(weights, 0.0, 1.0)


def _smoothness(config: Config) -> Iterator[Record]:
    """Three runs that say beforehand whether a metagradient will predict."""
    (fraction, *_), steps = config.left_out, config.vision.steps
    for activation, pooling in _POOLS:
        training = _vision(config, activation=activation, pooling=pooling)
        objective, ones = runs.objective(training, steps), runs.uniform(training)
        value, grad = metalr.hypergradient(objective, ones, _engines(config, 1)[0])
        count = max(3, config.retrainings // 4)
        subsets = score.subsets(config.seed, len(ones), fraction, count)
        truth = score.retrained(objective, jnp.asarray(subsets, ones.dtype))
        guess = score.predicted(value, grad, subsets)
        found = score.score(guess, np.asarray(truth, np.float64), seed=config.seed)
        keys = jax.random.split(jax.random.key(config.seed), config.directions)
        along = [jax.random.normal(key, ones.shape, ones.dtype) for key in keys]
        smooth = [metasmoothness(objective, ones, v) for v in along]
        yield {
            "table": f"metasmoothness, and the score for {fraction:.0%} left out",
            "activation": activation,
            "pooling": pooling,
            "metasmoothness": float(np.mean(smooth)),
            "score_": found.value,
            "standard_error_": found.error,
            "test_accuracy": _accuracy(training, objective, ones),
        }


def _memory(config: Config) -> Iterator[Record]:
    """Bytes of each engine's program, and seconds where asked."""
    if config.text:
        training, name, steps = _text(config), "transformer", config.text.memory_steps
    else:
        training, name, steps = _vision(config), "conv net", (config.vision.steps,)
    ones, mixed, reverse = runs.uniform(training), *_engines(config, 1)[:2]
    for horizon in steps:
        objective = runs.objective(training, horizon)
        plain = None
        for engine in (metalr.Reverse(), mixed, reverse, None):
            found = profiling.memory(objective, ones, engine).temp_bytes
            plain = plain or found
            row: dict[str, Any] = {
                "table": f"memory of the {name}",
                "T": horizon,
                "way": str(engine or "training (no derivative)"),
                "temp_bytes": found,
                "part_of_plain_reverse": found / plain,
            }
            if config.repeats:
                timed = profiling.timing(
                    objective, ones, engine, repeats=config.repeats
                )
                row["seconds"] = timed.seconds
            yield row


def _vision(config: Config, labels: Any = None, **changed: Any) -> runs.Training:
    setting = config.vision.model_copy(update=changed)
    inputs, targets, rows = _digits(config)
    parts = [runs.Data(jnp.asarray(inputs[r]), jnp.asarray(targets[r])) for r in rows]
    if labels is not None:
        parts[0] = parts[0]._replace(labels=jnp.asarray(labels))
    return runs.classification(
        parts,
        runs.layers(setting.channels, setting.pooling),
        activation=jnp.tanh
        if setting.activation == "tanh"
        else getattr(jax.nn, setting.activation),
        optimizer=optax.sgd(setting.learning_rate, momentum=setting.momentum),
        batch=setting.batch,
        steps=setting.steps,
        seed=config.seed,
    )


def _digits(config: Config) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Images, labels, and the rows for training, the outer loss and the test."""
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    n, held = config.vision.examples, config.vision.held_out
    if n + 2 * held > len(digits.target):
        msg = (
            f"vision: examples + 2·held_out = {n + 2 * held}, but digits has "
            f"{len(digits.target)} images: take fewer"
        )
        raise ConfigError(msg)
    rows = np.random.default_rng(config.seed).permutation(len(digits.target))
    cut = [rows[:n], rows[n : n + held], rows[n + held : n + 2 * held]]
    inputs = (digits.images / 16.0)[..., None].astype(config.dtype)
    return inputs, digits.target, cut


def _poisoned(config: Config) -> tuple[runs.Training, np.ndarray]:
    """The conv net with labels made wrong, and which are."""
    _, targets, (rows, *_) = _digits(config)
    rng = np.random.default_rng(config.seed + 1)
    labels, wrong = targets[rows].copy(), np.zeros(len(rows), bool)
    count = max(1, round(config.wrong * len(rows)))
    wrong[rng.choice(len(rows), count, replace=False)] = True
    labels[wrong] = (labels[wrong] + rng.integers(1, 10, count)) % 10
    return _vision(config, labels), wrong


def _text(config: Config) -> runs.Training:
    setting = config.text
    if setting is None:
        msg = "text: null has no transformer to train"
        raise ConfigError(msg)
    return text.language_model(
        examples=setting.examples,
        held_out=setting.held_out,
        length=setting.length,
        width=setting.width,
        blocks=setting.blocks,
        batch=setting.batch,
        steps=max(setting.steps, *setting.memory_steps),
        rate=setting.learning_rate,
        dtype=config.dtype,
        seed=config.seed,
    )


def _accuracy(training: runs.Training, objective: Any, weights: Any) -> float:
    """On the test set, after training with weights."""
    weights = jnp.asarray(weights, runs.uniform(training).dtype)
    return float(training.hits(objective.final_params(weights), training.test))


if __name__ == "__main__":
    from experiments._command.cli import module_main

    raise SystemExit(module_main("example_weights"))
