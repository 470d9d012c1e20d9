"""Published figures: influence balancing exactly, the rest in small runs."""

import json
from math import comb

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metalr
from experiments._command import cli
from experiments._published import row, toy_regression
from metalr.problems import influence_balancing
from tests.helpers import assert_close

THETA = 0.5


def influences(count, n=23, positive=10):
    """∂s[0] after a step that is j steps back: Σ_i C(j, i) 2^−j c_i."""
    signs = [1.0 if i < positive else -1.0 for i in range(n)]
    return np.array(
        [sum(comb(j, i) * signs[i] for i in range(n)) / 2.0**j for j in range(count)]
    )


def balancing(steps):
    step, init, value = influence_balancing()
    return metalr.Rollout(step, init, value=value, steps=steps)


@pytest.fixture(scope="module")
def objective():
    return balancing(1000)


def test_influence_balancing_has_its_published_loss_and_derivative(objective):
    for engine in (metalr.Reverse(), metalr.Forward()):
        value, grad = metalr.hypergradient(objective, THETA, engine)
        assert_close(value, jnp.array(8.0), rtol=1e-12)
        assert_close(grad, jnp.array(24.0), rtol=1e-12)


def test_the_parameter_is_learned(objective):
    learned = metalr.learn(objective, THETA, outer_optimizer=metalr.Newton(), steps=20)
    assert_close(learned.hyper, jnp.array(-1.0 / 6.0), rtol=1e-12)


@pytest.mark.parametrize(
    ("last", "published", "digit"), [(1, -4, 0), (10, -40, 0), (40, -2.262, 5e-4)]
)
def test_truncation_gives_the_published_wrong_numbers(
    objective, last, published, digit
):
    found = metalr.hypergradient(objective, THETA, metalr.Truncated(last=last)).grad
    assert_close(found, -4.0 * influences(last).sum(), rtol=1e-12)
    assert abs(found - published) <= digit + 1e-12


def test_the_first_right_sign_is_at_41(objective):
    step, init, value = influence_balancing()
    each = metalr.Rollout(
        lambda state, thetas, index: step(state, thetas[index], None),
        init,
        value=value,
        steps=1000,
        inputs=lambda index: index,
    )
    by_step = metalr.hypergradient(each, jnp.full(1000, THETA)).grad
    sums = np.cumsum(np.asarray(by_step)[::-1])
    assert_close(sums[:100], -4.0 * np.cumsum(influences(100)), rtol=1e-10)
    assert np.argmax(sums > 0) + 1 == 41
    assert abs(sums[99] - 24.0) < 1e-6


def test_persistent_evolution_is_unbiased_with_the_variance_of_its_closed_form():
    # The estimate of a pair is (s̄ − 1)·(Σ c_k ε_k)·(Σ ε_k): mean (s̄ − 1) Σ c_k, and
    # variance (s̄ − 1)² (K Σ c_k² + (Σ c_k)²), c_k the influence of window k.
    steps, window, pairs = 60, 7, 20_000
    objective = balancing(steps)
    cuts = np.arange(0, steps, window)
    c = np.add.reduceat(influences(steps)[::-1], cuts)
    distance = objective.run(THETA).state[0] - 1.0
    engine = metalr.PersistentES(0.3, pairs, window, 0)
    found = metalr.hypergradient(objective, THETA, engine)
    variance = distance**2 * (len(c) * np.sum(c**2) + np.sum(c) ** 2)
    exact = distance * c.sum()
    assert_close(exact, metalr.hypergradient(objective, THETA).grad, rtol=1e-12)
    assert abs(found.grad - exact) < 4 * found.standard_error
    assert 4 * found.standard_error < abs(exact)
    # Fourth moments of products of normals: 3 % for 20 000 pairs, with room.
    assert_close(found.standard_error, np.sqrt(variance / pairs), rtol=0.1)


