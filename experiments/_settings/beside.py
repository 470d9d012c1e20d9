"""A recipe beside the same by hand in plain JAX: values, statements, seconds."""

import ast
import inspect
import math
import time
from collections.abc import Callable, Iterator, Sequence
from types import CodeType, FunctionType
from typing import Any, NamedTuple

import jax
import optax

from experiments._command.experiment import Record


class InTurns(NamedTuple):
    """What two functions returned, and the least seconds that each took."""

    ours: Any
    theirs: Any
    seconds: float
    seconds_by_hand: float


def beside(
    ours: Callable[..., Any],
    theirs: Callable[..., Any],
    *args: Any,
    written: Sequence[Callable[..., Any]],
    by_hand: Sequence[Callable[..., Any]],
    rounds: int = 5,
) -> Record:
    """Columns that hold a hypergradient of metalr against one written by hand.

    Args:
        ours: returns (value, gradient), compiled as a user would.
        theirs: the same, of the same random keys, in plain JAX.
        args: what both are called with.
        written: the functions whose statements are counted as ours.
        by_hand: those that are counted as theirs.
        rounds: times that each is run, in turns.

    Returns:
        `value_difference` and `gradient_difference`, relative to theirs;
        `milliseconds`, those by hand, `cost_ratio`; `statements`, those by hand.
    """
    turns = in_turns(ours, theirs, *args, rounds=rounds)
    (value, grad), (value_by_hand, grad_by_hand) = turns.ours, turns.theirs
    return {
        "value_difference": difference(value, value_by_hand),
        "gradient_difference": difference(grad, grad_by_hand),
        "milliseconds": 1e3 * turns.seconds,
        "milliseconds_by_hand": 1e3 * turns.seconds_by_hand,
        "cost_ratio": turns.seconds / turns.seconds_by_hand,
        "statements": statements(*written),
        "statements_by_hand": statements(*by_hand),
    }


def in_turns(
    ours: Callable[..., Any],
    theirs: Callable[..., Any],
    *args: Any,
    rounds: int = 5,
) -> InTurns:
    """Run both once, which compiles them; then in turns, so that both see one load."""
    both = (ours, theirs)
    found = [jax.block_until_ready(function(*args)) for function in both]
    least = [math.inf, math.inf]
    for _ in range(rounds):
        for which, function in enumerate(both):
            begun = time.perf_counter()
            jax.block_until_ready(function(*args))
            least[which] = min(least[which], time.perf_counter() - begun)
    return InTurns(found[0], found[1], least[0], least[1])


def difference(ours: Any, theirs: Any) -> float:
    """The norm of the difference of two trees over that of theirs."""
    apart = optax.tree.norm(optax.tree.sub(ours, theirs))
    return float(apart / optax.tree.norm(theirs))


def statements(*functions: Callable[..., Any]) -> int:
    """Those of functions, and of the functions they lead to in their own modules."""
    found: dict[tuple[str, str], Any] = {}

    def visit(function: Any) -> None:
        found[function.__module__, function.__name__] = function
        for name in _names(function.__code__):
            other = function.__globals__.get(name)
            ours = getattr(other, "__module__", None) == function.__module__
            known = (function.__module__, name) in found
            if ours and isinstance(other, FunctionType) and not known:
                visit(other)

    for function in functions:
        visit(function)
    return sum(map(own_statements, found.values()))


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def own_statements(source: Any) -> int:
    """Those of a function or a module; imports and docstrings are not counted."""
    nodes = list(ast.walk(ast.parse(inspect.getsource(source))))
    text = [
        node
        for node in nodes
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    ]
    imports = [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]
    every = sum(isinstance(node, ast.stmt) for node in nodes)
    return every - len(text) - len(imports)
