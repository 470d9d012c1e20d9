"""What the engines that smooth share: noise, its scale, and its statistics."""

import functools
import math
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from .._checks import (
    expand_prefix,
    int_at_least,
    path_name,
    positive_int,
    random_key,
)
from .._types import Hyper, Objective, Scalar
from ..runs.run import Run, is_run, whole
from ._engine import run_of
from .facts import state_bytes


class SmoothedHyperGradient(NamedTuple):
    """A Monte Carlo estimate of the gradient of a smoothed objective."""

    value: Scalar  # of the objective itself, without noise
    grad: Hyper
    standard_error: Hyper  # of grad: deviation over the pairs by root of their number
    smoothed: Float[Array, "*batch"]  # mean value of the perturbed runs


class Smoothing:
    """Base of the engines that perturb hyper: a pytree of `key` and `sigma`.

    Key and sigma are children, so that a new key does not compile anew and both may be
    traced or batched; the rest is static. Hashable as long as they are concrete.
    """

    derivative_free: ClassVar[bool] = True
    exact: ClassVar[bool] = False  # the derivative of a smoothed objective
    static: ClassVar[tuple[str, ...]]

    sigma: Any
    pairs: int
    key: Any
    chunk: int | None

    def check(self) -> None:
        """Check the options, and make the key a typed one.

        Raises:
            ValueError: for an option that is out of range or of the wrong kind.
        """
        object.__setattr__(self, "key", random_key(self.key))
        for path, leaf in jax.tree_util.tree_leaves_with_path(self.sigma):
            _positive(path_name("sigma", path), leaf)
        if not jax.tree.leaves(self.sigma):
            msg = (
                f"sigma = {self.sigma!r} must be a positive number, or a pytree of them"
            )
            raise ValueError(msg)
        for name in self.static:
            check = positive_int if name == "chunk" else _count
            object.__setattr__(self, name, check(getattr(self, name), name))

    def __call__(self, objective: Objective, hyper: Hyper) -> SmoothedHyperGradient:
        """Run the pairs, and the unperturbed run for the value."""
        return self._estimate(objective, hyper, objective(hyper))

    def with_run(
        self, objective: Objective, hyper: Hyper
    ) -> tuple[SmoothedHyperGradient, Run]:
        """And the run without noise."""
        run = whole(run_of(objective, self), hyper)
        return self._estimate(objective, hyper, run.value), run

    def pair(
        self, objective: Objective, hyper: Hyper, sigma: Hyper, key: Any
    ) -> tuple[Hyper, Scalar]:
        """The estimate of one pair, and its mean value."""
        raise NotImplementedError

    def cost(self, objective: Objective, hyper: Hyper) -> float:
        """2N + 1 runs."""
        del objective, hyper
        return 2.0 * self.pairs + 1.0

    def kept_bytes(self, objective: Objective, hyper: Hyper) -> int:
        """The states of the pairs that run at once."""
        if not is_run(objective):
            return 0
        width = min(self.chunk or self.pairs, self.pairs)
        return 2 * width * state_bytes(objective, hyper)

    def tree_flatten(self) -> tuple[tuple[Any, Any], tuple[Any, ...]]:
        """Sigma and key are children."""
        return (self.sigma, self.key), tuple(getattr(self, n) for n in self.static)

    @classmethod
    def tree_unflatten(cls, aux: tuple[Any, ...], children: tuple[Any, Any]) -> Any:
        """Rebuild without the checks: the leaves may be anything JAX puts there."""
        new = object.__new__(cls)
        names = ("sigma", "key", *cls.static)
        for name, value in zip(names, (*children, *aux), strict=True):
            object.__setattr__(new, name, value)
        return new

    def _identity(self) -> tuple[Any, ...]:
        leaves, structure = jax.tree.flatten(self.sigma)
        values = tuple((np.shape(x), np.asarray(x, float).tobytes()) for x in leaves)
        key = str(jax.random.key_impl(self.key)), _words(self.key)
        return type(self), values, structure, key, self.tree_flatten()[1]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Smoothing) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    def __repr__(self) -> str:
        concrete = not isinstance(self.key, Tracer) and self.key.shape == ()
        key = " ".join(map(str, _words(self.key))) if concrete else "traced"
        shown = {n: getattr(self, n) for n in ("sigma", "pairs", *self.static)}
        options = [f"{n}={v!r}" for n, v in shown.items() if v is not None]
        return f"{type(self).__name__}({', '.join(options)}, key=<{key}>)"

    def _estimate(
        self, objective: Objective, hyper: Hyper, value: Scalar
    ) -> SmoothedHyperGradient:
        """Mean and standard error over the pairs; each has its own key."""
        sigma = expand_prefix(self.sigma, hyper, "sigma")
        pair = functools.partial(self.pair, objective, hyper, sigma)
        keys = jax.random.split(self.key, self.pairs)
        if self.chunk is None or self.chunk >= self.pairs:
            grads, values = jax.vmap(pair)(keys)
        else:
            grads, values = jax.lax.map(pair, keys, batch_size=self.chunk)
        mean = jax.tree.map(lambda g: jnp.mean(g, axis=0), grads)
        error = jax.tree.map(lambda g: standard_error(g, self.pairs), grads)
        return SmoothedHyperGradient(value, mean, error, jnp.mean(values))


def _count(value: Any, name: str) -> int:
    return int_at_least(value, name, 1)


def normal(key: Any, hyper: Hyper) -> Hyper:
    """Standard normal noise in the structure, shapes and dtypes of hyper."""
    leaves, structure = jax.tree.flatten(hyper)
    keys = jax.random.split(key, len(leaves))
    noise = [
        jax.random.normal(k, x.shape, x.dtype)
        for k, x in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, noise)


def shifted(hyper: Hyper, sigma: Hyper, noise: Hyper, sign: float | Array) -> Hyper:
    r"""$\eta \pm \sigma\varepsilon$."""
    return jax.tree.map(
        lambda h, s, e: h + (sign * s * e).astype(h.dtype), hyper, sigma, noise
    )


def weighted(noise: Hyper, sigma: Hyper, plus: Scalar, minus: Scalar) -> Hyper:
    r"""$\varepsilon\,(L_+ - L_-)/2\sigma$, in the dtypes of the noise."""
    return jax.tree.map(
        lambda e, s: e * ((plus - minus).astype(e.dtype) / (2.0 * s)), noise, sigma
    )


def standard_error(samples: Array, pairs: int) -> Array:
    """Of the mean over pairs, entry by entry; nan for a single pair."""
    if pairs == 1:
        return jnp.full_like(samples[0], jnp.nan)
    return jnp.std(samples, axis=0, ddof=1) / math.sqrt(pairs)


def _words(key: Any) -> tuple[int, ...]:
    return tuple(np.asarray(jax.random.key_data(key)).ravel().tolist())


def _positive(name: str, value: Any) -> None:
    if isinstance(value, Tracer):
        return
    try:
        good = np.all(np.isfinite(value) & (np.asarray(value) > 0.0))
    except TypeError:
        good = False
    if not good or isinstance(value, bool):
        msg = f"{name} = {value!r} must be positive: it is the deviation of the noise"
        raise ValueError(msg)
