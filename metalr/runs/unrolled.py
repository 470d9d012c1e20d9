"""`L_T(η)`: the loss after T optimizer steps as a function of the hyperparameters."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from .._checks import float_leaves, int_at_least, path_name, positive_int
from .._programs.compiled import compiled, once
from .._programs.statics import Form, flatten, unflatten
from .._types import Batch, Hyper, Loss, Optimizer, OuterLoss, Params, PyTree, Scalar
from ..optimizers.guard import guard
from ..optimizers.per_step import PerStep
from ..optimizers.update import made, standard, update
from . import derivatives as _derivatives
from .arguments import (
    batches_of,
    check_functions,
    is_function,
    pair,
    params_of,
    real_scalar,
    same_state,
    strong,
    takes_opt_state,
    weights_of,
)
from .derivatives import Derivatives
from .gradient import (
    Gradients,
    combined,
    linearized,
    rules_within,
    trained,
    transposed,
)
from .microbatch import in_microbatches
from .precision import cast, like, moved, wide, widest
from .run import (
    Bar,
    Unroll,
    at_least_float32,
    is_float,
    moving,
    refilled,
    whole,
)


class State(NamedTuple):
    """What one inner step hands to the next."""

    params: Params  # leaves narrower than float32 are carried as float32
    opt_state: Any
    model_state: PyTree = None
    total: Any = None  # of the weighted outer losses so far


class Record(NamedTuple):
    """What one inner step records."""

    loss: Scalar  # the inner loss before the update
    model_state: PyTree = None  # after it


_STATIC = ("steps", "checkpoints", "microbatch", "guarded")


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Unrolled(Unroll):
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

    # The parts of a run. `hyper` is prepared.

    def prepare(self, hyper: Hyper) -> Hyper:
        """`hyper` checked against the optimizer, its leaves at least float32."""
        if isinstance(self.optimizer, PerStep):
            self.optimizer.check(hyper, self.steps)
        return jax.tree.map(at_least_float32, hyper)

    def init(self, hyper: Hyper) -> State:
        """The state before the first update."""
        start = self._start(hyper)
        dtype = widest(start)
        opt_state = self.transformation(cast(hyper, dtype)).init(trained(start))
        total = None
        if self.outer_weights is not None:
            total = jnp.zeros((), jnp.promote_types(dtype, "float32"))
        carried = jax.tree.map(wide, _tag(start, "params"))
        return State(carried, opt_state, self.model_state, total)

    def step(
        self, hyper: Hyper, state: State, index: int | Array
    ) -> tuple[State, Record]:
        """One update: the state after step `index`, and the inner loss before it."""
        params = self._narrow(hyper, state)
        field = self._field(params, state.model_state, 0)
        used, batch = self.used(hyper), self._batch(index)
        (value, new), grads = field(trained(params), used, batch)
        value, grads = _tag(value, "loss"), _tag(grads, "grad")
        after = self.update(hyper, state, value, grads, index, new)
        return after, Record(value, new)

    def pull_back(
        self, hyper: Hyper, state: State, index: int | Array, bar: Bar
    ) -> tuple[Bar, Hyper]:
        """As `Unroll.pull_back`; cheaper where the inner field is a gradient.

        The optimizer's update is pulled back by `jax.vjp`, and the inner gradient by
        `field`: nothing within it is kept.
        """
        if self.model_state is not None:
            return super().pull_back(hyper, state, index, bar)
        value, grads, pull = self.field(hyper, state, index)
        leaves, rebuild = moving(state, bar)

        def forward(leaves: list, hyper: Hyper, value: Scalar, grads: Params) -> list:
            new = self.update(hyper, rebuild(leaves), value, grads, index)
            return moving(new, bar)[0]

        _, transpose = jax.vjp(forward, leaves, hyper, value, grads)
        given = [x for x in bar if x is not None]
        leaves_bar, hyper_bar, value_bar, grads_bar = transpose(given)
        params_bar, used_bar = pull(value_bar, grads_bar)
        direct = iter(jax.tree.leaves(params_bar))
        places = [is_float(x) for x in jax.tree.leaves(state.params)]
        through = [next(direct) if there else None for there in places]
        through += [None] * (len(bar) - len(through))
        add = lambda a, b: a if a is None or b is None else a + b.astype(a.dtype)
        new = map(add, refilled(bar, leaves_bar), through)
        return list(new), jax.tree.map(add, hyper_bar, used_bar)

    def field(
        self, hyper: Hyper, state: State, index: int | Array
    ) -> tuple[Scalar, Params, Any]:
        """Loss and gradient of step `index`, and the way back through both.

        Returns:
            value, gradient (float leaves of params), and `pull(value_bar, grads_bar) ->
            (params_bar, hyper_bar)`, by a symmetric product where `rules` finds nothing
            against it. For runs without `model_state`.
        """
        params, batch = self._narrow(hyper, state), self._batch(index)
        train, used = trained(params), self.used(hyper)
        if self.rules(hyper, state, index):
            alone = self._field(params, None, 0)

            def apart(train: Params, used: Hyper) -> tuple[Scalar, Params]:
                (value, _), grads = alone(train, used, batch)
                return value, grads

            return transposed(apart, train, used)
        (value, grads, _), pull = self._linearized(params, used, batch)
        return value, grads, pull

    def rules(self, hyper: Hyper, state: State, index: int | Array) -> tuple[str, ...]:
        """What may keep the inner field from being a gradient, by name."""
        params, batch = self._narrow(hyper, state), self._batch(index)

        def loss(train: Params, used: Hyper) -> Scalar:
            full = combined(train, params)
            return self._evaluated(full, used, batch, state.model_state)[0]

        return rules_within(loss, trained(params), self.used(hyper))

    def evaluate(self, hyper: Hyper, state: State) -> Scalar:
        """The outer loss of a run that ends in `state`."""
        last = self.outer(hyper, state)
        if state.total is None:
            return last
        return state.total + self.outer_weights[-1].astype(last.dtype) * last

    def outer(self, hyper: Hyper, state: State) -> Scalar:
        """The outer loss at `state`, on the last batch where it is the inner one."""
        if self.outer_loss is None:
            inner = self.inner_loss(hyper, max(self.steps - 1, 0), state)
            value = inner(trained(self._narrow(hyper, state)))
            return _tag(value, "loss")
        further: tuple[Any, ...] = (self._narrow(hyper, state), self.used(hyper))
        if self.model_state is not None:
            further = (*further, state.model_state)
        named = {"opt_state": state.opt_state}
        if not takes_opt_state(self.outer_loss):
            named = {}
        value = real_scalar(self.outer_loss(*further, **named), "outer_loss")
        return _tag(value, "loss")

    def public(self, hyper: Hyper, state: State) -> State:
        """A state as users see it: params in their dtypes."""
        return state._replace(params=self._narrow(hyper, state))

    def accepted(self, state: State) -> State:
        """A state as the steps carry it."""
        return state._replace(params=jax.tree.map(wide, state.params))

    def accumulated(self, state: State) -> Scalar | float:
        """The weighted outer losses so far."""
        return 0.0 if state.total is None else state.total

    def transformation(self, hyper: Hyper) -> optax.GradientTransformationExtraArgs:
        """The optimizer of the run, guarded unless told otherwise."""
        optimizer = made(self.optimizer, hyper)
        return guard(optimizer) if self.guarded else standard(optimizer)

    def gradients(self, hyper: Hyper, params: Params, index: int | Array) -> Gradients:
        """The inner loss of step `index`, its gradients in params and in hyper.

        For runs without `model_state`; hyper is differentiated within the loss, so that
        a custom derivative rule there is used up: see `step`.
        """
        params = like(params, self._start_shapes(hyper))
        return self._linearized(params, self.used(hyper), self._batch(index))[0]

    def update(
        self,
        hyper: Hyper,
        state: State,
        value: Scalar,
        grads: Params,
        index: int | Array,
        model_state: PyTree = None,
    ) -> State:
        """The state that the optimizer makes of a gradient."""
        params, used = self._narrow(hyper, state), self.used(hyper)
        train = trained(params)
        updates, opt_state = update(
            self.transformation(used),
            grads,
            state.opt_state,
            train,
            value=value,
            value_fn=self.inner_loss(hyper, index, state),
        )
        new = optax.apply_updates(train, updates)
        carried = jax.tree.map(moved, trained(state.params), updates, new)
        params = _tag(combined(carried, state.params), "params")
        total = state.total
        if total is not None:
            outer = value if self.outer_loss is None else self.outer(hyper, state)
            total += (self.outer_weights[index] * outer).astype(total.dtype)
        return State(params, opt_state, model_state, total)

    def inner_loss(
        self, hyper: Hyper, index: int | Array, state: State | None = None
    ) -> Any:
        """The inner loss of step `index` as a function of the parameters alone.

        Constants among the parameters, and the model's state, are those of `state`.
        """
        used, batch = self.used(hyper), self._batch(index)
        model_state = self.model_state if state is None else state.model_state

        def inner_loss(params: Params) -> Scalar:
            if state is None:
                params = like(params, self._start_shapes(hyper))
            else:
                params = combined(params, self._narrow(hyper, state))
            return self._evaluated(params, used, batch, model_state)[0]

        return inner_loss

    def _evaluated(
        self, params: Params, hyper: Hyper, batch: Batch, model_state: PyTree
    ) -> tuple[Scalar, PyTree]:
        """The inner loss, checked, and the model's new state."""
        if self.model_state is None:
            return real_scalar(self.loss(params, hyper, batch), "loss"), None
        value, new = pair(self.loss(params, hyper, batch, model_state))
        return real_scalar(value, "loss"), same_state(model_state, new)

    def _field(
        self, params: Params, model_state: PyTree, argnums: int | tuple[int, ...]
    ) -> Any:
        """`(train, hyper, batch) -> ((value, new model_state), gradients)`."""

        def loss(train: Params, hyper: Hyper, batch: Batch) -> tuple[Scalar, PyTree]:
            full = combined(train, params)
            return self._evaluated(full, hyper, batch, model_state)

        field = jax.value_and_grad(loss, argnums, has_aux=True)
        return in_microbatches(field, self.microbatch) if self.microbatch else field

    def _linearized(
        self, params: Params, used: Hyper, batch: Batch
    ) -> tuple[Gradients, Any]:
        both = self._field(params, None, (0, 1))

        def value_and_grads(train: Params, used: Hyper) -> Any:
            (value, _), grads = both(train, used, batch)
            return value, grads

        return linearized(value_and_grads, trained(params), used)

    def _start(self, hyper: Hyper) -> Params:
        if is_function(self.params):
            return params_of(self.params(hyper), "params(hyper)")
        return self.params

    def _start_shapes(self, hyper: Hyper) -> Params:
        if is_function(self.params):
            return jax.eval_shape(self._start, hyper)
        return self.params

    def _narrow(self, hyper: Hyper, state: State) -> Params:
        """The parameters of a state in their own dtypes."""
        return like(state.params, self._start_shapes(hyper))

    def used(self, hyper: Hyper) -> Hyper:
        """`hyper` in the dtype of the run, as loss and optimizer see it."""
        return cast(hyper, widest(self._start_shapes(hyper)))

    def _batch(self, index: int | Array) -> Batch:
        # Gathered by index inside the step: a scanned input would be saved per step.
        if callable(self.batches):
            return self.batches(jnp.asarray(index))
        return jax.tree.map(lambda leaf: leaf[index], self.batches)

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


def _tag(tree: PyTree, kind: str) -> PyTree:
    """Name each float in the traced program (see `graph`); free once compiled."""

    def tag(path: tuple[Any, ...], leaf: Array) -> Array:
        if not is_float(leaf):
            return leaf
        return checkpoint_name(leaf, path_name(f"metalr:{kind}", path))

    return jax.tree_util.tree_map_with_path(tag, tree)


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
