"""The outer loop of an experiment: its progress shows, and it survives a kill."""

from types import ModuleType
from typing import Any

import metalr
from experiments._command.config import digest
from experiments._command.experiment import ExperimentConfig, output_folder
from experiments._command.scan_progress import scan_progress
from experiments._command.sources import code_version
from experiments.resume import learn_resumably

_SHOWN = 20
"""Times that a loop tells how far it is."""


def learn(
    module: ModuleType,
    config: ExperimentConfig,
    name: str,
    make: Any,
    start: Any,
    *,
    steps: int,
    every: int,
    **options: Any,
) -> metalr.Learned:
    """`metalr.learn`, with its progress; within a run it continues what was stopped.

    Args:
        module: the experiment, for the version of its code.
        config: its config: both name the checkpoints, so that neither meets those of
            another.
        name: of this loop among those of the experiment.
        make: as for `metalr.learn`, and so are `start` and `options`.
        start: where to begin.
        steps: outer steps.
        every: outer steps between checkpoints.
        options: `key`, `outer_optimizer`, `engine`, …
    """
    options |= {
        "steps": steps,
        "history": "scalars",
        "callback_every": max(1, min(every, steps // _SHOWN)),
    }
    with scan_progress(name, total=steps, counts="outer step") as tell:
        options["callback"] = lambda learned: tell(learned.state.step)
        folder = output_folder()
        if folder is None:
            return metalr.learn(make, start, **options)
        return learn_resumably(
            make,
            start,
            folder=checkpoints(config, name),
            every=every,
            fingerprint=fingerprint(module, config, name),
            **options,
        )


def checkpoints(config: ExperimentConfig, name: str) -> Any:
    """The folder of a loop's checkpoints, within a run."""
    folder = output_folder()
    assert folder is not None
    return folder / "checkpoints" / digest(config) / name.replace(" ", "-")


def fingerprint(module: ModuleType, config: ExperimentConfig, name: str) -> str:
    """What a checkpoint is of: another config or other code is another problem."""
    return f"config {digest(config)}, code {code_version(module)}, {name}"
