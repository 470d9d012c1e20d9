"""Few-shot sinusoids: Li et al. 2017's table, and Finn et al. 2017's figure."""

from collections.abc import Iterator
from typing import Literal

from experiments import maml
from experiments._maml.papers import MAML, MAML_AT_5, META_SGD, Setting, printed
from experiments._published.row import Figure, Row, compared

Methods = tuple[Literal["maml", "meta_sgd"], ...]


def table(*, steps: int, seed: int) -> Iterator[Row]:
    """Errors after one step, with 5, 10 and 20 points; the paper's intervals."""
    config = _config(META_SGD, ("maml", "meta_sgd"), (5, 10, 20), (1,), steps, seed)
    for name in config.methods:
        for shots, errors in maml.errors_of(name, config):
            found = printed(name, shots, config)
            assert found is not None
            setting = f"error after 1 step, {name}, {shots} points"
            yield _row(setting, found[1][1], errors[1], config, META_SGD, "as printed")


def figure(*, steps: int, seed: int) -> Iterator[Row]:
    """MAML's errors before and after one and five steps, with 5 points."""
    config = _config(MAML, ("maml",), (5,), (0, 1, 5), steps, seed)
    ((_, errors),) = maml.errors_of("maml", config)
    for after, published in MAML_AT_5[1].items():
        setting = f"error after {after} steps, maml, 5 points"
        yield _row(setting, published, errors[after], config, MAML, "read off")


def _config(
    setting: Setting,
    methods: Methods,
    shots: tuple[int, ...],
    after: tuple[int, ...],
    steps: int,
    seed: int,
) -> maml.Config:
    return maml.Config(
        dtype="float32",
        seed=seed,
        methods=methods,
        shots=setting.shots,
        frequency=setting.frequency,
        meta_batch=setting.meta_batch,
        steps=steps,
        judged_shots=shots,
        judged_after=after,
    )


def _row(
    setting: str,
    published: tuple[float, float],
    ours: maml.judging.Error,
    config: maml.Config,
    theirs: Setting,
    how: str,
) -> Row:
    value, interval = published
    note = (
        f"± {interval:g} {how}, ± {ours.half:.2f} ours over {config.judged_tasks} "
        f"tasks; {config.steps} outer steps, the paper's {theirs.steps}"
    )
    return compared(setting, Figure(value, interval), ours.mean, ours.half, note)
