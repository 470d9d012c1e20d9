"""`L_T(η)`: the loss after T optimizer steps as a function of the hyperparameters."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._checks import float_leaves, int_at_least, positive_int
from .._programs.compiled import compiled, once
from .._programs.statics import Form, flatten, unflatten
from .._types import Hyper, Loss, Optimizer, OuterLoss, Params, Scalar
from . import derivatives as _derivatives
from .arguments import (
    batches_of,
    check_functions,
    is_function,
    params_of,
    real_scalar,
    strong,
    weights_of,
)
from .derivatives import Derivatives
from .run import whole
from .training import Record, State, Training

__all__ = ["Record", "State", "Unrolled"]

_STATIC = ("steps", "checkpoints", "microbatch", "guarded")


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Unrolled(Training):
    r"""The loss after `steps` optimizer steps, as a JAX function of hyperparameters.

    $$L_T(\eta) = F(w_T, \eta), \qquad
      w_{s+1} = w_s + u\bigl(\nabla_w \ell(w_s, \eta, b_s);\, \eta\bigr)$$

    with $u$ the update of `optimizer(hyper)`. All `steps` updates are made before the
    outer loss $F$ is evaluated. An `Unrolled` is frozen, callable, and a pytree of its
    arrays (`params`, `batches`, and what a `jax.tree_util.Partial` loss holds), so it
    can be an argument of `jit` and stacked over tasks for `vmap`.

    Supports `jit`, `vmap`, `grad`, `jacfwd`, `jacrev`, `hessian` and `grad` of `grad`.
    Forward mode keeps one state. Plain reverse mode keeps what each of the `steps`
    steps computes, or with `checkpoints=n` about n states.

    What is an array, what is static, what compiles anew: the numbers in `params`,
    `batches`, `model_state`, `outer_weights` and in the arguments of a `Partial` are
    arrays: new ones of the same shapes and dtypes run the program that there is.
    Functions, text and the counts (`steps`, `checkpoints`, `microbatch`) are static: a
    program belongs to them, and dies with them. Functions are compared by identity;
    `functools.partial`, `Partial`, bound methods and `per_step` by their parts. So a
    `lambda` or an inner `def` made anew in a loop compiles anew each time: define it
    once, and pass what changes as `Partial(loss, data)` or through `hyper`.

    Args:
        loss: `loss(params, hyper, batch) -> scalar`, the inner loss. `batch` is None
            where there are no batches. With `model_state`: `loss(params, hyper, batch,
            model_state) -> (scalar, new_model_state)`.
        optimizer: `hyper -> optax.GradientTransformation`; `optax.sgd` is one. Those
            that need `value`, `grad` or `value_fn` in their update receive them.
        params: where the run starts: a pytree of arrays, or a function `hyper ->
            params` where the start itself is learned. Float leaves, of whatever
            dtypes, are trained; others (ints, bools, keys) are constants that the loss
            sees, and functions among them are to be split off first (`eqx.partition`,
            `nnx.split`).
        steps: number of updates T ≥ 0; 0 is the loss at the start.
        batches: pytree whose leaves lead with an axis of length `steps`, or a function
            `index -> batch` that is called within each step (sampling, augmentation,
            keys; a `jax.tree_util.Partial` holds its data), or None.
        outer_loss: `outer_loss(params, hyper) -> scalar`, with `model_state` a third
            argument; by default the inner loss of the final parameters, on the last
            batch where there are batches. One with a parameter named `opt_state` gets
            the optimizer's state by that name (averaged or schedule-free weights).
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
        model_state: what the loss carries from step to step beside the parameters
            (batch statistics, counters, keys, metrics), a pytree of arrays. Its float
            leaves are differentiated; `run(hyper).records.model_state` has each step's.
        outer_weights: `steps + 1` numbers $c_s$: the value is then $\sum_s c_s
            F(w_s, \eta)$ (by default of `trajectory`), in one run.

    Raises:
        ValueError: for a `steps` that is not a natural number, batches of another
            length, params without a float, a loss that is not a real scalar,
            hyperparameters that are not floats.

    A diverged run is a result: inf or nan is returned, nothing is raised. The dtype of
    `params` is that of the whole run (the widest, where they differ): hyper is cast to
    it within each step, and keeps its own outside, where cotangents are summed (at
    least in float32). Parameters narrower than float32 move as they would alone; their
    derivatives are carried in float32.

    Larger than one device: place each leaf of `params` and `batches` where it should
    lie (`jax.device_put(leaf, NamedSharding(mesh, spec))`: examples split for data
    parallelism, weight matrices as FSDP does) and call as ever. Results are those of
    one device, and the states that an engine keeps stay split as the parameters are.
    On several hosts, after `jax.distributed.initialize()`, the leaves are global
    arrays (`jax.make_array_from_process_local_data`), and hyper is the same on all.

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
    steps: int | Any  # NumPy's integers as well
    batches: Any = None
    outer_loss: OuterLoss | None = None
    checkpoints: int | None = None
    microbatch: int | None = None
    guarded: bool = True
    model_state: Any = None
    outer_weights: Any = None

    def __post_init__(self) -> None:
        check_functions(
            self.model_state,
            loss=self.loss,
            optimizer=self.optimizer,
            outer_loss=self.outer_loss,
            batches=self.batches,
        )
        note = ": it counts updates, the length of a scan"
        _set(self, "steps", int_at_least(self.steps, "steps", 0, note=note))
        if not isinstance(self.guarded, bool):
            msg = f"guarded = {self.guarded!r} must be True or False"
            raise ValueError(msg)
        for name in ("checkpoints", "microbatch"):
            _set(self, name, positive_int(getattr(self, name), name))
        if not is_function(self.params):
            _set(self, "params", params_of(self.params, "params"))
        if self.batches is not None and not callable(self.batches):
            _set(self, "batches", batches_of(self.batches, self.steps))
        elif self.batches is None and self.microbatch is not None:
            msg = (
                f"microbatch = {self.microbatch} needs batches: there is none to split"
            )
            raise ValueError(msg)
        if self.model_state is not None and self.microbatch is not None:
            msg = (
                f"microbatch = {self.microbatch} with model_state: statistics of parts "
                "are not those of the batch. Leave one of them out"
            )
            raise ValueError(msg)
        if self.model_state is not None:
            _set(self, "model_state", jax.tree.map(strong, self.model_state))
        if self.outer_weights is not None:
            _set(self, "outer_weights", weights_of(self.outer_weights, self.steps))
        _probe_loss(self)

    def final_params(self, hyper: Hyper) -> Params:
        """$w_T$, the parameters after all `steps` updates."""
        return _final_params(self, float_leaves(hyper, "hyper"))

    def trajectory(self, hyper: Hyper) -> Float[Array, " steps_plus_1"]:
        """Inner losses $L_0 … L_T$, each at $w_s$ and on the batch that step s sees.

        The last entry is on the last batch, as in the default outer loss. Memory: one
        number a step beyond that of the run itself.
        """
        hyper = float_leaves(hyper, "hyper")
        losses, state = _trajectory(self, hyper)
        # A program of its own, so that its bits do not depend on the loop before it.
        return jnp.append(losses, _last_loss(self, hyper, state))

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

    def __repr__(self) -> str:
        optimizer = getattr(self.optimizer, "__name__", repr(self.optimizer))
        return f"Unrolled(optimizer={optimizer}, steps={self.steps})"

    def tree_flatten(self) -> tuple[list[Any], tuple[Form, tuple[Any, ...]]]:
        """The arrays are children; functions and counts are static."""
        names = [f.name for f in dataclasses.fields(self) if f.name not in _STATIC]
        arrays, form = flatten([getattr(self, name) for name in names])
        return arrays, (form, tuple(getattr(self, name) for name in _STATIC))

    @classmethod
    def tree_unflatten(
        cls, aux: tuple[Form, tuple[Any, ...]], children: Any
    ) -> "Unrolled":
        """Rebuild without the checks: the leaves may be anything JAX puts there."""
        form, static = aux
        new = object.__new__(cls)
        names = [f.name for f in dataclasses.fields(cls) if f.name not in _STATIC]
        values = (*unflatten(form, children), *static)
        for name, value in zip((*names, *_STATIC), values, strict=True):
            _set(new, name, value)
        return new


