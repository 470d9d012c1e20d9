"""`L_T(η)`: the loss after T optimizer steps as a function of the hyperparameters."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, PyTree

from .._checks import (
    float_leaves,
    leading_axis,
    one_dtype,
    path_name,
    positive_int,
)
from .._programs.compiled import compiled
from .._types import Batch, Hyper, Loss, Optimizer, OuterLoss, Params, Scalar
from ..optimizers.guard import guard
from ..optimizers.per_step import PerStep
from . import derivatives as _derivatives
from .checkpointing import scan
from .derivatives import Derivatives
from .microbatch import in_microbatches


class State(NamedTuple):
    """What one inner step hands to the next."""

    params: Params
    opt_state: optax.OptState


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Unrolled:
    r"""The loss after `steps` optimizer steps, as a JAX function of hyperparameters.

    $$L_T(\eta) = F(w_T, \eta), \qquad
      w_{s+1} = w_s + u\bigl(\nabla_w \ell(w_s, \eta, b_s);\, \eta\bigr)$$

    with $u$ the update of `optimizer(hyper)`. All `steps` updates are made before the
    outer loss $F$ is evaluated. An `Unrolled` is frozen, callable, and a pytree of its
    arrays (`params`, `batches`, and what a `jax.tree_util.Partial` loss holds), so it
    can be an argument of `jit` and stacked over tasks for `vmap`.

    Supports `jit`, `vmap`, `grad`, `jacfwd`, `jacrev`, `hessian` and `grad` of `grad`.
    It is traced once for all values of `hyper`. Forward mode keeps one state. Plain
    reverse mode keeps what each of the `steps` steps computes, or with `checkpoints=n`
    about n states.

    Args:
        loss: `loss(params, hyper, batch) -> scalar`, the inner loss. `batch` is None
            where there are no batches.
        optimizer: `hyper -> optax.GradientTransformation`; `optax.sgd` is one. Those
            that need `value`, `grad` or `value_fn` in their update receive them.
        params: where the run starts: a pytree of arrays of one floating dtype, or a
            plain function `hyper -> params` where the start itself is learned.
        steps: number of updates T ≥ 0; 0 is the loss at the start.
        batches: pytree whose leaves lead with an axis of length `steps`, or None. Step
            `s` sees entry `s`.
        outer_loss: `outer_loss(params, hyper) -> scalar`; by default the inner loss of
            the final parameters, on the last batch where there are batches.
        checkpoints: None for a plain scan; a number n for nested scans that
            rematerialize, so that reverse mode keeps about n states (any `steps`).
            Values and trajectories are the same; every derivative works.
        microbatch: examples of a batch whose gradient is computed at once. For a loss
            that is a mean over the leading axis of the batch: the same gradient, with
            the activations of so many examples in memory.
        guarded: whether derivatives stay finite where a square root of the optimizer
            meets 0 (`guard`); the run is the same, bit for bit. False differentiates
            the optimizer as JAX does: nan through Adam once a coordinate has no
            gradient.

    Raises:
        ValueError: for a `steps` that is not a natural number, batches of another
            length, params of mixed or non-float dtypes, a loss that is not a real
            scalar, hyperparameters that are not floats.

    A diverged run is a result: inf or nan is returned, nothing is raised. The dtype of
    `params` is that of the whole run: hyper is cast to it.

    Example:
        >>> import jax, optax, metalr
        >>> loss = lambda params, hyper, batch: 0.5 * params**2
        >>> L = metalr.Unrolled(loss, optax.sgd, 1.0, steps=2)
        >>> print(L(0.5), jax.grad(L)(0.5), jax.hessian(L)(0.5))
        0.03125 -0.25 1.5

    References:
        Maclaurin, Duvenaud, Adams (2015), Gradient-based hyperparameter optimization
        through reversible learning. Franceschi et al. (2017), Forward and reverse
        gradient-based hyperparameter optimization.
    """

    loss: Loss
    optimizer: Optimizer
    params: Any
    _: dataclasses.KW_ONLY
    steps: int
    batches: Any = None
    outer_loss: OuterLoss | None = None
    checkpoints: int | None = None
    microbatch: int | None = None
    guarded: bool = True

    def __post_init__(self) -> None:
        for name in ("loss", "optimizer"):
            if not callable(getattr(self, name)):
                msg = f"{name} = {getattr(self, name)!r} must be a function"
                raise ValueError(msg)
        if isinstance(self.steps, bool) or not isinstance(self.steps, int):
            msg = (
                f"steps = {self.steps!r} must be a Python int: it is the scan's length"
            )
            raise ValueError(msg)
        if not isinstance(self.guarded, bool):
            msg = f"guarded = {self.guarded!r} must be True or False"
            raise ValueError(msg)
        if self.steps < 0:
            msg = f"steps = {self.steps} must be ≥ 0: it counts updates"
            raise ValueError(msg)
        if not _is_function(self.params):
            params = float_leaves(self.params, "params")
            one_dtype(params, "params")
            object.__setattr__(self, "params", params)
        for name in ("checkpoints", "microbatch"):
            positive_int(getattr(self, name), name)
        if self.batches is not None:
            batches = jax.tree.map(jnp.asarray, self.batches)
            leading_axis(batches, self.steps)
            object.__setattr__(self, "batches", batches)
        elif self.microbatch is not None:
            msg = (
                f"microbatch = {self.microbatch} needs batches: there is none to split"
            )
            raise ValueError(msg)
        _probe_loss(self)

    def __call__(self, hyper: Hyper) -> Scalar:
        """$L_T$ at `hyper`: the outer loss after all `steps` updates."""
        return _value(self, float_leaves(hyper, "hyper"))

    def final_params(self, hyper: Hyper) -> Params:
        """$w_T$, the parameters after all `steps` updates."""
        return _final_params(self, float_leaves(hyper, "hyper"))

    def trajectory(self, hyper: Hyper) -> Float[Array, " steps_plus_1"]:
        """Inner losses $L_0 … L_T$, each at $w_s$ and on the batch that step s sees.

        The last entry is on the last batch, as in the default outer loss. Memory: one
        number a step beyond that of the run itself.
        """
        hyper = float_leaves(hyper, "hyper")
        losses, params = _trajectory(self, hyper)
        # A program of its own, so that its bits do not depend on the loop before it.
        return jnp.append(losses, _last_loss(self, hyper, params))

    def derivatives(self, hyper: Hyper) -> Derivatives:
        r"""The whole curve with $L_s'$ and $L_s''$, for one scalar hyperparameter.

        `NamedTuple(values, slopes, curvatures)`, each of length `steps` + 1: entry s
        belongs to `trajectory(hyper)[s]`, and `values` is that trajectory, to rounding
        (another program computes it). One forward pass, nested `jax.jvp`: about four
        runs' time, four states and 3(T + 1) numbers in memory, whatever the
        objective's `checkpoints`. Works with every optimizer, under `jit` and `vmap`,
        and can be differentiated again.

        Args:
            hyper: a scalar, or a pytree with one scalar leaf.

        Raises:
            ValueError: if `hyper` is anything else.

        Example:
            >>> import optax, metalr
            >>> loss = lambda params, hyper, batch: 0.5 * params**2
            >>> L = metalr.Unrolled(loss, optax.sgd, 1.0, steps=2)
            >>> print(L.derivatives(0.5).slopes, L.derivatives(0.5).curvatures)
            [ 0.   -0.5  -0.25] [0.  1.  1.5]
        """
        hyper = float_leaves(hyper, "hyper")
        remedy = "use jax.jacfwd(objective.trajectory), or a lambda of one of them"
        _derivatives.check_scalar(hyper, remedy)
        return _curve(self, hyper)

    # The parts of a run, for the engines that take it apart. `hyper` is prepared.

    def prepare(self, hyper: Hyper) -> Hyper:
        """`hyper` in the dtype of the run, checked against the optimizer."""
        if isinstance(self.optimizer, PerStep):
            self.optimizer.check(hyper, self.steps)
        dtype = one_dtype(jax.eval_shape(self._start, hyper), "params")
        return jax.tree.map(lambda leaf: leaf.astype(dtype), hyper)

    def transformation(self, hyper: Hyper) -> optax.GradientTransformationExtraArgs:
        """The optimizer of the run, guarded unless told otherwise."""
        optimizer = self.optimizer(hyper)
        if self.guarded:
            return guard(optimizer)
        return optax.with_extra_args_support(optimizer)

    def init(self, hyper: Hyper) -> State:
        """The state before the first update."""
        params = _tag(self._start(hyper), "params")
        return State(params, self.transformation(hyper).init(params))

    def step(
        self, hyper: Hyper, state: State, index: int | jax.Array
    ) -> tuple[State, Scalar]:
        """One update: the state after step `index`, and the inner loss before it."""
        value, grads, _ = self.gradients(hyper, state.params, index)
        value, grads = _tag(value, "loss"), _tag(grads, "grad")
        return self.update(hyper, state, value, grads, index), value

    def gradients(
        self, hyper: Hyper, params: Params, index: int | jax.Array
    ) -> tuple[Scalar, Params, Hyper]:
        """The inner loss of step `index`, its gradients in params and in hyper."""

        def loss(params: Params, hyper: Hyper, batch: Batch) -> Scalar:
            return _real_scalar(self.loss(params, hyper, batch), "loss")

        differentiate = jax.value_and_grad(loss, argnums=(0, 1))
        if self.microbatch is not None:
            differentiate = in_microbatches(differentiate, self.microbatch)
        value, grads = differentiate(params, hyper, self._batch(index))
        return value, *grads

    def update(
        self,
        hyper: Hyper,
        state: State,
        value: Scalar,
        grads: Params,
        index: int | jax.Array,
    ) -> State:
        """The state that the optimizer makes of a gradient."""
        updates, opt_state = self.transformation(hyper).update(
            grads,
            state.opt_state,
            state.params,
            value=value,
            grad=grads,
            value_fn=self.inner_loss(hyper, index),
        )
        params = _tag(optax.apply_updates(state.params, updates), "params")
        return State(params, opt_state)

    def inner_loss(self, hyper: Hyper, index: int | jax.Array) -> Any:
        """The inner loss of step `index` as a function of the parameters alone."""

        def inner_loss(params: Params) -> Scalar:
            value = self.loss(params, hyper, self._batch(index))
            return _real_scalar(value, "loss")

        return inner_loss

    def evaluate(self, hyper: Hyper, params: Params) -> Scalar:
        """The outer loss at `params`."""
        if self.outer_loss is not None:
            value = _real_scalar(self.outer_loss(params, hyper), "outer_loss")
        else:
            value = self.inner_loss(hyper, self.steps - 1)(params)
        return _tag(value, "loss")

    def _start(self, hyper: Hyper) -> Params:
        if _is_function(self.params):
            return float_leaves(self.params(hyper), "params(hyper)")
        return self.params

    def _batch(self, index: int | jax.Array) -> Batch:
        # Gathered by index inside the step: a scanned input would be saved per step.
        return jax.tree.map(lambda leaf: leaf[index], self.batches)

    def __repr__(self) -> str:
        optimizer = getattr(self.optimizer, "__name__", repr(self.optimizer))
        return f"Unrolled(optimizer={optimizer}, steps={self.steps})"

    def tree_flatten(self) -> tuple[tuple[PyTree, ...], tuple[Any, ...]]:
        """The arrays are children; functions and integers are static."""
        names = [field.name for field in dataclasses.fields(self)]
        arrays = [name for name in names if _holds_arrays(getattr(self, name))]
        static = tuple((n, getattr(self, n)) for n in names if n not in arrays)
        return tuple(getattr(self, name) for name in arrays), (tuple(arrays), static)

    @classmethod
    def tree_unflatten(
        cls, aux: tuple[Any, ...], children: tuple[PyTree, ...]
    ) -> "Unrolled":
        """Rebuild without the checks: the leaves may be anything JAX puts there."""
        arrays, static = aux
        new = object.__new__(cls)
        for name, value in (*static, *zip(arrays, children, strict=True)):
            object.__setattr__(new, name, value)
        return new


@compiled
def _value(objective: Unrolled, hyper: Hyper) -> Scalar:
    hyper = objective.prepare(hyper)
    return objective.evaluate(hyper, _run(objective, hyper).params)


@compiled
def _final_params(objective: Unrolled, hyper: Hyper) -> Params:
    return _run(objective, objective.prepare(hyper)).params


@compiled
def _trajectory(objective: Unrolled, hyper: Hyper) -> tuple[jax.Array, Params]:
    hyper = objective.prepare(hyper)
    state, losses = scan(
        lambda state, index: objective.step(hyper, state, index),
        objective.init(hyper),
        objective.steps,
        objective.checkpoints,
    )
    return losses, state.params


@compiled
def _last_loss(objective: Unrolled, hyper: Hyper, params: Params) -> Scalar:
    hyper = objective.prepare(hyper)
    return objective.inner_loss(hyper, objective.steps - 1)(params)


@compiled
def _curve(objective: Unrolled, hyper: Hyper) -> Derivatives:
    plain = dataclasses.replace(objective, checkpoints=None)
    return _derivatives.derivatives(plain.trajectory, hyper)


def _run(objective: Unrolled, hyper: Hyper) -> State:
    def body(state: State, index: jax.Array) -> tuple[State, None]:
        return objective.step(hyper, state, index)[0], None

    return scan(body, objective.init(hyper), objective.steps, objective.checkpoints)[0]


def _tag(tree: PyTree, kind: str) -> PyTree:
    """Name each leaf in the traced program (see `graph`); free once compiled."""

    def tag(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        return checkpoint_name(leaf, path_name(f"metalr:{kind}", path))

    return jax.tree_util.tree_map_with_path(tag, tree)


def _is_function(value: Any) -> bool:
    """A plain function, as opposed to a pytree (which may be callable as well)."""
    return callable(value) and jax.tree_util.all_leaves([value])


def _holds_arrays(value: Any) -> bool:
    leaves = jax.tree.leaves(value)
    return bool(leaves) and not isinstance(value, int) and not _is_function(value)


def _real_scalar(value: Any, name: str) -> Any:
    """The value itself, if its shape and dtype are those of a loss."""
    if not hasattr(value, "dtype"):
        value = jnp.asarray(value)
    if value.shape != () or not jnp.issubdtype(value.dtype, jnp.floating):
        msg = (
            f"{name} returned {value.dtype}{list(value.shape)}, but must return a real "
            "scalar: reduce it, e.g. with jnp.mean"
        )
        raise ValueError(msg)
    return value


def _probe_loss(objective: Unrolled) -> None:
    """Check now a loss that can be traced without hyper; others when first called."""
    if _is_function(objective.params):
        return

    def probe(params: Params) -> Any:
        return objective.loss(params, None, objective._batch(0))

    try:
        value = jax.eval_shape(probe, objective.params)
    except Exception:  # noqa: BLE001 (it needs hyper, or fails again when called)
        return
    _real_scalar(value, "loss")
