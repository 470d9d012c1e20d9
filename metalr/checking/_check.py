"""`check_hypergrad`: every engine, finite differences and the closed form, compared."""

import math
from collections.abc import Sequence

import jax
from jaxtyping import Array

from .._checks import float_leaves, positive_int
from .._programs.dependence import check_dependence
from .._programs.limits import epsilon
from .._types import Hyper, Objective
from ..hypergrad import Engine
from ..hypergrad.hypergradient import as_pytree
from ..profiling import parse_bytes
from ._compare import Problem, compare
from ._engines import default_engines
from ._precision import limited, most_precise
from ._verdict import Check, HypergradientError, complaint


def check_hypergrad(
    objective: Objective,
    hyper: Hyper,
    *,
    engines: Sequence[Engine] | None = None,
    rtol: float | None = None,
    raise_on_mismatch: bool = False,
    memory_limit: int | str | None = None,
    random_directions: int = 3,
    key: Array | None = None,
) -> Check:
    r"""Is the hypergradient right? The counterpart of `jax.test_util.check_grads`.

    Computes $\nabla L_T(\eta)$ of your own objective in every way and compares:

    - the engines, each compiled, run twice (the second run is timed), with the
      temporary memory of its program. One that refuses the objective, or does not fit,
      is a row that says why;
    - *finite differences* of the value: central, at steps from 1/8 of each number down
      to √eps in powers of 4, extrapolated to h = 0 (Ridders), with an error estimate
      that is the tolerance; in the widest dtype JAX has, and as coarse as the coarsest
      float dtype between hyper and the value (a cast in the loss, an optimizer's
      `mu_dtype`), read off the traced program. Up to 6 numbers are varied one by one;
      more along `random_directions` random directions and one for each leaf, drawn
      from `key`. One-sided differences that disagree (a kink), and estimates too
      uncertain to tell (chaos), are "inconclusive";
    - the *closed form*, where the traced problem is recognized: exact rational
      arithmetic (sums, products; up to 50 steps and 6 numbers), or
      `metalr.theory.Quadratic`;
    - the *inner gradient* of each step, on its batch, against differences of the inner
      loss: a wrong derivative rule there changes the run itself, and all engines agree
      on it. Of more than 256 steps the first, the last and random ones between are
      looked at; the row says how many. The worst of many may look wrong by chance
      (kinks between the steps of the differences, in float32): it is looked at again
      along 16 directions, and differs where most of those that tell say so;
    - a run's own `pull_back`, at the same steps, against `jax.vjp` of the step.

    The reference is the closed form, else the first engine that differences confirm (in
    the widest dtype: float64, or float32 where x64 is off). Where a low-precision
    engine is off by more than `rtol` but its run in the widest dtype is not, or in
    chaos its run ends at another value, the row says "rounding". Gradients may differ
    by `rtol` of the largest entry of each leaf, plus 100 roundings of the value.
    Where hyper or the value is inf or nan, the verdict is "not finite" and says which.
    Of a "differs" it names what is known to cause it: an optimizer that stops a
    gradient (optax's L-BFGS), rules of the loss's own (`custom_vjp`, `stop_gradient`),
    in the outer loss too, and in the model_state that the loss returns.

    Cost: two runs of each engine and its compilation, 25 runs (float64; 11 in float32)
    for each number or direction, and about 9 for the inner gradients. Not to be traced.

    Args:
        objective: an `Unrolled`, a `Rollout` or another run, a `tasks.Mean`, or any
            traceable scalar function (then only `Reverse` and `Forward` apply).
        hyper: the point.
        engines: what to compare. By default the exact ones: `Reverse()`, with about
            √(2T) checkpoints, `Forward` (in chunks of 16; up to 64 numbers), `Mixed()`,
            `Reversible()`; for a `Mean`, in `Each` task. Biased ones (`Truncated`,
            `Implicit`, estimators) are shown when asked for, and not judged.
        rtol: agreement asked; √eps by default: of the dtype that limits the run for
            the engines, of the widest for what is computed in that.
        raise_on_mismatch: raise `HypergradientError` unless the verdict is "agrees" or
            "inconclusive".
        memory_limit: bytes, or such as "2GiB": an engine whose program needs more is
            not run.
        random_directions: number of random directions for more than 6 numbers.
        key: of these directions; `jax.random.key(0)` by default.

    Raises:
        ValueError: if a leaf of `hyper` is not a float or the value does not depend on
            it at all (structurally: an optimizer that ignores the rate), or `engines`
            is empty, or an option is out of range.
        HypergradientError: if asked for.

    Example:
        >>> import jax.numpy as jnp, optax, metalr
        >>> loss = metalr.problems.least_squares(jnp.ones((1, 2)), jnp.array([3.0]))
        >>> L = metalr.Unrolled(loss, optax.sgd, jnp.zeros(2), steps=3)
        >>> engines = [metalr.Reverse(), metalr.Forward()]
        >>> check = metalr.check_hypergrad(L, 0.125, engines=engines)
        >>> print(check.verdict, check.grad, len(check.rows))
        agrees -6.75 6

    References:
        Ridders (1982), Accurate computation of F'(x) and F'(x)F''(x). Griewank, Walther
        (2008), Evaluating derivatives.
    """
    hyper = float_leaves(hyper, "hyper")
    check_dependence(as_pytree(objective), hyper)
    positive_int(random_directions, "random_directions")
    limit = math.inf if memory_limit is None else float(parse_bytes(memory_limit))
    key = jax.random.key(0) if key is None else key
    if rtol is not None and not rtol > 0.0:
        msg = f"rtol = {rtol} must be positive"
        raise ValueError(msg)
    chosen = default_engines(objective, hyper) if engines is None else list(engines)
    if not chosen:
        msg = "engines is empty: leave it out, or pass at least one engine"
        raise ValueError(msg)
    own, precise = limited(objective, hyper), most_precise(objective, hyper)
    problem = Problem(
        own,
        precise,
        value=float(jax.jit(objective)(hyper)),
        rtol=rtol or math.sqrt(epsilon(own.dtype)),
        fine_rtol=rtol or math.sqrt(epsilon(precise.dtype)),
        limit=limit,
        key=key,
    )
    result = compare(problem, chosen, random_directions)
    if raise_on_mismatch and result.verdict in ("differs", "not finite"):
        raise HypergradientError(complaint(result))
    return result
