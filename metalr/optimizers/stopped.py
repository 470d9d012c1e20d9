"""Does an optimizer stop a gradient? Then its derivatives are not those of the run."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, JaxprEqn, jaxpr_as_fun

from .._checks import path_name
from .._programs.equations import equations
from .._programs.symmetry import own_derivatives
from .._types import Hyper, Params
from .update import standard, update


def stops_gradient(
    optimizer: Any, params: Params, hyper: Hyper | None = None
) -> list[str]:
    """What one update computes through `jax.lax.stop_gradient`, by name.

    Decided on the traced update. A stopped value that cancels does not count, nor does
    one that depends on nothing that is differentiated. Such an optimizer runs as ever;
    derivatives of the run, by whatever engine, leave a path out, and differ from finite
    differences: `optax.lbfgs` scales its first step by a stopped norm.

    Args:
        optimizer: a transformation or, with `hyper`, a function of it that makes one.
        params: where the run starts; shapes and dtypes matter only.
        hyper: the hyperparameters, if stops of these are to be seen, too.

    Returns:
        Paths of the floats among updates and new state, such as `updates['w']`; empty
        where all gradients flow.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from metalr.optimizers.stopped import stops_gradient
        >>> stops_gradient(optax.adam(0.1), jnp.ones(2))
        []
        >>> stops_gradient(optax.lbfgs(0.1, linesearch=None), jnp.ones(2))
        ['updates']
    """
    make = (lambda _: optimizer) if hyper is None else optimizer
    shapes = jax.tree.map(_shape, (params, hyper))
    start = jax.eval_shape(lambda p, h: standard(make(h)).init(p), *shapes)

    def step(params: Params, hyper: Hyper, grads: Params, state: Any) -> Any:
        value = _stand_in(params)
        return update(
            make(hyper), grads, state, params, value=value, value_fn=_stand_in
        )

    program, outputs = jax.make_jaxpr(step, return_shape=True)(
        *shapes, shapes[0], start
    )
    return stopped_outputs(program, outputs)


def stopped_outputs(program: ClosedJaxpr, outputs: tuple[Any, Any]) -> list[str]:
    """Those results of a traced update that a stopped gradient leads to, by path.

    Args:
        program: the update's program.
        outputs: updates and new state, or their shapes.
    """
    if not any(map(_is_stop, equations(program.jaxpr))):
        return []
    paths = [
        path_name(name, path)
        for name, part in zip(("updates", "opt_state"), outputs, strict=True)
        for path, _ in jax.tree_util.tree_leaves_with_path(part)
    ]
    return [
        path
        for index, (path, aval) in enumerate(zip(paths, program.out_avals, strict=True))
        if jnp.issubdtype(_dtype(aval), jnp.inexact)
        and "stop_gradient" in own_derivatives(_one_output(program, index))
    ]


def _one_output(program: ClosedJaxpr, index: int) -> ClosedJaxpr:
    alone = lambda *inputs: jaxpr_as_fun(program)(*inputs)[index]
    return jax.make_jaxpr(alone)(*program.in_avals)


def warn_of_stops(program: ClosedJaxpr, outputs: tuple[Any, Any]) -> None:
    """Tell the user of an optimizer that stops gradients, and where."""
    paths = stopped_outputs(program, outputs)
    if paths:
        msg = (
            f"the optimizer stops a gradient (jax.lax.stop_gradient{_function(program)}"
            f", on the way to {', '.join(paths)}): the run is as it is, but its "
            "derivatives leave that path out and differ from finite differences. Use "
            "another optimizer, or a copy of its update without stop_gradient"
        )
        warnings.warn(msg, stacklevel=2)


def _function(program: ClosedJaxpr) -> str:
    """The function of optax that stops it, from where the equation was made."""
    for eqn in filter(_is_stop, equations(program.jaxpr)):
        traceback = eqn.source_info.traceback
        for frame in traceback.frames if traceback else ():
            if "optax" in frame.file_name:
                return f" in {frame.function_name}"
    return ""


def _is_stop(eqn: JaxprEqn) -> bool:
    return eqn.primitive.name == "stop_gradient"


def _dtype(aval: Any) -> Any:
    return aval.dtype


def _stand_in(params: Params) -> jax.Array:
    """A loss, for those that ask for one: half the sum of squares."""
    leaves = [x for x in jax.tree.leaves(params) if jnp.issubdtype(x.dtype, float)]
    return sum((0.5 * jnp.sum(x * x) for x in leaves), jnp.zeros(()))


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(jnp.shape(leaf), jax.dtypes.result_type(leaf))
