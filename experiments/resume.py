"""A long outer loop that survives being killed: chunks, and a checkpoint after each.

A chunk is a call of `metalr.learn` that continues the one before. Files are
orbax-checkpoint's; a checkpoint appears under its name complete or not at all.
"""

import fcntl
import functools
import hashlib
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree
from pydantic import ValidationError

import metalr
from experiments._command.config import ConfigError, Model
from metalr import Learned
from metalr.hypergrad import Engine
from metalr.outer.learn import joined, padded

_KEPT = 3
"""Checkpoints kept: the newest, and those to fall back on where it is damaged."""


class Learn(Protocol):
    """`metalr.learn`, with all but these arguments set."""

    def __call__(self, hyper: Any, *, steps: int, state: Any = None) -> Learned:
        """Make at most `steps` outer steps, from `state` if there is one."""
        ...


def learn_resumably(
    objective: Callable[[Any], jax.Array],
    hyper: Any,
    *,
    folder: Path,
    every: int,
    fingerprint: str,
    steps: int,
    outer_optimizer: optax.GradientTransformation | metalr.Newton,
    engine: Engine = metalr.Reverse(),  # noqa: B008 (immutable)
    log: PyTree[bool] = False,
    rtol: float = 1e-8,
    atol: float = 0.0,
    on_progress: Callable[[Learned], None] | None = None,
) -> Learned:
    """`metalr.learn`, which continues where an earlier process was stopped.

    The result is that of one uninterrupted call, bit for bit, on the same machine and
    versions. See `in_chunks` for the checkpoints.

    Args:
        objective: as for `metalr.learn`, and so are all arguments not listed here.
        hyper: where to start.
        folder: where checkpoints are kept, by this loop alone.
        every: outer steps between checkpoints.
        fingerprint: names the problem and the code: whatever changes the result.
        steps: the most outer steps to make, those of earlier processes included.
        outer_optimizer: how to step.
        engine: how to differentiate.
        log: what to learn the logarithm of.
        rtol: relative tolerance.
        atol: absolute tolerance.
        on_progress: called with all that is known, after each chunk and on a restart.

    Returns:
        What `metalr.learn` returns.
    """
    learn = functools.partial(
        metalr.learn,
        objective,
        outer_optimizer=outer_optimizer,
        engine=engine,
        log=log,
        rtol=rtol,
        atol=atol,
    )
    learned: Any = None
    for learned in in_chunks(
        learn, hyper, folder=folder, every=every, fingerprint=fingerprint, steps=steps
    ):
        if on_progress is not None:
            on_progress(learned)
    return learned


def in_chunks(
    learn: Learn,
    hyper: Any,
    *,
    folder: Path,
    every: int,
    fingerprint: str,
    steps: int,
) -> Iterator[Learned]:
    """All that is known after each chunk of a loop that continues after a kill.

    After each chunk everything is on disk: the state, and the history so far (so that
    what is written grows with the steps made). A restart begins with the newest
    checkpoint whose hash is right; a damaged one is warned of, and replaced once its
    steps have been made again. A finished loop makes none.

    Args:
        learn: `metalr.learn` on the problem, e.g. by `functools.partial`.
        hyper: where to start.
        folder: where the newest checkpoints are kept, by this loop alone.
        every: outer steps in a chunk.
        fingerprint: names the problem and the code: whatever changes the result.
        steps: the most outer steps to make, those of earlier processes included.

    Yields:
        `learn(hyper, steps=steps)` as far as it is known: `steps` made, and a history
        that is nan from there on. The last one is the result.

    Raises:
        ConfigError: if `every` is not positive, or the folder cannot be written, is in
            use, has another fingerprint, or holds more steps than are asked for.
    """
    if every < 1:
        msg = f"every = {every!r} must be ≥ 1"
        raise ConfigError(msg)
    with _alone(folder), _checkpoints(folder) as manager:
        learned, stopped = _newest(manager, learn, hyper, fingerprint, folder)
        made = int(learned.steps) if learned else 0
        if made > steps:
            msg = (
                f"steps = {steps}, but {folder} holds {made}: ask for as many, or "
                "remove the folder"
            )
            raise ConfigError(msg)
        if learned:
            yield padded(learned, steps)
        damaged = [step for step in manager.all_steps() if not learned or step > made]
        while not learned or (made < steps and not stopped):
            asked = min(every, steps - made)
            onward = {"state": learned.state} if learned else {}
            chunk = learn(learned.hyper if learned else hyper, steps=asked, **onward)
            stopped = int(chunk.steps) < asked
            learned = joined(learned, chunk)
            made = int(learned.steps)
            while damaged:  # not before there is something to take their place
                manager.delete(damaged.pop())
            _save(manager, learned, folder, fingerprint=fingerprint, stopped=stopped)
            yield padded(learned, steps)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other processes out; the lock goes with this one, however it ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / "lock").open("w", encoding="utf-8")
    except OSError as error:
        msg = f"cannot write checkpoints to {folder}: {error.strerror}"
        raise ConfigError(msg) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            msg = f"another process writes its checkpoints to {folder}: wait for it"
            raise ConfigError(msg) from error
        yield


