"""Does the value depend on each hyperparameter at all, judged on the traced program."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, JaxprEqn

from .._checks import path_name
from .._types import Hyper, Objective
from .dataflow import Facts, propagate
from .equations import bind

_FLAT = frozenset({"stop_gradient", "sign", "floor", "ceil", "round", "is_finite"})
"""Primitives whose derivative is 0 wherever it exists, by definition."""

_NOTHING: Facts = frozenset()


def independent_leaves(
    objective: Objective, hyper: Hyper, *, smooth: bool = True
) -> list[str]:
    """Paths of the leaves of `hyper` that no differentiable path joins to the value.

    Structural: decided on the traced program, not on the value of a derivative, so a
    derivative that happens to be 0 does not count. Paths through integers, booleans and
    `stop_gradient` carry no derivative. A function with a rule of its own
    (`jax.custom_jvp`, `jax.custom_vjp`) is judged by the rule: a `round` whose rule
    passes the cotangent on is a path. A leaf is judged as a whole. A path that exists
    in the program but always multiplies by 0 is not seen through.

    Args:
        objective: a traceable function of hyper.
        hyper: the point; only shapes and dtypes matter.
        smooth: False for engines that take no derivative: then any path counts.

    Returns:
        Paths such as `hyper['momentum']`; empty where every leaf matters.
    """
    shapes = jax.tree.map(lambda h: jax.ShapeDtypeStruct(h.shape, h.dtype), hyper)
    jaxpr = jax.make_jaxpr(objective)(shapes)
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(hyper)]
    inputs = [frozenset({index}) for index in range(len(paths))]
    if smooth:
        outputs = differentiable(jaxpr, inputs)
    else:
        outputs = propagate(jaxpr, inputs, lambda _, facts: facts)
    reached = _NOTHING.union(*outputs)
    return [path_name("hyper", p) for i, p in enumerate(paths) if i not in reached]


def differentiable(program: ClosedJaxpr, inputs: Sequence[Facts]) -> list[Facts]:
    """Facts of the outputs of a program, passed on where a derivative is."""
    return propagate(program, inputs, _differentiable, _by_own_rule({}))


def check_dependence(
    objective: Objective, hyper: Hyper, *, smooth: bool = True
) -> None:
    """Refuse a hyperparameter whose derivative would be a silent 0.

    Raises:
        ValueError: if the value does not depend on a leaf, naming its path.
    """
    missing = independent_leaves(_scalar(objective), hyper, smooth=smooth)
    if missing:
        kind = "differentiable " if smooth else ""
        msg = (
            f"the objective does not depend on {', '.join(missing)}: no {kind}path "
            "in the traced program leads from there to the value, so the "
            "derivative would be a silent 0. Does it reach the optimizer or the loss "
            "(and is steps > 0)? Otherwise take it out of hyper; jax.grad gives the 0"
        )
        raise ValueError(msg)


def _scalar(objective: Objective) -> Objective:
    """The objective, whose value must be one number.

    Raises:
        ValueError: when traced, if it returns a function (a `make` without its key) or
            anything else.
    """

    def value(hyper: Hyper) -> Any:
        value = objective(hyper)
        if callable(value):
            msg = (
                f"the objective returned {value!r}, not a value: it makes objectives. "
                "Call it first, or pass learn the key that it takes (key=…)"
            )
            raise ValueError(msg)
        return value

    return value


def _differentiable(eqn: JaxprEqn, facts: Facts) -> Facts:
    dtypes = [getattr(out.aval, "dtype", jnp.int32) for out in eqn.outvars]
    smooth = any(jnp.issubdtype(dtype, jnp.inexact) for dtype in dtypes)
    return facts if smooth and eqn.primitive.name not in _FLAT else _NOTHING


Paths: TypeAlias = list[Facts]
"""For each output, the operands that its derivative reaches."""


def _by_own_rule(known: dict[int, tuple[JaxprEqn, Paths]]) -> Any:
    """What a custom rule passes on; each is traced once, and kept in `known`."""
    rules = {"custom_jvp_call": _pushed, "custom_vjp_call": _pulled}

    def call(eqn: JaxprEqn, facts: list[Facts]) -> list[Facts] | None:
        if eqn.primitive.name not in rules or not any(facts):
            return None
        if id(eqn) not in known:
            known[id(eqn)] = eqn, rules[eqn.primitive.name](eqn)
        _, paths = known[id(eqn)]
        return [
            _NOTHING.union(*(facts[i] for i in range(len(facts)) if i in path))
            for path in paths
        ]

    return call


def _pushed(eqn: JaxprEqn) -> Paths:
    """By the rule of a `jax.custom_jvp` function, from tangents to tangents."""
    operands = _kinds(eqn.invars)
    smooth = [i for i, kind in enumerate(operands) if _is_smooth(kind)]

    def push(values: list[Any], tangents: list[Any]) -> list[Any]:
        function = _of_some(eqn, values, smooth)
        return jax.jvp(function, [values[i] for i in smooth], tangents)[1]

    program = jax.make_jaxpr(push)(operands, [operands[i] for i in smooth])
    inputs = [*[_NOTHING] * len(operands), *(frozenset({i}) for i in smooth)]
    return propagate(program, inputs, lambda _, facts: facts)


def _pulled(eqn: JaxprEqn) -> Paths:
    """By the rule of a `jax.custom_vjp` function, from cotangents to cotangents."""
    operands, outputs = _kinds(eqn.invars), _kinds(eqn.outvars)
    smooth = [i for i, kind in enumerate(operands) if _is_smooth(kind)]
    places = [j for j, kind in enumerate(outputs) if _is_smooth(kind)]

    def pull(values: list[Any], cotangents: list[Any]) -> list[Any]:
        function = _of_some(eqn, values, smooth)
        given = dict(zip(places, cotangents, strict=True))
        full = [
            given.get(j, np.zeros(kind.shape, jax.dtypes.float0))
            for j, kind in enumerate(outputs)
        ]
        return list(jax.vjp(function, *[values[i] for i in smooth])[1](full))

    program = jax.make_jaxpr(pull)(operands, [outputs[j] for j in places])
    inputs = [*[_NOTHING] * len(operands), *(frozenset({j}) for j in places)]
    reached = propagate(program, inputs, lambda _, facts: facts)
    return [
        frozenset(i for i, facts in zip(smooth, reached, strict=True) if j in facts)
        for j in range(len(outputs))
    ]


def _of_some(eqn: JaxprEqn, values: list[Any], smooth: list[int]) -> Any:
    """The call as a function of the operands that have a derivative."""

    def function(*given: Any) -> list[Any]:
        full = list(values)
        for place, value in zip(smooth, given, strict=True):
            full[place] = value
        return bind(eqn, full)

    return function


def _kinds(atoms: Any) -> list[jax.ShapeDtypeStruct]:
    return [jax.ShapeDtypeStruct(atom.aval.shape, atom.aval.dtype) for atom in atoms]


def _is_smooth(kind: jax.ShapeDtypeStruct) -> bool:
    return jnp.issubdtype(kind.dtype, jnp.inexact)
