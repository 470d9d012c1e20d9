"""Few-shot sinusoids: MAML and Meta-SGD in the setting of Li et al. 2017."""

from collections.abc import Iterator

from experiments import maml
from experiments._maml.papers import META_SGD, printed
from experiments._published.row import Figure, Row, compared


def rows(*, steps: int, seed: int) -> Iterator[Row]:
    """Errors after one step, with 5, 10 and 20 points; the paper's intervals."""
    config = maml.Config(
        dtype="float32",
        seed=seed,
        methods=("maml", "meta_sgd"),
        shots=META_SGD.shots,
        frequency=META_SGD.frequency,
        meta_batch=META_SGD.meta_batch,
        steps=steps,
        judged_after=(1,),
    )
    for name in config.methods:
        for shots, errors in maml.errors_of(name, config):
            found = printed(name, shots, config)
            assert found is not None
            value, interval = found[1][1]
            ours = errors[1]
            yield compared(
                f"error after 1 step, {name}, {shots} points",
                Figure(value, interval),
                ours.mean,
                ours.half,
                f"± {interval:g} as printed, ± {ours.half:.2f} ours over "
                f"{config.judged_tasks} tasks; {steps} outer steps, the paper's "
                f"{META_SGD.steps}",
            )
