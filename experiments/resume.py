"""A long outer loop that survives being killed: chunks, and a checkpoint after each.

A chunk is a call of `metalr.learn` that continues the one before. A checkpoint is one
file: a hash of all that follows, a line of JSON that says what it is, and the bits of
the arrays. It appears under its name complete or not at all.
"""

import functools
import hashlib
import json
import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

import metalr
from experiments._command.config import ConfigError
from experiments._store.locks import Busy, locked
from metalr import Learned
from metalr.hypergrad import Engine
from metalr.outer.learn import joined, padded

_KEPT = 3
"""Checkpoints kept: the newest, and those to fall back on where it is damaged."""

_SUFFIX = ".checkpoint"


class Learn(Protocol):
    """`metalr.learn`, with all but these arguments set."""

    def __call__(self, hyper: Any, *, steps: int, state: Any = None) -> Learned:
        """Make at most `steps` outer steps, from `state` if there is one."""
        ...


def learn_resumably(
    objective: Callable[[Any], Any],
    hyper: Any,
    *,
    folder: Path,
    every: int,
    fingerprint: str,
    steps: int,
    outer_optimizer: optax.GradientTransformation | metalr.Newton,
    engine: Engine = metalr.Reverse(),  # noqa: B008 (immutable)
    on_progress: Callable[[Learned], None] | None = None,
    callback: Callable[[Learned], Any] | None = None,
    **options: Any,
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
        on_progress: called with all that is known, after each chunk and on a restart.
        callback: as for `metalr.learn`; `steps` counts from the beginning, the history
            from the last checkpoint. A loop that it stopped stays stopped.
        options: every further option of `metalr.learn`: `key`, `log`, `project`,
            `rtol`, `atol`, `history`, `keep`, `callback_every`.

    Returns:
        What `metalr.learn` returns.
    """
    answers: list[Any] = []

    def watched(known: Learned) -> Any:
        assert callback is not None
        answers.append(callback(known._replace(steps=known.state.step)))
        return answers[-1]

    learn = functools.partial(
        metalr.learn,
        objective,
        outer_optimizer=outer_optimizer,
        engine=engine,
        callback=callback and watched,
        **options,
    )
    learned: Any = None
    for learned in in_chunks(
        learn,
        hyper,
        folder=folder,
        every=every,
        fingerprint=fingerprint,
        steps=steps,
        halted=lambda: answers[-1:] == [True],
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
    halted: Callable[[], bool] = lambda: False,
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
        halted: whether to stop after this chunk, for good.

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
    with _alone(folder):
        learned, stopped = _newest(learn, hyper, fingerprint, folder)
        made = int(learned.steps) if learned else 0
        if made > steps:
            msg = (
                f"steps = {steps}, but {folder} holds {made}: ask for as many, or "
                "remove the folder"
            )
            raise ConfigError(msg)
        if learned:
            yield padded(learned, steps)
        damaged = [step for step in _steps(folder) if not learned or step > made]
        while not learned or (made < steps and not stopped):
            asked = min(every, steps - made)
            onward = {"state": learned.state} if learned else {}
            chunk = learn(learned.hyper if learned else hyper, steps=asked, **onward)
            stopped = int(chunk.steps) < asked or halted()
            learned = joined(learned, chunk)
            made = int(learned.steps)
            while damaged:  # not before there is something to take their place
                _file(folder, damaged.pop()).unlink(missing_ok=True)
            _save(learned, folder, fingerprint=fingerprint, stopped=stopped)
            yield padded(learned, steps)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other processes out."""
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(folder / "lock"))
        except OSError as error:
            raise _unwritable(folder, error) from error
        except Busy as error:
            msg = f"another process writes its checkpoints to {folder}: wait for it"
            raise ConfigError(msg) from error
        yield


def _unwritable(folder: Path, error: OSError) -> ConfigError:
    return ConfigError(f"cannot write checkpoints to {folder}: {error.strerror}")


class _Checkpoint(NamedTuple):
    """What is in a file."""

    steps: int
    fingerprint: str
    stopped: bool  # by itself: the loop makes no further steps
    arrays: Sequence[
        tuple[str, Sequence[int], str | None]
    ]  # dtype, shape, a key's kind
    bits: bytes


def _newest(
    learn: Learn, hyper: Any, fingerprint: str, folder: Path
) -> tuple[Learned | None, bool]:
    """The newest checkpoint that is whole, and whether the loop had stopped there."""
    for step in sorted(_steps(folder), reverse=True):
        found = _read(_file(folder, step))
        if found is None or found.steps != step:
            warnings.warn(
                f"the checkpoint {_file(folder, step)} is damaged: going on from the "
                "one before",
                stacklevel=2,
            )
            continue
        if found.fingerprint != fingerprint:
            msg = (
                f"{folder} holds checkpoints of another problem or of other code "
                f"({found.fingerprint}, not {fingerprint}): remove that folder to "
                "begin anew"
            )
            raise ConfigError(msg)
        return _restored(found, learn, hyper), found.stopped
    return None, False


def _restored(found: _Checkpoint, learn: Learn, hyper: Any) -> Learned:
    # Shapes alone: nothing is computed.
    form = jax.eval_shape(lambda h: learn(h, steps=0), hyper)
    structure = jax.tree.structure(form)
    filled, start = [], 0
    for dtype, shape, key in found.arrays:
        array = np.frombuffer(found.bits, jnp.dtype(dtype), math.prod(shape), start)
        start += array.nbytes
        leaf = jnp.array(array.reshape(shape))
        filled.append(jax.random.wrap_key_data(leaf, impl=key) if key else leaf)
    return jax.tree.unflatten(structure, filled)


def _bits(leaf: jax.Array) -> tuple[np.ndarray, str | None]:
    """A leaf's bits, and how it was made if it is a random key."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return np.asarray(jax.random.key_data(leaf)), str(jax.random.key_impl(leaf))
    return np.asarray(leaf), None


def _save(learned: Learned, folder: Path, *, fingerprint: str, stopped: bool) -> None:
    arrays, keys = zip(*map(_bits, jax.tree.leaves(learned)), strict=True)
    head = {
        "steps": int(learned.steps),
        "fingerprint": fingerprint,
        "stopped": stopped,
        "arrays": [
            (array.dtype.name, array.shape, key)
            for array, key in zip(arrays, keys, strict=True)
        ],
    }
    content = b"".join(
        [json.dumps(head).encode(), b"\n", *(array.tobytes() for array in arrays)]
    )
    draft = folder / "new"
    try:
        with draft.open("wb") as file:
            file.write(hashlib.sha256(content).hexdigest().encode() + b"\n" + content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(_file(folder, head["steps"]))
        for step in sorted(_steps(folder))[:-_KEPT]:
            _file(folder, step).unlink()
    except OSError as error:
        raise _unwritable(folder, error) from error


def _read(file: Path) -> _Checkpoint | None:
    """A checkpoint; None where it is not what was written."""
    try:
        seal, _, content = file.read_bytes().partition(b"\n")
    except OSError:
        return None
    if seal != hashlib.sha256(content).hexdigest().encode():
        return None
    head, _, bits = content.partition(b"\n")
    return _Checkpoint(**json.loads(head), bits=bits)


def _steps(folder: Path) -> list[int]:
    names = (path.stem for path in folder.glob(f"*{_SUFFIX}"))
    return [int(name) for name in names if name.isdecimal()]


def _file(folder: Path, step: int) -> Path:
    return folder / f"{step}{_SUFFIX}"
