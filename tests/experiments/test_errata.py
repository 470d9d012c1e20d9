"""Each row of the errata, by a computation of its own."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metalr
from experiments import errata
from experiments._errata import where_optimizers_end
from experiments._errata.row import wide
from experiments._settings.source_notes import IMAGE, LAPLACIAN, lagged_adagrad
from experiments.errata import ROWS, Config
from metalr import bias, convnet

EXPECTED = {  # what the true value is, from THEORY by hand; None: equal to the notes'
    "minimum_norm": None,
    "constant_is_a_matrix": 4.0,
    "full_row_rank": 1.0,
    "start_off_zero": "start",
    "half_n_diverges": 3.0 * 4.0**20,
    "momentum_right": None,
    "momentum_drift": "drift",
    "adagrad_conclusion": np.sqrt(2.0) - np.sqrt(1.8),
    "adagrad_accumulator": 36.0,
    "adagrad_gradient": 54.0,
    "adagrad_iterate": 6.0 - 54e-4 / 6.0,
    "adagrad_definition": 1e-4,
    "adagrad_lagged_limit": 1.0,
    "one_iterate_proves_nothing": 0.0,
    "adagrad_equal_entries": 0.0,
    "graph_of_two_steps": "graph",
    "memory_forward": 0.0,
    "memory_reverse": None,
    "memory_forward_mode": 0.0,
    "one_step_loss": None,
    "one_step_slope": None,
    "one_step_curvature": None,
    "one_step_strictly_convex": 0.0,
    "one_step_rate": None,
    "one_step_condition": 0.0,
    "second_residual": -3.0 * 0.6**2,
    "loss_after_t": 9.0 * 0.6**4,
    "loss_is_no_double_well": 1.0,
    "first_lines": -144.0 * 0.6**3,
    "first_derivative": None,
    "second_derivative": None,
    "not_strictly_convex": 1.0,
    "optimal_for_every_t": 0.25,
    "output_size": 25.0,
    "edge_detector": 18.0,
    "image_recovered": 4.0 - 4.0 * np.cos(np.pi / 6.0),
    "network_neurons": None,
    "network_parameters": None,
    "network_connections": 961_041_152.0,
    "kernel_enlarges": 3.0,
    "depth_enlarges": 3.0,
    "stride_of_its_own": 7.0,
    "larger_input": 1024.0 * (14 * 14 * 256 + 1),
    "larger_input_field": 38.0,
}
PRINTED = {  # what the notes say, by hand, where their side is not a quotation
    "constant_is_a_matrix": 1.0,
    "adagrad_accumulator": 4.0**2 * 9.0,
    "second_residual": -3.0 * (1.0 - 0.4**2),
    "loss_after_t": 9.0 * (1.0 - 0.4**2) ** 2,
    "loss_is_no_double_well": 2.0,
    "first_lines": 9.0 * 2.0 * (1.0 - 0.4**2) * -2.0 * 0.4 * 4.0,
    "edge_detector": 18.0,
}
UNSAID = {"start_off_zero", "momentum_drift", "image_recovered", "larger_input_field"}
UNSAID |= {"adagrad_equal_entries", "graph_of_two_steps", "memory_forward_mode"}
UNSAID |= {"optimal_for_every_t"}


def _other(name):
    """Values that need a computation."""
    X, t, w0 = wide()
    space = np.linalg.pinv(X)
    null = np.eye(5) - space @ X
    if name == "start":
        return np.linalg.norm(space @ t + null @ w0)
    if name == "drift":
        return np.linalg.norm(null @ (0.9 / 0.1 * np.ones(5)))
    loss = metalr.problems.least_squares(jnp.array([[1.5]]), jnp.array([3.0]))
    unroll = metalr.Unrolled(loss, optax.sgd, jnp.zeros(1), steps=2)
    return float(metalr.hypergradient(unroll, 0.07).grad)


@pytest.fixture(scope="module")
def rows():
    return {make.__name__: make() for make in ROWS}


def test_every_row_has_an_expected_value():
    assert [make.__name__ for make in ROWS] == list(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_the_true_value_is_true(rows, name):
    row, expected = rows[name], EXPECTED[name]
    if expected is None:
        expected = row.notes_value
    elif isinstance(expected, str):
        expected = _other(expected)
    np.testing.assert_allclose(row.true_value, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", PRINTED)
def test_what_the_notes_print_is_quoted(rows, name):
    np.testing.assert_allclose(rows[name].notes_value, PRINTED[name], rtol=1e-9)


def test_what_the_notes_do_not_say_is_missing_and_not_wrong(rows):
    missing = {name for name, row in rows.items() if row.verdict == "missing"}
    assert missing == UNSAID
    # True as they mean it, or under a condition that they leave out.
    for name in ("half_n_diverges", "constant_is_a_matrix", "one_step_strictly_convex"):
        assert rows[name].verdict == "loose"


@pytest.mark.parametrize("name", EXPECTED)
def test_the_verdict_is_that_of_the_difference(rows, name):
    row = rows[name]
    if row.verdict == "missing":
        assert row.notes_value is None
    elif row.verdict == "right":
        np.testing.assert_allclose(row.notes_value, row.true_value, rtol=1e-8)
    else:
        gap = abs(row.notes_value - row.true_value)
        assert gap > 1e-5 * max(abs(row.notes_value), abs(row.true_value))


def test_the_lagged_variant_gives_the_notes_numbers_and_ends_at_minus_3_3():
    X, t = jnp.array([[1.0, 2.0]]), jnp.array([3.0])
    w = bias.path(X, t, lagged_adagrad(1e-4, 1e-4), steps=2)
    np.testing.assert_allclose(w[1], [6.0, 12.0], rtol=1e-12)
    np.testing.assert_allclose(w[2], [5.9991, 11.9991], rtol=1e-7)
    end = where_optimizers_end.adagrad_lagged_limit().notes_value
    assert end is not None
    np.testing.assert_allclose(end, -3.0, atol=1e-3)  # up to ε = 1e-4


def test_the_filter_is_symmetric_and_the_image_recovered():
    kernel, image = jnp.array(LAPLACIAN, float), jnp.array(IMAGE, float)
    output = convnet.convolve2d(image, kernel)
    np.testing.assert_array_equal(output, convnet.correlate2d(image, kernel))
    np.testing.assert_allclose(convnet.recover_image(output, kernel), image, atol=1e-13)


def test_run_yields_every_row_with_its_difference():
    assert errata.size(Config()) == len(ROWS)
    first = next(iter(errata.run(Config())))
    assert first["difference"] == abs(first["notes_value"] - first["true_value"])
