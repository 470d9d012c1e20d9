"""Any dynamical system as a run: what is unrolled need not be an optimizer."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._checks import int_at_least, leading_axis, path_name, positive_int
from .._programs.statics import Form, flatten, unflatten
from .._types import Hyper, PyTree, Scalar
from .arguments import accepts, is_function, real_scalar, strong
from .run import State, Unroll


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True, init=False, eq=False, repr=False)
class Rollout(Unroll):
    r"""The value at the end of `steps` steps of any system, as a function of hyper.

    $$L(\eta) = F(s_T, \eta), \qquad (s_{t+1}, y_t) = f(s_t, \eta, x_t)$$

    A learned optimizer, an agent in its environment, a simulation, a training loop of
    one's own: whatever `step` does, every engine that differentiates a run works on it:
    `Reverse` (plain, checkpointed, nested), `Forward`, `Mixed`, `Truncated`,
    `EvolutionStrategies`, `PersistentES`. `Reversible` and `Implicit` need a loss
    and SGD, or a minimum, and refuse. Frozen, callable and a pytree of its arrays, like
    `Unrolled`, whose page on what compiles anew holds here too.

    Supports all derivatives in both modes, `jit` and `vmap`. Memory in `steps`: that of
    the engine; a step is pulled back by `jax.vjp`, which keeps what it computes.

    Args:
        step: `step(state, hyper, x) -> (state, record)`, the convention of `lax.scan`
            with hyper. The new state has the structure and shapes of the old one.
        init: the first state, or a function `hyper -> state`. A pytree of arrays; float
            leaves carry derivatives, ints, bools and keys do not.
        steps: number of steps T ≥ 0.
        value: `value(state, hyper) -> scalar`, of the last state.
        inputs: what the steps see: a pytree whose leaves lead with an axis of length
            `steps`, or a function `index -> x`; by default x is None.
        checkpoints: as in `Unrolled`.

    Raises:
        ValueError: for counts out of range, inputs of another length, functions that
            are none; when called, for a value that is not a real scalar, or a
            step that changes the structure, a shape or a kind of number in the state,
            naming the leaf.

    Floats of the state keep the dtypes that `init` gave; hyper narrower than float32 is
    handed on in float32, where its cotangents are summed.

    Example:
        >>> import metalr
        >>> decay = lambda state, hyper, x: (hyper * state, state)
        >>> L = metalr.Rollout(decay, 1.0, steps=3, value=lambda state, hyper: state**2)
        >>> value, grad = metalr.hypergradient(L, 0.5)  # θ⁶ and 6 θ⁵
        >>> print(value, grad, L.run(0.5).records)
        0.015625 0.1875 [1.   0.5  0.25]
    """

    _step: Any
    _init: Any
    _value: Any
    _inputs: Any
    steps: int
    checkpoints: int | None

    def __init__(
        self,
        step: Callable[[Any, Any, Any], tuple[Any, Any]] | Any,
        init: Any,
        *,
        steps: int | Any,
        value: Callable[[Any, Any], Any] | Any,
        inputs: Any = None,
        checkpoints: int | None = None,
    ) -> None:
        wanted = (
            ("step", step, ("state", "hyper", "x")),
            ("value", value, ("state", "hyper")),
        )
        for name, function, names in wanted:
            if not callable(function):
                msg = f"{name} = {function!r} must be a function of {', '.join(names)}"
                raise ValueError(msg)
            accepts(function, name, names)
        steps = int_at_least(steps, "steps", 0)
        if not is_function(init):
            init = _arrays(init)
        if inputs is not None and not callable(inputs):
            inputs = jax.tree.map(jnp.asarray, inputs)
            leading_axis(inputs, steps, name="inputs")
        self._fill(
            (step, init, value, inputs), steps, positive_int(checkpoints, "checkpoints")
        )

    def _fill(self, parts: Any, steps: int, checkpoints: int | None) -> None:
        names = ("_step", "_init", "_value", "_inputs", "steps", "checkpoints")
        for name, part in zip(names, (*parts, steps, checkpoints), strict=True):
            object.__setattr__(self, name, part)

    def init(self, hyper: Hyper) -> State:
        """The state before the first step."""
        return _arrays(self._init(hyper)) if is_function(self._init) else self._init

    def step(
        self, hyper: Hyper, state: State, index: int | Array
    ) -> tuple[State, PyTree]:
        """The state after step `index`, and its record."""
        if callable(self._inputs):
            x = self._inputs(jnp.asarray(index))
        else:
            x = jax.tree.map(lambda leaf: leaf[index], self._inputs)
        made = self._step(state, hyper, x)
        if not isinstance(made, tuple) or len(made) != 2:
            msg = (
                "step must return (state, record), as the body of lax.scan does, but "
                f"it returned {type(made).__name__}: return (state, None) to record "
                "nothing"
            )
            raise ValueError(msg)
        return _same(state, made[0]), made[1]

    def evaluate(self, hyper: Hyper, state: State) -> Scalar:
        """The value of the last state."""
        return real_scalar(self._value(state, hyper), "value")

    def __repr__(self) -> str:
        name = getattr(self._step, "__name__", repr(self._step))
        return f"Rollout({name}, steps={self.steps})"

    def tree_flatten(self) -> tuple[list[Any], tuple[Form, int, int | None]]:
        """The arrays are children; functions and counts are static."""
        parts = (self._step, self._init, self._value, self._inputs)
        arrays, form = flatten(parts)
        return arrays, (form, self.steps, self.checkpoints)

    @classmethod
    def tree_unflatten(
        cls, aux: tuple[Form, int, int | None], children: Any
    ) -> "Rollout":
        """Rebuild without the checks: the leaves may be anything JAX puts there."""
        form, steps, checkpoints = aux
        new = object.__new__(cls)
        new._fill(unflatten(form, children), steps, checkpoints)
        return new


def _arrays(state: Any) -> State:
    """The first state as arrays of a dtype of their own.

    Raises:
        ValueError: for a leaf that is no array, naming it.
    """

    def check(path: tuple[Any, ...], leaf: Any) -> Array:
        try:
            return strong(leaf)
        except TypeError:
            msg = (
                f"{path_name('init', path)} = {leaf!r} is {type(leaf).__name__}: a "
                "state holds arrays, for a loop to carry it"
            )
            raise ValueError(msg) from None

    return jax.tree_util.tree_map_with_path(check, state)


def _same(old: State, new: State) -> State:
    """The new state in the dtypes of the old one.

    Raises:
        ValueError: if it has another structure, shape or kind of number.
    """
    if jax.tree.structure(old) != jax.tree.structure(new):
        msg = (
            f"step changed the state from {jax.tree.structure(old)} to "
            f"{jax.tree.structure(new)}: a loop carries one structure"
        )
        raise ValueError(msg)

    def convert(path: tuple[Any, ...], before: Array, after: Any) -> Array:
        array = jnp.asarray(after)
        real = [jnp.issubdtype(x.dtype, jnp.floating) for x in (before, array)]
        if array.shape != before.shape or (
            array.dtype != before.dtype and not all(real)
        ):
            msg = (
                f"{path_name('state', path)} came into step as "
                f"{before.dtype}{list(before.shape)} and left it as "
                f"{array.dtype}{list(array.shape)}: a loop carries one shape and kind"
            )
            raise ValueError(msg)
        return jax.lax.convert_element_type(array, before.dtype) if all(real) else array

    return jax.tree_util.tree_map_with_path(convert, old, new)
