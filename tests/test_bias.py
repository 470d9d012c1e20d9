"""Where optimizers end: the limits of `theory.implicit_bias`, by running them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metalr.bias import limit, min_norm_solution, path
from metalr.theory import implicit_bias as theory

SGD = optax.sgd(0.05)
EXACT_ADAGRAD = optax.adagrad(0.5, initial_accumulator_value=0.0, eps=0.0)
SIGN_LIKE = {
    "adagrad": EXACT_ADAGRAD,
    "rmsprop": optax.rmsprop(0.01, eps=1e-60),
    "adam": optax.adam(0.1, eps=1e-30),
    "sign": optax.sign_sgd(optax.exponential_decay(0.5, 1, 0.7)),
    "lion": optax.lion(optax.exponential_decay(0.1, 1, 0.98), weight_decay=0.0),
}


def problem(key, n=3, d=6):
    """A wide regression, and a start off its row space; the rows have length < 1."""
    X, t, w0 = (
        jax.random.normal(k, s)
        for k, s in zip(jax.random.split(key, 3), [(n, d), (n,), (d,)], strict=True)
    )
    return X / jnp.linalg.norm(X, axis=1, keepdims=True), t, w0


def close(actual, desired, tolerance=1e-8):
    np.testing.assert_allclose(actual, desired, rtol=tolerance, atol=tolerance)


def test_min_norm_solution_matches_the_normal_equations_at_full_row_rank(key):
    X, t, w0 = problem(key)
    close(min_norm_solution(X, t), X.T @ jnp.linalg.solve(X @ X.T, t), 1e-12)
    shifted = w0 + X.T @ jnp.linalg.solve(X @ X.T, t - X @ w0)
    close(min_norm_solution(X, t, w0), shifted, 1e-12)


def test_min_norm_solution_is_numpys_least_squares_for_any_rank(key):
    X, t, _ = problem(key, 4, 6)
    X = X.at[3].set(X[0] + X[1])  # rank 3, and inconsistent
    for A, b in ((X, t), (X.T[:, :2], X[0]), (jnp.zeros((2, 3)), t[:2])):
        close(min_norm_solution(A, b), np.linalg.lstsq(A, b, rcond=1e-10)[0], 1e-11)


@pytest.mark.parametrize("rows", ["all", "cyclic", "shuffled", "random"])
def test_sgd_ends_at_the_solution_nearest_to_its_start(key, rows):
    X, t, w0 = problem(key)
    draws = key if rows in {"shuffled", "random"} else None
    found = limit(X, t, optax.sgd(0.3), w0=w0, rows=rows, key=draws)
    assert found.converged
    close(found.params, min_norm_solution(X, t, w0))
    assert found.row_space_residual < 1e-12
    assert abs(found.excess_norm) < 1e-8


@pytest.mark.parametrize("rows", ["all", "cyclic"])
@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_never_leaves_the_row_space(key, rows, nesterov):
    X, t, w0 = problem(key)
    optimizer = optax.sgd(0.05, momentum=0.8, nesterov=nesterov)
    iterates = path(X, t, optimizer, w0=w0, steps=40, rows=rows)
    outside = jax.vmap(theory.row_space(X).outside)(iterates - w0)
    assert float(jnp.max(jnp.abs(outside))) < 1e-14
    assert float(jnp.linalg.norm(iterates[-1] - w0)) > 0.1
    close(limit(X, t, optimizer, w0=w0).params, theory.momentum_limit(X, t, 0.8, w0=w0))


def test_a_first_velocity_drifts_along_the_null_space(key):
    X, t, w0 = problem(key)
    eta, alpha, delta0 = 0.05, 0.8, jnp.arange(6.0)
    optimizer = optax.sgd(eta, momentum=alpha)
    opt_state = optax.tree.set(optimizer.init(w0), trace=-delta0 / eta)
    found = limit(X, t, optimizer, w0=w0, opt_state=opt_state)
    assert found.converged
    expected = theory.momentum_limit(X, t, alpha, w0=w0, delta0=delta0)
    close(found.params, expected)
    assert float(jnp.linalg.norm(expected - min_norm_solution(X, t, w0))) > 1.0
    assert found.row_space_residual > 1.0


@pytest.mark.parametrize("name", SIGN_LIKE)
@pytest.mark.parametrize("x", [(1.0, 2.0), (-1.0, 0.5, 3.0, 0.0)])
def test_sign_like_methods_on_one_example_end_at_the_sign_limit(name, x):
    x, w0 = jnp.array(x), jnp.full(len(x), 0.1)
    found = limit(x[None], jnp.array([3.0]), SIGN_LIKE[name], w0=w0, rtol=1e-7)
    expected = theory.sign_limit(x, 3.0, w0=w0)
    assert found.converged
    close(x @ expected, 3.0, 1e-14)
    close(found.params, expected, 1e-6)


def test_adagrad_reaches_the_minimum_norm_for_equal_entries_only():
    t = jnp.array([3.0])
    equal = limit(jnp.array([[1.0, 1.0]]), t, EXACT_ADAGRAD)
    unequal = limit(jnp.array([[1.0, 2.0]]), t, EXACT_ADAGRAD)
    close(equal.params, [1.5, 1.5])
    close(equal.distance_to_min_norm, 0.0)
    close(unequal.params, [1.0, 1.0])
    close(unequal.excess_norm, np.sqrt(2.0) - np.sqrt(1.8))
    close(unequal.distance_to_min_norm, np.hypot(0.4, 0.2))


def test_optax_adagrad_from_an_empty_accumulator_is_the_definition(key):
    """w ← w − η g/√(Σ g²), the current gradient included; no move where g is 0."""
    X, t, w0 = problem(key)
    X = X.at[:, 2].set(0.0)
    w, total, expected = w0, jnp.zeros_like(w0), [w0]
    for _ in range(5):
        g = 2.0 / 3.0 * X.T @ (X @ w - t)
        total += g**2
        w = w - jnp.where(g == 0.0, 0.0, 0.5 * g / jnp.sqrt(total))
        expected.append(w)
    close(path(X, t, EXACT_ADAGRAD, w0=w0, steps=5), jnp.stack(expected), 1e-13)


@pytest.mark.parametrize("full", [False, True])
def test_a_fixed_preconditioner_ends_at_its_own_nearest_solution(key, full):
    X, t, w0 = problem(key)
    D = jnp.diag(jnp.linspace(0.5, 2.0, 6))
    if full:
        D = D + 0.2 * jnp.ones((6, 6))
    optimizer = optax.chain(
        optax.stateless(lambda g, _: jnp.asarray(g) @ D),
        optax.scale_by_learning_rate(0.2),
    )
    found = limit(X, t, optimizer, w0=w0)
    expected = theory.preconditioned_limit(X, t, D if full else jnp.diag(D), w0=w0)
    direct = w0 + D @ X.T @ jnp.linalg.solve(X @ D @ X.T, t - X @ w0)
    assert found.converged
    close(expected, direct, 1e-12)
    close(found.params, expected)
    assert found.distance_to_min_norm > 0.1


def test_mirror_descent_keeps_log_w_in_the_row_space_and_ends_at_the_entropic_limit(
    key,
):
    X, _, w0 = problem(key)
    w0 = jnp.exp(0.3 * w0)
    t = X @ jnp.linspace(0.5, 2.0, 6)

    def exponentiated(g, w):
        return w * jnp.expm1(-0.1 * g)

    optimizer = optax.stateless(exponentiated)
    for w in path(X, t, optimizer, w0=w0, steps=4):
        assert float(jnp.max(jnp.abs(theory.entropic_invariant(X, w, w0)))) < 1e-14
    found = limit(X, t, optimizer, w0=w0)
    expected = theory.entropic_limit(X, t, w0)
    assert found.converged
    close(found.params, expected)
    assert found.distance_to_min_norm > 1e-3


def test_entropic_limit_is_nan_where_no_positive_solution_exists():
    X, t = jnp.array([[1.0, 2.0]]), jnp.array([-3.0])
    assert bool(jnp.all(jnp.isnan(theory.entropic_limit(X, t, jnp.ones(2)))))


BOUNDARY = {
    "a row of its own": ([[1.0, 0.0], [0.0, 1.0]], [1.0, 0.0]),
    "mixed rows": ([[1.0, 1.0], [1.0, 2.0]], [1.0, 1.0]),
    "a zero target": ([[1.0, 1.0, 2.0]], [0.0]),
    "repeated rows": ([[1.0, 1.0], [1.0, 2.0], [2.0, 4.0]], [1.0, 1.0, 2.0]),
}


@pytest.mark.parametrize("name", BOUNDARY)
def test_entropic_limit_is_nan_where_the_positive_solution_is_at_the_boundary(name):
    X, t = (jnp.array(array) for array in BOUNDARY[name])
    assert bool(jnp.all(jnp.isnan(theory.entropic_limit(X, t, jnp.ones(X.shape[1])))))


@pytest.mark.parametrize("least", [1e-3, 1e-9])
def test_entropic_limit_is_found_near_to_the_boundary(least):
    X, expected = jnp.array([[1.0, 1.0], [1.0, 2.0]]), jnp.array([1.0, least])
    found = theory.entropic_limit(X, X @ expected, jnp.ones(2))
    # The targets carry eps, which is eps / least of the small entry.
    np.testing.assert_allclose(found, expected, rtol=20 * 2.3e-16 / least)
    tiny = theory.entropic_limit(jnp.eye(2), jnp.array([1.0, 1e-24]), jnp.ones(2))
    np.testing.assert_allclose(tiny, [1.0, 1e-24], rtol=1e-3)


def test_what_must_be_positive_is_named():
    X, t, w = jnp.ones((1, 2)), jnp.ones(1), jnp.array([1.0, -1.0])
    with pytest.raises(ValueError, match=r"w0 = .* must be > 0"):
        theory.entropic_limit(X, t, w)
    with pytest.raises(ValueError, match=r"w = .* must be > 0"):
        theory.entropic_invariant(X, w, jnp.ones(2))
    with pytest.raises(ValueError, match="1 − momentum"):
        theory.momentum_limit(X, t, 1.0)


def test_a_periodic_run_is_declared_stalled_and_never_converged():
    X, t = jnp.array([[1.0, 2.0]]), jnp.array([3.0])
    found = limit(X, t, optax.sign_sgd(0.375))  # binary: its cycle repeats exactly
    assert found.stalled
    assert not found.converged
    assert found.steps < 20
    # Continued from there, the run comes back to the same point.
    again = path(X, t, optax.sign_sgd(0.375), w0=found.params, steps=2)
    np.testing.assert_array_equal(again[2], again[0])
    assert float(jnp.abs(again[1] - again[0]).max()) > 0.1


def test_passing_through_a_solution_is_not_convergence():
    """Heavy ball whose residual is exactly 0 after two steps, and its drift is not."""
    X, t, w0 = jnp.array([[1.0, 2.0]]), jnp.array([3.0]), jnp.array([2.0, -1.0])
    optimizer = optax.sgd(0.05, momentum=0.5)
    opt_state = optax.tree.set(optimizer.init(w0), trace=w0 / 0.05)  # δ₀ = −w₀
    second = path(X, t, optimizer, steps=2, w0=w0, opt_state=opt_state)[2]
    assert abs(float((X @ second - t)[0])) < 1e-14
    found = limit(X, t, optimizer, w0=w0, opt_state=opt_state)
    assert found.converged
    assert found.steps > 20
    expected = theory.momentum_limit(X, t, 0.5, w0=w0, delta0=-w0)
    close(found.params, expected)
    close(expected, min_norm_solution(X, t), 1e-14)  # it drifts onto the row space


def test_a_constant_rate_that_steps_over_the_solution_does_not_converge():
    X, t = jnp.array([[1.0, 2.0]]), jnp.array([3.0])
    found = limit(X, t, optax.sign_sgd(0.125))  # meets it exactly after 8 steps, stays
    assert found.converged
    assert int(found.steps) == 9
    assert not limit(X, t, optax.sign_sgd(0.1), max_steps=1000).converged


def test_a_start_that_solves_the_system_converges_where_it_is(key):
    X, t, w0 = problem(key)
    solution = min_norm_solution(X, t, w0)
    found = limit(X, t, optax.sgd(0.3), w0=solution)
    assert found.converged
    close(found.params, solution, 1e-14)


def test_an_inconsistent_system_converges_to_least_squares_and_cyclic_sgd_stalls():
    X, t = jnp.array([[1.0], [1.0]]), jnp.array([0.0, 2.0])
    full, cyclic = limit(X, t, SGD), limit(X, t, SGD, rows="cyclic")
    assert full.converged
    close(full.params, [1.0])
    assert cyclic.stalled  # at (1 − c)·2/(1 − c²), c = 1 − 2η, after the second row
    close(cyclic.params, [0.2 / (1.0 - 0.81)], 1e-12)


def test_a_large_rate_diverges_as_a_result_not_an_exception():
    X, t = jnp.array([[1.0, 2.0]]), jnp.array([3.0])
    found = limit(X, t, optax.sgd(0.5))
    assert found.diverged
    assert not found.converged
    assert not found.stalled


def test_steps_and_rate_are_those_of_a_geometric_sequence():
    X, t = jnp.array([[1.0, 2.0]]), jnp.array([3.0])
    found = limit(X, t, SGD, rtol=1e-6)  # the residual halves in every step
    assert int(found.steps) == 20  # 2**-20 < 1e-6 < 2**-19
    close(found.rate, 0.5, 1e-10)
    close(found.residual, 2.0**-20, 1e-8)
    assert int(limit(X, t, SGD, rtol=0.0, max_steps=7).steps) == 7


def test_the_rate_is_over_the_last_half_of_the_run_not_its_last_step():
    """A heavy ball oscillates: no single step has the rate √α of many."""
    X, t = jnp.array([[1.0, 2.0]]), jnp.array([3.0])
    optimizer = optax.sgd(0.05, momentum=0.81)
    found = limit(X, t, optimizer, rtol=1e-8)
    steps = int(found.steps)
    iterates = path(X, t, optimizer, steps=steps)
    sizes = np.abs(iterates @ X[0] - t[0])
    since = 2 ** (int(np.log2(steps)) - 1)  # of the two last powers of two, the first
    expected = (sizes[steps] / sizes[since]) ** (1 / (steps - since))
    close(found.rate, expected, 1e-10)
    assert abs(expected - 0.9) < 0.05 < abs(sizes[steps] / sizes[steps - 1] - 0.9)


def test_a_residual_above_a_few_roundings_is_not_taken_for_zero():
    X, t = jnp.array([[1.0, 2.0]]), jnp.array([3.0])
    found = limit(X, t, optax.sgd(0.001), rtol=1e-13)  # small steps: at rest long ago
    assert found.converged
    assert 0.9e-13 < found.residual <= 1e-13
    exact = limit(X, t, optax.sgd(0.05), rtol=0.0)
    assert exact.residual <= 8 * np.finfo(float).eps


def test_one_row_at_a_time_counts_updates_not_epochs():
    """Orthonormal rows: an epoch halves every residual."""
    X, t = jnp.eye(3), jnp.arange(1.0, 4.0)
    found = limit(X, t, optax.sgd(0.25), rows="cyclic", rtol=1e-6)
    assert found.converged
    assert int(found.steps) == 3 * 20
    close(found.rate, 0.5 ** (1 / 3), 1e-10)
    close(found.residual, 2.0**-20, 1e-8)
    cut = limit(X, t, optax.sgd(0.25), rows="cyclic", rtol=0.0, max_steps=7)
    assert int(cut.steps) == 9
    epochs = path(X, t, optax.sgd(0.25), rows="cyclic", steps=3)
    close(cut.params, epochs[-1], 1e-15)


def test_limit_is_batched_over_starts(key):
    X, t, w0 = problem(key)
    starts = jnp.stack([w0, 2.0 * w0])
    found = jax.vmap(lambda w: limit(X, t, optax.sgd(0.3), w0=w))(starts)
    for i in range(2):
        close(found.params[i], min_norm_solution(X, t, starts[i]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": "shuffled"}, "needs a key"),
        ({"key": 0}, "draws nothing"),
        ({"rtol": -1.0}, "rtol"),
        ({"max_steps": -1}, "max_steps"),
        ({"w0": jnp.array([jnp.inf, 0.0])}, "not finite"),
    ],
)
def test_wrong_input_is_an_error_that_says_what_to_do(change, message):
    arguments = {"X": jnp.ones((1, 2)), "t": jnp.ones(1), "optimizer": SGD, **change}
    if "key" in change:
        arguments["key"] = jax.random.key(0)
    with pytest.raises(ValueError, match=message):
        limit(**arguments)
