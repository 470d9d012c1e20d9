"""Constraints, callbacks, what is kept; when a step is refused, when the loop stops."""

import gc
import weakref
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metalr
from tests.helpers import assert_close

EPS = float(jnp.finfo(jnp.float64).eps)
projections = optax.projections


def quadratic(h):
    return jnp.sum((h - jnp.array([2.0, -1.0, 0.3])) ** 2)


def test_a_minimum_beyond_the_bound_is_found_at_the_bound():
    learned = metalr.learn(
        lambda h: (h - 2.0) ** 2,
        0.5,
        outer_optimizer=optax.sgd(0.1),
        steps=100,
        project=lambda h: projections.projection_box(h, 0.0, 1.0),
    )
    assert learned.hyper == 1.0
    assert learned.converged
    assert int(learned.steps) < 10


def clipped(updates: Any, params: Any) -> Any:
    return jnp.clip(params + updates, 0.0, 1.0) - params


def test_a_projection_in_the_optimizers_chain_converges_as_well():
    clip = optax.stateless(clipped)
    learned = metalr.learn(
        lambda h: (h - 2.0) ** 2,
        0.5,
        outer_optimizer=optax.chain(optax.sgd(0.1), clip),
        steps=100,
    )
    assert learned.hyper == 1.0
    assert learned.converged


def test_a_step_too_short_to_be_seen_is_not_convergence():
    learned = metalr.learn(
        lambda h: (h - 2.0) ** 2, 0.5, outer_optimizer=optax.sgd(1e-20), steps=5
    )
    assert not learned.converged


def test_a_rate_that_begins_at_zero_is_not_convergence():
    """The first update is 0, but the optimizer's state goes on."""
    warm = optax.sgd(optax.linear_schedule(0.0, 0.2, 3))
    learned = metalr.learn(
        lambda h: (h - 2.0) ** 2, 0.5, outer_optimizer=warm, steps=200
    )
    assert int(learned.steps) > 10
    assert_close(learned.hyper, jnp.array(2.0), rtol=1e-6)


SETS = {  # and the nearest point of each to (2, −1, 0.3), by hand
    "box": (lambda h: projections.projection_box(h, -0.5, 1.0), [1.0, -0.5, 0.3]),
    "simplex": (projections.projection_simplex, [1.0, 0.0, 0.0]),
    "l1 ball": (lambda h: projections.projection_l1_ball(h, 2.0), [1.5, -0.5, 0.0]),
}


STEEPEST, SCALED = optax.sgd(0.2, momentum=0.5), optax.adam(0.05)


@pytest.mark.parametrize(
    ("name", "optimizer"),
    [(name, STEEPEST) for name in SETS] + [("box", SCALED)],
    ids=[*SETS, "box, adam"],
)
def test_the_minimum_within_a_set_is_the_projection_of_that_without(name, optimizer):
    project, nearest = SETS[name]
    learned = metalr.learn(
        quadratic,
        jnp.array([0.2, 0.2, 0.6]),
        outer_optimizer=optimizer,
        steps=2000,
        project=project,
        rtol=1e-7,
    )
    assert learned.converged
    assert_close(learned.hyper, jnp.array(nearest), rtol=0, atol=1e-5)
    assert_close(
        learned.history.grad_norm[0],
        jnp.linalg.norm(
            jnp.array([0.2, 0.2, 0.6]) - project(jnp.array([3.8, -2.2, 0.0]))
        ),
        rtol=1e-12,
    )


def test_a_start_outside_is_projected_and_logarithms_are_kept_in_a_box():
    learned = metalr.learn(
        lambda h: (h - 2.0) ** 2,
        9.0,
        outer_optimizer=optax.sgd(0.05),
        steps=200,
        log=True,
        project=lambda h: projections.projection_box(h, 2.5, 4.0),
    )
    assert_close(learned.history.hyper[0], jnp.array(4.0), rtol=1e-15)
    assert_close(learned.hyper, jnp.array(2.5), rtol=1e-14)
    assert learned.converged


ADAM: dict[str, Any] = {"outer_optimizer": optax.adam(0.1)}


def identical(one, other):
    same = lambda a, b: np.asarray(a).tobytes() == np.asarray(b).tobytes()
    return jax.tree.all(jax.tree.map(same, one, other))


