"""Six meta-gradients: those of hand-written JAX, and on quadratics the closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metalr
from experiments import maml
from experiments._maml import by_hand, judging, methods, papers
from experiments._maml.methods import METHODS, Inner
from experiments._maml.sinusoids import Family, Points, Sinusoid, network
from experiments._settings.beside import difference
from metalr.tasks import Each, Mean
from tests.helpers import assert_close

TINY = maml.Config(
    steps=3,
    shots=4,
    meta_batch=2,
    reptile_steps=2,
    imaml_steps=2,
    judged_tasks=3,
    judged_points=4,
    judged_shots=(4,),
    judged_after=(0, 1),
    timed_steps=2,
)


@pytest.mark.parametrize("name", METHODS)
def test_every_meta_gradient_is_that_of_hand_written_jax(name, key):
    inner = Inner(iterations=5)
    theta = METHODS[name].start(network(key, "float64", width=6), inner)
    keys = jax.random.split(key, 3)
    family = Family(4, 5, (0.8, 1.2), "float64")
    mean = methods.mean(METHODS[name], family, 2, inner, 3, key)
    found = metalr.hypergradient(mean, theta, Each(METHODS[name].engine(inner)))
    one = lambda task: by_hand.GRADIENTS[name](theta, task, 2, inner)
    each = jax.jit(jax.vmap(one))(jax.vmap(family.draw)(keys))
    value, grad = jax.tree.map(lambda x: x.mean(0), each)
    # Conjugate gradients amplify rounding; the others are the same sums reordered.
    rtol = 1e-6 if name == "imaml" else 1e-12
    assert_close(found.value, value, rtol=1e-12)
    assert difference(found.grad, grad) < rtol
    assert optax.tree.norm(grad) > 1e-3


def test_the_whole_loop_is_the_hand_written_one(key):
    start, make, engine = maml.problem("maml", TINY)
    ours = metalr.learn(
        make, start, key=key, outer_optimizer=optax.adam(1e-3), steps=3, engine=engine
    )
    theirs = by_hand.learn(
        by_hand.maml,
        start,
        key,
        family=TINY.family,
        tasks=2,
        inner_steps=1,
        inner=TINY.inner,
        steps=3,
        rate=1e-3,
    )
    assert difference(ours.hyper, theirs) < 1e-12
    assert difference(start, theirs) > 1e-5


H, C = np.array([0.5, 1.0, 3.0]), np.array([2.0, -1.0, 0.5])
RATE, STRENGTH, THETA = 0.2, 2.0, 0.7


@pytest.fixture
def quadratics(monkeypatch):
    """The recipes on ½ h (θ − c)²: h and c in place of the points."""

    def error(params, points):
        return jnp.mean(0.5 * points.x * (params - points.y) ** 2)

    monkeypatch.setattr(methods, "error", error)

    def mean(name, steps=1):
        points = Points(jnp.array(H)[:, None], jnp.array(C)[:, None])
        inner = Inner(RATE, STRENGTH, RATE)
        make = lambda task: METHODS[name].objective(task, steps, inner)
        return Mean.of(make, Sinusoid(points, points))

    return mean


def test_on_quadratics_the_meta_gradients_are_the_closed_forms(quadratics):
    shrunk = 1 - RATE * H
    near = (H * C + STRENGTH * THETA) / (H + STRENGTH)  # the proximal minimum
    expected = {
        "maml": H * shrunk**2 * (THETA - C),
        "first_order": H * shrunk * (THETA - C),
        "reptile": THETA - (C + shrunk * (THETA - C)),
        "imaml": STRENGTH / (STRENGTH + H) * H * (near - C),
    }
    for name, grads in expected.items():
        engine = Each(METHODS[name].engine(Inner()))
        # Steps of 0.2 on curvatures of 2.5 to 5 shrink the distance by half: 2^-50.
        mean = quadratics(name, steps=50 if name == "imaml" else 1)
        found = metalr.hypergradient(mean, THETA, engine)
        assert_close(found.grads, jnp.array(grads), rtol=1e-9)
    hyper = {"start": jnp.array(THETA), "rates": jnp.array(RATE)}
    found = metalr.hypergradient(quadratics("meta_sgd"), hyper, Each(metalr.Reverse()))
    assert_close(found.grads["start"], jnp.array(expected["maml"]), rtol=1e-12)
    by_rate = -(H**2) * shrunk * (THETA - C) ** 2
    assert_close(found.grads["rates"], jnp.array(by_rate), rtol=1e-12)


def test_on_quadratics_the_learned_start_is_the_closed_form(quadratics):
    weights = H * (1 - RATE * H) ** 2
    learned = metalr.learn(
        quadratics("maml"), THETA, outer_optimizer=metalr.Newton(), steps=20
    )
    assert_close(learned.hyper, jnp.array(weights @ C / weights.sum()), rtol=1e-12)


def test_a_tiny_run_gives_errors_and_a_price(tmp_path):
    config = TINY.model_copy(update={"methods": ("maml",)})
    errors, price = records = list(maml.run(config))
    assert maml.size(config) == 2
    assert errors["after_0"] > 0.0
    assert errors["lost"] == "0 0"
    assert price["gradient_difference"] < 1e-12
    assert price["learned_difference"] < 1e-12
    assert price["cost_ratio"] > 0.0
    assert price["statements"] > 10  # with their helpers
    assert price["statements_by_hand"] > 10
    assert set(maml.figures(records)) == {"maml"}
    assert "within" in maml.headline(records)


def test_a_figure_is_comparable_in_its_own_setting_alone():
    theirs = maml.Config(shots=5, frequency=(0.8, 1.2), meta_batch=4, steps=60_000)
    errors = {1: judging.Error(1.1, 0.1, 0)}
    row = papers.beside("maml", 5, errors, theirs)
    assert row["published"].endswith("1.13 ± 0.18 after 1")
    assert row["comparable"] == "yes"
    assert row["holds"]
    far = {1: judging.Error(2.0, 0.1, 0)}
    assert not papers.beside("maml", 5, far, theirs)["holds"]
    shorter = theirs.model_copy(update={"steps": 100})
    row = papers.beside("maml", 5, errors, shorter)
    assert row["comparable"] == "no: steps 100 instead of 60000"
    assert row["holds"] is None
    assert papers.beside("anil", 5, errors, theirs) == {}


def test_the_published_rows_are_the_six_figures_of_the_table(monkeypatch):
    from experiments._published import sinusoids

    def errors_of(name, config):
        assert not papers.departures(papers.META_SGD, config)
        for shots in config.judged_shots:
            yield shots, {1: judging.Error(0.6, 0.05, 0)}

    monkeypatch.setattr(maml, "errors_of", errors_of)
    rows = list(sinusoids.table(steps=60_000, seed=0))
    assert [row.published for row in rows] == [1.13, 0.85, 0.71, 0.9, 0.63, 0.5]
    assert [row.holds for row in rows] == [False, False, True, False, True, True]


def test_the_rows_of_the_figure_are_judged_in_its_own_setting(monkeypatch):
    from experiments._published import sinusoids

    def errors_of(name, config):
        assert not papers.departures(papers.MAML, config)
        assert (name, config.judged_shots) == ("maml", (5,))
        yield 5, {n: judging.Error(0.6, 0.05, 0) for n in config.judged_after}

    monkeypatch.setattr(maml, "errors_of", errors_of)
    rows = list(sinusoids.figure(steps=70_000, seed=0))
    assert [row.published for row in rows] == [2.8, 0.7, 0.3]
    assert [row.holds for row in rows] == [False, True, False]
