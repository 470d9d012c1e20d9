"""Abstract interpretation of a traced program: which facts reach which value.

A fact set is attached to every variable and flows along the program. What an
equation does to it is the caller's `rule`; loops, branches and nested calls are
followed here. Used to decide structurally what an objective depends on, and to read a
computation graph off the program itself.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeAlias

from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var

from .equations import inner_program, scan_operands

Facts: TypeAlias = frozenset[Hashable]
Rule: TypeAlias = Callable[[JaxprEqn, Facts], Facts]

_NOTHING: Facts = frozenset()
_EXACT_STEPS = 64
"""Loop steps followed one by one; a longer loop whose facts still change is joined."""


def propagate(jaxpr: Jaxpr, inputs: Sequence[Facts], rule: Rule) -> list[Facts]:
    """Facts of the outputs of `jaxpr`, given those of its inputs.

    Args:
        jaxpr: the program, e.g. `jax.make_jaxpr(f)(x).jaxpr`.
        inputs: one fact set for each of `jaxpr.invars`; constants have none.
        rule: `rule(equation, facts)` = facts of the outputs of a primitive without an
            inner program, given the union of the facts of its inputs.

    Returns:
        One fact set for each of `jaxpr.outvars`.
    """
    known: dict[Var, Facts] = dict(zip(jaxpr.invars, inputs, strict=True))

    def read(atom: Any) -> Facts:
        return _NOTHING if isinstance(atom, Literal) else known.get(atom, _NOTHING)

    for eqn in jaxpr.eqns:
        facts = [read(atom) for atom in eqn.invars]
        known.update(zip(eqn.outvars, _equation(eqn, facts, rule), strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _equation(eqn: JaxprEqn, facts: list[Facts], rule: Rule) -> list[Facts]:
    if eqn.primitive.name == "scan":
        return _scan(eqn, facts, rule)
    if eqn.primitive.name == "while":
        return _while(eqn, facts, rule)
    if eqn.primitive.name == "cond":
        branches = [propagate(b.jaxpr, facts[1:], rule) for b in eqn.params["branches"]]
        return [known | facts[0] for known in _join(*branches)]
    inner = inner_program(eqn)
    if inner is not None:
        return propagate(inner.jaxpr, facts, rule)
    return [rule(eqn, _NOTHING.union(*facts))] * len(eqn.outvars)


def _scan(eqn: JaxprEqn, facts: list[Facts], rule: Rule) -> list[Facts]:
    body: Jaxpr = eqn.params["jaxpr"].jaxpr
    consts, carry, xs = scan_operands(eqn, facts)
    num_carry = len(carry)
    ys = [_NOTHING] * (len(body.outvars) - num_carry)
    for step in range(eqn.params["length"]):
        out = propagate(body, [*consts, *carry, *xs], rule)
        new = out[:num_carry]
        ys = _join(ys, out[num_carry:])
        if step >= _EXACT_STEPS:
            new = _join(new, carry)
        if new == carry:
            break
        carry = new
    return [*carry, *ys]


def _while(eqn: JaxprEqn, facts: list[Facts], rule: Rule) -> list[Facts]:
    body: Jaxpr = eqn.params["body_jaxpr"].jaxpr
    condition: Jaxpr = eqn.params["cond_jaxpr"].jaxpr
    start = eqn.params["cond_nconsts"]
    split = start + eqn.params["body_nconsts"]
    consts, carry = facts[start:split], facts[split:]
    while True:  # the union only grows, so this ends
        (going,) = propagate(condition, [*facts[:start], *carry], rule)
        new = _join(carry, propagate(body, [*consts, *carry], rule))
        new = [known | going for known in new]
        if new == carry:
            return carry
        carry = new


def _join(*lists: Sequence[Facts]) -> list[Facts]:
    return [_NOTHING.union(*facts) for facts in zip(*lists, strict=True)]
