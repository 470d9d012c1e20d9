r"""Primitives with a pole in their derivative, and what stands for them.

Each is wrapped in `guarded_p`, which computes the very same primitive, so that the
forward pass does not change. Its tangent is $\sum_i J_i\,\dot x_i$ with the primitive's
own partial derivatives, except that

    a partial derivative that is not finite, at operands that are not nan, is 0

(an operand that comes from another pole may be nan: 0/0 that is selected away later).
So $0 \cdot \infty$ is 0. A sum of squares that is 0 has a derivative of 0, and
$\sqrt{v} = |g|$ gets the symmetric derivative of $|g|$ at 0. The partial derivatives
are themselves made of guarded primitives: every further derivative obeys the same rule.

A primitive, and not a `jax.custom_jvp` function: JAX 0.10 drops custom rules from the
primal of a scan that it linearizes (where it hoists what the loop does not change), so
that the Hessian of a loop would be that of the unguarded program.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal, Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir

from ._bounds import ANY, Bounds, of_equation

Apply: TypeAlias = Callable[..., Any]

guarded_p = Primitive("guarded")
"""`guarded_p.bind(*operands, jaxpr=…, …)` computes the one equation of `jaxpr`."""

_POLES = frozenset(
    {
        "acos",
        "acosh",
        "asin",
        "atan2",
        "atanh",
        "cbrt",
        "div",
        "erf_inv",
        "log",
        "log1p",
        "pow",
        "rsqrt",
        "sqrt",
    }
)
"""Elementwise primitives with an unbounded derivative at finite operands."""

_CARRIES = frozenset(
    {
        "add",
        "broadcast_in_dim",
        "convert_element_type",
        "copy",
        "mul",
        "name",
        "neg",
        "reshape",
        "squeeze",
        "sub",
        "transpose",
    }
)
"""Primitives that hand on a value that is not finite."""

_PARTIALS: dict[str, tuple[Apply, ...]] = {
    "div": (lambda _, b: 1.0 / b, lambda a, b: -(a / b) / b),
    "log": (lambda x: 1.0 / x,),
    "mul": (lambda _, b: b, lambda a, _: a),
    "rsqrt": (lambda x: -0.5 * jax.lax.rsqrt(x) / x,),
}
"""Those for which JAX's own would overflow early (-a/b²) or is longer."""


_NAN_OF_NAN = frozenset({"log", "rsqrt", "sqrt"})
"""Those with a derivative that, at operands ≥ 0, is nan at nan only."""


def has_pole(eqn: JaxprEqn, operands: Sequence[Bounds]) -> bool:
    """Whether the derivative of this equation may be infinite at finite operands.

    Args:
        eqn: the equation.
        operands: the numbers between which its operands lie.
    """
    name = eqn.primitive.name
    if name == "integer_pow":
        power = eqn.params["y"]
        return power < 0 and not _away(operands[0], eqn, 2 - power)
    if name not in _POLES or not _is_float(eqn.outvars[0]):
        return False
    if name == "div":
        divisor = eqn.invars[1]
        if isinstance(divisor, Literal):
            return bool(divisor.val == 0)
        return not _away(operands[1], eqn)
    if name in {"cbrt", "log", "pow", "rsqrt", "sqrt"}:
        return not (operands[0].low > 0.0 and _away(operands[0], eqn))
    return not (name == "log1p" and operands[0].low > -0.5)


def _away(x: Bounds, eqn: JaxprEqn, power: int = 2) -> bool:
    """Whether x is so far from 0 that x**-power does not overflow."""
    output: Any = eqn.outvars[0]
    smallest = float(jnp.finfo(output.aval.dtype).tiny) ** (1.0 / power)
    return x.low >= smallest or x.high <= -smallest


def needs_guard(
    eqn: JaxprEqn, infinite: Sequence[bool], bounds: Sequence[Bounds]
) -> bool:
    """Whether a derivative of this equation may be inf or nan.

    Args:
        eqn: the equation.
        infinite: which operands come from a pole, and may be inf or nan.
        bounds: the numbers between which they lie.
    """
    factors = eqn.primitive.name == "mul" or has_pole(eqn, [ANY] * len(bounds))
    return has_pole(eqn, bounds) or (factors and any(infinite))


def may_be_infinite(
    eqn: JaxprEqn, infinite: Sequence[bool], bounds: Sequence[Bounds]
) -> bool:
    """Whether the result may be inf or nan: by its own pole, or handed on."""
    if eqn.primitive is guarded_p:
        eqn = eqn.params["jaxpr"].jaxpr.eqns[0]
    if eqn.primitive.name == "cbrt" or (_is_root(eqn) and bounds[0].low >= 0.0):
        return any(infinite)  # 0 where its derivative is infinite
    return needs_guard(eqn, infinite, bounds) or (
        eqn.primitive.name in _CARRIES and any(infinite)
    )


