"""`jax.jit` whose programs live no longer than the functions that they are made of.

A program compiled for an objective depends on the user's functions in it (a loss, an
optimizer). `jax.jit` of a function of the objective would keep both, for good: a
closure made anew in each of 1000 calls is 1000 programs.
"""

import functools
import threading
import weakref
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import jax

from .statics import weak

_Function = TypeVar("_Function", bound=Callable[..., Any])

_programs: dict[Hashable, Callable[..., Any]] = {}
_running = threading.local()


def compiled(function: _Function) -> _Function:
    """`jax.jit(function)`, for arguments that are pytrees with functions in them.

    One program for each form of the arguments, as with `jax.jit`; it is dropped when
    one of the functions in that form is. Keeps nothing but the program alive.

    Args:
        function: of pytrees by position; what is static in them is told apart by their
            structures.
    """

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        leaves, structure = jax.tree.flatten(arguments)
        functions: list[Any] = []
        key = (function, weak(structure, functions))
        program = _programs.get(key)
        if program is None:
            program = _programs[key] = _program(function)
            for used in functions:
                weakref.finalize(used, _programs.pop, key, None).atexit = False
        stack = _running.__dict__.setdefault("structures", [])
        stack.append(structure)
        try:
            return program(leaves)
        finally:
            stack.pop()

    return call  # pyright: ignore[reportReturnType]


def _program(function: Callable[..., Any]) -> Callable[..., Any]:
    def traced(leaves: list[Any]) -> Any:
        structure = _running.structures[-1]
        return function(*jax.tree.unflatten(structure, leaves))

    return jax.jit(traced)
