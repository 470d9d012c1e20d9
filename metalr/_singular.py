r"""Primitives with a pole in their derivative, and what stands for them.

Each is wrapped in `guarded_p`, which computes the very same primitive, so that the
forward pass does not change. Its tangent is $\sum_i J_i\,\dot x_i$ with the primitive's
own partial derivatives, except that

    a partial derivative that is not finite, at operands that are not nan, is 0.

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

Apply: TypeAlias = Callable[..., Any]

guarded_p = Primitive("guarded")
"""`guarded_p.bind(*operands, jaxpr=…, guard=…)`: the one equation of `jaxpr`."""

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

_UNBOUNDED = frozenset(
    {"atanh", "div", "erf_inv", "integer_pow", "log", "log1p", "pow", "rsqrt"}
)
"""Those among them whose value may itself be infinite or nan."""

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
    "div": (lambda a, b: 1.0 / b, lambda a, b: -(a / b) / b),
    "log": (lambda x: 1.0 / x,),
    "mul": (lambda a, b: b, lambda a, b: a),
    "rsqrt": (lambda x: -0.5 * jax.lax.rsqrt(x) / x,),
    "sqrt": (lambda x: 0.5 / jnp.sqrt(x),),
}
"""Those for which JAX's own would overflow early (-a/b²) or is longer."""


def has_pole(eqn: JaxprEqn) -> bool:
    """Whether the derivative of this equation may be infinite at finite operands."""
    name = eqn.primitive.name
    if name == "integer_pow":
        return eqn.params["y"] < 0
    if name not in _POLES or not _is_float(eqn.outvars[0]):
        return False
    by_constant = name == "div" and isinstance(eqn.invars[1], Literal)
    return not (by_constant and eqn.invars[1].val != 0)


def may_be_infinite(eqn: JaxprEqn, operands: Sequence[bool]) -> bool:
    """Whether the result may be inf or nan, given which operands may be."""
    if eqn.primitive is guarded_p:
        eqn = eqn.params["jaxpr"].jaxpr.eqns[0]
    if eqn.primitive.name in _UNBOUNDED:
        return has_pole(eqn) or any(operands)
    return eqn.primitive.name in _CARRIES and any(operands)


def guarded_call(eqn: JaxprEqn, operands: Sequence[Any], guard: Apply) -> Any:
    """The primitive of `eqn`; `guard` makes a function run guarded."""
    bind = lambda *operands: eqn.primitive.bind(*operands, **eqn.params)
    return guarded_p.bind(*operands, jaxpr=jax.make_jaxpr(bind)(*operands), guard=guard)


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


def _compute(*operands: Any, jaxpr: ClosedJaxpr, guard: Apply) -> Any:
    del guard
    return jaxpr_as_fun(jaxpr)(*operands)[0]


def _jvp(
    operands: Sequence[Any], tangents: Sequence[Any], *, jaxpr: Any, guard: Apply
) -> tuple[Any, Any]:
    out = guarded_p.bind(*operands, jaxpr=jaxpr, guard=guard)
    parts = [
        _masked_partial(jaxpr, guard, index, operands) * tangent
        for index, tangent in enumerate(tangents)
        if type(tangent) is not ad.Zero
    ]
    return out, sum(parts[1:], parts[0])


def _masked_partial(
    jaxpr: ClosedJaxpr, guard: Apply, index: int, operands: Sequence[Any]
) -> Any:
    """The derivative in one operand, elementwise; 0 where it is not usable."""
    (eqn,) = jaxpr.jaxpr.eqns
    formulas = _PARTIALS.get(eqn.primitive.name)
    partial = formulas[index] if formulas else _partial_by_jax(jaxpr, index)
    factor = guard(partial)(*operands)
    usable = jnp.isfinite(factor)
    # A product is guarded because of an operand that is not finite, nan included.
    if eqn.primitive.name != "mul":
        for atom, operand in zip(eqn.invars, operands, strict=True):
            if _is_float(atom) and isinstance(operand, jax.Array):
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
    operands: Sequence[Any], axes: Sequence[Any], *, jaxpr: Any, guard: Apply
) -> tuple[Any, int]:
    function = lambda *operands: jaxpr_as_fun(jaxpr)(*operands)[0]
    return guard(jax.vmap(function, tuple(axes)))(*operands), 0


def _is_float(atom: Any) -> bool:
    return jnp.issubdtype(atom.aval.dtype, jnp.floating)


guarded_p.def_impl(_compute)
guarded_p.def_abstract_eval(lambda *_, jaxpr, guard: jaxpr.out_avals[0])
ad.primitive_jvps[guarded_p] = _jvp
batching.primitive_batchers[guarded_p] = _batch
mlir.register_lowering(guarded_p, mlir.lower_fun(_compute, multiple_results=False))