@compiled
def _final_params(objective: Unrolled, hyper: Hyper) -> Params:
    end = whole(objective, hyper, records=False).state
    return objective.public(objective.prepare(hyper), end).params


@compiled
def _trajectory(objective: Unrolled, hyper: Hyper) -> tuple[Array, State]:
    run = whole(objective, hyper)
    return run.records.loss, run.state


@compiled
def _last_loss(objective: Unrolled, hyper: Hyper, state: State) -> Scalar:
    hyper = objective.prepare(hyper)
    inner = dataclasses.replace(objective, outer_loss=None)
    return inner.outer(hyper, state)


@compiled
def _curve(objective: Unrolled, hyper: Hyper) -> Derivatives:
    plain = dataclasses.replace(objective, checkpoints=None)
    return _derivatives.derivatives(plain.trajectory, hyper)


_set = object.__setattr__


@once
def _probe_loss(objective: Unrolled) -> None:
    """Check now a loss that can be traced without hyper; others when first called."""
    if is_function(objective.params) or objective.model_state is not None:
        return

    def probe(params: Params) -> Any:
        return objective.loss(params, None, objective._batch(0))

    try:
        value = jax.eval_shape(probe, objective.params)
    except Exception:  # noqa: BLE001 (it needs hyper, or fails again when called)
        return
    real_scalar(value, "loss")