@pytest.mark.parametrize("every", [1, 4, 50])
def test_a_callback_sees_the_loop_and_changes_no_bit(every):
    whole = metalr.learn(quadratic, jnp.zeros(3), steps=10, **ADAM)
    seen = []
    learned = metalr.learn(
        quadratic,
        jnp.zeros(3),
        steps=10,
        callback=seen.append,
        callback_every=every,
        **ADAM,
    )
    assert identical(learned, whole)
    expected = {1: list(range(1, 11)), 4: [4, 8, 10], 50: [10]}[every]
    assert [int(known.steps) for known in seen] == expected
    for known in seen:
        made = int(known.steps)
        assert known.value == whole.history.value[made]
        assert identical(known.history.value, whole.history.value[: made + 1])


def test_a_callback_that_returns_true_stops_the_loop():
    stop = lambda known: bool(known.steps >= 4)
    learned = metalr.learn(
        quadratic, jnp.zeros(3), steps=10, callback=stop, callback_every=2, **ADAM
    )
    assert int(learned.steps) == 4
    assert np.all(np.isnan(learned.history.value[5:]))
    assert learned.history.value.shape == (11,)


def test_a_callback_is_called_once_more_where_the_loop_stops_by_itself():
    seen = []
    learned = metalr.learn(
        quadratic,
        jnp.zeros(3),
        outer_optimizer=optax.sgd(0.5),  # in one step
        steps=100,
        callback=seen.append,
        callback_every=10,
    )
    assert learned.converged
    assert [int(known.steps) for known in seen] == [int(learned.steps)]


def test_scalars_keep_no_row_of_hyper():
    learn = lambda kind: metalr.learn(
        quadratic, jnp.zeros(3), steps=5, history=kind, **ADAM
    )
    scalars, everything = learn("scalars"), learn("all")
    assert scalars.history.hyper is None
    assert identical(scalars.history.value, everything.history.value)
    assert identical(scalars.hyper, everything.hyper)
    assert max(leaf.size for leaf in jax.tree.leaves(scalars.history)) == 6


def test_the_best_point_is_that_of_the_smallest_value_also_when_continued():
    learn = lambda hyper, **more: metalr.learn(
        lambda h: jnp.abs(h - 0.3), hyper, outer_optimizer=optax.sgd(0.2), **more
    )
    last = learn(1.0, steps=9)
    best = learn(1.0, steps=9, keep="best")
    index = int(jnp.argmin(last.history.value))
    assert index < 9
    assert best.value == last.history.value[index] < last.value
    assert best.hyper == last.history.hyper[index]
    half = learn(1.0, steps=index + 1, keep="best")
    rest = learn(half.hyper, steps=8 - index, keep="best", state=half.state)
    assert identical(rest.state, best.state)
    assert rest.hyper == best.hyper


# When a step is refused, and when the loop stops


def test_the_tolerance_is_relative_to_the_value():
    L = lambda h: 1e6 * (1.0 + h**2)
    learned = metalr.learn(
        L, 1.0, outer_optimizer=optax.sgd(1e-7), steps=200, rtol=1e-3
    )
    made = int(learned.steps)
    norms, values = learned.history.grad_norm, learned.history.value
    assert learned.converged
    assert norms[made] <= 1e-3 * values[made]
    assert norms[made] > 1.0  # far above any absolute tolerance of that size
    assert np.all(norms[:made] > 1e-3 * values[:made])


@pytest.mark.parametrize(("jump", "taken"), [(0.5 / EPS, True), (2.0 / EPS, False)])
def test_a_value_one_over_eps_times_larger_is_refused(jump, taken):
    L = lambda h: jnp.where(h > 1.5, -jump, 1.0 - 0.01 * h)  # |value|: the sign is free
    learned = metalr.learn(L, 1.0, outer_optimizer=optax.sgd(100.0), steps=1)
    assert (learned.hyper == 2.0) == taken
    assert (learned.hyper == 1.0) != taken


def test_the_length_of_a_step_recovers_twofold_after_a_refusal():
    L = lambda h: jnp.where(jnp.abs(h - 2.4) < 0.1, jnp.nan, 1.0) * (h - 2.0) ** 2
    learned = metalr.learn(L, 0.0, outer_optimizer=optax.sgd(0.6), steps=5)
    expected, h = [0.0, 0.0], 0.0
    for scale in (0.25, 0.5, 1.0, 1.0):
        h -= scale * 0.6 * 2 * (h - 2.0)
        expected.append(h)
    assert_close(learned.history.hyper, jnp.array(expected), rtol=1e-13)


