"""What a run is made of, checked and as arrays; each error says what to do."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array

from .._checks import float_leaves, leading_axis, path_name
from .._types import Params, PyTree
from ..optimizers.update import is_transformation
from .run import is_float


def is_function(value: Any) -> bool:
    """A function, as opposed to a pytree (which may be callable as well)."""
    whole = jax.tree_util.all_leaves([value]) or isinstance(value, Partial)
    return callable(value) and whole


def strong(leaf: Any) -> Array:
    """As an array, not weakly typed: one compilation for all."""
    array = jnp.asarray(leaf)
    return jnp.asarray(array, array.dtype)  # not weakly typed: one compilation


def params_of(params: Any, name: str) -> Params:
    """Params as arrays, after checking that there is a float to train.

    Raises:
        ValueError: for a leaf that is no array or complex, or if none is a float.
    """

    def check(path: tuple[Any, ...], leaf: Any) -> Array:
        try:
            array = strong(leaf)
        except (TypeError, ValueError):  # a ValueError for text
            msg = (
                f"{path_name(name, path)} = {leaf!r} is {type(leaf).__name__}, no "
                "array: split the model first, e.g. arrays, rest = eqx.partition(model,"
                " eqx.is_array) or nnx.split, pass the arrays and let the loss "
                "put them together"
            )
            raise ValueError(msg) from None
        if jnp.issubdtype(array.dtype, jnp.complexfloating):
            msg = (
                f"{path_name(name, path)} is {array.dtype}, which has no real "
                "gradient: pass real and imaginary part"
            )
            raise ValueError(msg)
        return array

    arrays = jax.tree_util.tree_map_with_path(check, params)
    if not any(map(is_float, jax.tree.leaves(arrays))):
        return float_leaves(params, name)  # says which leaf is what
    return arrays


def batches_of(batches: Any, steps: int) -> PyTree:
    """Batches as arrays, one for each step.

    Raises:
        ValueError: for another length, or a list of batches.
    """
    if isinstance(batches, list) and len(batches) == steps and steps > 0:
        msg = (
            f"batches is a list of length {steps} = steps: one batch a step is one "
            "pytree whose leaves lead with that axis, jax.tree.map(lambda *b: "
            "jnp.stack(b), *batches) (a pytree of several parts is a tuple or dict)"
        )
        raise ValueError(msg)
    try:
        batches = jax.tree.map(jnp.asarray, batches)
    except (TypeError, ValueError):
        msg = (
            f"batches = {batches!r} is no pytree of arrays: draw steps = {steps} of "
            "them and stack them, jax.tree.map(lambda *b: jnp.stack(b), *drawn), or "
            "pass a function index -> batch"
        )
        raise ValueError(msg) from None
    leading_axis(batches, steps)
    return batches


def weights_of(weights: Any, steps: int) -> Array:
    """Outer weights as an array of steps + 1 floats.

    Raises:
        ValueError: for another shape or dtype.
    """
    array = strong(weights)
    if array.shape != (steps + 1,) or not is_float(array):
        msg = (
            f"outer_weights is {array.dtype}{list(array.shape)}, but must be steps + 1 "
            f"= {steps + 1} floats: one for the outer loss at each of w_0, …, w_T"
        )
        raise ValueError(msg)
    return array


def accepts(function: Any, name: str, names: tuple[str, ...]) -> None:
    """Refuse a function that cannot be called with so many arguments.

    Raises:
        ValueError: naming what it takes and what it will be given.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # not a Python function
        return
    by_name = {"opt_state": None} if "opt_state" in signature.parameters else {}
    try:
        signature.bind(*names, **by_name)
    except TypeError:
        msg = (
            f"{name} takes {signature}, but is called as {name}({', '.join(names)}): "
            "give it these arguments, used or not"
        )
        raise ValueError(msg) from None


def check_functions(model_state: Any, **given: Any) -> None:
    """Refuse parts of an `Unrolled` that are no functions, or of other arguments.

    Raises:
        ValueError: naming the part.
    """
    if is_transformation(given["optimizer"]):
        msg = (
            "optimizer is an optax transformation that is made already, but must be a "
            "function from hyper to one: optax.sgd, or lambda hyper: optax.sgd(0.1)"
        )
        raise ValueError(msg)
    state = () if model_state is None else ("model_state",)
    wanted = {
        "loss": ("params", "hyper", "batch", *state),
        "optimizer": ("hyper",),
        "outer_loss": ("params", "hyper", *state),
        "batches": ("index",),
    }
    for name, names in wanted.items():
        part = given[name]
        if callable(part):
            accepts(part, name, names)
        elif name != "batches" and not (name == "outer_loss" and part is None):
            msg = f"{name} = {part!r} must be a function of {', '.join(names)}"
            raise ValueError(msg)


def takes_opt_state(outer_loss: Any) -> bool:
    """Whether an outer loss asks for the optimizer's state, by the name `opt_state`."""
    try:
        return "opt_state" in inspect.signature(outer_loss).parameters
    except (TypeError, ValueError):  # not a Python function
        return False


def real_scalar(value: Any, name: str) -> Any:
    """The value itself, if its shape and dtype are those of a loss."""
    if isinstance(value, tuple):
        msg = (
            f"{name} returned a tuple, but must return one real scalar: what it "
            "carries along or measures goes into model_state, with which the inner "
            "loss returns (scalar, new_model_state)"
        )
        raise ValueError(msg)
    if value is None:
        msg = f"{name} returned None, but must return a real scalar: return it"
        raise ValueError(msg)
    if not hasattr(value, "dtype"):
        value = jnp.asarray(value)
    if value.shape != () or not jnp.issubdtype(value.dtype, jnp.floating):
        msg = (
            f"{name} returned {value.dtype}{list(value.shape)}, but must return a real "
            "scalar: reduce it, e.g. with jnp.mean"
        )
        raise ValueError(msg)
    return value


def pair(result: Any) -> tuple[Any, Any]:
    """What a loss with model_state returns.

    Raises:
        ValueError: if it is not a pair.
    """
    if not isinstance(result, tuple) or len(result) != 2:
        msg = (
            "with model_state the loss must return (scalar, new_model_state), but it "
            f"returned {type(result).__name__}"
        )
        raise ValueError(msg)
    return result


def same_state(old: PyTree, new: PyTree) -> PyTree:
    """The new state of the model in the dtypes of the old one.

    Raises:
        ValueError: if it has another structure or shape, naming the leaf.
    """
    if jax.tree.structure(old) != jax.tree.structure(new):
        msg = (
            f"the loss returned a model_state of structure {jax.tree.structure(new)}; "
            f"it must be that of the one it got, {jax.tree.structure(old)}"
        )
        raise ValueError(msg)

    def convert(path: tuple[Any, ...], before: Array, after: Any) -> Array:
        if jnp.shape(after) != before.shape:
            msg = (
                f"{path_name('model_state', path)} came into the loss as "
                f"{list(before.shape)} and left it as {list(jnp.shape(after))}: a loop "
                "carries arrays of one shape"
            )
            raise ValueError(msg)
        return jnp.asarray(after, before.dtype)

    return jax.tree_util.tree_map_with_path(convert, old, new)
