"""An objective in other variables: the chain rule, once, whatever the engine."""

import jax
import jax.numpy as jnp
import optax
import pytest

import metalr
from metalr.problems import least_squares
from metalr.tasks import Each, Mean
from tests.helpers import assert_close, regression

X, T = regression(n=6, d=4)
STEPS = 6


def momentum():
    make = lambda h: optax.sgd(h["rate"], h["momentum"])
    return metalr.Unrolled(least_squares(X, T), make, jnp.zeros(4), steps=STEPS)


def squashed(z):
    """Only here is there an error function."""
    return {"rate": jnp.exp(z[0]), "momentum": 0.75 + 0.2 * jax.lax.erf(z[1])}


Z = jnp.array([-1.5, 0.3])
ENGINES = [
    metalr.Reverse(),
    metalr.Forward(),
    metalr.Mixed(),
    metalr.Reverse(checkpoints=2),
    metalr.Reversible(min_momentum=0.5),
    metalr.Truncated(last=2),
]


@pytest.mark.parametrize("engine", ENGINES, ids=repr)
def test_every_engine_is_applied_at_f_of_z_and_pulled_back(engine):
    L = momentum()
    hyper, pull_back = jax.vjp(squashed, Z)
    direct = metalr.hypergradient(L, hyper, engine)
    result = metalr.hypergradient(metalr.reparametrized(L, squashed), Z, engine)
    assert_close(result.value, direct.value, rtol=1e-12)
    assert_close(result.grad, pull_back(direct.grad)[0], rtol=1e-10)


def loops(jaxpr, inside=False):
    """Names of the primitives within loops."""
    for eqn in jaxpr.eqns:
        if inside:
            yield eqn.primitive.name
        for value in jax.tree.leaves(eqn.params, is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                within = inside or eqn.primitive.name in {"scan", "while"}
                yield from loops(inner, within)


@pytest.mark.parametrize("engine", ENGINES[:4], ids=repr)
def test_f_is_in_no_loop(engine):
    L = metalr.reparametrized(momentum(), squashed)
    for apply in (
        lambda z: metalr.hypergradient(L, z, engine),
        lambda z: engine(L, z),  # as `Each` calls it: by the parts of a run
    ):
        program = jax.make_jaxpr(apply)(Z).jaxpr
        assert "erf" in str(program)
        assert "erf" not in set(loops(program))


def test_it_is_a_run_with_the_parts_of_its_objective():
    L = momentum()
    other = metalr.reparametrized(L, squashed)
    hyper = squashed(Z)
    assert other.steps == STEPS
    assert_close(other(Z), L(hyper), rtol=1e-14)
    assert_close(other.run(Z), L.run(hyper), rtol=1e-14)
    middle = other.continued(L.run(hyper).state, 2)
    assert_close(middle(Z), L.continued(L.run(hyper).state, 2)(hyper), rtol=1e-14)
    training = metalr.windows(other, 3)
    _, result = training.update(training.init(Z), Z)
    whole = metalr.windows(L, 3)
    _, expected = whole.update(whole.init(hyper), hyper)
    pull_back = jax.vjp(squashed, Z)[1]
    assert_close(result.grad, pull_back(expected.grad)[0], rtol=1e-10)


def test_implicit_differentiation_of_a_log_penalty():
    """w* = 3/(1 + λ) with λ = e^z; F = w²: dF/dz = −2·9λ/(1 + λ)³."""
    loss = lambda w, h, b: 0.5 * (w - 3.0) ** 2 + 0.5 * h * w**2
    L = metalr.Unrolled(
        loss, lambda h: optax.sgd(0.5), 0.0, steps=80, outer_loss=lambda w, h: w**2
    )
    z = jnp.log(0.5)
    result = metalr.hypergradient(
        metalr.reparametrized(L, jnp.exp), z, metalr.Implicit()
    )
    assert_close(result.grad, jnp.array(-2 * 9 * 0.5 / 1.5**3), rtol=1e-6)


def test_a_simplex_is_learned_by_its_logits():
    """Mixing three sources: the weight goes to the one whose target is met."""
    sources = jnp.array([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
    loss = lambda w, h, b: 0.5 * h @ jnp.sum((w - sources) ** 2, axis=1)
    L = metalr.Unrolled(
        loss,
        lambda h: optax.sgd(0.5),
        jnp.zeros(2),
        steps=30,
        outer_loss=lambda w, h: jnp.sum((w - jnp.array([0.6, 0.2])) ** 2),
    )
    learned = metalr.learn(
        metalr.reparametrized(L, jax.nn.softmax),
        jnp.zeros(3),
        outer_optimizer=optax.lbfgs(),
        engine=metalr.Mixed(),
        steps=60,
        atol=1e-8,
    )
    mixture = jax.nn.softmax(learned.hyper) @ sources
    assert_close(mixture, jnp.array([0.6, 0.2]), rtol=1e-6)


def test_log_is_the_special_case():
    L = metalr.Unrolled(least_squares(X, T), optax.sgd, jnp.zeros(4), steps=3)
    options = {"outer_optimizer": optax.adam(0.1), "steps": 5}
    log = metalr.learn(L, 0.1, log=True, **options)
    z = metalr.learn(metalr.reparametrized(L, jnp.exp), jnp.log(0.1), **options)
    assert_close(jnp.log(log.history.hyper), z.history.hyper, rtol=1e-12)
    assert_close(log.history.grad_norm, z.history.grad_norm, rtol=1e-10)


def test_tasks_that_fail_are_left_out_behind_it_as_well():
    bowl = lambda place, h: jnp.where(place == 2.0, jnp.nan, 1.0) * (h - place) ** 2
    mean = Mean(jax.tree_util.Partial(bowl, jnp.array([1.0, 2.0, 3.0])))
    learned = metalr.learn(
        metalr.reparametrized(mean, jnp.exp),
        0.0,
        engine=Each(metalr.Forward()),
        outer_optimizer=optax.sgd(0.1),
        steps=200,
    )
    assert_close(learned.hyper, jnp.log(2.0), rtol=1e-6)
    assert learned.history.lost[0] == 1.0


def test_what_is_no_function_or_what_f_does_not_see_is_refused():
    with pytest.raises(ValueError, match="function = 3 must be a function"):
        metalr.reparametrized(momentum(), 3)
    half = metalr.reparametrized(momentum(), lambda z: squashed(z["used"]))
    with pytest.raises(ValueError, match=r"does not depend on hyper\['other'\]"):
        metalr.hypergradient(half, {"used": Z, "other": jnp.array(1.0)})