def test_any_dynamics_is_an_inner_problem_for_any_pytree():
    def step(state, hyper, x):
        position, velocity = state
        pull = jax.tree.map(lambda x: -hyper["spring"] * x, position)
        velocity = jax.tree.map(lambda v, a: hyper["drag"] * v + a, velocity, pull)
        return (jax.tree.map(jnp.add, position, velocity), velocity), None

    start = ({"x": jnp.ones(2)}, {"x": jnp.zeros(2)})
    value = lambda state, hyper: jnp.sum(state[0]["x"] ** 2)
    objective = metalr.Rollout(step, start, value=value, steps=9)
    hyper = {"spring": jnp.array(0.3), "drag": jnp.array(0.8)}
    state = start
    for _ in range(9):
        state, _ = step(state, hyper, None)
    assert_close(objective.run(hyper).state, state, rtol=1e-13)
    reverse = metalr.hypergradient(objective, hyper)
    for engine in (metalr.Forward(), metalr.Reverse(checkpoints=3)):
        assert_close(
            metalr.hypergradient(objective, hyper, engine), reverse, rtol=1e-12
        )
    # Springs and drag are a heavy ball: the same numbers by another way.
    ball = metalr.Unrolled(
        lambda params, hyper, batch: 0.5 * jnp.sum(params**2),
        lambda h: optax.sgd(h["spring"], h["drag"]),
        jnp.ones(2),
        steps=9,
        outer_loss=lambda params, hyper: jnp.sum(params**2),
    )
    assert_close(metalr.hypergradient(ball, hyper), reverse, rtol=1e-12)
    with pytest.raises(ValueError, match="n = 0"):
        influence_balancing(0)
    with pytest.raises(ValueError, match="positive = 24"):
        influence_balancing(positive=24)


def records(tmp_path, *options):
    assert cli.module_main("published", [*options, "--runs", str(tmp_path)]) == 0
    (folder,) = (tmp_path / "published").iterdir()
    lines = (folder / "records.jsonl").read_text(encoding="utf-8").splitlines()
    return folder, [json.loads(line) for line in lines]


def test_a_printed_figure_leaves_half_a_unit_of_its_last_digit_open():
    assert row.printed("-2.262").value == -2.262
    assert row.printed("-2.262").rounding == pytest.approx(5e-4)
    assert row.printed("0.8544").rounding == pytest.approx(5e-5)
    assert row.compared("", row.printed("0.8544"), 0.85444).holds
    assert not row.compared("", row.printed("0.8544"), 0.85446).holds
    assert not row.compared("", row.exact(0.0625), 0.06251).holds
    assert row.compared("", row.exact(0.0625), 0.06251, error=2e-5).holds


def test_the_cheap_rows_hold_and_say_how_they_were_made(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")  # a table shows the columns that fit
    parts = "parts=[sharing, network_size, reversible_bits]"
    _, rows = records(tmp_path, parts, "sharing_runs=500")
    assert len(rows) == 8
    for record in rows:
        assert record["holds"], record
        assert record["source"]
        assert record["command"].startswith("python -m experiments.published 'parts=[")
        difference = record["ours"] - record["published"]
        assert record["difference"] == pytest.approx(difference)
    counts = [record["ours"] for record in rows if "parameters" in record["setting"]]
    assert counts == [61_706, 62_378_344, 138_357_544]
    assert "experiments.published 'parts=" in capsys.readouterr().out  # cut to 40


def test_the_row_of_the_toy_regression_holds_only_if_persistent_es_gets_out(
    monkeypatch,
):
    stuck, free = jnp.array([0.14, -0.76]), jnp.array([2.74, -1.47])

    def rows(*ends):
        left = iter(ends)
        monkeypatch.setattr(toy_regression, "learned", lambda *a, **k: next(left))
        return list(toy_regression.rows(updates=1, pairs=2, seed=0))

    assert [found.holds for found in rows(stuck, stuck, free)] == [True]
    assert [found.holds for found in rows(stuck, free, stuck)] == [False]


@pytest.mark.slow
def test_the_orders_hold_and_the_figure_is_drawn(tmp_path):
    folder, rows = records(
        tmp_path,
        "parts=[influence_balancing, hypergradient_descent]",
        "steps=300",
        "pairs=2000",
        "windows=[50]",
        "epochs=5",
    )
    assert len(rows) == 14
    assert [found["setting"] for found in rows if not found["holds"]] == []
    assert (folder / "influence_balancing.png").stat().st_size > 1000