def test_newton_closes_its_bracket_to_the_resolution_of_the_dtype():
    L = lambda h: jnp.abs(h - jnp.pi / 10)  # slopes ±1: only the bracket can stop it
    learned = metalr.learn(L, 0.9, outer_optimizer=metalr.Newton(), steps=200, rtol=0.0)
    low, high, *_ = learned.state.rule
    assert learned.converged
    assert 0.0 < high - low <= 4 * EPS
    assert abs(learned.hyper - jnp.pi / 10) <= 4 * EPS


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize(
    ("low", "high", "end"), [(0.1, 9.0, 2.0), (0.1, 1.5, 1.5), (3.0, 9.0, 3.0)]
)
def test_newton_ends_at_the_nearest_point_of_an_interval(low, high, end, log):
    learned = metalr.learn(
        lambda h: (h - 2.0) ** 2 + 1.0,
        0.5,
        outer_optimizer=metalr.Newton(),
        steps=30,
        log=log,
        project=lambda h: jnp.clip(h, low, high),
    )
    assert learned.converged
    assert learned.steps < 30
    assert_close(learned.hyper, jnp.array(end), rtol=1e-7)
    rows = learned.history.hyper[: int(learned.steps) + 1]
    slack = 1e-12  # of exp(log(·))
    assert jnp.all((rows >= low * (1 - slack)) & (rows <= high * (1 + slack)))


# What is accepted


def bad_calls():
    learn = lambda **k: metalr.learn(
        quadratic, jnp.zeros(3), **{"steps": 2, **ADAM, **k}
    )
    return {
        "outer_optimizer = <function adam": lambda: learn(outer_optimizer=optax.adam),
        "outer_optimizer = <class": lambda: learn(outer_optimizer=metalr.Newton),
        r"steps = 1.5 must be an int ≥ 0": lambda: learn(steps=1.5),
        r"steps = True must be an int": lambda: learn(steps=True),
        "engine = <class": lambda: learn(engine=metalr.Forward),
        "engine = 'reverse'": lambda: learn(engine="reverse"),
        "objective = 3": lambda: metalr.learn(3, 0.1, steps=1, **ADAM),
        "rtol = nan": lambda: learn(rtol=float("nan")),
        "atol = '0'": lambda: learn(atol="0"),
        "callback_every = 0": lambda: learn(callback_every=0),
        "callback = 'print'": lambda: learn(callback="print"),
        "history = 'none'": lambda: learn(history="none"),
        "keep = 'first'": lambda: learn(keep="first"),
        "structure and the shapes": lambda: learn(project=lambda h: h[:2]),
        "log has the entry 1": lambda: learn(log=1),
        "outside of jit": lambda: jax.jit(
            lambda h: metalr.learn(quadratic, h, steps=2, callback=print, **ADAM)
        )(jnp.zeros(3)),
    }


@pytest.mark.parametrize("message", bad_calls())
def test_bad_input_is_a_value_error_that_says_what_to_do(message):
    with pytest.raises(ValueError, match=message):
        bad_calls()[message]()


def test_numpys_integers_are_integers():
    assert (
        int(metalr.learn(quadratic, jnp.zeros(3), steps=np.int64(2), **ADAM).steps) == 2
    )


# What is compiled


def test_equal_optimizers_made_anew_compile_nothing_anew():
    traced = []

    def L(h):
        traced.append(h)
        return h**2

    once = lambda: metalr.learn(L, 1.0, outer_optimizer=optax.adam(0.1), steps=2)
    once()
    first = len(traced)
    for _ in range(3):
        once()
    assert len(traced) == first > 0


def test_fifty_calls_keep_no_closure():
    def once(index):
        data = jnp.full(3, float(index))
        L = lambda h: jnp.sum((h - data) ** 2)
        metalr.learn(L, jnp.zeros(3), outer_optimizer=optax.sgd(0.1), steps=1)
        return weakref.ref(L)

    refs = [once(index) for index in range(50)]
    gc.collect()
    assert sum(ref() is not None for ref in refs) == 0
