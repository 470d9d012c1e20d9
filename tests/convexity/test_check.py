"""Convexity verdicts are proofs: what must be certified, refuted, or left open."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metalr
from metalr.convexity import check
from metalr.theory import Quadratic

NOTES = jnp.ones((1, 2)), jnp.array([3.0])


def problem(seed=0, n=6, d=3):
    X = jax.random.normal(jax.random.key(seed), (n, d))
    return X, jax.random.normal(jax.random.key(seed + 1000), (n,))


def unrolled(X, t, optimizer=optax.sgd, *, steps, **options):
    loss = metalr.problems.least_squares(X, t)
    return metalr.Unrolled(
        loss, optimizer, jnp.zeros(X.shape[1]), steps=steps, **options
    )


def heavy_ball(momentum):
    return lambda rate: optax.sgd(rate, momentum=momentum)


def second(objective):
    return jax.grad(jax.grad(objective))


# Gradient descent on a quadratic (THEORY 1, question 2.3.2).


@pytest.mark.parametrize("steps", [1, 2, 7, 1000])
@pytest.mark.parametrize("data", [NOTES, problem(), problem(1, 3, 5)])
def test_gradient_descent_on_a_quadratic_is_certified_for_every_horizon(steps, data):
    report = check(unrolled(*data, steps=steps), 0.0, 5.0)
    assert (report.verdict, report.method) == ("certified", "spectral")
    assert report.every_steps
    assert report.strict


@pytest.mark.parametrize("steps", [2, 5])
def test_where_the_curvature_vanishes_at_a_point_convexity_is_still_certified(steps):
    objective = unrolled(*NOTES, steps=steps)
    assert float(second(objective)(0.25)) == 0.0  # "L'' > 0" of the notes is false
    wrapped = check(objective.__call__, 0.0, 0.5)  # not an Unrolled
    assert (wrapped.verdict, wrapped.method) == ("certified", "polynomial")
    assert wrapped.strict
    assert check(objective, 0.0, 0.5).verdict == "certified"


def test_it_is_strict_if_and_only_if_the_start_is_not_stationary():
    X, t = jnp.ones((2, 1)), jnp.array([1.0, -1.0])  # Xᵀa = 0
    assert check(unrolled(X, t, steps=3), 0.0, 1.0).strict is False
    assert check(unrolled(X, t + 1.0, steps=3), 0.0, 1.0).strict is True


def test_a_quadratic_that_is_not_convex_is_not_recognized():
    loss = lambda w, hyper, batch: 0.5 * (w[0] ** 2 - w[1] ** 2)
    objective = metalr.Unrolled(loss, optax.sgd, jnp.array([0.1, 1.0]), steps=2)
    report = check(objective, 0.0, 1.0)
    assert (report.verdict, report.method) == ("refuted", "polynomial")
    assert float(second(objective)(report.witness)) < 0.0


@pytest.mark.parametrize(
    "loss",
    [
        lambda w, hyper, batch: hyper * jnp.sum(w**2),
        lambda w, hyper, batch: jnp.sum(w**3),
        lambda w, hyper, batch: jnp.sum(w * jax.lax.stop_gradient(w)),
    ],
    ids=["sees hyper", "cubic", "stop_gradient"],
)
def test_what_only_looks_like_gradient_descent_on_a_quadratic_is_not_taken_for_it(loss):
    report = check(metalr.Unrolled(loss, optax.sgd, jnp.ones(2), steps=2), 0.0, 1.0)
    assert report.method != "spectral"


def scaled_by_the_loss(rate):
    def update(updates, state, params=None, **extra):
        step = -rate * (1.0 + extra["value"])
        return jax.tree.map(lambda g: step * g, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: (), update)


def test_a_step_that_sees_the_value_of_the_loss_is_not_plain_descent():
    objective = unrolled(*NOTES, scaled_by_the_loss, steps=2)
    report = check(objective, 0.0, 0.1)
    assert report.method == "polynomial"
    grid = jax.vmap(second(objective))(jnp.linspace(0.0, 0.1, 401))
    assert bool(jnp.any(grid < 0.0))
    assert report.verdict == "refuted"


def test_batches_that_change_are_not_taken_for_one_quadratic():
    X, t = jnp.array([[1.0], [4.0]]), jnp.array([0.0, 0.0])
    objective = metalr.Unrolled(
        metalr.problems.least_squares(X, t),
        optax.sgd,
        jnp.ones(1),
        steps=2,
        batches=jnp.array([[0], [1]]),
    )
    # (1 − 2η)(1 − 32η) has two roots: two wells.
    report = check(objective, 0.0, 0.6)
    assert (report.verdict, report.method) == ("refuted", "polynomial")


# Momentum (THEORY 7).


@pytest.mark.parametrize("steps", [2, 3, 6])
@pytest.mark.parametrize("momentum", [0.1, 0.9])
def test_momentum_with_one_eigenvalue_is_refuted_from_two_steps(steps, momentum):
    objective = unrolled(*NOTES, heavy_ball(momentum), steps=steps)
    report = check(objective, 0.0, 1.0)
    assert report.verdict == "refuted"
    assert 0.0 <= report.witness <= 1.0
    exact = float(second(objective)(report.witness))
    assert report.curvature is not None
    np.testing.assert_allclose(report.curvature, exact, rtol=1e-9)
    assert exact < 0.0


def two_step_criterion(eigenvalues, weights, momentum):
    s2, s3, s4 = (float(jnp.sum(weights * eigenvalues**k)) for k in (2, 3, 4))
    left = 3.0 * (2.0 + momentum) ** 2 * (1.0 - s3**2 / (s2 * s4))
    return left - momentum * (momentum + 4.0)


@pytest.mark.parametrize("momentum", [0.05, 0.3, 0.6, 0.95])
@pytest.mark.parametrize("seed", range(3))
def test_two_steps_of_momentum_agree_with_the_closed_criterion(momentum, seed):
    X, t = problem(seed, 5, 3)
    q = Quadratic.from_regression(X, t)
    margin = two_step_criterion(q.eigenvalues, q.weights, momentum)
    assert abs(margin) > 1e-6
    report = check(unrolled(X, t, heavy_ball(momentum), steps=2), -50.0, 50.0)
    assert report.verdict == ("certified" if margin > 0.0 else "refuted")


def test_the_criterion_is_met_by_some_and_missed_by_others():
    signs = set()
    for seed in range(3):
        q = Quadratic.from_regression(*problem(seed, 5, 3))
        for momentum in (0.05, 0.3, 0.6, 0.95):
            signs.add(two_step_criterion(q.eigenvalues, q.weights, momentum) > 0.0)
    assert signs == {True, False}


def test_weight_decay_is_decided_exactly():
    optimizer = lambda rate: optax.chain(
        optax.add_decayed_weights(0.1), optax.sgd(rate)
    )
    objective = unrolled(*problem(), optimizer, steps=3)
    report = check(objective, 0.0, 0.2)
    assert report.method == "polynomial"
    grid = jax.vmap(second(objective))(jnp.linspace(0.0, 0.2, 401))
    assert (report.verdict == "certified") == bool(jnp.all(grid >= 0.0))


@pytest.mark.slow
def test_a_long_run_with_momentum_is_never_certified():
    report = check(unrolled(*NOTES, heavy_ball(0.9), steps=100), 0.0, 1.0)
    assert report.verdict == "refuted"


# Validation loss, logistic regression (THEORY 14).


def test_a_validation_loss_has_its_maximum_at_one_half():
    objective = unrolled(
        jnp.ones((1, 1)),
        jnp.ones(1),
        steps=2,
        outer_loss=lambda w, hyper: (w[0] - 0.5) ** 2,
    )
    report = check(objective, 0.0, 1.0)
    assert (report.verdict, report.method) == ("refuted", "polynomial")
    assert report.witness == 0.5
    assert report.curvature == -8.0  # L = (½ − (1 − 2η)²)²


def logistic(X, labels, steps, form):
    def loss(w, hyper, batch):
        return jnp.mean(form(-labels * (X @ w)))

    return metalr.Unrolled(loss, optax.sgd, jnp.zeros(X.shape[1]), steps=steps)


@pytest.mark.parametrize(
    "form",
    [
        jax.nn.softplus,
        lambda z: jnp.log1p(jnp.exp(z)),
        lambda z: -jax.nn.log_sigmoid(-z),
    ],
    ids=["softplus", "log1p", "log_sigmoid"],
)
def test_one_step_of_logistic_regression_is_certified(form):
    X, t = problem(3, 8, 2)
    objective = logistic(X, jnp.sign(t), 1, form)
    report = check(objective, 0.0, 4.0)
    assert (report.verdict, report.method) == ("certified", "interval")
    grid = jax.vmap(second(objective))(jnp.linspace(0.0, 4.0, 201))
    assert report.least is not None
    assert 0.0 < report.least <= float(jnp.min(grid))


def test_two_steps_of_logistic_regression_can_be_refuted():
    X = 3.0 * jax.random.normal(jax.random.key(7), (3, 2))
    labels = jnp.sign(jax.random.normal(jax.random.key(107), (3,)))
    assert check(logistic(X, labels, 1, jax.nn.softplus), 0.0, 10.0).verdict == (
        "certified"
    )
    objective = logistic(X, labels, 2, jax.nn.softplus)
    report = check(objective, 0.0, 10.0)
    assert report.verdict == "refuted"
    exact = float(second(objective)(report.witness))
    assert report.curvature is not None
    assert exact <= report.curvature < 0.0
    np.testing.assert_allclose(report.curvature, exact, rtol=1e-6)


# Honesty.


@pytest.mark.parametrize("width", [1e-2, 1e-4, 1e-9, 1e-13])
def test_a_well_between_grid_points_is_never_certified(width):
    def objective(e):
        return e**2 - 1e-3 * jnp.exp(-(((e - 0.3137) / width) ** 2))

    report = check(objective, 0.0, 1.0)
    assert report.verdict in ("refuted", "undecided")
    if width == 1e-4:
        assert report.verdict == "refuted"
        assert float(second(objective)(report.witness)) < 0.0


@pytest.mark.parametrize(
    "objective",
    [
        lambda x: jnp.where(x > 0.5, x - 1.0, x),  # a jump
        lambda x: x**2 - jnp.where(x < 0.5, 0.0, 1.0),
        lambda x: x**2 + jnp.floor(3.0 * x),
        lambda x: jnp.tanh(1.0 / (x - 0.3)) * 1e-9 + x**2,  # a pole
        lambda x: x**2 + 1e-3 * jnp.tanh(jnp.log(x - 0.5)),  # nan below 0.5
        lambda x: -jnp.abs(x - 0.3),
        lambda x: -jax.nn.relu(x - 0.25),
        lambda x: x**2 + 0.1 * jnp.minimum(x, 0.5),
        lambda x: jnp.sqrt(x - 0.1) ** 2 + x**2,
        lambda x: x**2 + (x > 0.5),
    ],
    ids=[
        "jump",
        "jump down",
        "floor",
        "pole",
        "nan",
        "abs",
        "relu",
        "minimum",
        "sqrt",
        "boolean",
    ],
)
def test_jumps_poles_and_concave_kinks_are_never_certified(objective):
    # JAX's second derivative is ≥ 0 wherever it exists in most of these.
    assert check(objective, 0.0, 1.0).verdict != "certified"


def test_a_concave_kink_is_refuted_by_a_chord():
    f = lambda x: -jax.nn.relu(x - 0.25) + 1e-3 * x**2
    report = check(lambda x: f(x) + 0.0 * jnp.exp(x), 0.0, 1.0)
    assert report.chord is not None
    a, b = report.chord
    m = report.witness
    assert Fraction(a) + Fraction(b) == 2 * Fraction(m)
    assert report.verdict == "refuted"
    assert float(f(m)) > 0.5 * float(f(a) + f(b))


def test_a_primitive_without_a_rule_is_named():
    report = check(lambda x: x**2 + jax.lax.erf_inv(x), 0.0, 0.5)
    assert report.verdict == "undecided"
    assert "erf_inv" in report.reason


def test_undecided_says_how_far_it_got():
    # Touches 0 at a point, and is not a polynomial.
    report = check(lambda x: (x - 0.3) ** 4 * jnp.exp(x), 0.0, 1.0, budget=300)
    assert report.verdict == "undecided"
    assert 0.9 < report.proved < 1.0
    assert any(low <= 0.3 <= high for low, high in report.pending)
    assert report.boxes > 20
    assert report.smallest is not None
    assert abs(report.smallest[0]) < 1e-2


def test_a_small_tanh_network_is_certified_near_zero_and_never_wrongly():
    X = jax.random.normal(jax.random.key(0), (5, 2))
    params = {
        "in": jax.random.normal(jax.random.key(1), (2, 3)),
        "out": jax.random.normal(jax.random.key(2), (3,)),
    }

    def loss(p, hyper, batch):
        return jnp.mean((jnp.tanh(X @ p["in"]) @ p["out"] - X[:, 0]) ** 2)

    objective = metalr.Unrolled(loss, optax.sgd, params, steps=1)
    grid = jnp.linspace(0.0, 0.05, 101)
    assert bool(jnp.all(jax.vmap(second(objective))(grid) > 0.0))
    assert check(objective, 0.0, 0.05).verdict == "certified"


# Several hyperparameters (THEORY 5).


def best_rate(q, steps):
    low, high = 1.0 / float(q.eigenvalues[-1]), 1.0 / float(q.eigenvalues[0])
    middle = 0.5 * (low + high)
    for _ in range(60):
        middle = 0.5 * (low + high)
        rising = float(q.slope(middle, steps)) > 0.0
        low, high = (low, middle) if rising else (middle, high)
    return middle


def test_at_the_best_constant_schedule_the_hessian_has_a_negative_direction():
    X, t = problem()
    q = Quadratic.from_regression(X, t)
    steps = 3
    eta = best_rate(q, steps)
    objective = unrolled(X, t, metalr.per_step(optax.sgd), steps=steps)
    point = np.full(steps, eta)
    report = check(objective, point, point)
    assert report.verdict == "refuted"
    hessian = jax.hessian(objective)(jnp.asarray(point))
    v = report.direction
    exact = float(v @ hessian @ v)
    assert report.curvature is not None
    np.testing.assert_allclose(report.curvature, exact, rtol=1e-8)
    # A(4·11ᵀ − 2I): the negative eigenvalue −2A, orthogonal to the constants.
    A = float(
        jnp.sum(
            q.weights
            * q.eigenvalues**2
            * (1.0 - eta * q.eigenvalues) ** (2 * steps - 2)
        )
    )
    np.testing.assert_allclose(exact / float(v @ v), -2.0 * A, rtol=1e-8)
    assert abs(np.sum(v)) < 1e-6


@pytest.mark.filterwarnings("error")
def test_several_hyperparameters_are_never_certified():
    def objective(h):
        return jnp.exp(h["a"]) + jnp.sum(h["b"] ** 2)

    low = {"a": 0.0, "b": np.zeros(2)}
    report = check(objective, low, {"a": 0.5, "b": np.ones(2)})
    assert report.verdict == "undecided"
    assert "several" in report.reason
    # At one point in one direction it can be asked.
    along = lambda s: objective({"a": s, "b": jnp.array([s, -s])})
    assert check(along, 0.0, 1.0).verdict == "certified"


def test_a_saddle_inside_a_box_is_refuted_in_the_structure_of_hyper():
    objective = lambda h: h["a"] ** 2 - 0.1 * h["b"][0] ** 2
    point = {"a": 0.3, "b": np.array([1.0])}
    report = check(objective, point, point)
    assert report.verdict == "refuted"
    assert set(report.direction) == {"a", "b"}
    assert report.direction["b"].shape == (1,)
    assert report.curvature is not None
    np.testing.assert_allclose(report.curvature, -0.2, rtol=1e-9)


# Bad input.


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (1.0, 0.0, "below"),
        (0.0, 0.0, "below"),
        (0.0, np.inf, "finite"),
        (0.0, np.zeros(2), "shape"),
        (np.ones(2), np.zeros(2), "low ≤ high"),
        ({"a": 0.0}, {"b": 1.0}, "structure"),
    ],
)
def test_ends_that_make_no_interval_are_refused(low, high, said):
    with pytest.raises(ValueError, match=said):
        check(lambda x: x**2, low, high)


def test_an_objective_that_is_not_a_real_scalar_is_refused():
    with pytest.raises(ValueError, match="real scalar"):
        check(lambda x: jnp.stack([x, x]), 0.0, 1.0)
    with pytest.raises(ValueError, match="budget"):
        check(lambda x: x**2, 0.0, 1.0, budget=0)
