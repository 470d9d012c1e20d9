"""The bilevel experiment: its verdicts on a tiny problem, and SOBA by hand."""

import jax
import jax.numpy as jnp
import pytest

from experiments import bilevel
from experiments._bilevel.quadratics import simulated
from metalr.theory.bilevel import Quadratic
from tests.helpers import assert_close

TINY = {
    "rows": 32,
    "dimension": 3,
    "batch": 8,
    "mu": 0.5,
    "passes": 2000,
    "full_passes": 40_000,
    "points": 90,
}


@pytest.fixture(scope="module")
def records():
    """One run of all methods that the assertions below read."""
    config = bilevel.Config(
        **TINY,
        solvers=("SOBA", "SABA", "F2SA"),
        regimes=("full batch", "constant rates"),
        outer_loops=("unrolled, cold", "implicit, warm"),
    )
    rows = list(bilevel.run(config))
    assert len(rows) == bilevel.size(config)
    return {(r["method"], r["batches"]): r for r in rows}


def test_each_converges_or_says_why_not(records):
    verdicts = {key: r["verdict"] for key, r in records.items()}
    assert verdicts == {
        ("SOBA", "full batch"): "converged",
        ("SABA", "full batch"): "converged",
        ("F2SA", "full batch"): "stalls",
        ("SOBA", "constant rates"): "stalls",
        ("SABA", "constant rates"): "converged",
        ("F2SA", "constant rates"): "stalls",
        ("unrolled, cold", "full batch"): "stalls",
        ("implicit, warm", "full batch"): "converged",
    }
    for record in records.values():
        assert bool(record["why"]) == (record["verdict"] == "stalls")
    biased = records["F2SA", "full batch"]
    assert biased["penalized gradient²"] < 1e-20
    assert biased["gradient²"] > 1e-8


def test_the_figure_has_a_panel_for_each_regime(records):
    (figure,) = bilevel.figures(list(records.values())).values()
    assert len(figure.axes) == 2
    assert "SABA" in bilevel.headline(list(records.values()))


def test_the_truth_is_the_mean_of_the_rows():
    problem = simulated(n=32, d=3, mu=0.5, L=1.0, cross=0.1, seed=0, dtype="float64")
    z, x = jnp.array([0.3, -1.0, 2.0]), jnp.array([1.0, 0.5, -0.7])
    for rows, mean in zip(problem[:2], problem.truth, strict=True):
        assert isinstance(mean, Quadratic)
        assert_close(bilevel.loss(z, x, rows), mean(z, x), rtol=1e-12)


def test_soba_by_hand_with_matrices_goes_the_same_way():
    config = bilevel.Config(**TINY)
    problem = simulated(n=32, d=3, mu=0.5, L=1.0, cross=0.1, seed=0, dtype="float64")
    solver = bilevel._solver(config, problem, "SOBA", "full batch")
    g, f = problem.truth
    z = x = v = jnp.zeros(3)
    state = solver.init(z, x)
    for _ in range(20):
        state = jax.jit(solver.update)(state)
        by_z = g.A @ z + g.C.T @ x + g.a
        by_v = g.A @ v - (f.A @ z + f.C.T @ x + f.a)
        by_x = f.B @ x + f.C @ z + f.b - g.C @ v
        z, v, x = z - 0.3 * by_z, v - 0.3 * by_v, x - 0.1 * by_x
    assert_close((state.params, state.adjoint, state.hyper), (z, v, x), rtol=1e-12)
