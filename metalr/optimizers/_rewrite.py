"""A traced program run again with guarded derivatives.

Every equation is bound as it was, but those that may meet a pole of their derivative
(`_poles`). Calls, branches and loops are kept, with their programs guarded. Works
at trace time only.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, jaxpr_as_fun

from .._programs.equations import bind, fold
from ._bounds import ANY, Bounds, of_constant, of_equation
from ._poles import (
    guarded_call,
    has_pole,
    linear_call,
    may_be_infinite,
    needs_guard,
)


class Facts(NamedTuple):
    """What is known of a value, whatever the arguments are."""

    infinite: bool = False  # from a pole: inf or nan where the program selects it away
    linear: bool = False  # a tangent or cotangent, in a rule that was brought along
    bounds: Bounds = ANY


class Value(NamedTuple):
    """An array and its facts."""

    array: Any
    facts: Facts


_PROGRAMS = frozenset({"closed_call", "cond", "custom_linear_solve", "scan", "while"})
"""Primitives that run programs among their parameters, as they are, on arrays."""

_CALLS = frozenset({"jit", "pjit"})
_CHECKPOINTS = frozenset({"checkpoint", "remat", "remat2"})
_RULES = frozenset({"custom_jvp_call", "custom_vjp_call"})
ENTERED = _PROGRAMS | _CALLS | _CHECKPOINTS | _RULES | {"shard_map"}
"""Primitives whose programs are guarded; what else holds a program is left as it is."""


def guarded(
    function: Callable[..., Any],
    infinite: Sequence[bool] = (),
    bounds: Sequence[Bounds] = (),
) -> Callable[..., Any]:
    """`function` of pytrees of arrays, computed alike, differentiated guarded.

    Args:
        function: what to run; traced, and called as it is where no primitive offends.
        infinite: for each leaf of the arguments whether it comes from a pole.
        bounds: for each leaf of the arguments the numbers between which it lies.
    """

    def run(*arguments: Any) -> Any:
        program, shape = jax.make_jaxpr(function, return_shape=True)(*arguments)
        leaves = jax.tree.leaves(arguments)
        known = bounds or [ANY] * len(leaves)
        if not any(infinite) and not offends(program, known):
            return function(*arguments)
        marks = infinite or [False] * len(leaves)
        facts = [Facts(i, bounds=b) for i, b in zip(marks, known, strict=True)]
        out = evaluate(program, leaves, facts)
        return jax.tree.unflatten(jax.tree.structure(shape), out)

    return run


def offends(program: ClosedJaxpr | Jaxpr, inputs: Sequence[Bounds]) -> bool:
    """Whether any equation, however deeply nested, may meet a pole of its derivative.

    Args:
        program: the program.
        inputs: the numbers between which each of its inputs lies.
    """
    found: list[JaxprEqn] = []

    def equation(eqn: JaxprEqn, operands: list[Bounds]) -> list[Bounds]:
        if has_pole(eqn, operands) or _offending(eqn, operands):
            found.append(eqn)
        return of_equation(eqn, operands)

    fold(program, inputs, equation=equation, constant=of_constant)
    return bool(found)


def evaluate(
    program: ClosedJaxpr, arguments: Sequence[Any], facts: Sequence[Facts]
) -> list[Any]:
    """The outputs of a program, guarded, given its inputs and what is known of them."""
    return [value.array for value in _evaluate(program, arguments, facts)]


def _evaluate(
    program: ClosedJaxpr, arguments: Sequence[Any], facts: Sequence[Facts]
) -> list[Value]:
    inputs = [Value(*pair) for pair in zip(arguments, facts, strict=True)]
    constant = lambda value: Value(value, Facts(bounds=of_constant(value)))
    outputs = fold(program, inputs, equation=_equation, constant=constant)
    avals: list[Any] = program.out_avals
    return [
        value
        if isinstance(value.array, jax.Array) or aval.dtype == jax.dtypes.float0
        else value._replace(array=jnp.asarray(value.array, aval.dtype))  # a literal
        for value, aval in zip(outputs, avals, strict=True)
    ]


def _guarded_rule(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function(values, directions)`, linear in directions: 0 · inf is 0 in it."""

    def run(values: Any, directions: Any) -> Any:
        program, shape = jax.make_jaxpr(function, return_shape=True)(values, directions)
        facts = [Facts()] * len(jax.tree.leaves(values))
        facts += [Facts(linear=True)] * len(jax.tree.leaves(directions))
        out = evaluate(program, jax.tree.leaves((values, directions)), facts)
        return jax.tree.unflatten(jax.tree.structure(shape), out)

    return run


