"""An objective in other variables: logits, logarithms, low rank."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from .._checks import float_leaves
from .._types import Hyper, Objective, PyTree, Scalar
from ..hypergrad.hypergradient import as_pytree
from ..runs.run import Within, is_run


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Reparametrized:
    """What `reparametrized` returns: a callable pytree, like its objective."""

    objective: Any
    function: Any

    def __call__(self, z: PyTree) -> Scalar:
        """The objective at `function(z)`."""
        return self.objective(self.function(float_leaves(z, "hyper")))

    def __repr__(self) -> str:
        function = getattr(self.function, "func", self.function)
        name = getattr(function, "__name__", repr(function))
        return f"reparametrized({self.objective!r}, {name})"

    def tree_flatten(self) -> tuple[tuple[Any, Any], None]:
        """Both are children: plain functions as static pytrees."""
        return (as_pytree(self.objective), as_pytree(self.function)), None

    @classmethod
    def tree_unflatten(cls, aux: None, children: tuple[Any, Any]) -> "Reparametrized":
        """Rebuild without the checks."""
        del aux
        new = object.__new__(cls)
        object.__setattr__(new, "objective", children[0])
        object.__setattr__(new, "function", children[1])
        return new

    def pulled_back(self, z: PyTree, differentiate: Callable[[Any, Hyper], Any]) -> Any:
        """`differentiate(objective, f(z))`, its gradient pulled back through f."""
        hyper, pull_back = jax.vjp(self.function, z)
        result = differentiate(self.objective, hyper)
        return result._replace(grad=pull_back(result.grad)[0])

    def shortened(
        self, cut: Callable[[Any, Hyper], tuple[Any, Hyper]], z: PyTree
    ) -> tuple["Reparametrized", PyTree]:
        """What `cut` makes of the objective within, and of what f returns."""
        short, _ = cut(self.objective, self.function(z))
        few = lambda function, z: cut(self.objective, function(z))[1]
        return type(self)(
            short, jax.tree_util.Partial(few, as_pytree(self.function))
        ), z


@jax.tree_util.register_pytree_node_class
class ReparametrizedRun(Reparametrized, Within):
    """That of a run, which is a run: f is part of what prepares its hyper."""

    def prepare(self, hyper: PyTree) -> Hyper:
        """The objective's hyper, prepared: what its parts take."""
        return self.objective.prepare(self.function(hyper))


def reparametrized(objective: Objective, function: Any) -> Any:
    r"""The objective in other outer variables, $\tilde L(z) = L(f(z))$.

    $$\nabla\tilde L(z) = \Bigl(\frac{\partial f}{\partial z}\Bigr)^{\!\top}
      \nabla L\bigl(f(z)\bigr)$$

    f is evaluated once and pulled back through once, whatever the number of inner
    steps. Learn a simplex by its logits (`jax.nn.softmax`), rates by their logarithm
    (`jnp.exp`; `learn(log=True)` does that), a large matrix by two thin ones.

    Args:
        objective: an `Unrolled`, a `metalr.tasks.Mean`, or any traceable scalar
            function of hyper.
        function: f, from z (a pytree of floats) to the objective's hyper; a
            `jax.tree_util.Partial` where it holds arrays.

    Returns:
        A function of z, a pytree like its objective, and a run where that is one: every
        engine takes it, `windows` does too. `hypergradient` and `learn` apply an engine
        to the objective at f(z) (what it measures besides the gradient is in the
        objective's hyper); one without derivatives (`EvolutionStrategies`) perturbs z.
        Composes with all transformations that the objective does.

    Raises:
        ValueError: if one of the two is not a function; when called, if z is not
            floating.

    Example:
        >>> import jax, jax.numpy as jnp, optax, metalr
        >>> loss = lambda params, hyper, batch: 0.5 * params**2
        >>> L = metalr.Unrolled(loss, optax.sgd, 1.0, steps=2)
        >>> log_rate = metalr.reparametrized(L, jnp.exp)
        >>> print(jax.grad(log_rate)(jnp.log(0.5)), 0.5 * jax.grad(L)(0.5))
        -0.125 -0.125
    """
    for name, value in (("objective", objective), ("function", function)):
        if not callable(value) or isinstance(value, type):
            msg = f"{name} = {value!r} must be a function"
            raise ValueError(msg)
    kind = ReparametrizedRun if is_run(objective) else Reparametrized
    return kind(objective, function)
