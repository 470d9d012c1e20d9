"""A traced program run again with guarded derivatives.

Every equation is bound as it was, but those with a pole in their derivative
(`_singular`). Calls, branches and loops are kept, with their programs guarded. Works
at trace time only.

Two facts follow each value. `INFINITE`: it comes from a pole, and may be inf or nan
where the program selects it away. `LINEAR`: it is a tangent or cotangent, in a
derivative rule that the program brought along.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var, jaxpr_as_fun

from ._poles import (
    guarded_call,
    guarded_p,
    has_pole,
    linear_call,
    may_be_infinite,
)

Facts: TypeAlias = frozenset[str]

INFINITE, LINEAR = frozenset({"infinite"}), frozenset({"linear"})
_NOTHING: Facts = frozenset()


def guarded(
    function: Callable[..., Any], infinite: Sequence[bool] = ()
) -> Callable[..., Any]:
    """`function` of pytrees of arrays, computed alike, differentiated guarded.

    Args:
        function: what to run; traced, and called as it is where no primitive offends.
        infinite: for each leaf of the arguments whether it comes from a pole.
    """

    def run(*arguments: Any) -> Any:
        program, shape = jax.make_jaxpr(function, return_shape=True)(*arguments)
        if not any(infinite) and not offends(program.jaxpr):
            return function(*arguments)
        leaves = jax.tree.leaves(arguments)
        marks = infinite or [False] * len(leaves)
        facts = [INFINITE if mark else _NOTHING for mark in marks]
        out, _ = _evaluate(program, leaves, facts)
        return jax.tree.unflatten(jax.tree.structure(shape), out)

    return run


def offends(jaxpr: Jaxpr) -> bool:
    """Whether any equation, however deeply nested, has a pole in its derivative."""
    return any(
        has_pole(eqn) or any(offends(inner) for inner in _programs(eqn))
        for eqn in jaxpr.eqns
    )


def _guarded_rule(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function(values, directions)`, linear in directions: 0 · inf is 0 in it."""

    def run(values: Any, directions: Any) -> Any:
        program, shape = jax.make_jaxpr(function, return_shape=True)(values, directions)
        facts = [_NOTHING] * len(jax.tree.leaves(values))
        facts += [LINEAR] * len(jax.tree.leaves(directions))
        out, _ = _evaluate(program, jax.tree.leaves((values, directions)), facts)
        return jax.tree.unflatten(jax.tree.structure(shape), out)

    return run


