"""The outer loop of an experiment: its progress shows, and it survives a kill."""

from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import metalr
from experiments._command.config import digest
from experiments._command.experiment import ExperimentConfig, output_folder
from experiments._command.scan_progress import scan_progress
from experiments._command.sources import code_version
from experiments.resume import Learn, in_chunks, learn_resumably

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
            folder=_checkpoints(folder, config, name),
            every=every,
            fingerprint=_fingerprint(module, config, name),
            **options,
        )


def resumed(
    module: ModuleType,
    config: ExperimentConfig,
    name: str,
    loop: Learn,
    start: Any,
    *,
    steps: int,
    every: int,
) -> metalr.Learned:
    """The same for a loop of one's own, in the form of `metalr.learn`.

    Args:
        module: the experiment.
        config: its config.
        name: of this loop.
        loop: `loop(hyper, steps=, state=None)`, continued from `learned.state`.
        start: where to begin.
        steps: outer steps.
        every: outer steps between checkpoints; each call of `loop` makes so many.
    """
    learned: Any = None
    with (
        scan_progress(name, total=steps, counts="outer step") as tell,
        ExitStack() as on,
    ):
        folder = output_folder()
        if folder is None:
            folder = Path(on.enter_context(TemporaryDirectory()))
        for learned in in_chunks(
            loop,
            start,
            folder=_checkpoints(folder, config, name),
            every=every,
            fingerprint=_fingerprint(module, config, name),
            steps=steps,
        ):
            tell(learned.steps)
    return learned


def _checkpoints(folder: Path, config: ExperimentConfig, name: str) -> Path:
    return folder / "checkpoints" / digest(config) / name.replace(" ", "-")


def _fingerprint(module: ModuleType, config: ExperimentConfig, name: str) -> str:
    return f"config {digest(config)}, code {code_version(module)}, {name}"
