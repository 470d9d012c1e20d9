r"""Question: which labels are wrong? Learn a weight for each example, and see.

Half of the training labels are wrong; a clean validation set tells the weights
$\lambda$ by the loss after T inner steps. Two protocols: $\lambda \in [0, 1]^n$ with
$\|\lambda\|_1 \le R$ by projection (Franceschi et al. 2017; an example of weight 0 is
called wrong, R = n/5), and $\lambda = \sigma(z)$ without constraint (Shen & Chen 2023;
wrong below 1/2). Two models: softmax regression, and a hidden layer of 300 sigmoid
units (theirs); full batches, and minibatches.
What is kept is trained on again together with the validation set, beside the oracle
(only the right labels, and the validation set) and the baseline (all labels, and the
validation set). Engines compared on one and the same run, first against a hand-written
`jax.grad` through `scan`, then by what they learn.
Claim: the exact engines agree with the hand-written derivative to rounding and find
nine in ten of the wrong labels; the retrained classifier comes near to the oracle and
leaves the baseline behind. A gradient truncated to the last tenth of the run finds as
many, without being the run's derivative; one by the implicit function theorem fewer,
since 500 steps do not end at a minimum.

`check_hypergrad` (softmax regression, 20 examples, T = 20) agrees to 1.8e-13;
`diagnose` says "burn-in": the derivative still grows at the last step, so that a longer
run has another one. Neither has been run on the hidden layer.

Published (20 000 of MNIST, 5000 of them with half of the labels wrong): oracle 90.46,
baseline 87.74, DH-1000 90.07 with F1 .91. Ours are other data and fewer of them.
"""

import sys
from collections.abc import Iterator, Sequence
from typing import Literal, get_args

import numpy as np
from matplotlib.figure import Figure
from pydantic import Field, PositiveFloat, PositiveInt

from experiments._command.config import Model
from experiments._command.experiment import ConfigError, Record
from experiments._hyper_cleaning.at_start import at_start
from experiments._hyper_cleaning.figures import cleaned
from experiments._hyper_cleaning.learning import (
    EngineName,
    Learned,
    Protocol,
    by_learning,
    by_solver,
    engine,
)
from experiments._hyper_cleaning.problem import (
    Problem,
    accuracy,
    corrupted,
    f1,
)
from experiments._hyper_cleaning.training import Training
from experiments._settings.images import BundledImages, ImageData, ImagesConfig

_ZERO = 1e-6
"""A weight that projection has put to 0."""


class Setting(Model):
    """A model, how it is trained, and what is compared on it."""

    hidden: tuple[PositiveInt, ...] = ()  # softmax regression; [300] is 784-300-10
    batch: PositiveInt | None = None  # None is the full batch
    inner_rate: PositiveFloat = 0.1  # with momentum 0.9
    protocols: tuple[Protocol, ...] = get_args(Protocol)
    engines: tuple[EngineName, ...] = get_args(EngineName)

    @property
    def exact(self) -> list[str]:
        """Engines of an unrolled run: all but the single loop."""
        return [name for name in self.engines if name != "soba"]


class Config(ImagesConfig):
    """Options of this experiment."""

    experiment: Literal["hyper_cleaning"] = "hyper_cleaning"
    data: ImageData = BundledImages(test=897)
    settings: tuple[Setting, ...] = (
        Setting(),
        Setting(batch=50, engines=("reverse", "soba")),
        Setting(
            hidden=(300,), batch=50, inner_rate=0.3, engines=("reverse", "truncated")
        ),
    )
    wrong: float = Field(0.5, gt=0.0, lt=1.0)  # of the training labels
    train: float = Field(0.5, gt=0.0, lt=1.0)  # of what is not test; rest validates
    steps: PositiveInt = 500  # T
    limit: float = Field(0.2, gt=0.0, le=1.0)  # R / n
    outer_steps: PositiveInt = 60
    projected_rate: PositiveFloat = 0.03  # times n
    sigmoid_rate: PositiveFloat = 0.3  # of Adam on z
    solver_updates: PositiveInt = 6000  # of soba
    rounds: PositiveInt = 2  # that the derivatives are timed, in turns with by hand


def size(config: Config) -> int:
    """Records that `run` yields."""
    return sum(
        len(setting.exact) + len(setting.protocols) * len(setting.engines)
        for setting in config.settings
    )


