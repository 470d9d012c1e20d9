"""`Reversible`: momentum in fixed point, run back to its start bit for bit."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metalr
from metalr import Forward, Reversible, Unrolled, hypergradient, per_step
from metalr.hypergrad._exact import Buffer, multiply, rescale
from metalr.hypergrad._fractions import WORDS, fraction, schedule, slots_needed
from metalr.hypergrad._integer_run import IntegerRun, Integers
from tests.helpers import assert_near

FLOAT32, FLOAT64 = WORDS[jnp.dtype("float32")], WORDS[jnp.dtype("float64")]

# In float64 a step rounds to multiples of 2^-44 = 6e-14, and γV to ten of them; some
# hundred steps on numbers of size 1 stay below this.
RTOL = 1e-9


def momentum(h):
    return optax.sgd(h["rate"], h["momentum"])


def problem(key, dtype="float64", n=12, d=4):
    X = jax.random.normal(key, (n, d), dtype)
    t = X @ jnp.arange(1.0, d + 1, dtype=dtype) + 0.1 * jnp.cos(jnp.arange(n)).astype(
        dtype
    )
    start = {"w": 0.1 * jnp.ones(d, dtype), "b": jnp.zeros((), dtype)}

    def loss(params, hyper, batch):
        X_, t_ = (X, t) if batch is None else (X[batch], t[batch])
        residual = jnp.tanh(X_ @ params["w"]) * 5.0 + params["b"] - t_
        decay = hyper.get("decay", 0.0) if isinstance(hyper, dict) else 0.0
        return jnp.mean(residual**2) + decay * jnp.sum(params["w"] ** 2)

    return loss, start


HYPER = {"rate": 0.004, "momentum": 0.9, "decay": 0.1}


assert_close = functools.partial(assert_near, rtol=RTOL)


def reversed_exactly(result):
    """The diagnosis of a good run; then value and gradient."""
    assert isinstance(result, metalr.ReversibleHyperGradient)
    assert bool(jnp.all(result.exact & result.fits & ~result.overflow))
    return result


@pytest.mark.parametrize("steps", [1, 7, 150])
def test_it_is_the_hypergradient_of_the_float_run(key, steps):
    loss, start = problem(key)
    validation = lambda params, hyper: jnp.sum(params["w"] ** 4) + hyper["decay"] ** 2
    L = Unrolled(loss, momentum, start, steps=steps, outer_loss=validation)
    mine = reversed_exactly(hypergradient(L, HYPER, Reversible()))
    full = hypergradient(L, HYPER)
    assert_close(mine.value, full.value)
    for name in ("rate", "decay") if steps == 1 else HYPER:
        assert_close(mine.grad[name], full.grad[name])
    if steps == 1:  # the first trace is the gradient: nothing is multiplied by γ
        assert mine.grad["momentum"] == full.grad["momentum"] == 0.0


def test_no_steps_are_the_start(key):
    loss, start = problem(key)
    L = Unrolled(lambda p, h, b: loss(p, h, b) * h["decay"], momentum, start, steps=0)
    engine = Reversible()
    mine = reversed_exactly(engine(L, {k: jnp.asarray(v) for k, v in HYPER.items()}))
    assert mine.value == loss(start, HYPER, None) * HYPER["decay"]
    assert mine.grad["rate"] == mine.bits == 0.0


def test_minibatches_and_a_learned_start(key):
    loss, start = problem(key)
    rows = jax.random.randint(key, (30, 5), 0, 12)
    L = Unrolled(
        loss, momentum, lambda h: {**start, "w": h["start"]}, steps=30, batches=rows
    )
    hyper = {**HYPER, "start": jnp.linspace(-0.5, 0.5, 4)}
    mine = reversed_exactly(hypergradient(L, hyper, Reversible()))
    assert_close(mine.grad, hypergradient(L, hyper).grad)


def test_per_step_rates_and_momenta(key):
    loss, start = problem(key)
    L = Unrolled(loss, per_step(momentum), start, steps=30)
    hyper = {
        "rate": 0.004 + 0.001 * jnp.sin(jnp.arange(30.0)),
        "momentum": 0.95 - 0.1 * (jnp.arange(30.0) < 5),  # a warm-up
    }
    mine = reversed_exactly(hypergradient(L, hyper, Reversible()))
    assert_close(mine.grad, hypergradient(L, hyper).grad)


def test_rates_and_momenta_of_each_parameter(key):
    """A rate for each weight, a momentum for each leaf: by a transformation by hand."""
    loss, start = problem(key)

    def optimizer(h):
        def update(updates, state, params=None):
            trace = jax.tree.map(
                lambda g, v, m: m * v + g, updates, state.trace, h["momentum"]
            )
            steps = jax.tree.map(lambda v, r: -r * v, trace, h["rate"])
            return steps, optax.TraceState(trace)

        zeros = lambda params: optax.TraceState(jax.tree.map(jnp.zeros_like, params))
        return optax.GradientTransformation(zeros, update)

    L = Unrolled(loss, optimizer, start, steps=40)
    hyper = {
        "rate": {"w": jnp.array([0.001, 0.002, 0.004, 0.006]), "b": jnp.array(0.003)},
        "momentum": {"w": jnp.array(0.9), "b": jnp.array(0.96)},
    }
    mine = reversed_exactly(hypergradient(L, hyper, Reversible()))
    assert_close(mine.grad, hypergradient(L, hyper).grad)


def test_a_schedule_of_optax_is_followed(key):
    loss, start = problem(key)
    schedule = lambda h: optax.sgd(optax.cosine_decay_schedule(0.01, 25), h["momentum"])
    L = Unrolled(loss, schedule, start, steps=25)
    hyper = {"momentum": 0.9, "decay": 0.1}
    mine = reversed_exactly(hypergradient(L, hyper, Reversible()))
    assert_close(mine.grad, hypergradient(L, hyper).grad)


def test_at_rate_zero_it_is_the_closed_form(key):
    """L_T'(0) = −‖g‖² Σ_{s=1..T} (1 − αˢ)/(1 − α) (THEORY, item 8)."""
    loss, start = problem(key)
    L = Unrolled(loss, momentum, start, steps=60)
    grad = hypergradient(L, {"rate": 0.0, "momentum": 0.9}, Reversible()).grad
    g = jax.grad(loss)(start, None, None)
    expected = -(optax.tree.norm(g) ** 2) * jnp.sum(
        (1 - 0.9 ** jnp.arange(1, 61)) / 0.1
    )
    assert_close(grad["rate"], expected)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("gamma", "published"), [(0.98, 0.029), (0.9, 0.152)])
