"""`diagnose`: closed forms of sharpness, edge, growth and contributions."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize

import metalr
from metalr.diagnosis import _edge, metasmoothness
from metalr.diagnosis._contributions import horizon
from metalr.diagnosis._findings import findings
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
        loss = L.inner_loss(eta, index, state)
        value, grads = jax.value_and_grad(loss)(state.params)
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
    exact = 3 * 2 * 0.8 * 0.8**8
    assert (d.start, d.total) == (pytest.approx(exact), pytest.approx(exact))
    assert np.all(d.contributions == 0.0)


def test_start_steps_and_outer_loss_are_told_apart():
    """w_T = a^T h, a = 1 − 2h; with F = w_T + 5h each part is a term of dF/dh."""
    L = metalr.Unrolled(
        lambda w, h, b: w**2,
        optax.sgd,
        lambda h: 1.0 * h,
        steps=3,
        outer_loss=lambda w, h: w + 5.0 * h,
    )
    h, a = 0.1, 0.8
    d = metalr.diagnose(L, h)
    assert d.direct == pytest.approx(5.0, rel=1e-12)
    assert d.start == pytest.approx(a**3, rel=1e-12)
    np.testing.assert_allclose(d.contributions, -2.0 * a**2 * h, rtol=1e-12)
    assert d.total == pytest.approx(5.0 + a**3 - 6.0 * a**2 * h, rel=1e-12)
    assert "modes disagree" not in kinds(d)


# Whatever the parameters, the optimizer's state and the dtypes are.


def two_rates(h):
    return optax.multi_transform(
        {"a": optax.sgd(h, 0.9), "b": optax.adam(h)}, {"a": "a", "b": "b"}
    )


def counted(h):
    """Python numbers in the state."""

    def update(updates, state, params=None):
        rate = h / (1 + state["n"])
        return jax.tree.map(lambda g: -rate * g, updates), {"n": state["n"] + 1}

    return optax.GradientTransformation(lambda params: {"n": 0}, update)


OPTIMIZERS = {
    "multi_transform": two_rates,
    "masked": lambda h: optax.masked(optax.sgd(h, 0.9), {"a": True, "b": False}),
    "flatten": lambda h: optax.flatten(optax.sgd(h, 0.9)),
    "MultiSteps": lambda h: optax.MultiSteps(optax.sgd(h, 0.9), 2),
    "mu_dtype": lambda h: optax.adam(h, mu_dtype=jnp.float32),
    "Python numbers": counted,
}


def fourth(params, hyper, batch):
    return jnp.sum(params["a"] ** 4) + jnp.sum(params["b"] ** 4)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_state_of_the_optimizer_need_not_be_like_params(name):
    start = {"a": jnp.array([1.0, -0.5]), "b": jnp.array([[0.7]])}
    L = metalr.Unrolled(fourth, OPTIMIZERS[name], start, steps=2)
    d = metalr.diagnose(L, 0.05, iterations=3)
    exact = float(metalr.hypergradient(L, 0.05).grad)
    rtol = 1e-5 if name == "mu_dtype" else 1e-10
    assert d.total == pytest.approx(exact, rel=rtol)
    assert np.sum(d.contributions) == pytest.approx(exact, rel=rtol)
    # The Hessian is diagonal: 12 w² at w = 1.
    assert d.metric.startswith("Hessian weighted") or d.sharpness[0] == pytest.approx(
        12
    )
    assert not {"modes disagree", "kinks"} & set(kinds(d))


def test_momentum_kept_flat_or_in_another_dtype_has_the_same_edge():
    for optimizer in (
        OPTIMIZERS["flatten"],
        lambda h: optax.sgd(h, 0.9, accumulator_dtype=jnp.float32),
    ):
        start = {"a": jnp.array([1.0, -0.5]), "b": jnp.array([[0.7]])}
        L = metalr.Unrolled(fourth, optimizer, start, steps=1)
        d = metalr.diagnose(L, 0.05, iterations=1)
        assert d.metric == "Hessian; edge of the momentum"
        np.testing.assert_allclose(d.edge, 2 * 1.9 / 0.05, rtol=1e-5)


def test_dtypes_and_constants_among_the_parameters():
    start = {
        "a": jnp.array([1.0, -0.5], jnp.float32),
        "b": jnp.array([[0.7]], jnp.float64),
        "layers": jnp.array(2),
        "key": jax.random.key(0),
    }
    L = metalr.Unrolled(fourth, optax.adam, start, steps=2)
    d = metalr.diagnose(L, 0.05, iterations=3)
    assert d.total == pytest.approx(float(metalr.hypergradient(L, 0.05).grad), rel=1e-5)
    assert np.sum(d.contributions) == pytest.approx(d.total, rel=1e-4)


@pytest.mark.parametrize("wide", [True, False], ids=["loss in float32", "bfloat16"])
def test_in_bfloat16_the_findings_are_those_of_its_precision(wide):
    def loss(w, h, b):
        return jnp.sum((w.astype(jnp.float32) if wide else w) ** 2)

    L = metalr.Unrolled(loss, optax.sgd, jnp.ones(3, jnp.bfloat16), steps=4)
    d = metalr.diagnose(L, 0.125)
    # L_4 = 3 (1 − 2η)⁸.
    assert d.total == pytest.approx(-48 * 0.75**7, rel=0.05)
    assert np.sum(d.contributions) == pytest.approx(d.total, rel=0.05)
    np.testing.assert_allclose(d.sharpness, 2.0, rtol=0.02)
    assert not {"modes disagree", "kinks", "explosion"} & set(kinds(d))


def test_a_custom_vjp_is_refused_with_what_is_needed():
    @jax.custom_vjp
    def sin(x):
        return jnp.sin(x)

    sin.defvjp(lambda x: (jnp.sin(x), jnp.cos(x)), lambda c, g: (c * g,))
    L = metalr.Unrolled(
        lambda w, h, b: jnp.sum(sin(w) ** 2), optax.sgd, jnp.ones(2), steps=3
    )
    with pytest.raises(ValueError, match=r"custom_vjp .* give it a custom_jvp"):
        metalr.diagnose(L, 0.1)


def test_a_run_without_an_inner_loss_is_diagnosed_by_its_values():
    L = metalr.Rollout(
        lambda s, h, x: (h * s, None),
        jnp.array([1.0, 2.0]),
        steps=6,
        value=lambda s, h: jnp.sum(s**2),
    )
    d = metalr.diagnose(L, 1.5)
    # L_s = 5 η^(2s): each step contributes 1/T of 2T · 5 η^(2T − 1).
    s = np.arange(7)
    np.testing.assert_allclose(d.losses, 5 * 1.5 ** (2.0 * s), rtol=1e-12)
    np.testing.assert_allclose(d.slopes, 10 * s * 1.5 ** (2.0 * s - 1), rtol=1e-12)
    np.testing.assert_allclose(d.contributions, 10 * 1.5**11, rtol=1e-12)
    np.testing.assert_allclose(d.growth, np.log(1.5), rtol=1e-12)
    assert np.isnan(d.sharpness).all()
    assert d.start == d.direct == 0.0


# Kinks and metasmoothness.


def rectified(activation):
    """A small network on random labels, with momentum, gone through many kinks."""
    rng = np.random.default_rng(0)
    X, labels = (
        jnp.asarray(rng.normal(size=(32, 8))),
        jnp.asarray(rng.integers(0, 3, 32)),
    )

    def loss(params, hyper, batch):
        hidden = activation(activation(X @ params["in"]) @ params["hidden"])
        logits = hidden @ params["out"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    start = {
        "in": jnp.asarray(rng.normal(size=(8, 16)) / 3.0),
        "hidden": jnp.asarray(rng.normal(size=(16, 16)) / 3.0),
        "out": jnp.asarray(rng.normal(size=(16, 3)) / 4.0),
    }
    return metalr.Unrolled(loss, lambda h: optax.sgd(h, 0.9), start, steps=40)


def test_kinks_are_seen_where_no_perturbation_grows():
    """ReLU or GELU, the same otherwise: perturbations grow alike, by e in 40 steps."""
    rough, smooth = (
        metalr.diagnose(rectified(f), 0.3, iterations=1)
        for f in (jax.nn.relu, jax.nn.gelu)
    )
    for d in (rough, smooth):
        assert 0.0 < np.sum(d.growth) < 2.0
    change = lambda d: np.abs(d.moved_totals - d.total)[-1] / abs(d.total)
    assert change(rough) > 0.3
    assert change(smooth) < 0.05
    assert rough.metasmoothness < 0.2
    assert smooth.metasmoothness > 0.99
    assert "kinks" in kinds(rough)
    assert not {"kinks", "explosion"} & set(kinds(smooth))
    (finding,) = (f for f in rough.findings if f.kind == "kinks")
    assert "by 0.01 of its size changes the derivative by" in finding.message
    assert "average for max pooling" in finding.remedy
    # Of a single number it is only shown; of several it is a finding.
    several = rough._replace(direction=np.ones(2))
    found = [finding.kind for finding in findings(several, np.dtype("float64"))]
    assert "not metasmooth" in found
    assert "not metasmooth" not in kinds(rough)


def test_at_the_best_rate_a_small_derivative_is_no_sign_of_kinks():
    """There dL/dη is nearly 0: a move of the start changes it by its own size."""
    L = quadratic(steps=3)
    exact = Quadratic.from_regression(X, T, jnp.ones(5))
    best: Any = scipy.optimize.brentq(
        lambda r: float(exact.slope(r, 3)), 1e-3, 1.9 / SHARP
    )
    d = metalr.diagnose(L, best * (1 + 1e-4), iterations=1)
    changes = np.abs(d.moved_totals - d.total) / abs(d.total)
    assert changes[-1] > 0.1
    assert "kinks" not in kinds(d)


def test_metasmoothness_is_that_of_its_definition():
    """Weights (η₀, |η₁ − 1.1|) at η₁ = 1, 1.1, 1.2 and 1, 1.15, 1.3: turned back."""
    L = metalr.Unrolled(
        lambda w, h, b: jnp.sum(w**2),
        lambda h: optax.sgd(0.0),
        lambda h: jnp.array([h[0], jnp.abs(h[1] - 1.1)]),
        steps=1,
        outer_loss=lambda w, h: jnp.sum(w * h),
    )
    at, up = jnp.array([0.5, 1.0]), jnp.array([0.0, 1.0])
    assert metasmoothness(L, at, jnp.array([1.0, 0.0])) == 1.0
    # Second weight: 0.1, 0.05, 0.2: moves 0.1 and turns; the first moves 0.6.
    found = metasmoothness(L, at, jnp.array([2.0, 1.0]), step=0.15)
    assert found == pytest.approx((0.6 - 0.1) / 0.7, rel=1e-12)
    assert metasmoothness(L, at, up, step=0.15) == -1.0
    assert np.isnan(metasmoothness(L, at, 0.0 * up))
    linear = metalr.Unrolled(
        lambda w, h, b: jnp.sum(w**2), lambda h: optax.sgd(0.1), lambda h: h, steps=4
    )
    d = metalr.diagnose(linear, jnp.array([0.5, -1.0, 2.0]))
    assert d.metasmoothness == 1.0
    assert "not metasmooth" not in kinds(d)


@jax.tree_util.register_pytree_node_class
class Doubled(metalr.Rollout):
    """Pulls back twice too much into hyper."""

    def pull_back(self, hyper, state, index, bar):
        bar, hyper_bar = super().pull_back(hyper, state, index, bar)
        return bar, jax.tree.map(lambda x: 2.0 * x, hyper_bar)


def test_a_wrong_pull_back_shows_as_modes_that_disagree():
    value = lambda s, h: s**2
    L = Doubled(lambda s, h, x: (h * s, None), 1.0, steps=3, value=value)
    d = metalr.diagnose(L, 0.5)
    assert d.total == pytest.approx(6 * 0.5**5)
    assert np.sum(d.contributions) == pytest.approx(2 * 6 * 0.5**5)
    assert "modes disagree" in kinds(d)


def test_a_field_that_is_no_gradient_is_pulled_back_as_it_is():
    @jax.custom_jvp
    def bent(w):
        return jnp.array([w[0] + w[1] ** 2, w[1]])

    # Not symmetric, so no gradient of anything.
    bent.defjvp(
        lambda p, t: (bent(*p), jnp.array([t[0][0] + 3.0 * p[0][0] * t[0][1], t[0][1]]))
    )
    L = metalr.Unrolled(
        lambda w, h, b: jnp.sum(bent(w) ** 2), optax.sgd, jnp.array([1.0, 0.5]), steps=5
    )
    d = metalr.diagnose(L, 0.05)
    assert np.sum(d.contributions) == pytest.approx(d.total, rel=1e-10)
    assert "modes disagree" not in kinds(d)


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


@pytest.mark.parametrize("direction", [None, {"log rate": 2.0}])
def test_a_reparametrized_run_is_diagnosed_in_its_own_variables(direction):
    """f is applied once: derivatives are those of the run times df/dz."""
    rate = 1.2 / SHARP
    run = quadratic(steps=6)
    log_rate = metalr.reparametrized(run, lambda z: jnp.exp(z["log rate"]))
    plain = metalr.diagnose(run, rate)
    found = metalr.diagnose(log_rate, {"log rate": jnp.log(rate)}, direction=direction)
    factor = rate * (1.0 if direction is None else 2.0)
    assert_close(found.losses, plain.losses, rtol=1e-12)
    for name in ("total", "slopes", "contributions", "moved_totals"):
        expected = factor * np.asarray(getattr(plain, name))
        assert_close(getattr(found, name), expected, rtol=1e-10)
    assert jnp.shape(found.direction["log rate"]) == ()
    assert -1.0 <= found.metasmoothness <= 1.0
