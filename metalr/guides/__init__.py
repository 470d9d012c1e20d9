"""Guides: a page each, as Markdown beside this file; every block of code runs.

- [Which engine?](which_engine.md): a table of time and memory, and `plan`.
- [What compiles anew](what_compiles_anew.md): arrays, functions, counts.
- [Recipes](recipes.md): MAML and its relatives, sampling, constraints, warm starts, ….
- [Your model](your_model.md): flax nnx and linen, equinox, haiku.
- [Your own engine, your own step](your_own.md): `Rollout`, and engines of four lines.
- [When to believe a hypergradient](when_to_believe.md): check, diagnose, guard, dtype.
- [Memory](memory.md): what each engine keeps, and how to measure it.
- [Many points, many devices](many.md): `vmap`, tasks, meshes, sweeps.
- [Limits](limits.md): what does not work, and what to do instead.
- [Coming from another library](coming_from.md): higher, torchopt, jaxopt, ….

`help(metalr.guides.NAME)` says where the file of a guide is;
`python -m experiments docs OUT/`, in a clone, makes a site of them.
"""

from . import (
    coming_from as coming_from,
    limits as limits,
    many as many,
    memory as memory,
    recipes as recipes,
    what_compiles_anew as what_compiles_anew,
    when_to_believe as when_to_believe,
    which_engine as which_engine,
    your_model as your_model,
    your_own as your_own,
)

__all__ = [  # noqa: RUF022 (the order to read them in)
    "which_engine",
    "what_compiles_anew",
    "recipes",
    "your_model",
    "your_own",
    "when_to_believe",
    "memory",
    "many",
    "limits",
    "coming_from",
]