def test_ten_thousand_steps_are_reversed_in_the_published_bits(
    key, dtype, gamma, published
):
    """Maclaurin et al. (2015): 0.029 and 0.152 bits per step and weight."""
    loss, start = problem(key, dtype)
    steps = 10_000
    slow = lambda params, hyper, batch: 0.01 * loss(params, hyper, batch)
    L = Unrolled(slow, momentum, start, steps=steps)
    hyper = {"rate": 1e-4, "momentum": gamma}  # still moving at the end
    mine = reversed_exactly(hypergradient(L, hyper, Reversible(min_momentum=gamma)))
    words = WORDS[jnp.dtype(dtype)]
    spills = steps * published / words.spill_bits
    assert spills > 10
    assert slots_needed(steps, gamma, words) == pytest.approx(spills, rel=0.1)
    # With the carry bits: log2(1 / (1 - γ)) < 6 once, and 1 % for each spill.
    assert 0.0 < float(mine.bits) + np.log2(gamma) < 0.01 * published + 6 / steps
    assert float(mine.bits) == pytest.approx(published, rel=0.04)
    exact = hypergradient(L, hyper, Forward())
    # float32: 10⁴ roundings of 2^-22 · 50 in the trace, seen through rate · 10⁴ · 50.
    tolerance = 1e-9 if dtype == "float64" else 2e-3
    assert_close(mine.value, exact.value, rtol=tolerance)
    assert_close(mine.grad, exact.grad, rtol=tolerance)