def _evaluate(
    program: ClosedJaxpr, arguments: Sequence[Any], facts: Sequence[Facts]
) -> tuple[list[Any], list[Facts]]:
    """Outputs and their facts, given the inputs and theirs."""
    jaxpr = program.jaxpr
    known: dict[Var, Any] = dict(zip(jaxpr.constvars, program.consts, strict=True))
    known.update(zip(jaxpr.invars, arguments, strict=True))
    facts_of: dict[Var, Facts] = dict(zip(jaxpr.invars, facts, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else known[atom]

    def read_facts(atom: Any) -> Facts:
        return _NOTHING if isinstance(atom, Literal) else facts_of.get(atom, _NOTHING)

    for eqn in jaxpr.eqns:
        operands = [read(atom) for atom in eqn.invars]
        with eqn.ctx.manager:
            outputs, made = _equation(eqn, operands, [*map(read_facts, eqn.invars)])
        known.update(zip(eqn.outvars, outputs, strict=True))
        facts_of.update(zip(eqn.outvars, made, strict=True))
    outputs = [_as_array(atom, read(atom)) for atom in jaxpr.outvars]
    return outputs, [*map(read_facts, jaxpr.outvars)]


def _as_array(atom: Any, value: Any) -> Any:
    if not isinstance(atom, Literal):
        return value
    aval: Any = atom.aval  # the value may be a Python number
    return jnp.asarray(value, aval.dtype)


def _equation(
    eqn: JaxprEqn, operands: list[Any], facts: list[Facts]
) -> tuple[list[Any], list[Facts]]:
    inner = list(_programs(eqn))
    if not inner:
        return _primitive(eqn, operands, facts)
    made = [_NOTHING.union(*facts) & LINEAR] * len(eqn.outvars)
    if not any(facts) and not any(offends(program) for program in inner):
        return _bind(eqn, operands), made
    if eqn.primitive.name == "custom_jvp_call":
        return _with_own_jvp(eqn, operands), made
    if eqn.primitive.name == "custom_vjp_call":
        return _with_own_vjp(eqn, operands), made
    if eqn.primitive.name in {"jit", "pjit"}:
        program, made = _rewritten(eqn.params["jaxpr"], facts)
        return _bind(eqn, operands, {"jaxpr": program}), made
    return _bind(eqn, operands, _changes(eqn)), made


def _primitive(
    eqn: JaxprEqn, operands: list[Any], facts: list[Facts]
) -> tuple[list[Any], list[Facts]]:
    infinite = [bool(f & INFINITE) for f in facts]
    linear = [bool(f & LINEAR) for f in facts]
    made = _NOTHING.union(*facts) & LINEAR
    if may_be_infinite(eqn, infinite):
        made |= INFINITE
    product = eqn.primitive.name == "mul"
    if sum(linear) == 1 and (product or (eqn.primitive.name == "div" and linear[0])):
        out = linear_call(eqn, operands, linear.index(True))
    elif has_pole(eqn) or (product and any(infinite)):
        out = guarded_call(eqn, operands, tuple(infinite), guarded)
    else:
        return _bind(eqn, operands), [made] * len(eqn.outvars)
    return [out], [made]


def _bind(
    eqn: JaxprEqn, operands: Sequence[Any], changes: dict[str, Any] | None = None
) -> list[Any]:
    params = eqn.primitive.get_bind_params({**eqn.params, **(changes or {})})
    functions, params = params if isinstance(params, tuple) else ((), params)
    out = eqn.primitive.bind(*functions, *operands, **params)
    return list(out) if eqn.primitive.multiple_results else [out]


def _programs(eqn: JaxprEqn) -> Iterable[Jaxpr]:
    """The programs that this equation runs and that are not guarded yet."""
    if eqn.primitive is guarded_p:
        return
    for value in eqn.params.values():
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, ClosedJaxpr | Jaxpr):
                yield item.jaxpr if isinstance(item, ClosedJaxpr) else item


def _changes(eqn: JaxprEqn) -> dict[str, Any]:
    """The parameters that hold programs, with these guarded."""

    def change(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(change(item) for item in value)
        if isinstance(value, ClosedJaxpr):
            return _rewritten(value, [_NOTHING] * len(value.jaxpr.invars))[0]
        if isinstance(value, Jaxpr):
            return change(ClosedJaxpr(value, [])).jaxpr
        return value

    return {
        name: change(value)
        for name, value in eqn.params.items()
        if isinstance(value, tuple | ClosedJaxpr | Jaxpr)
    }


def _rewritten(
    program: ClosedJaxpr, facts: Sequence[Facts]
) -> tuple[ClosedJaxpr, list[Facts]]:
    """The program with its equations guarded, for a call that is kept."""
    made: list[Facts] = []

    def run(*arguments: Any) -> list[Any]:
        out, made[:] = _evaluate(program, arguments, facts)
        return out

    return jax.make_jaxpr(run)(*(var.aval for var in program.jaxpr.invars)), made


def _with_own_jvp(eqn: JaxprEqn, operands: Sequence[Any]) -> list[Any]:
    """A `jax.custom_jvp` call: its rule stays, and is run guarded."""

    def rule(primals: Any, tangents: Any) -> Any:
        known = [not isinstance(t, SymbolicZero) for t in tangents]

        def along(primals: Any, given: Any) -> Any:
            left = iter(given)
            full = tuple(
                next(left) if k else _no_tangent(p)
                for k, p in zip(known, primals, strict=True)
            )
            return jax.jvp(lambda *x: _bind(eqn, x), tuple(primals), full)

        given = [t for t, k in zip(tangents, known, strict=True) if k]
        return _guarded_rule(along)(primals, given)

    outer = jax.custom_jvp(_own_primal(eqn))
    outer.defjvp(rule, symbolic_zeros=True)
    return outer(*operands)


def _with_own_vjp(eqn: JaxprEqn, operands: Sequence[Any]) -> list[Any]:
    """A `jax.custom_vjp` call: its rules stay, and are run guarded."""

    def forward(*operands: Any) -> Any:
        return guarded(lambda *x: jax.vjp(lambda *y: _bind(eqn, y), *x))(*operands)

    def pull(pull_back: Any, cotangents: Any) -> Any:
        none = jax.dtypes.float0
        return [None if x.dtype == none else x for x in pull_back(cotangents)]

    outer = jax.custom_vjp(_own_primal(eqn))
    outer.defvjp(forward, lambda *given: tuple(_guarded_rule(pull)(*given)))
    return outer(*operands)


def _own_primal(eqn: JaxprEqn) -> Callable[..., Any]:
    # Guarded, too: where JAX drops the rule (see `_singular`), this is differentiated.
    program = eqn.params["call_jaxpr"]
    return guarded(jaxpr_as_fun(program))


def _no_tangent(primal: Any) -> Any:
    smooth = jnp.issubdtype(primal.dtype, jnp.inexact)
    return (
        jnp.zeros_like(primal) if smooth else np.zeros(primal.shape, jax.dtypes.float0)
    )
