"""Classification by a described network: the cross-entropy, as a pytree of its data."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer
from jaxtyping import Array, Float, Int, PRNGKeyArray

from .. import convnet
from .._types import Batch, Hyper, Params, Scalar


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NetworkLoss:
    """Mean cross-entropy of a network on labeled inputs.

    `loss(params, hyper, batch)`, with params as made by `init`. `batch` is None for all
    examples, or an integer array of their indices. Does not depend on `hyper`. A
    pytree of the data, with the description as static part.
    """

    inputs: Any  # (n, ...) arrays; anything that JAX puts in a pytree's leaves
    labels: Any
    layers: tuple[convnet.Layer, ...] = dataclasses.field(metadata={"static": True})

    def __call__(self, params: Params, hyper: Hyper, batch: Batch) -> Scalar:
        """Mean cross-entropy over the examples of the batch."""
        del hyper
        inputs, labels = self.inputs, self.labels
        if batch is not None:
            inputs, labels = inputs[batch], labels[batch]
        logits = self.apply(params, inputs)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return jnp.mean(losses)

    def init(self, key: PRNGKeyArray) -> Params:
        """Random parameters, in the dtype of the inputs: see `metalr.convnet.init`."""
        shape, dtype = self.inputs.shape[1:], self.inputs.dtype
        return convnet.init(key, self.layers, shape, dtype=dtype)

    def apply(
        self, params: Params, inputs: Float[Array, "batch ..."]
    ) -> Float[Array, "batch classes"]:
        """Logits of a batch of inputs."""
        return convnet.apply(self.layers, params, inputs)

    def accuracy(
        self,
        params: Params,
        inputs: Float[Array, "batch ..."],
        labels: Int[Array, " batch"],
    ) -> Scalar:
        """The part of a batch whose largest logit is at the label."""
        return jnp.mean(jnp.argmax(self.apply(params, inputs), axis=-1) == labels)


def classifier(
    layers: Sequence[convnet.Layer],
    inputs: Float[Array, "n ..."],
    labels: Int[Array, " n"],
) -> NetworkLoss:
    r"""The inner loss of a classification by a described network.

    $$\ell(w) = -\frac1n\sum_i \log\mathrm{softmax}(f_w(x_i))_{t_i}$$

    with ReLU after every `Conv` and `Dense` but the last. Memory of one evaluation with
    its gradient: about batch · activations + 2 · parameters; see
    `metalr.convnet.size_table`.

    Args:
        layers: the description; the last layer is `Dense`, one unit a class.
        inputs: (n, height, width, channels), or (n, features).
        labels: classes 0, 1, ….

    Raises:
        ValueError: if a layer cannot follow what is before it, the last is not dense,
            or the labels do not fit.

    Example:
        >>> import jax, jax.numpy as jnp, optax, metalr
        >>> from metalr.convnet import Conv, Dense, Pool
        >>> from metalr.problems import classifier
        >>> inputs, labels = jnp.ones((3, 8, 8, 1)), jnp.array([0, 1, 1])
        >>> loss = classifier([Conv(4, 3), Pool(2), Dense(2)], inputs, labels)
        >>> params = loss.init(jax.random.key(0))
        >>> L = metalr.Unrolled(loss, optax.sgd, params, steps=1)
        >>> print(bool(L(0.01) < L(0.0)))
        True
    """
    layers = tuple(layers)
    *_, last = convnet.shapes(layers, inputs.shape[1:])
    if not isinstance(layers[-1], convnet.Dense):
        msg = f"the last layer, {layers[-1].label}, must be Dense: one unit a class"
        raise ValueError(msg)
    if labels.shape != inputs.shape[:1]:
        msg = f"inputs {inputs.shape} and labels {labels.shape} must share n"
        raise ValueError(msg)
    if not isinstance(labels, Tracer) and labels.size:
        low, high = int(jnp.min(labels)), int(jnp.max(labels))
        if low < 0 or high >= last[0]:
            msg = f"labels {low} … {high} need 0 ≤ label < {last[0]}, the units of the "
            msg += "last layer: renumber the classes or add units"
            raise ValueError(msg)
    return NetworkLoss(inputs, labels, layers)