@pytest.mark.parametrize("words", [FLOAT32, FLOAT64], ids=["float32", "float64"])
def test_multiplication_is_undone_bit_for_bit(key, words):
    """Over many spills, with fractions and pushes that change from step to step."""
    steps, weights = 600, 50
    momenta = jax.random.uniform(key, (steps, 1), words.real, 0.6, 1.0)
    slots = slots_needed(steps, 0.6, words)
    plan = schedule(momenta, words, slots)
    assert bool(plan.fits)
    assert int(plan.row[-1, 0]) > 10
    pushes = jax.random.randint(key, (steps, weights), -(2**26), 2**26).astype(
        words.integer
    )
    start = jax.random.randint(key, (weights,), -(2**28), 2**28).astype(words.integer)
    empty = jnp.zeros((slots, weights), words.stack)
    first = (start, Buffer(jnp.zeros(weights, words.real), empty))

    def forward(carry, s):
        V, buffer = carry
        V, buffer = multiply(V, buffer, plan.at(s, 0), words, jnp.array(True))
        return (V + pushes[s], buffer), (V, buffer.word)

    def backward(carry, s):
        V, buffer = carry
        V, buffer = multiply(
            V - pushes[s], buffer, plan.at(s, 0), words, jnp.array(False)
        )
        return (V, buffer), None

    end, (products, kept) = jax.lax.scan(forward, first, jnp.arange(steps))
    back, _ = jax.lax.scan(backward, end, jnp.arange(steps)[::-1])
    assert bool(jnp.all(back[0] == start))
    assert bool(jnp.all(back[1].word == 0.0))
    assert bool(jnp.all(end[1].word >= 0.0))
    exact = 2.0 ** (jnp.finfo(words.real).nmant + 1)
    # What is kept is what must be kept: γV to within a denominator, no word too long.
    before = jnp.concatenate([start[None], products[:-1] + pushes[:-1]])
    product = before.astype(float) * plan.num / plan.den
    assert bool(jnp.all(jnp.abs(products - product) <= plan.den + 1))
    assert float(jnp.max(kept)) < exact / jnp.max(plan.den) / 0.6 + 1


