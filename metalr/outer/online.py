"""Hypergradient descent: hyperparameters adapted while training, one step ahead."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from .._checks import expand_prefix, float_leaves, path_name
from .._programs.compiled import compiled
from .._programs.dependence import independent_leaves
from .._types import Hyper, Objective, Params, PyTree, Scalar
from ..optimizers.per_step import PerStep
from ..runs.unrolled import State, Unrolled


class Online(NamedTuple):
    """A run whose hyperparameters were adapted on the way."""

    params: Params  # w_T
    hyper: Hyper  # after the last adaptation: what a further step would use
    value: Scalar  # the outer loss at w_T
    losses: Float[Array, "*batch steps_plus_1"]  # inner losses, as in `trajectory`
    hypers: Hyper  # each leaf (steps, ...): what step s used
    hypergradients: Hyper  # each leaf (steps, ...): h after step s


class _Carry(NamedTuple):
    state: State
    hyper: Hyper
    value: Scalar  # inner loss at the state, and its gradient, for the hyper before
    grads: Params


def online(
    objective: Objective,
    hyper: Hyper,
    *,
    outer_learning_rate: PyTree,
    multiplicative: bool = False,
) -> Online:
    r"""Train once, with hyperparameters that follow their one-step hypergradient.

    $$w_{s+1} = w_s + u_s(\eta_s), \qquad
      h_s = \frac{d}{d\eta}\, F_{s+1}\bigl(w_s + u_s(\eta),\, \eta\bigr)\Big|_{\eta_s},
      \qquad \eta_{s+1} = \eta_s - \beta\, h_s$$

    with $u_s$ the update that the optimizer makes of the gradient at $w_s$, its state
    held fixed, and F the outer loss, or the inner loss on the batch that step s + 1
    sees (after the last step: on the last batch, as in `Unrolled`). For the rate of
    `optax.sgd` $h_s = -\nabla\ell(w_{s+1})^\top\nabla\ell(w_s)$: SGD-HD of the paper;
    with momentum (`nesterov=True`: SGDN-HD) and `optax.adam` (Adam-HD) likewise the
    gradient times the last direction. Any optimizer and any hyperparameters will do:
    rate and momentum, per-parameter rates, strengths in the loss. $h_s$ is that of
    `metalr.Truncated(last=1)`: the sign of the full derivative on a quadratic, but
    short by the horizon, and in general greedy (the short-horizon bias).

    The multiplicative rule makes β a relative change for each step, whatever the scale
    of the loss:

    $$\eta_{s+1} = \eta_s\Bigl(1 - \beta\,\frac{h_s}{\|\nabla_w F_{s+1}\|\,
      \|\partial u_s/\partial\eta\|}\Bigr)$$

    entry by entry of hyper. The fraction is a cosine (0 where a norm is 0), so that for
    β < 1 a positive rate stays positive, as long as hyper enters through the
    update alone; the direct part of a derivative by hyper in F, if any, counts as well.

    One compiled scan: one gradient of the inner loss for each step, as in plain
    training (two where the loss sees hyper, and one of the outer loss where there is
    one), and a vector-Jacobian product of the update for all hyperparameters;
    multiplicative: also a tangent of the update for each. Memory: three states and the
    returned curves. Works under `jit` and `vmap` (over starting rates, over β), and can
    be differentiated in both modes. With β = 0 the run is plain training, operation by
    operation (compiled, XLA may fuse them otherwise: then to rounding). A diverged run
    is a result.

    Args:
        objective: the inner problem; its `checkpoints` are not used.
        hyper: hyperparameters of the first step.
        outer_learning_rate: β ≥ 0: a number, or a pytree that is a prefix of hyper.
        multiplicative: take the multiplicative rule.

    Returns:
        `Online(params, hyper, value, losses, hypers, hypergradients)`.

    Raises:
        ValueError: if the objective is not an `Unrolled`, or of a `per_step` optimizer
            (whose entries cannot be adapted before their one step); for hyper that is
            not floating, a β that is negative or does not fit hyper; for a
            hyperparameter that does not act within one step, such as a learned start,
            or one that `optax.inject_hyperparams` has put into the state.

    Example:
        >>> import optax, metalr
        >>> loss = lambda params, hyper, batch: 0.5 * params**2
        >>> L = metalr.Unrolled(loss, optax.sgd, 1.0, steps=3)
        >>> run = metalr.online(L, 0.1, outer_learning_rate=0.2)
        >>> print(run.hypers.round(4), run.losses.round(4))
        [0.1    0.28   0.3966] [0.5    0.405  0.21   0.0764]

    References:
        Baydin, Cornish, Martínez Rubio, Schmidt, Wood (2018), Online learning rate
        adaptation with hypergradient descent. Almeida, Langlois, Amaral, Plakhov
        (1998), Parameter adaptation in stochastic optimization. Luketina et al. (2016),
        Scalable gradient-based tuning of continuous regularization hyperparameters.
    """
    if not isinstance(objective, Unrolled):
        msg = (
            f"online adapts within the run of a metalr.Unrolled, not {objective!r}: "
            "for another run take metalr.windows"
        )
        raise ValueError(msg)
    if isinstance(objective.optimizer, PerStep):
        msg = (
            "per_step gives each update its own hyperparameters, which cannot be "
            "adapted before it: pass the optimizer itself, and a start for its hyper"
        )
        raise ValueError(msg)
    hyper = float_leaves(hyper, "hyper")
    jax.tree_util.tree_map_with_path(_check_rate, outer_learning_rate)
    rates = expand_prefix(outer_learning_rate, hyper, "outer_learning_rate")
    return _compiled(objective, hyper, rates, multiplicative=multiplicative)


@compiled
def _compiled(
    objective: Unrolled, hyper: Hyper, rates: Hyper, *, multiplicative: bool
) -> Online:
    given, hyper = hyper, objective.prepare(hyper)
    start = objective.init(hyper)
    if objective.steps:
        _refuse_indirect(objective, hyper, start)
    fixed = _loss_is_fixed(objective, hyper, start.params)

    def step(carry: _Carry, index: Array) -> tuple[_Carry, tuple[Scalar, Hyper, Hyper]]:
        state, hyper, value, grads = carry
        if not fixed:  # the gradient ahead was that of the hyper before
            value, grads, _ = objective.gradients(hyper, state.params, index)
        after = objective.update(hyper, state, value, grads, index)

        def move(hyper: Hyper) -> Params:
            if fixed:
                return objective.update(hyper, state, value, grads, index).params
            return objective.step(hyper, state, index)[0].params

        following = jnp.minimum(index + 1, objective.steps - 1)
        ahead, slopes, direct = objective.gradients(hyper, after.params, following)
        by_params, by_hyper = slopes, direct
        if objective.outer_loss is not None:
            by_params, by_hyper = jax.grad(
                lambda params, hyper: objective.outer(
                    hyper, State(params, after.opt_state)
                ),
                argnums=(0, 1),
            )(after.params, hyper)
        (through,) = jax.vjp(move, hyper)[1](by_params)
        slope = change = jax.tree.map(jnp.add, by_hyper, through)
        if multiplicative:
            size = optax.tree.norm(by_params)
            change = _relative(hyper, slope, size, _norms(move, hyper))
        adapted = jax.tree.map(
            lambda h, b, c: h - b.astype(h.dtype) * c, hyper, rates, change
        )
        return _Carry(after, adapted, ahead, slopes), (value, hyper, slope)

    first = _Carry(start, hyper, *objective.gradients(hyper, start.params, 0)[:2])
    end, curves = jax.lax.scan(step, first, jnp.arange(objective.steps))
    losses, *histories = curves
    params = end.state.params
    final = objective.inner_loss(end.hyper, objective.steps - 1)(params)
    value = objective.outer(end.hyper, end.state)
    adapted, hypers, slopes = (
        jax.tree.map(lambda x, h: x.astype(h.dtype), tree, given)
        for tree in (end.hyper, *histories)
    )
    return Online(params, adapted, value, jnp.append(losses, final), hypers, slopes)


def _norms(move: Callable[[Hyper], Params], hyper: Hyper) -> Hyper:
    """The norm of the update's derivative, for each entry of hyper."""
    flat, unravel = ravel_pytree(hyper)

    def along(index: Array) -> Scalar:
        basis = unravel(jax.nn.one_hot(index, flat.size, dtype=flat.dtype))
        return optax.tree.norm(jax.jvp(move, (hyper,), (basis,))[1])

    return unravel(jax.vmap(along)(jnp.arange(flat.size)))


