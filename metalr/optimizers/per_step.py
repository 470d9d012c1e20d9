"""One set of hyperparameters for each step of the inner optimizer."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from .._checks import path_name
from .._types import Hyper, Optimizer, PyTree
from .update import made, standard


class PerStepState(NamedTuple):
    """Number of updates made, and the state of the wrapped optimizer."""

    updates_made: chex.Array
    inner: optax.OptState


@dataclasses.dataclass(frozen=True)
class PerStep:
    """What `per_step` returns: a value, so that `Unrolled` can check it."""

    make: Callable[[Any], optax.GradientTransformation]
    # Structure and leaves of a prefix of hyper; all of it unless told otherwise.
    over: tuple[Any, tuple[bool, ...]] = (jax.tree.structure(True), (True,))

    def flags(self, hyper: Hyper) -> Hyper:
        """Whether each leaf of `hyper` has an entry for each step.

        Raises:
            ValueError: if `over` is not a prefix of `hyper`.
        """
        structure, leaves = self.over
        prefix = jax.tree.unflatten(structure, leaves)
        try:
            return jax.tree.map(
                lambda flag, part: jax.tree.map(lambda _: flag, part), prefix, hyper
            )
        except (ValueError, TypeError) as error:
            msg = f"over = {prefix!r} is not a prefix of hyper: {error}"
            raise ValueError(msg) from error

    def check(self, hyper: Hyper, steps: int) -> None:
        """Compare the leading axes of `hyper` with the number of updates.

        Raises:
            ValueError: if a leaf does not lead with an axis of length `steps`.
        """
        flags = jax.tree.leaves(self.flags(hyper))
        leaves = jax.tree_util.tree_leaves_with_path(hyper)
        for flag, (path, leaf) in zip(flags, leaves, strict=True):
            if not flag:
                continue
            if leaf.ndim == 0 or leaf.shape[0] != steps:
                msg = (
                    f"{path_name('hyper', path)} has shape {leaf.shape}, but per_step "
                    f"with steps={steps} needs a leading axis of length {steps}: "
                    "one entry for each update"
                )
                raise ValueError(msg)

    def __call__(self, hyper: Hyper) -> optax.GradientTransformationExtraArgs:
        """The transformation whose update `s` is that of `make(hyper[s])`."""
        flags = self.flags(hyper)

        def at(count: Any) -> optax.GradientTransformationExtraArgs:
            entry = jax.tree.map(
                lambda flag, leaf: _entry(jnp.asarray(leaf), count) if flag else leaf,
                flags,
                hyper,
            )
            return standard(made(self.make, entry))

        def init(params: optax.Params) -> PerStepState:
            count = jnp.zeros((), jnp.int32)
            return PerStepState(count, at(count).init(params))

        def update(
            updates: optax.Updates,
            state: optax.OptState,
            params: optax.Params | None = None,
            **extra_args: Any,
        ) -> tuple[optax.Updates, PerStepState]:
            assert isinstance(state, PerStepState)
            optimizer = at(state.updates_made)
            updates, inner = optimizer.update(
                updates, state.inner, params, **extra_args
            )
            return updates, PerStepState(state.updates_made + 1, inner)

        return optax.GradientTransformationExtraArgs(init, update)


def per_step(make: Optimizer, *, over: PyTree = True) -> PerStep:
    r"""An optimizer that takes one set of hyperparameters for each step.

    $$w_{s+1} = w_s - \eta_s \nabla L(w_s)$$

    for `per_step(optax.sgd)`; with any other `make`, update `s` is that of
    `make(hyper[s])`, and the state (momentum, Adam's moments) is carried over.

    Args:
        make: what makes the optimizer of one step, e.g. `optax.sgd`, or
            `lambda h: optax.sgd(h["learning_rate"], h["momentum"])`.
        over: which leaves of `hyper` have an entry for each step: a bool for all of
            them, or a pytree of bools that is a prefix of it. The others are shared by
            all steps: `over={"learning_rate": True, "momentum": False}`.

    Returns:
        An optimizer whose `hyper` is a pytree of the structure that `make` takes, each
        leaf that `over` marks with a leading axis of length `steps`: the entry of each
        update. `Unrolled`
        checks the length. Where the result is wrapped by the user (inside a
        lambda) it cannot be checked, and an update past the end gives nan.

    Raises:
        ValueError: if an entry of `over` is no bool; when called, if `over` is not a
            prefix of hyper, or a marked leaf has another length.

    Differentiable in both modes and any order; memory beyond that of `make`: one
    counter.

    Example:
        >>> import jax, jax.numpy as jnp, optax, metalr
        >>> loss = lambda params, hyper, batch: 0.5 * params**2
        >>> L = metalr.Unrolled(loss, metalr.per_step(optax.sgd), 1.0, steps=2)
        >>> print(jax.grad(L)(jnp.array([0.5, 0.25])))
        [-0.28125 -0.1875 ]
    """
    leaves, structure = jax.tree.flatten(over)
    for leaf in leaves:
        if not isinstance(leaf, bool):
            msg = f"over has the entry {leaf!r}: each must be True or False"
            raise ValueError(msg)
    return PerStep(make, (structure, tuple(leaves)))


def _entry(leaf: jax.Array, count: jax.Array) -> jax.Array:
    return leaf.at[count].get(mode="fill", fill_value=jnp.nan)
