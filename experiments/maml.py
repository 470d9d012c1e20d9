r"""Question: does a start learned on many sinusoids learn a new one from a few points?

Each task is y = A sin(ωx + φ), with A in [0.1, 5], φ in [0, π], ω = 1 and x in
[−5, 5] (Finn et al. 2017); the model is 1-40-40-1 with ReLU. Six methods learn its
start (Meta-SGD: and a rate for every parameter) with fresh tasks in each outer step by
`metalr.learn(make, …, key=)`, and are judged after 0, 1, 5 and 10 steps on tasks not
seen. Claims: every meta-gradient is that of hand-written JAX; the order of the methods
and, where the setting is theirs, the errors are those of the papers; the price of
metalr over hand-written code is in the table.

`check_hypergrad` says of maml (two tasks, float64): agrees, to 2e-10 of finite
differences. Of first_order and reptile: differs, the outer loss has derivatives of its
own (stop_gradient), which is what these methods are. `diagnose` finds nothing; the
sharpness at the start, 186, is near the edge 2/0.01 = 200, so that a few tasks with 5
points diverge in 5 or 10 steps (the column `lost`). iMAML needs H + λI ≻ 0: with λ = 2
conjugate gradients break down and nothing is learned.
"""

import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import jax
import numpy as np
import optax
from matplotlib.figure import Figure
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

import metalr
from experiments._command.config import digest
from experiments._command.experiment import ExperimentConfig, Record, output_folder
from experiments._command.scan_progress import scan_progress
from experiments._command.sources import code_version
from experiments._maml import by_hand, papers
from experiments._maml.methods import METHODS, Inner, Method
from experiments._maml.sinusoids import Family, network
from experiments._report.style import panels
from experiments._settings.beside import difference, in_turns, statements
from experiments.resume import learn_resumably
from metalr.tasks import Each, Mean

Name: TypeAlias = Literal["maml", "first_order", "meta_sgd", "anil", "reptile", "imaml"]


_DIVERGED = 100.0
"""An error that counts as diverged: no sinusoid's mean square exceeds 25."""


class Config(ExperimentConfig):
    """Options of this experiment."""

    experiment: Literal["maml"] = "maml"
    methods: tuple[Name, ...] = get_args(Name)
    shots: PositiveInt = 10  # points to adapt to, in training
    frequency: tuple[PositiveFloat, PositiveFloat] = (1.0, 1.0)  # Meta-SGD: 0.8, 1.2
    steps: PositiveInt = 10_000  # outer; published: 60000 and 70000
    meta_batch: PositiveInt = 25
    meta_rate: PositiveFloat = 1e-3  # of Adam
    inner_rate: PositiveFloat = 0.01
    inner_steps: PositiveInt = 1
    reptile_steps: PositiveInt = 10
    imaml_steps: PositiveInt = 10
    proximal: PositiveFloat = 20.0  # of iMAML
    judged_shots: tuple[PositiveInt, ...] = (5, 10, 20)
    judged_after: tuple[NonNegativeInt, ...] = (0, 1, 5, 10)
    judged_tasks: PositiveInt = 600
    judged_points: PositiveInt = 100
    timed_steps: PositiveInt = 2000  # a call of learn costs some milliseconds more
    checkpoint_every: PositiveInt = 5000

    @property
    def inner(self) -> Inner:
        """The numbers of the inner loop."""
        return Inner(self.inner_rate, self.proximal)

    @property
    def family(self) -> Family:
        """The tasks to learn from."""
        return Family(self.shots, self.shots, self.frequency, self.dtype)

    def steps_of(self, name: str) -> int:
        """Inner steps in training."""
        longer = {"reptile": self.reptile_steps, "imaml": self.imaml_steps}
        return longer.get(name, self.inner_steps)


def size(config: Config) -> int:
    """Records that `run` yields."""
    return len(config.methods) * (len(config.judged_shots) + 1)


