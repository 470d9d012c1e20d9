"""A hypergradient that carries what its engine measured about itself."""

from typing import Any

import jax

from ._engine import HyperGradient


class Measured(HyperGradient):
    """A `HyperGradient` with further arrays, named by the annotations of a subclass.

    It unpacks as `value, grad = …` like every other; the measurements are attributes,
    and pass through `jit` and `vmap` with it.
    """

    def __init_subclass__(cls) -> None:
        jax.tree_util.register_pytree_with_keys(
            cls,
            lambda self: (
                [(jax.tree_util.GetAttrKey(n), getattr(self, n)) for n in cls.names()],
                None,
            ),
            lambda _, children: cls.measured(*children),
        )

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Names of all values: `value`, `grad`, then the measurements."""
        return (*HyperGradient._fields, *cls.__annotations__)

    @classmethod
    def measured(cls, value: Any, grad: Any, *measurements: Any) -> Any:
        """Make one, with the measurements in the order of the annotations."""
        self = cls(value, grad)
        names = cls.names()[2:]
        self.__dict__.update(zip(names, measurements, strict=True))
        return self

    def check(self) -> None:
        """Raise where a measurement shows, concretely, that the result is wrong."""

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.names())
        return f"{type(self).__name__}({shown})"
