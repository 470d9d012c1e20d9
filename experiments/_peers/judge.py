"""What is said of a measurement: its verdict, and the lines that a user wrote."""

import ast
import inspect
import textwrap
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np


class Answer(NamedTuple):
    """A loss and its hypergradient."""

    value: float
    grad: np.ndarray


class Verdict(NamedTuple):
    """In words, and the relative error of the hypergradient (2-norm)."""

    text: str
    error: float | None


def verdict(
    found: Answer, references: Mapping[int, Answer], steps: int, tolerance: float
) -> Verdict:
    """Hold an answer against the exact ones after T steps, and after one less or more.

    A run is off by one where both loss and hypergradient are ten times nearer to those
    of a neighbor: that shows below the tolerance as well, in long runs.

    Args:
        found: the answer.
        references: the exact answers after `steps` updates and its neighbors.
        steps: the horizon T that was asked for.
        tolerance: relative error that counts as right.
    """
    grad = np.asarray(found.grad, np.float64)
    right = references[steps]
    if grad.shape != right.grad.shape:
        return Verdict(f"wrong shape {grad.shape}", None)
    if np.isnan(grad).any():
        return Verdict("nan", None)
    if not np.any(grad):
        return Verdict("0.0", 1.0)
    error = _distance(grad, right.grad)
    for other in sorted(set(references) - {steps}):
        if _nearer(found, references[other], right):
            return Verdict(f"off by one step: T{other - steps:+d}", error)
    if error <= tolerance:
        return Verdict("right", error)
    return Verdict(f"wrong by {error:.1e}", error)


def code_lines(function: Callable[..., Any]) -> int:
    """Lines of a function's body with code: no blanks, comments, docstring, imports."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    (definition,) = tree.body
    assert isinstance(definition, ast.FunctionDef)
    body = definition.body[1:] if ast.get_docstring(definition) else definition.body
    # The nodes of a multi-line expression cover the lines on which its parts stand.
    lines: set[int] = set()
    for statement in body:
        if isinstance(statement, ast.Import | ast.ImportFrom):
            continue
        for node in ast.walk(statement):
            if isinstance(node, ast.expr | ast.stmt | ast.arg):
                lines |= {node.lineno, node.end_lineno or node.lineno}
    return len(lines)


def _distance(found: np.ndarray, exact: np.ndarray) -> float:
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


def _nearer(found: Answer, other: Answer, right: Answer) -> bool:
    grads = _distance(found.grad, right.grad), _distance(found.grad, other.grad)
    values = abs(found.value - right.value), abs(found.value - other.value)
    return grads[0] > 10 * grads[1] and values[0] > 10 * values[1]
