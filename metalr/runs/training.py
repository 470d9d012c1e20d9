"""Training as a run: what one step is, of a loss and an optax optimizer.

The parts that engines know a run by (see `run`), for `Unrolled`; the inner gradient is
pulled back by a symmetric product where the loss shows that it is one.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array

from .._checks import path_name
from .._types import Batch, Hyper, Loss, Optimizer, OuterLoss, Params, PyTree, Scalar
from ..optimizers.guard import guard
from ..optimizers.per_step import PerStep
from ..optimizers.update import made, standard, update
from .arguments import (
    is_function,
    pair,
    params_of,
    real_scalar,
    same_state,
    takes_opt_state,
)
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
from .run import Bar, Unroll, at_least_float32, is_float, moving, refilled


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


class Training(Unroll):
    """The parts of a run of training; `hyper` is prepared. Base of `Unrolled`."""

    loss: Loss
    optimizer: Optimizer
    params: Any
    batches: Any
    outer_loss: OuterLoss | None
    microbatch: int | None
    guarded: bool
    model_state: Any
    outer_weights: Any

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
        carried = jax.tree.map(wide, _named(start, "params"))
        return State(carried, opt_state, self.model_state, total)

    def step(
        self, hyper: Hyper, state: State, index: int | Array
    ) -> tuple[State, Record]:
        """One update: the state after step `index`, and the inner loss before it."""
        params = self._narrow(hyper, state)
        field = self._field(params, state.model_state, 0)
        used, batch = self.used(hyper), self._batch(index)
        (value, new), grads = field(trained(params), used, batch)
        value, grads = _named(value, "loss"), _named(grads, "grad")
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
            return _named(value, "loss")
        further: tuple[Any, ...] = (self._narrow(hyper, state), self.used(hyper))
        if self.model_state is not None:
            further = (*further, state.model_state)
        named = {"opt_state": state.opt_state}
        if not takes_opt_state(self.outer_loss):
            named = {}
        value = real_scalar(self.outer_loss(*further, **named), "outer_loss")
        return _named(value, "loss")

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
        params = _named(combined(carried, state.params), "params")
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


def _named(tree: PyTree, kind: str) -> PyTree:
    """Name each float in the traced program (see `graph`); free once compiled."""

    def tag(path: tuple[Any, ...], leaf: Array) -> Array:
        if not is_float(leaf):
            return leaf
        return checkpoint_name(leaf, path_name(f"metalr:{kind}", path))

    return jax.tree_util.tree_map_with_path(tag, tree)
