"""`diagnose`: closed forms of sharpness, edge, growth and contributions."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metalr
from metalr.diagnosis import _edge
from metalr.diagnosis._contributions import horizon
from metalr.diagnosis._lanczos import largest
from metalr.problems import least_squares
from metalr.theory import Quadratic

from ..helpers import assert_close, regression

X, T = regression(n=12, d=5, seed=3)
EXACT = Quadratic.from_regression(X, T)
SHARP = float(EXACT.eigenvalues[-1])
HESSIAN = 2.0 * np.asarray(X.T @ X) / 12


def quadratic(optimizer=optax.sgd, steps=40, **options):
    return metalr.Unrolled(
        least_squares(X, T), optimizer, jnp.ones(5), steps=steps, **options
    )


def kinds(d):
    return [finding.kind for finding in d.findings]


@pytest.fixture(scope="module")
def healthy():
    """Below the edge; three Lanczos iterations for five dimensions."""
    return metalr.diagnose(quadratic(), 1.2 / SHARP, iterations=3)


@pytest.fixture(scope="module")
def beyond():
    return metalr.diagnose(quadratic(steps=120), 2.5 / SHARP, iterations=3)


def test_below_the_edge_the_sharpness_is_the_largest_eigenvalue(healthy):
    np.testing.assert_allclose(healthy.sharpness[5:], SHARP, rtol=1e-6)
    assert np.all(healthy.sharpness <= SHARP * (1 + 1e-12))
    np.testing.assert_allclose(healthy.edge, 2.0 * SHARP / 1.2, rtol=1e-12)
    assert np.all(healthy.sharpness + healthy.sharpness_residual >= SHARP * 0.9)
    assert healthy.lyapunov < 0.0
    assert healthy.first_not_finite == {"loss": None, "params": None, "tangent": None}
    assert not {"explosion", "beyond the edge", "not finite"} & set(kinds(healthy))


def test_beyond_the_edge_the_growth_is_that_of_the_closed_form(beyond):
    rate = np.log(abs(1.0 - 2.5))
    assert beyond.lyapunov == pytest.approx(rate, rel=1e-6)
    assert beyond.hypergradient_rate == pytest.approx(2.0 * rate, rel=1e-6)
    # The slope itself is s (1 − ηλ)^(2s − 1): a step has a factor s/(s − 1) more.
    growth = np.log(np.abs(beyond.slopes[-1] / beyond.slopes[-2])) - np.log(120 / 119)
    assert growth == pytest.approx(2.0 * rate, rel=1e-6)
    assert kinds(beyond)[:2] == ["explosion", "beyond the edge"]
    assert beyond.findings[1].step == 0
    assert "less than 0.8," in beyond.findings[1].remedy


def test_curve_and_contributions_are_those_of_gradient_descent(healthy):
    L, eta = quadratic(), 1.2 / SHARP
    exact = L.derivatives(eta)
    scale = float(np.max(np.abs(exact.slopes)))
    assert_close(healthy.losses, np.asarray(exact.values), rtol=1e-12)
    assert_close(healthy.slopes, np.asarray(exact.slopes), rtol=0, atol=1e-12 * scale)
    # Each of the T steps makes 1/T of the derivative (THEORY.md 9).
    share = healthy.total / 40
    np.testing.assert_allclose(healthy.contributions, share, rtol=1e-8)
    assert healthy.horizon_90 == 36
    assert healthy.horizon_99 == 40
    assert healthy.start == healthy.direct == 0.0
    assert healthy.slope_peak == int(np.argmax(np.abs(exact.slopes)))
    assert "burn-in" in kinds(healthy)


def test_sums_of_contributions_are_the_truncated_derivatives_and_need_few_states():
    def outer(params, hyper):
        return jnp.sum(jnp.tanh(params)) + hyper**2

    L = quadratic(lambda h: optax.sgd(h, 0.8), steps=11, outer_loss=outer)
    d = metalr.diagnose(L, 0.1, checkpoints=2)
    for last in (1, 4, 11):
        cut = metalr.hypergradient(L, 0.1, metalr.Truncated(last=last)).grad
        found = d.direct + np.sum(d.contributions[-last:])
        assert found == pytest.approx(float(cut), rel=1e-11)
    assert d.direct == pytest.approx(0.2, rel=1e-12)
    assert d.total == pytest.approx(found, rel=1e-12)


def edges(optimizer, steps=4):
    """Edge of each step, from the same linearization but without the diagnosis."""
    L, eta = quadratic(optimizer, steps=steps), jnp.array(0.01)
    buffer = _edge.buffer_of(L, eta)

    def step(state, index):
        value, grads, _ = L.gradients(eta, state.params, index)
        at = _edge.At(state, value, grads, index)
        rates, known = _edge.equivalent_rates(L, eta, buffer, at)
        new = L.update(eta, state, value, grads, index)
        return new, jnp.where(known, 2.0 / rates, jnp.nan)

    return jax.jit(lambda: jax.lax.scan(step, L.init(eta), jnp.arange(steps))[1])()


@pytest.mark.parametrize(
    ("optimizer", "edge"),
    [
        (optax.sgd, 200.0),
        (lambda h: optax.sgd(h, momentum=0.9), 2 * 1.9 / 0.01),
        (lambda h: optax.sgd(h, momentum=0.9, nesterov=True), 2 * 1.9 / (2.8 * 0.01)),
        (  # a halving schedule, and decay: 1 − ηλ − ηw = −1
            lambda h: optax.chain(
                optax.add_decayed_weights(3.0),
                optax.sgd(lambda count: h * 0.5**count),
            ),
            np.array([197.0, 397.0, 797.0, 1597.0]),
        ),
        (lambda h: optax.chain(optax.clip_by_global_norm(1e-3), optax.sgd(h)), np.nan),
    ],
    ids=["sgd", "momentum", "nesterov", "schedule", "clipped"],
)
def test_the_edge_is_read_off_the_update_or_is_unknown(optimizer, edge):
    expected = np.broadcast_to(np.reshape(edge, (-1, 1)), (4, 5))
    np.testing.assert_allclose(edges(optimizer), expected, rtol=1e-9)


def test_of_optimizers_with_other_memory_the_edge_is_unknown():
    eta = jnp.array(0.01)
    for optimizer in (optax.rmsprop, optax.adagrad, optax.lion):
        assert _edge.buffer_of(quadratic(optimizer), eta).kind == "unknown"
    for optimizer, plain in ((optax.adam, True), (optax.nadam, False)):
        L = quadratic(optimizer)
        test = jax.jit(
            lambda L: _edge.is_plain_average(L, eta, _edge.buffer_of(L, eta))
        )
        assert bool(test(L)) == plain


def test_momentum_at_its_edge_neither_grows_nor_decays_and_just_beyond_it_grows():
    edge = 2 * 1.5 / SHARP  # of the rate, at momentum 0.5
    L = quadratic(lambda h: optax.sgd(h, momentum=0.5), steps=400)
    at, above = (metalr.diagnose(L, r * edge, iterations=1) for r in (1.0, 1.01))
    assert at.lyapunov == pytest.approx(0.0, abs=1e-6)
    assert above.lyapunov > 0.01
    np.testing.assert_allclose(at.edge, SHARP, rtol=1e-9)


def test_adam_s_sharpness_is_that_of_cohen_et_al():
    rate, b1, b2, eps = 0.01, 0.9, 0.99, 1e-3
    L = quadratic(lambda h: optax.adam(h, b1=b1, b2=b2, eps=eps), steps=6)
    d = metalr.diagnose(L, rate, iterations=5)
    w, m, v = np.ones(5), np.zeros(5), np.zeros(5)
    for s in range(6):
        g = np.asarray(2.0 * X.T @ (X @ w - T) / 12)
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        # Cohen et al. (2022): P = (1 − β₁ᵗ)(√(v/(1 − β₂ᵗ)) + ε).
        P = (1 - b1 ** (s + 1)) * (np.sqrt(v / (1 - b2 ** (s + 1))) + eps)
        half = np.diag(P**-0.5)
        theirs = np.linalg.eigvalsh(half @ HESSIAN @ half)[-1]
        assert d.sharpness[s] / d.edge[s] == pytest.approx(
            theirs / (38 / rate), rel=1e-9
        )
        w = w - rate * m / P


def test_per_weight_rates_weight_the_hessian():
    rates = jnp.array([0.1, 0.2, 0.05, 0.1, 0.3])

    def optimizer(h):
        return optax.stateless(lambda g, _: jax.tree.map(lambda x: -h * rates * x, g))

    d = metalr.diagnose(quadratic(optimizer, steps=3), 1.0, iterations=5)
    half = np.diag(np.sqrt(rates))
    exact = np.linalg.eigvalsh(half @ HESSIAN @ half)[-1]
    np.testing.assert_allclose(d.sharpness, exact, rtol=1e-9)
    np.testing.assert_allclose(d.edge, 2.0)


def test_several_hyperparameters_are_seen_along_their_hypergradient():
    L = quadratic(lambda h: optax.sgd(h["rate"], h["momentum"]), steps=9)
    hyper = {"rate": 0.05, "momentum": 0.7}
    d = metalr.diagnose(L, hyper, iterations=1)
    grad = metalr.hypergradient(L, hyper).grad
    size = float(np.hypot(grad["rate"], grad["momentum"]))
    assert d.total == pytest.approx(size, rel=1e-12)
    assert float(np.sum(d.contributions)) == pytest.approx(size, rel=1e-12)
    only = {"rate": 0.0, "momentum": 1.0}
    along = metalr.diagnose(L, hyper, direction=only, iterations=1)
    assert along.total == pytest.approx(float(grad["momentum"]), rel=1e-12)


def test_the_first_steps_that_are_not_finite_are_named_in_float32():
    def loss(params, hyper, batch):
        return jnp.sum(params**2)

    L = metalr.Unrolled(loss, optax.sgd, jnp.ones(1, jnp.float32), steps=60)
    d = metalr.diagnose(L, jnp.float32(5.0))  # w is multiplied by −9, dw/dη by more
    losses = np.asarray(L.trajectory(jnp.float32(5.0)))
    assert d.first_not_finite["loss"] == int(np.argmax(~np.isfinite(losses)))
    first: Any = d.first_not_finite
    assert first["tangent"] < first["params"] == 41
    assert d.findings[0].kind == "not finite"
    assert d.lyapunov == pytest.approx(np.log(9.0), rel=1e-5)
    assert d.losses.dtype == np.float32
    assert "not finite" in str(d)


def test_only_the_last_steps_matter_where_the_run_forgets():
    def loss(params, hyper, batch):
        return jnp.sum((params - hyper) ** 2)

    L = metalr.Unrolled(
        loss,
        lambda _: optax.sgd(0.4),
        jnp.ones(2),
        steps=30,
        outer_loss=lambda params, _: jnp.sum(params),
    )
    d = metalr.diagnose(L, 0.3)
    # w ← 0.2 w + 0.8 η: step s contributes 2 · 0.8 · 0.2^(T − 1 − s).
    expected = 1.6 * 0.2 ** np.arange(29, -1, -1.0)
    np.testing.assert_allclose(d.contributions, expected, rtol=1e-10)
    assert (d.horizon_90, d.horizon_99) == (2, 3)
    assert d.total == pytest.approx(2.0, rel=1e-12)
    (finding,) = (f for f in d.findings if f.kind == "short memory")
    assert "Truncated(last=3)" in finding.remedy


def test_a_learned_start_has_its_own_part():
    L = metalr.Unrolled(
        lambda w, h, b: jnp.sum((w - h["pull"]) ** 2),
        lambda h: optax.sgd(0.1),
        lambda h: jnp.full(3, 1.0) * h["start"],
        steps=4,
    )
    hyper = {"start": 1.0, "pull": 0.2}
    d = metalr.diagnose(L, hyper, direction={"start": 1.0, "pull": 0.0})
    assert d.start == d.total == pytest.approx(3 * 2 * 0.8 * 0.8**8)
    assert np.all(d.contributions == 0.0)


def test_a_wrong_rule_shows_as_modes_that_disagree():
    @jax.custom_jvp
    def bent(w):
        return jnp.array([w[0] + w[1] ** 2, w[1]])

    # Not symmetric, so no gradient of anything: the reverse sweep takes it for one.
    bent.defjvp(
        lambda p, t: (bent(*p), jnp.array([t[0][0] + 3.0 * p[0][0] * t[0][1], t[0][1]]))
    )
    L = metalr.Unrolled(
        lambda w, h, b: jnp.sum(bent(w) ** 2), optax.sgd, jnp.array([1.0, 0.5]), steps=5
    )
    assert "modes disagree" in kinds(metalr.diagnose(L, 0.05))


def test_lanczos_is_exact_at_full_dimension_and_survives_an_invariant_subspace():
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(6, 6))
    matrix = jnp.asarray(matrix + matrix.T)
    values, vectors = np.linalg.eigh(matrix)
    ritz = jax.jit(lambda m, v: largest(lambda x: m @ x, v, 6))(matrix, jnp.ones(6))
    assert float(ritz.value) == pytest.approx(values[-1], rel=1e-12)
    assert float(ritz.residual) < 1e-10
    # From an eigenvector of the least, negative eigenvalue it stays there.
    ritz = largest(lambda v: matrix @ v, jnp.asarray(vectors[:, 0]), 3)
    assert values[0] - 1e-9 <= float(ritz.value)
    negative = largest(lambda v: -2.0 * v, jnp.ones(4), 4)
    assert float(negative.value) == pytest.approx(-2.0, rel=1e-12)


@pytest.mark.parametrize(
    ("parts", "direct", "expected"),
    [
        ([0.0, 0.0, 1.0], 0.0, 1),
        ([1.0, -5.0, 5.0], 0.0, 3),  # right at K = 2 by no chance, and K = 3
        ([1.0, 0.0, 0.0], 0.0, 3),
        ([0.0, 0.0, 0.0], 1.0, 0),
        ([np.nan, 0.0, 1.0], 0.0, None),
    ],
)
def test_the_horizon_is_where_the_truncated_derivative_comes_to_stay(
    parts, direct, expected
):
    parts = np.array(parts)
    assert horizon(parts, direct, direct + float(np.sum(parts)), 0.9) == expected


@pytest.mark.slow
def test_the_experiment_meets_its_closed_form_and_draws(monkeypatch):
    from experiments import diagnose

    only = {"regression beyond the edge": diagnose._regression}
    monkeypatch.setattr(diagnose, "_PROBLEMS", only)
    records = list(diagnose.run(diagnose.Config(relative_rate=1.5, steps=60, curve=3)))
    (summary,) = (record for record in records if "along" in record)
    closed = summary["closed_form_rate"]
    assert summary["hypergradient_rate"] == pytest.approx(closed, rel=1e-6)
    assert summary["check"] == "agrees"
    assert diagnose.figures(records)["diagnose"].axes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"direction": {"a": 1.0}}, "direction has shapes"),
        ({"iterations": 0}, "iterations"),
        ({"checkpoints": 0}, "checkpoints"),
    ],
)
def test_bad_options_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        metalr.diagnose(quadratic(), 0.1, **change)


def test_what_cannot_be_diagnosed_is_refused():
    with pytest.raises(ValueError, match="steps ≥ 1"):
        metalr.diagnose(quadratic(steps=0), 0.1)
    with pytest.raises(ValueError, match="does not depend on hyper"):
        metalr.diagnose(quadratic(lambda h: optax.sgd(0.1)), 0.1)