def run(config: Config) -> Iterator[Record]:
    """Yield, for each method, its errors by shots and its price beside hand-written."""
    learning, _ = _keys(config)
    for name in config.methods:
        learned = learned_start(name, config)
        curve = _smooth(learned.history.value)
        for shots in config.judged_shots:
            errors = judged(name, config, learned.hyper, shots)
            yield {
                "table": f"error on {config.judged_tasks} tasks not seen",
                "method": name,
                "shots": shots,
                **{f"after_{n}": error.mean for n, error in errors.items()},
                **{f"plus_minus_{n}": error.half for n, error in errors.items()},
                "lost": " ".join(str(error.lost) for error in errors.values()),
                "curve": curve if shots == config.judged_shots[0] else [],
                **papers.beside(name, shots, errors, config),
            }
        yield {
            "table": "beside hand-written JAX, the same seeds",
            "method": name,
            **beside_hand_written(name, config, learning),
        }


def errors_of(name: str, config: Config) -> Iterator[tuple[int, dict[int, "Error"]]]:
    """What a method's start gives: by points to adapt to, the errors after steps."""
    learned = learned_start(name, config)
    for shots in config.judged_shots:
        yield shots, judged(name, config, learned.hyper, shots)


def _keys(config: Config) -> jax.Array:
    """Of learning, and of judging."""
    return jax.random.split(jax.random.key(config.seed))


def problem(name: str, config: Config) -> tuple[Any, Callable[[Any], Any], Any]:
    """Where learning starts, the objective of each draw, and the engine."""
    method, inner = METHODS[name], config.inner
    start = method.start(network(jax.random.key(config.seed), config.dtype), inner)
    make = functools.partial(
        mean, method, config.family, config.steps_of(name), inner, config.meta_batch
    )
    return start, make, Each(method.engine(inner))


def mean(
    method: Method, family: Family, steps: int, inner: Inner, tasks: int, key: jax.Array
) -> Mean:
    """The mean of the method's objective over tasks drawn from the key."""
    make = lambda key: method.objective(family.draw(key), steps, inner)
    return Mean.of(make, jax.random.split(key, tasks))


class Error(NamedTuple):
    """The error on tasks not seen, after some steps."""

    mean: float
    half: float  # of its 95 % interval
    lost: int  # tasks that diverged, left out of both


def judged(name: str, config: Config, theta: Any, shots: int) -> dict[int, Error]:
    """By the number of steps."""
    # Reptile's own objective is a distance; its start is judged as MAML's is.
    method = METHODS["maml" if name == "reptile" else name]
    family = Family(shots, config.judged_points, config.frequency, config.dtype)
    _, key = _keys(config)

    @jax.jit
    def errors(theta: Any) -> list[jax.Array]:
        after = [
            mean(method, family, steps, config.inner, config.judged_tasks, key)
            for steps in config.judged_after
        ]
        return [tasks.values(theta) for tasks in after]

    found = {}
    for steps, values in zip(
        config.judged_after, map(np.asarray, errors(theta)), strict=True
    ):
        kept = values[values < _DIVERGED]  # nan is not
        half = 1.96 * np.std(kept) / np.sqrt(max(len(kept), 1))
        average = np.mean(kept) if len(kept) else np.nan
        found[steps] = Error(float(average), float(half), len(values) - len(kept))
    return found


def beside_hand_written(name: str, config: Config, key: jax.Array) -> Record:
    """The first meta-gradient, some outer steps and their seconds, both ways."""
    start, make, engine = problem(name, config)
    gradient, inner = by_hand.GRADIENTS[name], config.inner

    def ours(theta: Any) -> Any:
        return metalr.hypergradient(
            make(jax.random.fold_in(key, 0)), theta, engine
        ).grad

    def theirs(theta: Any) -> Any:
        keys = jax.random.split(jax.random.fold_in(key, 0), config.meta_batch)
        tasks = jax.vmap(config.family.draw)(keys)
        one = lambda task: gradient(theta, task, config.steps_of(name), inner)[1]
        return jax.tree.map(lambda x: x.mean(0), jax.vmap(one)(tasks))

    with_metalr = lambda theta: by_metalr(make, theta, engine, key, config)
    by_itself = jax.jit(
        lambda theta: by_hand.learn(
            gradient,
            theta,
            key,
            family=config.family,
            tasks=config.meta_batch,
            inner_steps=config.steps_of(name),
            inner=inner,
            steps=config.timed_steps,
            rate=config.meta_rate,
        )
    )
    turns = in_turns(with_metalr, by_itself, start, rounds=3)
    return {
        "gradient_difference": difference(jax.jit(ours)(start), jax.jit(theirs)(start)),
        "learned_difference": difference(turns.ours, turns.theirs),
        "milliseconds": 1e3 * turns.seconds / config.timed_steps,
        "milliseconds_by_hand": 1e3 * turns.seconds_by_hand / config.timed_steps,
        "cost_ratio": turns.seconds / turns.seconds_by_hand,
        "statements": statements(METHODS[name].objective, mean, by_metalr),
        "statements_by_hand": statements(gradient, by_hand.learn),
    }