@pytest.mark.parametrize("words", [FLOAT32, FLOAT64], ids=["float32", "float64"])
def test_rescaling_is_the_map_of_whole_numbers(words):
    """Against Python's integers, at the ends of the ranges too, and back."""
    rng = np.random.default_rng(0)
    apply = jax.jit(lambda V, x, num, den: rescale(V, x, num, den, words))
    far = 2**words.range_bits - 1
    for _ in range(100):
        den = int(rng.integers(1, words.max_denominator + 1))
        num = int(rng.integers(max(1, den // 20), 2 * den))
        limit = int(words.exact_limit / (max(abs(den - num), 1) * max(den / num, 1.0)))
        V = [-far, far, 0, *map(int, rng.integers(-far, far, 50))]
        x = [limit - 1] * 3 + [int(i) for i in rng.integers(0, limit, 50)]
        y = [i * den + v % den for i, v in zip(x, V, strict=True)]
        expected_V = [v // den * num + i % num for v, i in zip(V, y, strict=True)]
        fraction = jnp.asarray([num, den], words.integer)
        given = jnp.asarray(V, words.integer), jnp.asarray(x, words.real)
        found = apply(*given, *fraction)
        assert [int(v) for v in found[0]] == expected_V
        assert [int(i) for i in found[1]] == [i // num for i in y]
        back = apply(*found, *fraction[::-1])
        assert [int(v) for v in back[0]] == V
        assert [int(i) for i in back[1]] == x


def test_dropping_one_spill_is_noticed(key, monkeypatch):
    """The check of the round trip can fail: a row of the stack is lost."""
    loss, start = problem(key, "float32")
    L = Unrolled(loss, momentum, start, steps=200)

    def lossy(self, plan, state, adjoint, index, forward):
        stack = [b._replace(stack=b.stack.at[0].set(0)) for b in state.buffers]
        lost = state._replace(buffers=stack)
        state = jax.tree.map(lambda a, b: jnp.where(index == 120, a, b), lost, state)
        return step(self, plan, state, adjoint, index, forward)

    step = IntegerRun.step
    monkeypatch.setattr(IntegerRun, "step", lossy)
    with pytest.raises(RuntimeError, match="did not end at its start"):
        hypergradient(L, {"rate": 0.001, "momentum": 0.9}, Reversible())
    result = jax.jit(lambda h: hypergradient(L, h, Reversible()))(
        {"rate": 0.001, "momentum": 0.9}
    )
    assert not bool(result.exact)
    assert bool(jnp.isnan(result.value) & jnp.isnan(result.grad["rate"]))


def test_a_gradient_that_is_not_reproducible_is_noticed():
    random = np.random.default_rng(0)
    shape = jax.ShapeDtypeStruct((), jnp.float64)
    noise = lambda _: np.float64(random.normal())

    def loss(params, hyper, batch):
        return (
            0.5
            * params**2
            * (1.0 + jax.pure_callback(noise, shape, jax.lax.stop_gradient(params)))
        )

    L = Unrolled(loss, momentum, 1.0, steps=5)
    with pytest.raises(RuntimeError, match="not the same number each time"):
        hypergradient(L, {"rate": 0.01, "momentum": 0.9}, Reversible())


def soft_sign(updates, params):
    return jax.tree.map(jnp.tanh, updates)


REFUSED = {
    "adam": (lambda h: optax.adam(h["rate"], b1=h["momentum"]), "ScaleByAdamState"),
    "rmsprop": (lambda h: optax.rmsprop(h["rate"], h["momentum"]), "ScaleByRmsState"),
    "no momentum": (lambda h: optax.sgd(h["rate"] * h["momentum"]), "EmptyState"),
    "nesterov": (
        lambda h: optax.sgd(h["rate"], h["momentum"], nesterov=True),
        "not a multiple of the new trace",
    ),
    "weight decay": (
        lambda h: optax.chain(optax.add_decayed_weights(0.1), momentum(h)),
        "new trace is not γ times the old one plus the gradient",
    ),
    "decoupled decay": (
        lambda h: optax.chain(momentum(h), optax.add_decayed_weights(-0.1)),
        "not a multiple of the new trace",
    ),
    "clip": (lambda h: optax.chain(optax.clip(1.0), momentum(h)), "applies `"),
    "soft sign": (
        lambda h: optax.chain(momentum(h), optax.stateless(soft_sign)),
        "applies `tanh`",
    ),
    "ema": (
        lambda h: optax.chain(optax.ema(h["momentum"]), optax.sgd(h["rate"])),
        "EmaState",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_heavy_ball_is_refused_by_name(key, name):
    optimizer, reason = REFUSED[name]
    loss, start = problem(key)
    L = Unrolled(loss, optimizer, start, steps=3)
    with pytest.raises(ValueError, match=r"Reversible\(.*reverses SGD") as error:
        hypergradient(L, {"rate": 0.01, "momentum": 0.9}, Reversible())
    assert reason in str(error.value)


@pytest.mark.parametrize("derivative", [jax.jacfwd, jax.jacrev], ids=["fwd", "rev"])
def test_a_hessian_is_refused(key, derivative):
    loss, start = problem(key)
    L = Unrolled(loss, lambda rate: optax.sgd(rate, 0.9), start, steps=3)
    with pytest.raises(NotImplementedError, match="can't be differentiated"):
        derivative(lambda rate: hypergradient(L, rate, Reversible()).grad)(0.01)


@pytest.mark.parametrize(
    ("rate", "scale"), [(5.0, 1.0), (0.001, 1e4), (0.001, jnp.nan)]
)
def test_leaving_the_range_is_nan_and_never_wraps(rate, scale):
    """A diverging rate, a trace and a start out of range, a gradient that is nan."""
    loss = lambda params, hyper, batch: 0.5 * scale * jnp.sum(params**2)
    L = Unrolled(
        loss, lambda eta: optax.sgd(eta, 0.9), jnp.ones(3, "float32"), steps=50
    )
    result = hypergradient(L, jnp.float32(rate), Reversible())
    assert bool(result.overflow)
    assert bool(jnp.isnan(result.value) & jnp.isnan(result.grad))


def test_weights_out_of_range_are_noticed_though_they_come_back():
    # 2^61 units of 2^-44 are 131 072; w is −400 000 after a step and back after two.
    loss = lambda params, hyper, batch: batch * params
    L = Unrolled(
        loss,
        lambda rate: optax.sgd(rate, 0.9),
        jnp.array(0.0),
        steps=2,
        batches=jnp.array([2.0, -3.8]),
        outer_loss=lambda params, hyper: params**2,
    )
    result = hypergradient(L, jnp.array(2e5), Reversible())
    assert bool(result.overflow)
    assert bool(jnp.isnan(result.value))
    inside = reversed_exactly(hypergradient(L, jnp.array(2.0), Reversible()))
    assert_close(inside.value, L(2.0), rtol=1e-9, atol=1e-20)


def test_a_start_with_something_left_in_a_buffer_is_no_start():
    start = jnp.zeros(3)
    rest = Buffer(jnp.zeros(3), jnp.zeros((1, 3), "uint16"))
    first = Integers([jnp.zeros(3, "int64")], [jnp.zeros(3, "int64")], [rest])
    tampered = first._replace(buffers=[rest._replace(word=rest.word.at[1].set(1.0))])
    nothing: Any = None  # is asked of the run but its words
    run = IntegerRun(nothing, nothing, FLOAT64, nothing)
    assert bool(run.is_start(first, start))
    assert not bool(run.is_start(tampered, start))
    assert not bool(run.is_start(first, start.at[2].set(1e-3)))


@pytest.mark.parametrize("value", [0.5019, 0.3345, 0.98])
def test_the_stack_has_rows_for_the_smallest_momentum_however_long_the_run(value):
    """½ stands for 0.5019: it loses a spill more in each 1500 steps."""
    smallest = jnp.full((10_000, 1), value, "float32")
    slots = slots_needed(10_000, float(smallest[0, 0]), FLOAT32)
    assert bool(schedule(smallest, FLOAT32, slots).fits)


def test_momenta_that_differ_have_the_rows_of_their_mean_and_a_row_short_is_noticed():
    values = jnp.tile(jnp.array([0.5019, 0.3345], "float32"), 1300)[:, None]
    slots = slots_needed(2600, float(np.sqrt(0.5019 * 0.3345)), FLOAT32)
    plan = schedule(values, FLOAT32, slots)
    assert bool(plan.fits)
    assert not bool(schedule(values, FLOAT32, int(jnp.sum(plan.spill)) - 1).fits)


def test_fewer_fractional_bits_are_more_range():
    loss = lambda params, hyper, batch: 0.5 * jnp.sum((params - 1000.0) ** 2)
    L = Unrolled(
        loss, lambda eta: optax.sgd(eta, 0.9), jnp.ones(3, "float32"), steps=50
    )
    assert bool(hypergradient(L, jnp.float32(0.01), Reversible()).overflow)
    wide = Reversible(params_bits=16, trace_bits=14)
    result = reversed_exactly(hypergradient(L, jnp.float32(0.01), wide))
    assert_close(result.grad, hypergradient(L, jnp.float32(0.01)).grad, rtol=1e-4)


def test_a_momentum_below_the_bound_is_refused(key):
    loss, start = problem(key)
    L = Unrolled(loss, momentum, start, steps=400)
    hyper = {"rate": 0.001, "momentum": 0.5}
    with pytest.raises(ValueError, match=r"pass Reversible\(min_momentum="):
        hypergradient(L, hyper, Reversible())
    result = jax.jit(lambda h: hypergradient(L, h, Reversible()))(hyper)
    assert not bool(result.fits)
    assert bool(jnp.isnan(result.value))
    result = reversed_exactly(hypergradient(L, hyper, Reversible(min_momentum=0.5)))
    assert_close(result.grad, hypergradient(L, hyper).grad)


def test_it_batches_over_hyper_and_over_tasks(key):
    loss, start = problem(key)

    def grad(scale, gamma):
        scaled = lambda scale, params, hyper, batch: scale * loss(params, hyper, batch)
        L = Unrolled(jax.tree_util.Partial(scaled, scale), momentum, start, steps=120)
        return hypergradient(
            L, {"rate": jnp.array(0.003), "momentum": gamma}, Reversible()
        )

    scales, gammas = jnp.array([0.5, 1.0]), jnp.array([0.9, 0.98])
    batched = reversed_exactly(jax.vmap(grad)(scales, gammas))
    for i in range(2):
        single = reversed_exactly(grad(scales[i], gammas[i]))
        assert_close(jax.tree.map(lambda x, i=i: x[i], batched.grad), single.grad)
        assert_close(batched.bits[i], single.bits)


def test_memory_grows_by_the_bits_and_nothing_else():
    weights = 2**16
    loss = lambda params, hyper, batch: 0.5 * jnp.sum(params**2)

    def temp(steps):
        L = Unrolled(loss, momentum, jnp.ones(weights, "float32"), steps=steps)
        hyper = {"rate": jnp.float32(0.01), "momentum": jnp.float32(0.9)}
        f = jax.jit(lambda h: hypergradient(L, h, Reversible()))
        analysis = f.lower(hyper).compile().memory_analysis()
        assert analysis is not None
        return analysis.temp_size_in_bytes

    bits = (temp(5000) - temp(1000)) / 4000 / weights * 8
    # Beside the buffers: the plan, some twenty bytes a step for the whole leaf.
    assert 0.152 <= bits <= 0.17


@pytest.mark.parametrize("value", [0.9, 0.98, 0.5, 2 / 3, 1.0])
@pytest.mark.parametrize("words", [FLOAT32, FLOAT64], ids=["float32", "float64"])
def test_simple_fractions_are_found(value, words):
    num, den = fraction(jnp.asarray(value, words.real), words)
    expected = {0.9: (9, 10), 0.98: (49, 50), 0.5: (1, 2), 2 / 3: (2, 3), 1.0: (1, 1)}
    assert (int(num), int(den)) == expected[value]


@pytest.mark.parametrize("words", [FLOAT32, FLOAT64], ids=["float32", "float64"])
def test_a_fraction_is_as_close_as_its_denominator_promises(key, words):
    values = jax.random.uniform(key, (1000,), words.real, 0.05, 1.0)
    num, den = fraction(values, words)
    error = jnp.abs(num.astype(float) / den - values.astype(float))
    rounding = 2 * jnp.finfo(words.real).eps
    assert bool(jnp.all(den <= words.max_denominator))
    assert bool(jnp.all(error <= 1.0 / (den * words.max_denominator) + rounding))


@pytest.mark.parametrize("value", [0.0, -0.5, jnp.nan, jnp.inf, 3.0])
def test_what_is_no_momentum_has_no_fraction(value):
    assert int(fraction(jnp.asarray(value, "float32"), FLOAT32)[0]) == 0


@pytest.mark.parametrize(
    "options", [{"min_momentum": 0.0}, {"min_momentum": 1.5}, {"params_bits": -1}]
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Reversible(**options)


def test_it_is_a_hashable_value_and_its_result_unpacks(key):
    assert {Reversible(): 1}[Reversible(min_momentum=0.9)] == 1
    assert repr(Reversible(min_momentum=0.5)).startswith("Reversible(min_momentum=0.5")
    loss, start = problem(key)
    value, grad, *_ = hypergradient(
        Unrolled(loss, momentum, start, steps=3), HYPER, Reversible()
    )
    assert value.shape == ()
    assert grad.keys() == HYPER.keys()


@pytest.mark.filterwarnings("ignore::metalr.hypergrad.hypergradient.PrecisionWarning")
@pytest.mark.parametrize("wide", [False, True], ids=["bfloat16", "float32 hyper"])
def test_narrow_params_are_reversed_in_float32_whatever_hyper_is(wide):
    """A quadratic: w_T is linear in the start, so that rounding alone differs."""
    kind = jnp.float32 if wide else jnp.bfloat16
    start = jnp.ones(3, jnp.bfloat16)
    loss = lambda params, hyper, batch: jnp.sum(params**2) / 2
    momentum = lambda h: optax.sgd(h["rate"], h["momentum"])
    L = metalr.Unrolled(loss, momentum, start, steps=6)
    hyper = {"rate": jnp.asarray(0.1, kind), "momentum": jnp.asarray(0.9, kind)}
    found = metalr.hypergradient(L, hyper, metalr.Reversible(min_momentum=0.5)).grad
    exact = metalr.Unrolled(loss, momentum, jnp.ones(3), steps=6)
    wide_hyper = jax.tree.map(lambda h: h.astype(float), hyper)
    expected = jax.grad(exact)(wide_hyper)
    for name, slope in expected.items():
        assert found[name].dtype == kind
        assert abs(found[name].astype(float) - slope) < 0.03 * abs(slope)
