"""What `learn` accepts, checked before anything is computed."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from .._checks import float_leaves, int_at_least, path_name
from .._types import Hyper, PyTree
from ..optimizers.update import is_transformation
from ..runs.unrolled import Unrolled
from ..tasks import Mean
from .newton import Newton


def counts(steps: Any, callback_every: Any) -> tuple[int, int]:
    """Both as ints.

    Raises:
        ValueError: if one is no int, or too small.
    """
    return (
        int_at_least(steps, "steps", 0, note=": it counts outer steps"),
        int_at_least(callback_every, "callback_every", 1),
    )


def tolerances(**values: Any) -> None:
    """Refuse what is negative, nan, or no number."""
    for name, value in values.items():
        if isinstance(value, Tracer):
            continue
        number = isinstance(value, float | int | np.number | jax.Array)
        if not number or isinstance(value, bool) or not value >= 0:
            msg = f"{name} = {value!r} must be ≥ 0"
            raise ValueError(msg)


def functions(objective: Any, engine: Any, project: Any, callback: Any) -> None:
    """Refuse what cannot be called, and classes in place of their objects."""
    wanted = {
        "objective": (objective, "a metalr.Unrolled, or a function of hyper"),
        "engine": (engine, "an engine such as metalr.Reverse()"),
        "project": (project, "a function of hyper, or None"),
        "callback": (callback, "a function of the Learned so far, or None"),
    }
    for name, (value, what) in wanted.items():
        optional = value is None and name in {"project", "callback"}
        if optional or (callable(value) and not isinstance(value, type)):
            continue
        msg = f"{name} = {value!r} must be {what}"
        raise ValueError(msg)


def choices(history: Any, keep: Any) -> None:
    """Check the two options that are words."""
    for name, value, allowed in (
        ("history", history, ("all", "scalars")),
        ("keep", keep, ("last", "best")),
    ):
        if value not in allowed:
            msg = f"{name} = {value!r} must be {allowed[0]!r} or {allowed[1]!r}"
            raise ValueError(msg)


def optimizer(outer_optimizer: Any, hyper: Hyper, *, drawn: bool) -> None:
    """Refuse what makes no outer steps, and Newton where it cannot."""
    if not isinstance(outer_optimizer, Newton):
        if not is_transformation(outer_optimizer):
            msg = (
                f"outer_optimizer = {outer_optimizer!r} must be an optax optimizer, "
                "such as optax.adam(0.1), or metalr.Newton()"
            )
            raise ValueError(msg)
        return
    leaves = jax.tree.leaves(hyper)
    if len(leaves) != 1 or leaves[0].shape != ():
        msg = (
            f"Newton learns one scalar, but hyper has shapes "
            f"{[leaf.shape for leaf in leaves]}: use an optax optimizer"
        )
        raise ValueError(msg)
    if drawn:
        msg = (
            "Newton brackets a minimum by the signs of one derivative, but with key= "
            "each step's is that of another draw: fix the draws, learn("
            "metalr.tasks.Mean.of(make, jax.random.split(key, n)), …) without key=, or "
            "use an optax optimizer"
        )
        raise ValueError(msg)


def maker(make: Any) -> None:
    """Refuse an objective where a function of a key is needed."""
    if isinstance(make, Unrolled | Mean):
        msg = (
            f"objective = {make!r}, but with key= it is made anew in each outer step: "
            "pass a function of a key that returns it, or leave key out"
        )
        raise ValueError(msg)


def start(
    hyper: Any, log: Any, project: Callable[[Hyper], Any] | None
) -> tuple[Hyper, tuple[bool, ...]]:
    """Hyper as arrays, within the constraints, and one flag of `log` for each leaf.

    Raises:
        ValueError: if a leaf is not a float, or not positive where `log` is set, or if
            `project` changes the structure, a shape, or a feasible point.
    """
    hyper = float_leaves(hyper, "hyper")
    if project is not None:
        forms = [jax.eval_shape(lambda h: h, hyper), jax.eval_shape(project, hyper)]
        structures = [jax.tree.structure(form) for form in forms]
        shapes = [[leaf.shape for leaf in jax.tree.leaves(form)] for form in forms]
        if structures[0] != structures[1] or shapes[0] != shapes[1]:
            msg = (
                f"project(hyper) is {forms[1]}, but must have the structure and the "
                f"shapes of hyper, {forms[0]}"
            )
            raise ValueError(msg)
        hyper = jax.tree.map(
            lambda p, h: jnp.asarray(p, h.dtype), project(hyper), hyper
        )
    return hyper, _log_flags(log, hyper)


def same_form(state: PyTree, expected: PyTree) -> None:
    """Refuse the state of another loop."""
    given, made = (
        jax.tree.map(lambda leaf: f"{leaf.dtype}{list(leaf.shape)}", tree)
        for tree in (state, expected)
    )
    if jax.tree.structure(given) != jax.tree.structure(made) or given != made:
        msg = (
            f"state is {given}, but this outer_optimizer makes {made} of this hyper: "
            "pass learned.state of a call with the same outer_optimizer, and its hyper"
        )
        raise ValueError(msg)


def _log_flags(log: PyTree, hyper: Hyper) -> tuple[bool, ...]:
    """One flag for each leaf; a flagged leaf must be positive."""
    try:
        flags = jax.tree.map(
            lambda flag, sub: [flag] * len(jax.tree.leaves(sub)), log, hyper
        )
    except (ValueError, TypeError) as error:
        msg = f"log = {log!r} is not a prefix of hyper: {error}"
        raise ValueError(msg) from error
    logs = tuple(jax.tree.leaves(flags))
    for flag, (path, leaf) in zip(
        logs, jax.tree_util.tree_leaves_with_path(hyper), strict=True
    ):
        if not isinstance(flag, bool):
            msg = f"log has the entry {flag!r}: each must be True or False"
            raise ValueError(msg)
        concrete = not isinstance(leaf, Tracer)
        if flag and concrete and not bool(jnp.all(leaf > 0.0)):
            msg = (
                f"{path_name('hyper', path)} = {leaf} must be positive to be learned "
                "through its logarithm: start at a positive value, or set log=False"
            )
            raise ValueError(msg)
    return logs