def _equation(eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    operands = [value.array for value in values]
    facts = [value.facts for value in values]
    bounds = [known.bounds for known in facts]
    with eqn.ctx.manager:
        if eqn.primitive.name not in ENTERED:
            return _primitive(eqn, operands, facts)
        if any(f.infinite or f.linear for f in facts) or _offending(eqn, bounds):
            outputs = _entered(eqn, operands, facts)
            if isinstance(outputs[0], Value):
                return outputs
        else:
            outputs = bind(eqn, operands)
    linear = any(known.linear for known in facts)
    found = of_equation(eqn, bounds)
    return [
        Value(output, Facts(linear=linear, bounds=b))
        for output, b in zip(outputs, found, strict=True)
    ]


def _primitive(eqn: JaxprEqn, operands: list[Any], facts: list[Facts]) -> list[Value]:
    infinite = [known.infinite for known in facts]
    linear = [known.linear for known in facts]
    bounds = [known.bounds for known in facts]
    found = [
        Facts(may_be_infinite(eqn, infinite, bounds), any(linear), b)
        for b in of_equation(eqn, bounds)
    ]
    product = eqn.primitive.name == "mul"
    if sum(linear) == 1 and (product or (eqn.primitive.name == "div" and linear[0])):
        outputs = [linear_call(eqn, operands, linear.index(True))]
    elif needs_guard(eqn, infinite, bounds):
        outputs = [guarded_call(eqn, operands, infinite, bounds, guarded)]
    else:
        outputs = bind(eqn, operands)
    return [Value(*pair) for pair in zip(outputs, found, strict=True)]


def _offending(eqn: JaxprEqn, operands: list[Bounds]) -> bool:
    """Whether a program that this equation runs offends."""
    given = operands if eqn.primitive.name in _CALLS | _CHECKPOINTS else None
    return any(
        offends(inner, given or [ANY] * len(inner.jaxpr.invars))
        for inner in _programs(eqn)
    )


def _programs(eqn: JaxprEqn) -> Iterator[ClosedJaxpr]:
    """The programs that this equation runs and that are to be guarded."""
    if eqn.primitive.name in ENTERED:
        for leaf in jax.tree.leaves(eqn.params, is_leaf=_is_program):
            if _is_program(leaf):
                yield leaf if isinstance(leaf, ClosedJaxpr) else ClosedJaxpr(leaf, ())


def _entered(eqn: JaxprEqn, operands: list[Any], facts: list[Facts]) -> list[Any]:
    """The same call, loop or branch of guarded programs."""
    name, params = eqn.primitive.name, eqn.params
    if name == "custom_jvp_call":
        return _with_own_jvp(eqn, operands)
    if name == "custom_vjp_call":
        return _with_own_vjp(eqn, operands)
    if name in _PROGRAMS:
        return bind(eqn, operands, _changes(eqn))
    (program,) = _programs(eqn)
    if name == "shard_map":
        run, _ = _runs(program, [Facts()] * len(facts))
        return list(_sharded(run, params)(*operands))
    run, made = _runs(program, facts)
    if name in _CALLS:
        rewritten = jax.make_jaxpr(run)(*program.in_avals)
        outputs = bind(eqn, operands, {"jaxpr": rewritten})
    else:
        kept = {key: params[key] for key in ("prevent_cse", "policy")}
        outputs = jax.checkpoint(run, **kept)(*operands)
    return [Value(*pair) for pair in zip(outputs, made, strict=True)]


def _runs(
    program: ClosedJaxpr, facts: Sequence[Facts]
) -> tuple[Callable[..., list[Any]], list[Facts]]:
    """The program as a guarded function, and what is known of its outputs, once run."""
    made: list[Facts] = []

    def run(*arguments: Any) -> list[Any]:
        values = _evaluate(program, arguments, facts)
        made[:] = [value.facts for value in values]
        return [value.array for value in values]

    return run, made


def _sharded(run: Callable[..., Any], params: dict[str, Any]) -> Callable[..., Any]:
    axes = params.get("newly_manual_axes", params.get("manual_axes"))
    return jax.shard_map(
        run,
        mesh=params["mesh"],
        in_specs=tuple(params["in_specs"]),
        out_specs=list(params["out_specs"]),
        axis_names=set(axes or ()),
        check_vma=params["check_vma"],
    )


def _changes(eqn: JaxprEqn) -> dict[str, Any]:
    """The parameters that hold programs, with these guarded."""

    def change(leaf: Any) -> Any:
        if not _is_program(leaf):
            return leaf
        run, _ = _runs(leaf, [Facts()] * len(leaf.in_avals))
        return jax.make_jaxpr(run)(*leaf.in_avals)

    # As pytrees: those of a linear solve are in a NamedTuple.
    leaves = lambda value: jax.tree.leaves(value, is_leaf=_is_program)
    return {
        name: jax.tree.map(change, value, is_leaf=_is_program)
        for name, value in eqn.params.items()
        if any(map(_is_program, leaves(value)))
    }


def _is_program(value: Any) -> bool:
    return isinstance(value, ClosedJaxpr | Jaxpr)


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
            return jax.jvp(lambda *x: bind(eqn, x), tuple(primals), full)

        given = [t for t, k in zip(tangents, known, strict=True) if k]
        return _guarded_rule(along)(primals, given)

    outer = jax.custom_jvp(_own_primal(eqn))
    outer.defjvp(rule, symbolic_zeros=True)
    return outer(*operands)


def _with_own_vjp(eqn: JaxprEqn, operands: Sequence[Any]) -> list[Any]:
    """A `jax.custom_vjp` call: its rules stay, and are run guarded."""

    def forward(*operands: Any) -> Any:
        return guarded(lambda *x: jax.vjp(lambda *y: bind(eqn, y), *x))(*operands)

    def pull(pull_back: Any, cotangents: Any) -> Any:
        none = jax.dtypes.float0
        return [None if x.dtype == none else x for x in pull_back(cotangents)]

    outer = jax.custom_vjp(_own_primal(eqn))
    outer.defvjp(forward, lambda *given: tuple(_guarded_rule(pull)(*given)))
    return outer(*operands)


def _own_primal(eqn: JaxprEqn) -> Callable[..., Any]:
    # Guarded, too: where JAX drops the rule (see `_poles`), this is differentiated.
    program = eqn.params["call_jaxpr"]
    return guarded(jaxpr_as_fun(program))


def _no_tangent(primal: Any) -> Any:
    smooth = jnp.issubdtype(primal.dtype, jnp.inexact)
    return (
        jnp.zeros_like(primal) if smooth else np.zeros(primal.shape, jax.dtypes.float0)
    )