def run(config: Config) -> Iterator[Record]:
    """Yield the engines at the start, then what each of them learns."""
    problem = _problem(config)
    for setting in config.settings:
        training = _training(config, setting, problem)
        yield from at_start(training, setting.exact, rounds=config.rounds)
    for setting in config.settings:
        training = _training(config, setting, problem)
        ends = {
            "oracle": training.retrained(~problem.wrong),
            "baseline": training.retrained(np.ones_like(problem.wrong)),
        }
        for protocol in setting.protocols:
            for name in setting.engines:
                learned = _learned(config, training, protocol, name)
                yield {
                    "table": "what is learned",
                    **training.names,
                    "protocol": protocol,
                    "engine": name,
                    **_cleaned(training, protocol, learned),
                    **ends,
                    "setting": _setting(config, problem),
                }


def headline(records: Sequence[Record]) -> str:
    """The best F1, and the accuracies around it."""
    best = max(_cleanings(records), key=lambda record: record["F1"])
    return (
        f"{best['model']}, {best['protocol']}, {best['engine']}: F1 {best['F1']:.2f}; "
        f"accuracy {best['baseline']:.3f} → {best['retrained']:.3f}, oracle "
        f"{best['oracle']:.3f}"
    )


def figures(records: Sequence[Record]) -> dict[str, Figure]:
    """Weights of right and of wrong labels; the validation loss; the accuracies."""
    rows = _cleanings(records)
    return {"hyper_cleaning": cleaned(rows)} if rows else {}


def _cleanings(records: Sequence[Record]) -> list[Record]:
    return [record for record in records if record["table"] == "what is learned"]


def _problem(config: Config) -> Problem:
    train, test, _ = config.images()
    problem = corrupted(
        train, test, part=config.train, wrong=config.wrong, seed=config.seed
    )
    if min(len(problem.given), len(problem.validation[1])) < 10:
        msg = f"train = {config.train} leaves fewer than 10 examples on one side"
        raise ConfigError(msg)
    for setting in config.settings:
        if setting.batch is not None and setting.batch > len(problem.given):
            msg = f"batch = {setting.batch} of {len(problem.given)} examples"
            raise ConfigError(msg)
    return problem


def _setting(config: Config, problem: Problem) -> str:
    data = config.data
    name = data.name if isinstance(data, BundledImages) else data.images
    return f"{len(problem.given)} of {name}; published: 5000 of MNIST"


def _training(config: Config, setting: Setting, problem: Problem) -> Training:
    return Training(
        problem,
        setting.hidden,
        setting.batch,
        setting.inner_rate,
        config.steps,
        config.seed,
    )


def _learned(
    config: Config, training: Training, protocol: Protocol, name: EngineName
) -> Learned:
    problem = training.problem
    n, projected = len(problem.given), protocol == "projected"
    if name == "soba":
        return by_solver(
            problem,
            training.params(),
            protocol,
            batch=training.batch,
            inner_rate=10.0 * training.rate,
            outer_rate=0.3 * config.projected_rate * n if projected else 0.01,
            limit=config.limit,
            updates=config.solver_updates,
            points=min(config.outer_steps, config.solver_updates),
            seed=config.seed,
        )
    return by_learning(
        training.objective(),
        protocol,
        engine(name, config.steps),
        n=n,
        limit=config.limit,
        rate=config.projected_rate if projected else config.sigmoid_rate,
        steps=config.outer_steps,
        module=sys.modules[__name__],
        config=config,
        name=" ".join([*training.names.values(), protocol, name]),
    )


def _cleaned(training: Training, protocol: Protocol, learned: Learned) -> Record:
    problem, at = training.problem, np.asarray(learned.weights)
    said = at <= _ZERO if protocol == "projected" else at < 0.5
    params = training.objective().final_params(learned.weights)
    return {
        "F1": f1(said, problem.wrong),
        "retrained": training.retrained(~said),
        "weighted_run": accuracy(params, *problem.test),
        "validation_loss": learned.curve[-1],
        "weights": {
            "right": at[~problem.wrong].tolist(),
            "wrong": at[problem.wrong].tolist(),
        },
        "curve": learned.curve,
    }


if __name__ == "__main__":
    from experiments._command.cli import module_main

    raise SystemExit(module_main("hyper_cleaning"))