def guarded_call(
    eqn: JaxprEqn,
    operands: Sequence[Any],
    infinite: Sequence[bool],
    bounds: Sequence[Bounds],
    guard: Apply,
) -> Any:
    """The primitive of `eqn`, guarded.

    Args:
        eqn: gives primitive and parameters.
        operands: its operands.
        infinite: which of them come from a pole.
        bounds: the numbers between which they lie.
        guard: makes a function run guarded (`_rewrite.guarded`).
    """
    bind = lambda *operands: eqn.primitive.bind(*operands, **eqn.params)
    jaxpr = jax.make_jaxpr(bind)(*operands)
    known = {"infinite": tuple(infinite), "bounds": tuple(bounds)}
    return guarded_p.bind(*operands, jaxpr=jaxpr, guard=guard, **known)


def linear_call(eqn: JaxprEqn, operands: Sequence[Any], direction: int) -> Any:
    """A product or quotient of a tangent, in a derivative rule that was brought along.

    The other operand is the derivative: where it is not finite, the result is 0.
    """
    tangent, other = operands[direction], operands[1 - direction]
    if eqn.primitive.name == "div":
        usable, neutral = other != 0, jnp.ones_like(other)
    else:
        usable, neutral = jnp.isfinite(other), jnp.zeros_like(other)
    factors = [tangent, jnp.where(usable, other, neutral)]
    out = eqn.primitive.bind(*factors[:: 1 - 2 * direction], **eqn.params)
    return jnp.where(usable, out, jnp.zeros_like(out))


def _compute(*operands: Any, jaxpr: ClosedJaxpr, **_: Any) -> Any:
    return jaxpr_as_fun(jaxpr)(*operands)[0]


def _jvp(
    operands: Sequence[Any], tangents: Sequence[Any], **params: Any
) -> tuple[Any, Any]:
    out = guarded_p.bind(*operands, **params)
    parts = [
        _masked_partial(index, operands, out, **params) * tangent
        for index, tangent in enumerate(tangents)
        if type(tangent) is not ad.Zero
    ]
    return out, sum(parts[1:], parts[0])


def _masked_partial(
    index: int,
    operands: Sequence[Any],
    out: Any,
    *,
    jaxpr: ClosedJaxpr,
    infinite: tuple[bool, ...],
    bounds: tuple[Bounds, ...],
    guard: Apply,
) -> Any:
    """The derivative in one operand, elementwise; 0 where it is not usable."""
    (eqn,) = jaxpr.jaxpr.eqns
    name = eqn.primitive.name
    if _is_root(eqn):  # of the root that is there: XLA keeps one array, not two
        found = of_equation(eqn, list(bounds))
        marks = (may_be_infinite(eqn, infinite, bounds),)
        factor = guard(lambda root: 0.5 / root, marks, found)(out)
    else:
        formulas = _PARTIALS.get(name)
        partial = formulas[index] if formulas else _partial_by_jax(jaxpr, index)
        factor = guard(partial, infinite, bounds)(*operands)
    if name in _NAN_OF_NAN and bounds[0].low >= 0.0 and not infinite[0]:
        # As below, but of the factor alone, so that no operand is kept for it.
        return jax.lax.select(jnp.isinf(factor), jnp.zeros_like(factor), factor)
    usable = jnp.isfinite(factor)
    for atom, operand, pole in zip(eqn.invars, operands, infinite, strict=True):
        # The nan of a diverged run is kept; 0/0, to be selected away, is not.
        if not pole and _is_float(atom) and isinstance(operand, jax.Array):
            usable |= operand != operand  # noqa: PLR0124 (nan)
    usable, factor = jnp.broadcast_arrays(usable, factor)
    return jax.lax.select(usable, factor, jnp.zeros_like(factor))


def _partial_by_jax(jaxpr: ClosedJaxpr, index: int) -> Apply:
    def partial(*operands: Any) -> Any:
        def along(x: Any) -> Any:
            return jaxpr_as_fun(jaxpr)(*operands[:index], x, *operands[index + 1 :])[0]

        x = operands[index]
        return jax.jvp(along, (x,), (jnp.ones_like(x),))[1]

    return partial


def _batch(
    operands: Sequence[Any],
    axes: Sequence[Any],
    *,
    jaxpr: ClosedJaxpr,
    infinite: tuple[bool, ...],
    bounds: tuple[Bounds, ...],
    guard: Apply,
) -> tuple[Any, int]:
    function = lambda *operands: jaxpr_as_fun(jaxpr)(*operands)[0]
    mapped = guard(jax.vmap(function, tuple(axes)), infinite, bounds)
    return mapped(*operands), 0


def _is_root(eqn: JaxprEqn) -> bool:
    return eqn.primitive.name == "sqrt"


def _is_float(atom: Any) -> bool:
    return jnp.issubdtype(atom.aval.dtype, jnp.floating)


guarded_p.def_impl(_compute)
guarded_p.def_abstract_eval(lambda *_, jaxpr, **__: jaxpr.out_avals[0])
ad.primitive_jvps[guarded_p] = _jvp
batching.primitive_batchers[guarded_p] = _batch
mlir.register_lowering(guarded_p, mlir.lower_fun(_compute, multiple_results=False))
