"""The computation graph of an unroll, read off its traced program."""

from collections import Counter
from typing import NamedTuple

import jax
from jax.extend.core import JaxprEqn

from ._checks import float_leaves, path_name
from ._programs.dataflow import Facts, propagate
from ._types import Hyper
from .runs.unrolled import Unrolled

_PREFIX = "metalr:"
_SYMBOLS = {"params": "w", "grad": "∇L", "loss": "L"}


class Graph(NamedTuple):
    """Nodes in the order of the computation, and the direct dependences among them."""

    nodes: tuple[str, ...]
    edges: frozenset[tuple[str, str]]  # (from, to)
    output: str

    def side_outputs(self) -> tuple[str, ...]:
        """Nodes that lead nowhere and are not the output, such as L0 and L1."""
        sources = {source for source, _ in self.edges}
        return tuple(n for n in self.nodes if n not in sources and n != self.output)


class Residuals(NamedTuple):
    """What plain reverse mode keeps between its two sweeps."""

    arrays: int
    bytes: int


def computation_graph(objective: Unrolled, hyper: Hyper) -> Graph:
    r"""Which of η, w₀, ∇L₀, w₁, … is computed from which, for every step.

    Nothing is drawn by hand: `Unrolled` names parameters, gradients and losses in the
    program that JAX traces, and the edges are the paths between named values that pass
    through no other named value. For two steps of gradient descent:
    $w_0 \to \nabla L_0$; $(w_0, \nabla L_0, \eta) \to w_1$; $w_1 \to \nabla L_1$;
    $(w_1, \nabla L_1, \eta) \to w_2 \to L_2$. With momentum $\nabla L_0 \to w_2$ as
    well. All leaves of a pytree of parameters are one node.

    Args:
        objective: what to read; meant for few steps (the loop is followed up to 64).
        hyper: a point, of which only the shapes matter. One leaf is named `η`, several
            by their paths.

    Example:
        >>> import optax, metalr
        >>> loss = lambda params, hyper, batch: 0.5 * params**2
        >>> L = metalr.Unrolled(loss, optax.sgd, 1.0, steps=1)
        >>> sorted(metalr.graph.computation_graph(L, 0.1).edges)[:3]
        [('w0', 'L0'), ('w0', 'w1'), ('w0', '∇L0')]
    """
    hyper = float_leaves(hyper, "hyper")
    leaves = jax.tree_util.tree_leaves_with_path(hyper)
    several = len(leaves) > 1
    names = [path_name("η", path) if several else "η" for path, _ in leaves]
    visits: Counter[str] = Counter()
    nodes, edges = dict.fromkeys(names), set()

    def rule(eqn: JaxprEqn, facts: Facts) -> Facts:
        tag = eqn.params.get("name") if eqn.primitive.name == "name" else None
        if not isinstance(tag, str) or not tag.startswith(_PREFIX):
            return facts
        kind = tag.removeprefix(_PREFIX)
        node = f"{_SYMBOLS[kind.partition('[')[0]]}{visits[kind]}"
        visits[kind] += 1
        nodes[node] = None
        edges.update((str(source), node) for source in facts)
        return frozenset({node})

    program = jax.make_jaxpr(objective)(hyper)
    (output,) = propagate(program, [frozenset({name}) for name in names], rule)
    return Graph(tuple(nodes), frozenset(edges), str(*output))


def reverse_residuals(objective: Unrolled, hyper: Hyper) -> Residuals:
    """What reverse mode keeps from the run for its backward sweep, without running it.

    Counted on the abstract evaluation of `jax.vjp`: the residuals are the leaves of the
    function that it returns. They grow linearly in `steps`.
    """
    hyper = float_leaves(hyper, "hyper")
    residuals = jax.eval_shape(lambda h: jax.vjp(objective, h)[1], hyper)
    leaves = jax.tree.leaves(residuals)
    return Residuals(len(leaves), sum(x.size * x.dtype.itemsize for x in leaves))