def _relative(hyper: Hyper, slope: Hyper, size: Scalar, norms: Hyper) -> Hyper:
    """Each entry times its cosine."""

    def change(h: Array, slope: Array, norm: Array) -> Array:
        scale = size * norm
        return h * jnp.where(scale > 0.0, slope / jnp.where(scale > 0.0, scale, 1.0), 0)

    return jax.tree.map(change, hyper, slope, norms)


def _loss_is_fixed(objective: Unrolled, hyper: Hyper, params: Params) -> bool:
    """Whether the inner loss does not see hyper, judged on the traced program."""

    def loss(hyper: Hyper) -> tuple[Scalar, Params]:
        return objective.gradients(hyper, params, 0)[:2]

    outside = independent_leaves(loss, hyper, smooth=False)
    return len(outside) == len(jax.tree.leaves(hyper))


def _refuse_indirect(objective: Unrolled, hyper: Hyper, start: State) -> None:
    """Refuse a leaf that one step, from a given state, does not feel."""

    def ahead(hyper: Hyper) -> Scalar:
        return objective.outer(hyper, objective.step(hyper, start, 0)[0])

    missing = independent_leaves(ahead, hyper)
    if missing:
        msg = (
            f"{', '.join(missing)} does not act within one step: it enters the start "
            "or the optimizer's first state, and adapting it would change nothing. "
            "Learn it with metalr.learn instead; and where optax.inject_hyperparams "
            "holds it, make the optimizer from hyper directly"
        )
        raise ValueError(msg)


def _check_rate(path: tuple[Any, ...], rate: Any) -> None:
    if isinstance(rate, Tracer):
        return
    array = np.asarray(rate)
    number = array.dtype.kind in "fiu" or jnp.issubdtype(array.dtype, jnp.floating)
    if not number or not np.all(array >= 0.0):
        msg = f"{path_name('outer_learning_rate', path)} = {rate!r} must be ≥ 0"
        raise ValueError(msg)
