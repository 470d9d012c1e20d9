"""`jax.jit` whose programs live no longer than the functions in its arguments.

An objective is a pytree: its arrays are leaves, its functions are in its structure.
With plain `jax.jit` on a function of this library that structure is a key of the cache,
and whatever a user's closure holds stays alive. Here the key holds it weakly, and the
program holds nothing of it: it finds the structure where it is called.
"""

import functools
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import jax
import numpy as np

from .identity import identity

_MOST = 512
"""Programs kept for each function; the one used longest ago goes first."""


def compiled(
    function: Callable[..., Any], *, inline: bool = False
) -> Callable[..., Any]:
    """Compile a function of pytrees; keyword arguments are static.

    Programs are found by what the structures and the static arguments are (`identity`):
    user's functions by identity, held weakly, so that a program goes with the first of
    them that does; what optax makes, by the numbers it was made of.

    Args:
        function: positional arguments are pytrees, or functions that are none, which
            are static; keyword arguments are static.
        inline: within another program it leaves no trace of its own: equations are
            put there one by one, as if the function had been traced there.

    Returns:
        A function that computes the same, compiled, and composes with every
        transformation as `jax.jit` of it would.
    """
    programs, calls = _Kept(), _Calls()

    def program() -> Any:
        """A function of its own: what JAX caches by it goes with it."""

        def run(leaves: list[Any]) -> Any:
            forms, static = calls.stack[-1]
            given = [f.whole(part) for f, part in zip(forms, leaves, strict=True)]
            return function(*given, **static)

        run.__name__ = run.__qualname__ = function.__name__
        return jax.jit(run, inline=inline)

    @functools.wraps(function)
    def call(*args: Any, **static: Any) -> Any:
        leaves, forms, tokens = [], [], []
        for arg in args:
            form, token, arrays = _known(arg)
            leaves.append(arrays)
            forms.append(form)
            tokens.append(token)
        if static:
            tokens.append(_token(static))
        run = programs.by(tuple(tokens), program)
        calls.stack.append((forms, static))
        try:
            return run(leaves)
        finally:
            calls.stack.pop()

    return call


def once(function: Callable[..., None]) -> Callable[..., None]:
    """A check of pytrees that is made once for each form, shapes and dtypes of them."""
    checked = _Kept()

    @functools.wraps(function)
    def call(*args: Any) -> None:
        leaves, structure = jax.tree.flatten(args)
        kinds = [(np.shape(leaf), str(getattr(leaf, "dtype", ""))) for leaf in leaves]
        key = (_token((structure, kinds)),)
        checked.by(key, lambda: function(*args))

    return call


class Frozen:
    """A value that never changes: what identifies it is found once, and kept on it."""

    def __getstate__(self) -> dict[str, Any]:
        """All but that: a copy is there to be changed."""
        return {name: x for name, x in self.__dict__.items() if name != "_known"}


class Token:
    """Stands for all equal static values; knows what these refer to."""

    __slots__ = ("__weakref__", "seen")

    def __init__(self, seen: list[Any]) -> None:
        self.seen = [weakref.ref(held) for held in seen]


class _Form:
    """How an argument is put together from its leaves."""

    __slots__ = ("function", "structure")

    def __init__(self, structure: Any, function: Any = None) -> None:
        self.structure, self.function = structure, function

    def whole(self, leaves: list[Any]) -> Any:
        if self.structure is None:
            return self.function
        return jax.tree.unflatten(self.structure, leaves)


_ARRAY = _Form(jax.tree.structure(0.0))
"""The form of an array alone, and its token: the most frequent argument."""


def _known(arg: Any) -> tuple[_Form, Hashable, list[Any]]:
    """Form, token and leaves of an argument; those of a frozen value are kept on it."""
    if not isinstance(arg, Frozen):
        return (_ARRAY, _ARRAY, [arg]) if isinstance(arg, jax.Array) else _found(arg)
    known = arg.__dict__.get("_known")
    if known is None:
        known = _found(arg)
        object.__setattr__(arg, "_known", known)
    return known


def _found(arg: Any) -> tuple[_Form, Hashable, list[Any]]:
    leaves, structure = jax.tree.flatten(arg)
    if len(leaves) == 1 and leaves[0] is arg:
        if callable(arg):
            return _Form(None, arg), _token(arg), []
        return _ARRAY, _ARRAY, leaves
    token = structure if _is_plain(structure) else _token(structure)
    return _Form(structure), token, leaves


def _is_plain(structure: Any) -> bool:
    """Whether a structure is of Python's containers alone, and holds no function."""
    if structure.num_nodes == structure.num_leaves:
        return True
    data = structure.node_data()
    plain = data is None or data[0] in {dict, list, tuple, type(None)}
    return plain and all(map(_is_plain, structure.children()))


class _Kept:
    """What was made for some tokens, as long as all that these refer to lives."""

    def __init__(self) -> None:
        self.entries: OrderedDict[Hashable, tuple[Any, list[Any]]] = OrderedDict()

    def by(self, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        """That of an equal key, or made now."""
        entries = self.entries
        found = entries.get(key)
        if found is not None:
            if len(entries) > _MOST // 2:  # else none will have to go soon
                entries.move_to_end(key)
            return found[0]
        forget = lambda _: entries.pop(key, None)
        seen = [held for part in key if isinstance(part, Token) for held in part.seen]
        alive = [held() for held in seen]
        entries[key] = made = make(), [weakref.ref(held, forget) for held in alive]
        if len(entries) > _MOST:
            entries.popitem(last=False)
        return made[0]


_tokens: dict[Hashable, tuple[Token, list[Any]]] = {}


def _token(value: Any) -> Token:
    """The token of all static values that are the same as this one."""
    seen: list[Any] = []
    key = identity(value, seen)
    if key not in _tokens:
        forget = lambda _: _tokens.pop(key, None)
        _tokens[key] = Token(seen), [weakref.ref(held, forget) for held in seen]
    return _tokens[key][0]


class _Calls(threading.local):
    """The calls under way in this thread: what a program is traced with."""

    def __init__(self) -> None:
        self.stack: list[tuple[list[_Form], dict[str, Any]]] = []
