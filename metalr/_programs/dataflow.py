"""Abstract interpretation of a traced program: which facts reach which value.

A fact set is attached to every variable and flows along the program. What an
equation does to it is the caller's `rule`; loops, branches and nested calls are
followed here. Used to decide structurally what an objective depends on, and to read a
computation graph off the program itself.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple, TypeAlias

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

from .equations import fold, fold_scan, inner_program

Facts: TypeAlias = frozenset[Hashable]
Rule: TypeAlias = Callable[[JaxprEqn, Facts], Facts]
Call: TypeAlias = Callable[[JaxprEqn, list[Facts]], list[Facts] | None]

_NOTHING: Facts = frozenset()
_EXACT_STEPS = 64
"""Loop steps followed one by one; a longer loop whose facts still change is joined."""


def propagate(
    jaxpr: ClosedJaxpr | Jaxpr,
    inputs: Sequence[Facts],
    rule: Rule,
    call: Call = lambda _, __: None,
) -> list[Facts]:
    """Facts of the outputs of `jaxpr`, given those of its inputs.

    Args:
        jaxpr: the program, e.g. `jax.make_jaxpr(f)(x)`.
        inputs: one fact set for each of `jaxpr.invars`; constants have none.
        rule: `rule(equation, facts)` = facts of the outputs of a primitive without an
            inner program, given the union of the facts of its inputs.
        call: `call(equation, facts)` = facts of the outputs of a call, given those of
            each input; None: those of the program that it calls.

    Returns:
        One fact set for each of `jaxpr.outvars`.
    """
    return _Reading(rule, call).program(jaxpr, inputs)


class _Reading(NamedTuple):
    rule: Rule
    call: Call

    def program(self, jaxpr: ClosedJaxpr | Jaxpr, inputs: Any) -> list[Facts]:
        return fold(jaxpr, inputs, equation=self.equation, constant=lambda _: _NOTHING)

    def equation(self, eqn: JaxprEqn, facts: list[Facts]) -> list[Facts]:
        name = eqn.primitive.name
        if name == "scan":
            return self.scan(eqn, facts)
        if name == "while":
            return self.until(eqn, facts)
        if name == "cond":
            branches = [self.program(b, facts[1:]) for b in eqn.params["branches"]]
            return [known | facts[0] for known in _join(*branches)]
        # What `shard_map` does to the parts of its operands, it does to their facts.
        inner = eqn.params["jaxpr"] if name == "shard_map" else inner_program(eqn)
        if inner is None:
            return [self.rule(eqn, _NOTHING.union(*facts))] * len(eqn.outvars)
        known = self.call(eqn, facts)
        return self.program(inner, facts) if known is None else known

    def scan(self, eqn: JaxprEqn, facts: list[Facts]) -> list[Facts]:
        def settle(step: int, old: list[Facts], new: list[Facts]) -> list[Facts] | None:
            new = _join(new, old) if step >= _EXACT_STEPS else new
            return None if new == old else new

        return fold_scan(
            eqn,
            facts,
            lambda inputs: self.program(eqn.params["jaxpr"], inputs),
            entry=lambda row, _: row,
            stack=lambda rows: _NOTHING.union(*rows),
            settle=settle,
        )

    def until(self, eqn: JaxprEqn, facts: list[Facts]) -> list[Facts]:
        start = eqn.params["cond_nconsts"]
        split = start + eqn.params["body_nconsts"]
        consts, carry = facts[start:split], facts[split:]
        while True:  # the union only grows, so this ends
            (going,) = self.program(eqn.params["cond_jaxpr"], [*facts[:start], *carry])
            new = self.program(eqn.params["body_jaxpr"], [*consts, *carry])
            new = [known | going for known in _join(carry, new)]
            if new == carry:
                return carry
            carry = new


def _join(*lists: Sequence[Facts]) -> list[Facts]:
    return [_NOTHING.union(*facts) for facts in zip(*lists, strict=True)]