@contextmanager
def _checkpoints(folder: Path) -> Iterator[Any]:
    import orbax.checkpoint as ocp

    policy = ocp.checkpoint_managers.preservation_policy.LatestN(_KEPT)
    options = ocp.CheckpointManagerOptions(
        preservation_policy=policy,
        enable_async_checkpointing=False,
        cleanup_tmp_directories=True,  # what a killed process was writing
        lightweight_initialize=True,  # reads no checkpoint before we have checked it
    )
    with ocp.CheckpointManager(folder.resolve(), options=options) as manager:
        yield manager


def _newest(
    manager: Any, learn: Learn, hyper: Any, fingerprint: str, folder: Path
) -> tuple[Learned | None, bool]:
    """The newest checkpoint that is whole, and whether the loop had stopped there."""
    for step in sorted(manager.all_steps(), reverse=True):
        seal = _read_seal(folder, step)
        if seal and seal.fingerprint != fingerprint:
            msg = (
                f"{folder} holds checkpoints of another problem or of other code "
                f"({seal.fingerprint}, not {fingerprint}): remove that folder to begin "
                "anew"
            )
            raise ConfigError(msg)
        if seal and seal.sha256 == _hash(folder / str(step)):
            return _restored(manager, step, learn, hyper), seal.stopped
        warnings.warn(
            f"the checkpoint {folder / str(step)} is damaged or was not completed: "
            "going on from the one before",
            stacklevel=2,
        )
    return None, False


def _restored(manager: Any, step: int, learn: Learn, hyper: Any) -> Learned:
    from orbax.checkpoint import args

    # Shapes alone: nothing is computed.
    form = jax.eval_shape(lambda h: learn(h, steps=0), hyper)
    history = jax.tree.map(
        lambda row: jax.ShapeDtypeStruct((step + 1, *row.shape[1:]), row.dtype),
        form.history,
    )
    target = form._replace(history=history)
    return jax.tree.map(
        jnp.asarray, manager.restore(step, args=args.StandardRestore(target))
    )


def _save(
    manager: Any, learned: Learned, folder: Path, *, fingerprint: str, stopped: bool
) -> None:
    from orbax.checkpoint import args

    made = int(learned.steps)
    if made not in manager.all_steps():  # else the loop has found that it had stopped
        manager.save(made, args=args.StandardSave(learned), force=True)
    seal = _Seal(
        fingerprint=fingerprint, stopped=stopped, sha256=_hash(folder / str(made))
    )
    draft = folder / "seal.new"
    draft.write_text(seal.model_dump_json(), encoding="utf-8")
    draft.replace(_seal_file(folder, made))
    kept = {_seal_file(folder, step) for step in manager.all_steps()}
    for path in set(folder.glob("*.seal.json")) - kept:
        path.unlink()


class _Seal(Model):
    """What stands beside a checkpoint, written last: without it, it does not count.

    Damage is found by the hash, since orbax finds some of it only (a changed
    bit passes), and reports it from several threads at once.
    """

    fingerprint: str
    stopped: bool  # by itself: the loop makes no further steps
    sha256: str


def _seal_file(folder: Path, step: int) -> Path:
    return folder / f"{step}.seal.json"


def _read_seal(folder: Path, step: int) -> _Seal | None:
    try:
        return _Seal.model_validate_json(_seal_file(folder, step).read_bytes())
    except (OSError, ValidationError):
        return None


def _hash(checkpoint: Path) -> str:
    """Of the names and contents of all its files."""
    digest = hashlib.sha256()
    for path in sorted(path for path in checkpoint.rglob("*") if path.is_file()):
        name = path.relative_to(checkpoint).as_posix()
        digest.update(f"{name}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    return digest.hexdigest()