def by_metalr(
    make: Callable[[Any], Mean], theta: Any, engine: Any, key: jax.Array, config: Config
) -> Any:
    """The outer loop that is timed; `by_hand.learn` is the other."""
    adam = optax.adam(config.meta_rate)
    learned = metalr.learn(
        make,
        theta,
        key=key,
        outer_optimizer=adam,
        steps=config.timed_steps,
        engine=engine,
        history="scalars",
    )
    return learned.hyper


def learned_start(name: str, config: Config) -> metalr.Learned:
    """The whole outer loop; it continues where an earlier process was stopped."""
    start, make, engine = problem(name, config)
    key, _ = _keys(config)
    options: dict[str, Any] = {
        "key": key,
        "outer_optimizer": optax.adam(config.meta_rate),
        "engine": engine,
        "steps": config.steps,
        "history": "scalars",
        "callback_every": max(1, min(config.checkpoint_every, config.steps // 20)),
    }
    with scan_progress(f"maml: {name}", total=config.steps) as tell:
        told = lambda learned: tell(learned.state.step)
        folder = output_folder()
        if folder is None:
            return metalr.learn(make, start, callback=told, **options)
        version = code_version(sys.modules[__name__])
        return learn_resumably(
            make,
            start,
            folder=folder / "checkpoints" / digest(config) / name,
            every=config.checkpoint_every,
            fingerprint=f"config {digest(config)}, code {version}, {name}",
            callback=told,
            **options,
        )


def _smooth(values: Any, points: int = 200) -> list[float]:
    """Means over equal parts of the history."""
    parts = np.array_split(np.asarray(values), min(points, len(values)))
    return [float(np.mean(part)) for part in parts]


def figures(records: Sequence[Record]) -> dict[str, Figure]:
    """Errors on new tasks against inner steps; the objective while learning."""
    rows = [r for r in records if r.get("curve")]
    if not rows:
        return {}
    figure, (left, right) = panels(2)
    for index, row in enumerate(rows):
        color = f"C{index}"
        after = [int(k.removeprefix("after_")) for k in row if k.startswith("after_")]
        errors = [row[f"after_{n}"] for n in after]
        left.plot(after, errors, "o-", color=color, label=row["method"])
        for steps, value, half in row.get("printed", []):
            left.errorbar(steps, value, half, fmt="x", color=color, capsize=4)
        if row["method"] != "reptile":  # whose objective is a distance
            share = np.linspace(0.0, 1.0, len(row["curve"]))
            right.plot(share, row["curve"], color=color, linewidth=1)
    title = f"{rows[0]['shots']} points to adapt to; ×: as published, where comparable"
    left.set_title(title, fontsize=8)
    left.set(yscale="log", xlabel="inner steps", ylabel="mean squared error, new tasks")
    left.legend(fontsize=7)
    right.set(yscale="log", xlabel="outer steps, share", ylabel="objective in training")
    return {"maml": figure}


def headline(records: Sequence[Record]) -> str:
    """How near the gradients are to hand-written ones, and the best after one step."""
    apart = [r["gradient_difference"] for r in records if "gradient_difference" in r]
    rows = [r for r in records if r.get("curve") and "after_1" in r]
    best = min(rows, key=lambda r: r["after_1"], default=None)
    said = (
        "" if best is None else f"; {best['method']}: {best['after_1']:.2f} in 1 step"
    )
    return f"gradients within {max(apart, default=0.0):.0e} of hand-written{said}"


if __name__ == "__main__":
    from experiments._command.cli import module_main

    raise SystemExit(module_main("maml"))
