"""Where an optimizer ends up: run to interpolation, held against minimum norm."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from ._programs.compiled import compiled
from ._types import Scalar, ScalarLike
from .optimizers.update import (
    as_arrays,
    is_transformation,
    update as optimizer_update,
)
from .theory.implicit_bias import (
    min_norm_solution as _min_norm_solution,
    row_space,
    start,
)

min_norm_solution = _min_norm_solution

Rows = Literal["all", "cyclic", "shuffled", "random"]
"""What one update sees: all rows, or one at a time (in order; a new permutation each
epoch, without replacement; drawn with replacement)."""

_ROWS = ("all", "cyclic", "shuffled", "random")


class Limit(NamedTuple):
    """Where a run on least squares ended, and how."""

    params: Float[Array, "*b d"]
    converged: Bool[Array, "*b"]  # the residual met the tolerance, and w is at rest
    stalled: Bool[Array, "*b"]  # a state recurred exactly: it never will
    diverged: Bool[Array, "*b"]  # a parameter is inf or nan
    steps: Int[Array, "*b"]  # updates made
    rate: Float[Array, "*b"]  # factor on the residual per update, last half of the run
    residual: Float[Array, "*b"]  # its part in the range of X, relative to the start's
    row_space_residual: Float[Array, "*b"]  # norm of the part of w − w0 outside rows
    distance_to_min_norm: Float[Array, "*b"]  # ‖w − min_norm_solution(X, t, w0)‖
    excess_norm: Float[Array, "*b"]  # ‖w − w0‖ minus that of the minimum-norm solution


class _State(NamedTuple):
    params: Array
    opt_state: Any
    key: Any


class _Mark(NamedTuple):
    """A state to recognize, and the residual there."""

    state: _State
    check: Array
    size: Array


def limit(
    X: Float[Array, "n d"],
    t: Float[Array, " n"],
    optimizer: optax.GradientTransformation,
    *,
    w0: Float[Array, " d"] | None = None,
    opt_state: optax.OptState | None = None,
    rows: Rows = "all",
    key: PRNGKeyArray | None = None,
    rtol: float = 1e-10,
    max_steps: int = 100_000,
) -> Limit:
    r"""Run an optimizer on least squares until it interpolates, or provably stalls.

    The loss is $\|Xw - t\|^2/n$; one row at a time, $(x_i^\top w - t_i)^2$. One
    compiled `lax.while_loop`, constant memory, which ends as soon as

    - *converged*: $\|UU^\top(Xw - t)\| \le \text{rtol}\cdot\|UU^\top(Xw_0 - t)\|$ with
      U the range of X (w interpolates, or, where no w does, is a least-squares
      solution), and w is at rest: its last move was at most rtol·‖w − w₀‖. A run with
      momentum may pass through a solution, or drift along the solutions. A residual
      of at most 8·eps·‖t‖ is rounding and counts as 0;
    - *stalled*: parameters and optimizer state equal exactly those of an earlier
      check. An update is a function of that state, so the run is periodic and will not
      converge. Found by Brent's method within three times (start + period). States
      that count steps (Adam, schedules) or draw rows never recur, so such a run can
      only converge, diverge or reach `max_steps`;
    - *diverged*: a parameter is inf or nan;
    - or `max_steps` updates were made: undecided.

    Checked after every update; one row at a time, after every n. Can be batched by
    `vmap` over X, t, w0, key; not to be differentiated.

    Args:
        X: inputs, one example a row.
        t: targets.
        optimizer: a finished transformation, e.g. `optax.adagrad(0.05)`. Those that
            need `value`, `grad` or `value_fn` receive them.
        w0: start; zeros by default.
        opt_state: the optimizer's state at the start, by default
            `optimizer.init(w0)`; a first velocity is set here, with `optax.tree.set`.
        rows: "all" (full batch), "cyclic", "shuffled" or "random".
        key: random key for "shuffled" and "random".
        rtol: tolerance on the residual, relative to its size at the start.
        max_steps: the most updates to make (rounded up to whole epochs).

    Returns:
        A `Limit`. Distances are absolute, in the units of w.

    Raises:
        ValueError: for shapes that do not fit, values that are not finite, an unknown
            `rows`, a missing or useless `key`, a negative `rtol` or `max_steps`, or an
            optimizer still to be finished.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from metalr.bias import limit
        >>> X, t = jnp.array([[1.0, 2.0]]), jnp.array([3.0])
        >>> sgd = limit(X, t, optax.sgd(0.05), rtol=1e-5)
        >>> print([f"{w:.3f}" for w in sgd.params], bool(sgd.converged))
        ['0.600', '1.200'] True
        >>> exact = optax.adagrad(1.0, initial_accumulator_value=0.0, eps=0.0)
        >>> print([f"{w:.3f}" for w in limit(X, t, exact, rtol=1e-5).params])
        ['1.000', '1.000']

    References:
        Gunasekar et al. (2018), Characterizing implicit bias in terms of optimization
        geometry. Brent (1980), An improved Monte Carlo factorization algorithm (cycle
        detection).
    """
    w0, opt_state = _check(X, t, optimizer, w0, opt_state, rows, key)
    for name, value in (("rtol", rtol), ("max_steps", max_steps)):
        if value < 0:
            msg = f"{name} = {value!r} must be ≥ 0"
            raise ValueError(msg)
    first = _State(w0, opt_state, key)
    return _limit(X, t, first, rtol, max_steps, optimizer=optimizer, rows=rows)


def path(
    X: Float[Array, "n d"],
    t: Float[Array, " n"],
    optimizer: optax.GradientTransformation,
    *,
    steps: int,
    w0: Float[Array, " d"] | None = None,
    opt_state: optax.OptState | None = None,
    rows: Rows = "all",
    key: PRNGKeyArray | None = None,
) -> Float[Array, "rows d"]:
    r"""The parameters $w_0, w_1, …$ of the run that `limit` makes.

    One row for the start and one for each update (one row at a time: each epoch of n
    updates). Memory: linear in `steps`. Arguments and errors as in `limit`.

    Args:
        X: inputs, one example a row.
        t: targets.
        optimizer: a finished transformation.
        steps: updates, or epochs where `rows` is not "all".
        w0: start; zeros by default.
        opt_state: the optimizer's state at the start.
        rows: "all", "cyclic", "shuffled" or "random".
        key: random key for "shuffled" and "random".

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from metalr.bias import path
        >>> X, t = jnp.array([[1.0, 1.0]]), jnp.array([3.0])
        >>> print(path(X, t, optax.sgd(0.25), steps=1))
        [[0.  0. ]
         [1.5 1.5]]
    """
    w0, opt_state = _check(X, t, optimizer, w0, opt_state, rows, key)
    if steps < 0:
        msg = f"steps = {steps!r} must be ≥ 0"
        raise ValueError(msg)
    first = _State(w0, opt_state, key)
    return _path(X, t, first, optimizer=optimizer, rows=rows, steps=steps)


@compiled
def _path(
    X: Array, t: Array, first: _State, *, optimizer: Any, rows: Rows, steps: int
) -> Array:
    advance = _epoch(X, t, optimizer, rows)

    def body(state: _State, _: None) -> tuple[_State, Array]:
        new = advance(state)
        return new, new.params

    _, later = jax.lax.scan(body, first, length=steps)
    return jnp.concatenate([first.params[None], later])


@compiled
def _limit(
    X: Array,
    t: Array,
    first: _State,
    rtol: ScalarLike,
    max_steps: int | Array,
    *,
    optimizer: Any,
    rows: Rows,
) -> Limit:
    space = row_space(X)
    advance = _epoch(X, t, optimizer, rows)
    length = 1 if rows == "all" else X.shape[0]
    w0 = first.params

    def size(w: Array) -> Scalar:
        return jnp.linalg.norm(space.left.T @ (X @ w - t))

    start_size = size(w0)
    rounding = 8.0 * jnp.finfo(w0.dtype).eps * jnp.linalg.norm(t)
    tolerance = jnp.maximum(rtol * start_size, rounding)

    def arrived(w: Array, now: Array, move: Array) -> Array:
        return (now <= tolerance) & (move <= rtol * jnp.linalg.norm(w - w0))

    def body(carry: tuple) -> tuple:
        check, state, _, _, mark, older, _ = carry
        new = advance(state)
        check = check + 1
        move = jnp.linalg.norm(new.params - state.params)
        stalled = _equal(new, mark.state)
        # Brent: remember the state at each power of two, and the residual at the last
        # two of them for the rate.
        renew = (check & (check - 1)) == 0
        here = _Mark(new, check, size(new.params))
        older = _select(renew, (mark.check, mark.size), older)
        mark = _select(renew, here, mark)
        return check, new, here.size, move, mark, older, stalled

    def going(carry: tuple) -> Array:
        check, state, now, move, _, _, stalled = carry
        finite = jnp.all(jnp.isfinite(state.params))
        more = check * length < max_steps
        return more & finite & ~stalled & ~arrived(state.params, now, move)

    zero = jnp.zeros((), jnp.int32)
    mark, never = _Mark(first, zero, start_size), jnp.full_like(start_size, jnp.inf)
    older, false = (zero, start_size), jnp.zeros((), bool)
    check, state, now, move, _, (at, then), stalled = jax.lax.while_loop(
        going, body, (zero, first, start_size, never, mark, older, false)
    )
    w = state.params
    nearest = w0 + space.solve(t - X @ w0)
    made = jnp.maximum((check - at) * length, 1)
    finite = jnp.all(jnp.isfinite(w))
    return Limit(
        params=w,
        converged=finite & arrived(w, now, move),
        stalled=finite & stalled & ~arrived(w, now, move),
        diverged=~finite,
        steps=check * length,
        rate=_ratio(now, then) ** (1.0 / made),
        residual=_ratio(now, start_size),
        row_space_residual=jnp.linalg.norm(space.outside(w - w0)),
        distance_to_min_norm=jnp.linalg.norm(w - nearest),
        excess_norm=jnp.linalg.norm(w - w0) - jnp.linalg.norm(nearest - w0),
    )


def _epoch(X: Array, t: Array, optimizer: Any, rows: Rows) -> Any:
    """State to state: one update on all rows, or n updates on one row each."""
    n = X.shape[0]

    def update(state: _State, x: Array, y: Array) -> _State:
        def loss(w: Array) -> Scalar:
            return jnp.mean((x @ w - y) ** 2)

        value, grad = jax.value_and_grad(loss)(state.params)
        updates, opt_state = optimizer_update(
            optimizer, grad, state.opt_state, state.params, value=value, value_fn=loss
        )
        params: Any = optax.apply_updates(state.params, updates)
        return _State(params, opt_state, state.key)

    def one_row(state: _State, index: Array) -> tuple[_State, None]:
        return update(state, X[index][None], t[index][None]), None

    def order(key: Any) -> Array:
        if rows == "cyclic":
            return jnp.arange(n)
        if rows == "shuffled":
            return jax.random.permutation(key, n)
        return jax.random.randint(key, (n,), 0, n)

    def epoch(state: _State) -> _State:
        if rows == "all":
            return update(state, X, t)
        now, later = (None, None) if rows == "cyclic" else jax.random.split(state.key)
        done, _ = jax.lax.scan(one_row, state._replace(key=later), order(now))
        return done

    return epoch


def _equal(one: _State, other: _State) -> Array:
    """Whether two states are equal; with a key, rows are drawn and none recurs."""
    if one.key is not None:
        return jnp.zeros((), bool)
    same = jax.tree.map(lambda a, b: jnp.all(a == b), one, other)
    return jnp.all(jnp.stack(jax.tree.leaves(same)))


def _select(condition: Array, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)


def _ratio(now: Scalar, then: Scalar) -> Scalar:
    return jnp.where(then > 0.0, now / jnp.where(then > 0.0, then, 1.0), 0.0)


def _check(
    X: Array,
    t: Array,
    optimizer: Any,
    w0: Array | None,
    opt_state: Any,
    rows: str,
    key: Any,
) -> tuple[Array, Any]:
    """The start and the optimizer's state there, after checking what is static."""
    if not is_transformation(optimizer):
        msg = (
            f"optimizer = {optimizer!r} must be a finished transformation, "
            "e.g. optax.sgd(0.1) rather than optax.sgd"
        )
        raise ValueError(msg)
    if rows not in _ROWS:
        msg = f"rows = {rows!r} must be one of {', '.join(_ROWS)}"
        raise ValueError(msg)
    if (key is not None) != (rows in {"shuffled", "random"}):
        needed = "needs a key: pass key=jax.random.key(0)"
        msg = (
            f"rows={rows!r} {needed if key is None else 'draws nothing: drop the key'}"
        )
        raise ValueError(msg)
    w0 = start(X, t, w0)
    dtypes = {array.dtype for array in (X, t, w0)}
    if len(dtypes) > 1 or not jnp.issubdtype(X.dtype, jnp.floating):
        msg = f"X is {X.dtype}, t {t.dtype}, w0 {w0.dtype}: cast to one floating dtype"
        raise ValueError(msg)
    for name, array in (("X", X), ("t", t), ("w0", w0)):
        if not isinstance(array, Tracer) and not bool(jnp.all(jnp.isfinite(array))):
            msg = f"{name} has a value that is not finite: remove or impute it"
            raise ValueError(msg)
    opt_state = optimizer.init(w0) if opt_state is None else opt_state
    return w0, as_arrays(opt_state, w0)
