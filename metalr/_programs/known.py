"""JAX's own functions with a derivative rule of their own, recognized in a program.

Not by name: what is called, and the derivative that its rule gives, must be equation
for equation what this JAX traces for its own function at the same shapes.
"""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var

from .equations import bind, equations

_OWN: dict[str, Any] = {
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "logaddexp": jnp.logaddexp,
    "logaddexp2": jnp.logaddexp2,
    "xlogy": jax.scipy.special.xlogy,
    "xlog1py": jax.scipy.special.xlog1py,
    "det": jnp.linalg.det,
    "pinv": jnp.linalg.pinv,
}
"""Their rules give the derivative of what they compute, wherever it exists."""

_MOST_MAPS = 2


def known_function(eqn: JaxprEqn) -> str | None:
    """Which function of JAX's this `custom_jvp_call` is, e.g. "relu"; None: not known.

    Softplus, `log_sigmoid` and the like call these.
    """
    if eqn.primitive.name != "custom_jvp_call":
        return None
    operands: Any = eqn.invars
    kinds = tuple((atom.aval.shape, atom.aval.dtype) for atom in operands)
    if not all(jnp.issubdtype(dtype, jnp.floating) for _, dtype in kinds):
        return None
    for name, maps in itertools.product(_OWN, range(_MOST_MAPS + 1)):
        own = _own_call(name, kinds, maps)
        if own is not None and _same_call(eqn, own):
            return name
    return None


@functools.lru_cache(maxsize=256)
def _own_call(name: str, kinds: tuple[Any, ...], maps: int) -> JaxprEqn | None:
    """The call that JAX traces for its function, at operands of these kinds.

    Under so many `vmap`s over leading axes: a rule is traced for one example, and what
    it broadcasts is then written in another way.
    """
    function = _OWN[name]
    axes = [0 if shape else None for shape, _ in kinds]
    try:
        for _ in range(maps):
            function = jax.vmap(function, axes)
        program = jax.make_jaxpr(function)(*_arguments(kinds))
    except (TypeError, ValueError):  # not for that many operands, or these shapes
        return None
    calls = (e for e in equations(program.jaxpr) if "custom_jvp" in e.primitive.name)
    return next(calls, None)


def _same_call(eqn: JaxprEqn, own: JaxprEqn) -> bool:
    """What is called is the same, and so is its derivative."""
    return same_program(eqn.params["call_jaxpr"], own.params["call_jaxpr"]) and (
        same_program(_derivative(eqn), _derivative(own))
    )


def _derivative(eqn: JaxprEqn) -> ClosedJaxpr:
    operands: Any = eqn.invars
    arguments = _arguments((atom.aval.shape, atom.aval.dtype) for atom in operands)
    push = lambda values, tangents: jax.jvp(
        lambda *x: bind(eqn, x), tuple(values), tuple(tangents)
    )
    return jax.make_jaxpr(push)(arguments, arguments)


def _arguments(kinds: Any) -> list[jax.ShapeDtypeStruct]:
    return [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in kinds]


def same_program(a: ClosedJaxpr, b: ClosedJaxpr) -> bool:
    """Whether two programs are the same, equation for equation, but for names."""
    consts = zip(a.consts, b.consts, strict=False)
    if len(a.consts) != len(b.consts) or not all(_same(x, y) for x, y in consts):
        return False
    return _same_jaxpr(a.jaxpr, b.jaxpr)


def _same_jaxpr(a: Jaxpr, b: Jaxpr) -> bool:
    places: dict[Var, Var] = {}

    def same_atoms(left: Any, right: Any) -> bool:
        if len(left) != len(right):
            return False
        return all(same_atom(x, y) for x, y in zip(left, right, strict=True))

    def same_atom(x: Any, y: Any) -> bool:
        if isinstance(x, Literal) or isinstance(y, Literal):
            both = isinstance(x, Literal) and isinstance(y, Literal)
            return both and _kind(x) == _kind(y) and _same(x.val, y.val)
        return places.get(x) is y

    def define(left: Any, right: Any) -> bool:
        if len(left) != len(right):
            return False
        places.update(zip(left, right, strict=True))
        return all(_kind(x) == _kind(y) for x, y in zip(left, right, strict=True))

    inputs = define([*a.constvars, *a.invars], [*b.constvars, *b.invars])
    return (
        inputs
        and len(a.eqns) == len(b.eqns)
        and all(
            x.primitive is y.primitive
            and same_atoms(x.invars, y.invars)
            and define(x.outvars, y.outvars)
            and _same_params(x.params, y.params)
            for x, y in zip(a.eqns, b.eqns, strict=True)
        )
        and same_atoms(a.outvars, b.outvars)
    )


def _same_params(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(
        _same(a[key], b[key]) for key in a if key not in _NOT_SEEN
    )


_NOT_SEEN = {"jvp_jaxpr_fun"}
"""The rule of a call within the derivative of one: of the same function, once more."""


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, ClosedJaxpr) and isinstance(b, ClosedJaxpr):
        return same_program(a, b)
    if isinstance(a, Jaxpr) and isinstance(b, Jaxpr):
        return _same_jaxpr(a, b)
    if isinstance(a, tuple | list):
        same_kind = type(a) is type(b) and len(a) == len(b)
        return same_kind and all(_same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, np.ndarray | jax.Array | np.generic):
        return bool(np.array_equal(a, b))
    return a is b or bool(a == b)


def _kind(atom: Any) -> tuple[Any, Any]:
    return getattr(atom.aval, "shape", None), getattr(atom.aval, "dtype", None)
