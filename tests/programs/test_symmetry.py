"""Which gradients are gradients: decided on the program, held against differences."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metalr._programs.known import known_function, same_program
from metalr._programs.symmetry import own_derivatives

X = jax.random.normal(jax.random.key(0), (4, 3))
LABELS = jnp.array([0, 2, 1, 1])
stop = jax.lax.stop_gradient


def found(function, *arguments, **options):
    return own_derivatives(jax.make_jaxpr(function)(*arguments), **options)


@jax.custom_vjp
def reversed_gradient(x):
    return x


reversed_gradient.defvjp(lambda x: (x, None), lambda _, t: (-t,))


@jax.custom_jvp
def straight_through(x):
    return jnp.round(x)


straight_through.defjvp(lambda p, t: (jnp.round(p[0]), t[0]))


@jax.custom_jvp
def relu(x):  # the name and the value of JAX's, not its rule
    return jax.nn.relu(x)


relu.defjvp(lambda p, t: (jax.nn.relu(p[0]), t[0]))


def _same_value(x):
    return jnp.maximum(x, 0)


_same_value.__name__ = "relu"
same_value = jax.custom_jvp(jax.jit(_same_value))
same_value.defjvp(lambda p, t: (jax.nn.relu(p[0]), t[0]))


def shifted(x, function):
    return function(x, stop(x))


TRUE = {
    "relu": lambda x: jnp.sum(jax.nn.relu(x) ** 2 + jax.nn.relu6(3.0 * x)),
    "softplus": lambda x: jnp.sum(jax.nn.softplus(x) * jax.nn.silu(x)),
    "log_sigmoid": lambda x: jnp.sum(jax.nn.log_sigmoid(x) + jnp.logaddexp(x, x**2)),
    "softmax": lambda x: jnp.sum(jax.nn.softmax(x, axis=0) ** 2),
    "log_softmax": lambda x: -jnp.mean(jax.nn.log_softmax(x)[jnp.arange(4), LABELS]),
    "logsumexp": lambda x: jax.nn.logsumexp(x * x[:, :1], 1, keepdims=True).sum(),
    "both axes": lambda x: jax.nn.softmax(x, axis=(0, 1))[0, 1],
    "cross entropy": lambda x: jnp.mean(
        optax.softmax_cross_entropy_with_integer_labels(x, LABELS)
    ),
    "attention": lambda x: jnp.sum((jax.nn.softmax(x @ x.T) @ x) ** 2),
    "example by example": lambda x: jnp.sum(
        jax.vmap(lambda r: jax.nn.softmax(jax.nn.relu(r)) @ jax.nn.softplus(r))(x)
    ),
    "number by number": lambda x: jnp.sum(jax.vmap(jax.vmap(jax.nn.relu))(x) ** 2),
    "checkpoint": lambda x: jnp.sum(jax.checkpoint(jax.nn.softmax)(x) ** 2),
    "scan": lambda x: jax.lax.scan(
        lambda c, row: (c + jax.nn.logsumexp(row + c), None), 0.0, x
    )[0],
    "cond": lambda x: jax.lax.cond(x[0, 0] > 5.0, jnp.sum, jax.nn.logsumexp, x),
    "what is stopped does not move": lambda x: jnp.sum(x * stop(jnp.arange(3.0))),
    "stopped twice": lambda x: shifted(
        x, lambda x, c: jnp.sum(jnp.log(jnp.exp(x - stop(c))) + c)
    ),
}


@pytest.mark.parametrize("name", TRUE)
def test_a_true_gradient_is_seen_to_be_one(name):
    function = TRUE[name]
    assert found(function, X) == ()
    gradient = jax.grad(function)
    hessian = jax.jacfwd(gradient)(X).reshape(12, 12)
    np.testing.assert_allclose(hessian, hessian.T, atol=1e-12)
    direction = jax.random.normal(jax.random.key(1), X.shape)
    run = jax.jit(lambda s: function(X + s * direction))
    slope = (8.0 * (run(1e-3) - run(-1e-3)) - run(2e-3) + run(-2e-3)) / 12e-3
    np.testing.assert_allclose(jnp.vdot(gradient(X), direction), slope, atol=1e-9)


OTHERS = {
    "target": (lambda x: jnp.sum((x[0] - stop(x[1])) ** 2), "stop_gradient"),
    "straight through": (
        lambda x: jnp.sum(x + stop(jnp.round(x) - x)),
        "stop_gradient",
    ),
    "the largest, but no softmax": (
        lambda x: jnp.sum(jnp.exp(x - stop(x.max()))),
        "stop_gradient",
    ),
    "the shift is not undone": (
        lambda x: jnp.log(jnp.sum(jnp.exp(x - stop(x.max())))),
        "stop_gradient",
    ),
    "undone twice": (
        lambda x: shifted(x, lambda x, c: jnp.sum(x - c + 2.0 * c)),
        "stop_gradient",
    ),
    "summed over the axis of the shift": (
        lambda x: shifted(
            x, lambda x, c: jnp.sum(jnp.sum(jnp.exp(x - c)) * jnp.exp(c))
        ),
        "stop_gradient",
    ),
    "added, then summed once": (
        lambda x: shifted(x[0, 0], lambda u, c: jnp.sum(x - c) + c),
        "stop_gradient",
    ),
    "sums of powers": (
        lambda x: shifted(
            x, lambda x, c: jnp.sum(jnp.exp(x - c)) * jnp.sum(jnp.exp(c))
        ),
        "stop_gradient",
    ),
    "two shifts": (lambda x: jnp.sum(x - stop(x) + stop(x**2)), "stop_gradient"),
    "another row's shift": (
        lambda x: shifted(
            x, lambda x, c: jnp.sum(jnp.exp(x - c) * jnp.exp(jnp.flip(c, 0)))
        ),
        "stop_gradient",
    ),
    "transposed": (
        lambda x: shifted(x[:3], lambda x, c: jnp.sum(jnp.exp(x - c) * jnp.exp(c.T))),
        "stop_gradient",
    ),
    "of another step": (
        lambda x: jax.lax.scan(
            lambda c, row: (stop(row), jnp.sum(row - stop(row) + c)), x[0], x
        )[1].sum(),
        "stop_gradient",
    ),
    "a branch chosen": (
        lambda x: jax.lax.cond(stop(x[0, 0]) > 0, jnp.sum, jnp.max, x),
        "stop_gradient",
    ),
    "reversal": (lambda x: jnp.sum(reversed_gradient(x)), "custom_vjp_call"),
    "a rule": (lambda x: jnp.sum(straight_through(x)), "custom_jvp_call"),
    "only the name": (lambda x: jnp.sum(relu(x)), "custom_jvp_call"),
    "only name and value": (lambda x: jnp.sum(same_value(x)), "custom_jvp_call"),
    "deep down": (
        lambda x: jax.lax.scan(
            jax.checkpoint(lambda c, row: (jax.jit(reversed_gradient)(c + row), None)),
            x[0],
            x,
        )[0].sum(),
        "custom_vjp_call",
    ),
    "a solver": (
        lambda x: jax.scipy.sparse.linalg.cg(lambda u: u * x[0] ** 2, x[1])[0].sum(),
        "custom_linear_solve",
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_may_not_be_a_gradient_is_named(name):
    function, primitive = OTHERS[name]
    assert primitive in found(function, X)


def test_only_what_is_differentiated_counts():
    program = jax.make_jaxpr(lambda w, h: w * reversed_gradient(h) + w * stop(h))
    program = program(1.0, 1.0)
    assert own_derivatives(program, inputs=[True, False]) == ()
    assert own_derivatives(program, inputs=[False, True]) == (
        "custom_vjp_call",
        "stop_gradient",
    )


@pytest.mark.parametrize("seed", range(40))
def test_a_stopped_value_is_passed_over_only_where_the_gradient_is_true(seed):
    # Random chains of what softmax is made of, with a stopped value in each place.
    rng = np.random.default_rng(seed)
    pieces = [
        lambda a, c: a - c,
        lambda a, c: a + c,
        lambda a, c: jnp.exp(a),
        lambda a, c: jnp.exp(0.3 * a) * jnp.exp(c),
        lambda a, c: a / jnp.exp(c),
        lambda a, c: jnp.log(jnp.abs(a)),
        lambda a, c: a / jnp.sum(a, 0, keepdims=True),
        lambda a, c: a - jnp.sum(a, 1, keepdims=True),
        lambda a, c: -a,
    ]
    chosen = [pieces[i] for i in rng.integers(len(pieces), size=5)]
    axis = int(rng.integers(2))

    def function(x):
        c = stop(jnp.max(x, axis, keepdims=True))
        a = x - c
        for piece in chosen:
            a = piece(a, c)
        return jnp.sum(jnp.tanh(a))

    if found(function, X) == ():
        gradient = jax.grad(function)(X)
        direction = jax.random.normal(jax.random.key(seed), X.shape)
        slope = (function(X + 1e-5 * direction) - function(X - 1e-5 * direction)) / 2e-5
        np.testing.assert_allclose(
            jnp.vdot(gradient, direction), slope, rtol=1e-5, atol=1e-7
        )


def test_programs_are_the_same_only_equation_for_equation():
    trace = lambda f: jax.make_jaxpr(f)(X)
    assert same_program(trace(lambda x: x * 2.0 + x), trace(lambda y: y * 2.0 + y))
    for other in (
        lambda x: x * 3.0 + x,
        lambda x: x + x * 2.0,
        lambda x: x * 2.0 - x,
        lambda x: (x * 2.0 + x).astype("float32"),
        lambda x: jax.lax.optimization_barrier(x * 2.0 + x),
    ):
        assert not same_program(trace(lambda x: x * 2.0 + x), trace(other))


@pytest.mark.parametrize("name", ["relu", "relu6", "logaddexp"])
def test_drift_of_jax_own_functions(name):
    # Fails when this JAX writes its function so that it is not recognized any more.
    own = {"relu": jax.nn.relu, "relu6": jax.nn.relu6, "logaddexp": jnp.logaddexp}[name]
    arguments = [X, 2.0 * X] if name == "logaddexp" else [X]
    eqn = jax.make_jaxpr(own)(*arguments).jaxpr.eqns[-1]
    assert known_function(eqn) == name


def test_the_value_of_a_call_is_not_enough_to_know_it():
    calls = [jax.make_jaxpr(f)(X).jaxpr.eqns[-1] for f in (jax.nn.relu, same_value)]
    own, other = (eqn.params["call_jaxpr"] for eqn in calls)
    assert same_program(own, other)
    assert known_function(calls[1]) is None


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_softmax_in_short_floats_is_known_too(dtype):
    x = X.astype(dtype)
    assert found(lambda x: jnp.sum(jax.nn.softmax(x) ** 2), x) == ()
    assert found(lambda x: jnp.sum(jax.nn.logsumexp(jax.nn.relu(x), 1)), x) == ()
