"""The bilevel experiment: its verdicts on a tiny problem, limits, solvers by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metalr
from experiments import bilevel
from experiments._bilevel import by_hand, verdicts
from experiments._bilevel.limits import Limit, limit
from experiments._bilevel.methods import Trace
from experiments._bilevel.quadratics import loss, simulated
from experiments._bilevel.solvers import averaged
from experiments._command.config import ConfigError, validate
from metalr.theory.bilevel import Quadratic
from tests.helpers import assert_close

TINY = {
    "rows": 32,
    "dimension": 3,
    "batch": 8,
    "mu": 0.5,
    "passes": 8000,
    "full_passes": 20_000,
    "points": 60,
    "timed_updates": 20,
}


@pytest.fixture(scope="module")
def records():
    """One run of the methods that the assertions below read."""
    config = bilevel.Config(
        **TINY,
        solvers=("SOBA", "SABA", "StocBiO"),
        outer_loops=("unrolled, cold", "implicit, warm"),
    )
    rows = list(bilevel.run(config))
    assert len(rows) == bilevel.size(config)
    return rows


def test_each_ends_where_its_theory_says(records):
    judged = [r for r in records if "verdict" in r and "power" not in r]
    assert {(r["method"], r["batches"]): r["verdict"] for r in judged} == {
        ("SOBA", "full batch"): "converged",
        ("SABA", "full batch"): "converged",
        ("StocBiO", "full batch"): "converged, not to ∇h = 0",
        ("SOBA", "constant rates"): "a noise floor that falls with the rates",
        ("SABA", "constant rates"): "converged: no floor",
        ("StocBiO", "constant rates"): "a noise floor that falls with the rates",
        ("unrolled, cold", "full batch"): "converged, not to ∇h = 0",
        ("implicit, warm", "full batch"): "converged",
    }
    ratios = [r["floor_ratio"] for r in judged if "floor_ratio" in r]
    assert all(2.0 < ratio < 8.0 for ratio in ratios)  # 4 times smaller rates
    quick = [r for r in judged if "passes to 1e-06" in r]
    assert all(r["passes to 1e-06"] < 0.5 * r["passes"] for r in quick)
    assert len(quick) == 4


@pytest.mark.parametrize("power", [-0.5, -2 / 7, 0.0])
def test_a_power_of_t_is_found(power):
    t = jnp.arange(1, 61.0)  # updates; rates fall after 20
    fall = (1.0 + t / 20.0) ** power
    own = Limit("h", jnp.zeros_like)
    trace = Trace(jnp.zeros((60, 1)), np.asarray(t), 1.0, 60)
    seen = verdicts.Seen("SOBA", own, np.asarray(fall), np.asarray(fall), trace)
    record = verdicts.falling(seen, falls_after=20)
    assert record["power"] == pytest.approx(power, abs=1e-12)
    expected = "falls" if power == -0.5 else "stalls"
    assert record["verdict"] == expected  # SOBA's theory is t^(-1/2)


def test_the_solvers_are_those_written_by_hand(records):
    rows = [r for r in records if "difference" in r]
    assert [r["method"] for r in rows] == ["SOBA", "SABA", "StocBiO"]
    assert all(r["difference"] < 1e-12 for r in rows)


@pytest.mark.parametrize("name", ["AmIGO", "F2SA"])
def test_the_other_solvers_are_too(name):
    config = bilevel.Config(**TINY)
    problem = bilevel._problem(config)
    assert bilevel._beside(config, problem, name)["difference"] < 1e-12


def test_the_figure_has_a_panel_for_each_regime(records):
    (figure,) = bilevel.figures(records).values()
    assert len(figure.axes) == 3
    assert "5 of 5 converge, 3 of them to ∇h = 0" in bilevel.headline(records)


NUMBERS = {"rate": 0.3, "terms": 4, "steps": 6, "penalty": 10.0}


def test_an_unrolled_run_is_of_the_loss_after_its_steps():
    problem = simulated(n=32, d=3, mu=0.5, L=1.0, cross=0.1, seed=0, dtype="float64")
    x = jnp.array([1.0, 0.5, -0.7])

    def run(start):
        return metalr.Unrolled(
            lambda z, x, _: loss(z, x, problem.inner),
            lambda _: optax.sgd(0.3),
            start,
            steps=6,
            outer_loss=lambda z, x: loss(z, x, problem.outer),
        )

    # A warm start's fixed point is the minimum, from where it is differentiated.
    starts = {
        "unrolled, cold": jnp.zeros(3),
        "unrolled, warm": problem.truth.solution(x),
    }
    for name, start in starts.items():
        closed = limit(name, problem.truth, **NUMBERS).gradient(x)
        assert_close(closed, jax.grad(run(start))(x), rtol=1e-12)
    theorem = metalr.Implicit("cg", iterations=30, rtol=0.0)
    found = metalr.hypergradient(run(jnp.zeros(3)), x, theorem).grad
    closed = limit("implicit, cold", problem.truth, **NUMBERS).gradient(x)
    assert_close(closed, found, rtol=1e-12)


def test_stocbios_limit_is_that_of_its_terms():
    problem = simulated(n=32, d=3, mu=0.5, L=1.0, cross=0.1, seed=0, dtype="float64")
    (g, f), x = problem.truth, jnp.array([1.0, 0.5, -0.7])
    z = problem.truth.solution(x)
    power = f.A @ z + f.C.T @ x + f.a
    v = jnp.zeros(3)
    for _ in range(4):
        v, power = v + 0.3 * power, power - 0.3 * g.A @ power
    by_terms = f.B @ x + f.C @ z + f.b - g.C @ v
    closed = limit("StocBiO", problem.truth, **NUMBERS).gradient(x)
    assert_close(closed, by_terms, rtol=1e-12)


def test_the_moving_average_of_a_constant_share_is_optaxs():
    ours, theirs = averaged(0.1, lambda _: 1.0), optax.ema(0.9, debias=False)
    states = ours.init(jnp.zeros(2)), theirs.init(jnp.zeros(2))
    for step in range(5):
        direction = jnp.array([1.0, -2.0]) * step
        mine, first = ours.update(direction, states[0])
        other, second = theirs.update(direction, states[1])
        states = first, second
        assert_close(mine, other, rtol=1e-14)


def test_a_batch_that_does_not_divide_the_rows_is_refused():
    with pytest.raises(ConfigError, match="batch = 7 must divide rows = 32"):
        next(bilevel.run(bilevel.Config(**{**TINY, "batch": 7})))


def test_a_wrong_key_is_named():
    with pytest.raises(ConfigError, match="penalti"):
        validate(bilevel.Config, {"experiment": "bilevel", "penalti": 3.0})


def test_the_truth_is_the_mean_of_the_rows():
    problem = simulated(n=32, d=3, mu=0.5, L=1.0, cross=0.1, seed=0, dtype="float64")
    z, x = jnp.array([0.3, -1.0, 2.0]), jnp.array([1.0, 0.5, -0.7])
    for rows, mean in zip(problem[:2], problem.truth, strict=True):
        assert isinstance(mean, Quadratic)
        assert_close(loss(z, x, rows), mean(z, x), rtol=1e-12)


def test_soba_by_hand_with_matrices_goes_the_same_way():
    problem = simulated(n=32, d=3, mu=0.5, L=1.0, cross=0.1, seed=0, dtype="float64")
    g, f = problem.truth
    z = x = v = jnp.zeros(3)
    one = lambda rows: jax.tree.map(lambda leaf: leaf[None], rows)
    data = by_hand.Data(one(problem.inner), one(problem.outer))
    settings = bilevel.Config(**TINY).settings()
    end = by_hand.updated("SOBA", data, settings, x, jax.random.key(0), 20)
    for _ in range(20):
        by_z = g.A @ z + g.C.T @ x + g.a
        by_v = g.A @ v - (f.A @ z + f.C.T @ x + f.a)
        by_x = f.B @ x + f.C @ z + f.b - g.C @ v
        z, v, x = z - 0.3 * by_z, v - 0.3 * by_v, x - 0.1 * by_x
    assert_close((end.z, end.v, end.x), (z, v, x), rtol=1e-12)
