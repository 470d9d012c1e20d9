r"""Is an optimizer SGD with momentum? Decided on its state and its traced update.

$$v_{s+1} = \gamma_s v_s + g_s, \qquad u_s = -\eta_s \odot v_{s+1}$$

with one γ a leaf and a rate that is a number or an array of the leaf's shape. Both may
change with the step (`per_step`, optax schedules).
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.extend.core import ClosedJaxpr, JaxprEqn

from .._programs.equations import fold, inner_program
from .._types import Hyper, Params
from ..optimizers.per_step import PerStepState
from ..optimizers.update import standard, update
from ..runs.unrolled import Unrolled

_COUNTERS = {optax.ScaleByScheduleState: "count", PerStepState: "updates_made"}
"""States that count the updates made, and the name of the counter."""

_PASSED_ON = frozenset(
    {"broadcast_in_dim", "copy", "copy_p", "name", "reshape", "squeeze"}
)


class Coefficients(NamedTuple):
    """What one step does, leaf by leaf."""

    rates: list[jax.Array]  # η: scalars, or arrays of the leaf's shape
    momenta: jax.Array  # γ: one number a leaf


@dataclasses.dataclass(frozen=True)
class HeavyBall:
    """The optimizer of an `Unrolled`, recognized as SGD with momentum."""

    objective: Unrolled
    opt_state: Any  # the structure, with arbitrary leaves

    @property
    def template(self) -> Params:
        """Shapes and dtype of params."""
        return _trace(self.opt_state)

    def update(
        self,
        hyper: Hyper,
        grads: Params,
        trace: Params,
        params: Params,
        index: Any,
        value: Any = 0.0,
    ) -> tuple[Params, Params]:
        """Updates and new trace of step `index`, by the optimizer itself."""
        optimizer = standard(self.objective.optimizer(self.objective.used(hyper)))
        value = jnp.asarray(value, jax.tree.leaves(grads)[0].dtype)
        updates, state = update(
            optimizer,
            grads,
            self.opt_state_at(trace, index),
            params,
            value=value,
            value_fn=lambda _: value,
        )
        return updates, _trace(state)

    def opt_state_at(self, trace: Params, index: Any) -> Any:
        """The optimizer's state before step `index`, with this trace."""
        return _fill(self.opt_state, trace, index)

    def coefficients(self, hyper: Hyper, index: Any) -> Coefficients:
        """Rates and momenta of step `index`, read off the update of arrays of ones."""
        ones, zeros = (self.filled(value) for value in (1.0, 0.0))
        updates, _ = self.update(hyper, ones, zeros, zeros, index)
        _, trace = self.update(hyper, zeros, ones, zeros, index)
        rates = [-leaf for leaf in jax.tree.leaves(updates)]
        momenta = [leaf.ravel()[0] for leaf in jax.tree.leaves(trace)]
        return Coefficients(rates, jnp.stack(momenta))

    def filled(self, value: float) -> Params:
        """Params of one value: an optimizer may ask for their shapes."""
        return jax.tree.map(
            lambda leaf: jnp.full(leaf.shape, value, leaf.dtype), self.template
        )


def recognize(objective: Unrolled, hyper: Hyper, engine: str) -> HeavyBall:
    """The optimizer as SGD with momentum; `hyper` is prepared.

    Raises:
        ValueError: if it is anything else, naming what was found.
    """
    opt_state = jax.eval_shape(lambda h: objective.init(h).opt_state, hyper)
    found = _classes(opt_state)
    unknown = [name for name in found if name not in _KNOWN]
    needs = (
        f"{engine} reverses SGD with momentum, v ← γv + g and w ← w − ηv, such as "
        "lambda h: optax.sgd(h['learning_rate'], h['momentum'])"
    )
    if unknown or found.count("TraceState") != 1:
        reason = "whose state holds " + (", ".join(unknown or found) or "nothing")
        msg = (
            f"{needs}; it can't reverse this optimizer, {reason} (one TraceState is "
            "needed). metalr.Reverse() and metalr.Forward() take any optimizer"
        )
        raise ValueError(msg)
    ball = HeavyBall(objective, opt_state)
    reason = _difference(ball, hyper)
    if reason:
        msg = (
            f"{needs}; in this optimizer {reason} (nesterov, weight decay and "
            "clipping are not of that form). metalr.Reverse() and metalr.Forward() "
            "take any optimizer"
        )
        raise ValueError(msg)
    return ball


_KNOWN = frozenset(
    kind.__name__ for kind in (optax.TraceState, optax.EmptyState, *_COUNTERS)
)


def _classes(state: Any) -> list[str]:
    """Names of the classes of all parts of an optimizer's state."""
    if isinstance(state, optax.TraceState):
        return ["TraceState"]
    name = [type(state).__name__] if type(state) is not tuple else []
    parts = state if isinstance(state, tuple) and _is_known(state) else ()
    return name + [c for part in parts if not _is_array(part) for c in _classes(part)]


def _is_known(state: Any) -> bool:
    return type(state) is tuple or type(state).__name__ in _KNOWN


def _is_array(part: Any) -> bool:
    return hasattr(part, "dtype")


def _fill(state: Any, trace: Params, index: Any) -> Any:
    """The state before step `index`, with this trace."""
    if isinstance(state, optax.TraceState):
        return optax.TraceState(trace)
    counter = _COUNTERS.get(type(state))
    parts = [
        jnp.asarray(index, part.dtype) if name == counter else _fill(part, trace, index)
        for name, part in zip(getattr(state, "_fields", state), state, strict=True)
    ]
    return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)


def _trace(state: Any) -> Params:
    """The trace that the state holds."""
    if isinstance(state, optax.TraceState):
        return state.trace
    found = [_trace(part) for part in state if isinstance(part, tuple)]
    return next((trace for trace in found if trace is not None), None)


@dataclasses.dataclass(frozen=True, eq=False)
class _Node:
    """A value of the traced update that depends on gradient, trace or params."""

    operation: str
    operands: tuple["_Node | None", ...] = ()  # None: does not depend on them


class _NotLinearError(Exception):
    """The operation that is not a sum or a multiple."""


def _difference(ball: HeavyBall, hyper: Hyper) -> str | None:
    """What sets the traced update apart from that of SGD with momentum."""
    zeros = ball.filled(0.0)

    def update(
        grads: Params, trace: Params, params: Params, value: Any, hyper: Hyper
    ) -> Any:
        return ball.update(hyper, grads, trace, params, 0, value)

    program = jax.make_jaxpr(update)(zeros, zeros, zeros, 0.0, hyper)
    count = len(jax.tree.leaves(zeros))
    kinds = ("grad", "trace", "params")
    sources = [*(_Node(kind) for kind in kinds for _ in range(count)), _Node("value")]
    constants = [None] * (len(program.in_avals) - len(sources))
    out = _nodes(program, [*sources, *constants])
    if not _one_momentum_a_leaf(update, zeros, hyper):
        return "the momentum is not one number for each leaf"
    for leaf in range(count):
        update_node, trace_node = out[leaf], out[count + leaf]
        grad, trace = sources[leaf], sources[count + leaf]
        try:
            terms = _terms(trace_node, (grad, trace))
            if terms not in (
                {(grad, False), (trace, True)},
                {(grad, False), (trace, False)},
            ):
                return "the new trace is not γ times the old one plus the gradient"
            if trace_node is None or {
                n for n, _ in _terms(update_node, (trace_node,))
            } != {trace_node}:
                return "the update is not a multiple of the new trace"
        except _NotLinearError as error:
            return f"the update applies `{error}` to the gradient or the trace"
    return None


def _one_momentum_a_leaf(update: Any, zeros: Params, hyper: Hyper) -> bool:
    """Whether scalars in the place of arrays stay scalars in the trace."""
    scalars = jax.tree.map(lambda leaf: jnp.zeros((), leaf.dtype), zeros)
    try:
        _, trace = jax.eval_shape(update, scalars, scalars, scalars, 0.0, hyper)
    except Exception:  # noqa: BLE001 (it asks for shapes; judged on the real ones)
        return True
    return all(leaf.shape == () for leaf in jax.tree.leaves(trace))


def _nodes(program: ClosedJaxpr, inputs: list[_Node | None]) -> list[_Node | None]:
    """The computation graph of the outputs, nested calls laid flat."""

    def equation(eqn: JaxprEqn, operands: list[_Node | None]) -> list[_Node | None]:
        inner = inner_program(eqn)
        if not any(operands):
            return [None] * len(eqn.outvars)
        if inner is not None:
            return _nodes(inner, operands)
        return [_Node(eqn.primitive.name, tuple(operands))] * len(eqn.outvars)

    return fold(program, inputs, equation=equation, constant=lambda _: None)


def _terms(
    node: _Node | None, stop: tuple[_Node, ...], *, scaled: bool = False
) -> set[tuple[_Node | None, bool]]:
    """The values that `node` is a sum of multiples of, and whether each is scaled."""
    if node is None or node in stop or not node.operands:
        return {(node, scaled)}
    depends = [operand for operand in node.operands if operand is not None]
    if node.operation in {"add", "add_any"}:
        first, second = node.operands
        return _terms(first, stop, scaled=scaled) | _terms(second, stop, scaled=scaled)
    if node.operation == "sub":
        first, second = node.operands
        return _terms(first, stop, scaled=scaled) | _terms(second, stop, scaled=True)
    one_factor = node.operation == "mul" and len(depends) == 1
    divided = node.operation == "div" and node.operands[1] is None
    if one_factor or divided or node.operation == "neg":
        return _terms(depends[0], stop, scaled=True)
    if node.operation in _PASSED_ON:
        return _terms(depends[0], stop, scaled=scaled)
    raise _NotLinearError(node.operation)
