r"""Question: where are the source notes wrong, and what is true?

One row for each statement of the notes that does not hold or holds only under a
condition they leave out, for the questions they leave open, and for what they have
right. Both sides are numbers, computed by metalr on a concrete problem; unless a row
says otherwise it is n = 1, x = (1, 2), t = 3.
Claim: every "wrong" row has a difference that is not rounding; every "right" row none.
"""

from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

import metalr
from experiments._command.experiment import ExperimentConfig, Record
from experiments._settings.networks import NOTES, to_layers
from experiments._settings.source_notes import IMAGE, LAPLACIAN, lagged_adagrad
from metalr import bias, convnet
from metalr.theory import Quadratic, implicit_bias as theory

Verdict = Literal["wrong", "loose", "missing", "right"]


class Config(ExperimentConfig):
    """Options of this experiment."""

    experiment: Literal["errata"] = "errata"


class Row(NamedTuple):
    """A statement of the notes beside what is true, each as one number."""

    question: str
    verdict: Verdict
    notes: str  # what the notes say
    truth: str
    notes_value: float | None  # None where the notes say nothing
    true_value: float


def run(config: Config) -> Iterator[Record]:
    """Yield one record for each statement."""
    del config
    for make in ROWS:
        row = make()
        values = (row.notes_value, row.true_value)
        difference = None if values[0] is None else abs(values[0] - values[1])
        yield {"table": "errata", **row._asdict(), "difference": difference}


def size(config: Config) -> int:
    """Records that `run` yields."""
    del config
    return len(ROWS)


def _example(*x: float) -> tuple[jax.Array, jax.Array]:
    return jnp.array([x]), jnp.array([3.0])


def _wide() -> tuple[jax.Array, jax.Array, jax.Array]:
    """Three examples, five columns, a start off their row space."""
    keys = jax.random.split(jax.random.key(0), 3)
    X, t, w0 = (
        jax.random.normal(k, s) for k, s in zip(keys, [(3, 5), (3,), (5,)], strict=True)
    )
    return X, t, w0


def _exact_adagrad(rate: float = 0.5) -> optax.GradientTransformation:
    return optax.adagrad(rate, initial_accumulator_value=0.0, eps=0.0)


def minimum_norm() -> Row:
    """1.1.1: SGD from zero ends at the minimum-norm solution."""
    X, t, _ = _wide()
    found = bias.limit(X, t, optax.sgd(0.1), rows="cyclic")
    return Row(
        "1.1.1",
        "right",
        "SGD from w₀ = 0 ends at Xᵀ(XXᵀ)⁻¹t (norm, 3 examples, 5 columns)",
        "it does: every iterate is Xᵀα",
        float(jnp.linalg.norm(X.T @ jnp.linalg.solve(X @ X.T, t))),
        float(jnp.linalg.norm(found.params)),
    )


def contraction_is_a_matrix() -> Row:
    """1.1.1: the factor of one step is I − 2ηxᵀx, not a number."""
    X, t = _example(1.0, 2.0)
    w0, eta = jnp.array([2.0, -1.0]), 0.05  # w₀ in the null space of x
    solution = bias.min_norm_solution(X, t)
    w1 = bias.path(X, t, optax.sgd(eta), steps=1, w0=w0)[1]
    scalar = 1.0 - 2.0 * eta * float(X[0] @ X[0])
    return Row(
        "1.1.1",
        "loose",
        "the distance to the solution shrinks by the constant 1 − 2ηxxᵀ; "
        "after a step from (2, −1), η = 0.05",
        "by the matrix I − 2ηxᵀx, which keeps the null space",
        scalar * float(jnp.linalg.norm(w0 - solution)),
        float(jnp.linalg.norm(w1 - solution)),
    )


def full_row_rank() -> Row:
    """1.1.1: the formula needs full row rank."""
    X = jnp.array([[1.0, 2.0], [1.0, 2.0]])
    return Row(
        "1.1.1",
        "loose",
        "the solution is Xᵀ(XXᵀ)⁻¹t, whatever X: the rank it needs for two examples",
        "the same example twice has rank 1; X⁺t is where SGD ends, for any rank",
        float(X.shape[0]),
        float(jnp.linalg.matrix_rank(X)),
    )


def start_off_zero() -> Row:
    """1.1.1: from w₀ ≠ 0 the limit is w₀ + X⁺(t − Xw₀)."""
    X, t, w0 = _wide()
    found = bias.limit(X, t, optax.sgd(0.1), w0=w0)
    return Row(
        "1.1.1",
        "loose",
        "SGD ends at Xᵀ(XXᵀ)⁻¹t: its norm, said without a start",
        "from w₀ at w₀ + X⁺(t − Xw₀): the norm of where it ends from a random w₀",
        float(jnp.linalg.norm(bias.min_norm_solution(X, t))),
        float(jnp.linalg.norm(found.params)),
    )


def half_n_diverges() -> Row:
    """1.1.1: η = n/2 diverges unless ‖x‖² ≤ 2."""
    X, t = _example(1.0, 2.0)
    w = bias.path(X, t, optax.sgd(0.5), steps=20)[20]
    return Row(
        "1.1.1",
        "wrong",
        "η = n/2 converges; |xw − t| after 20 steps",
        "the residual grows by ‖x‖² − 1 = 4 a step: η = n/2 needs ‖xᵢ‖² ≤ 2",
        0.0,
        float(jnp.abs(X @ w - t)[0]),
    )


def momentum_right() -> Row:
    """1.1.2: momentum from rest ends at the minimum norm too."""
    X, t, _ = _wide()
    found = bias.limit(X, t, optax.sgd(0.1, momentum=0.9))
    return Row(
        "1.1.2",
        "right",
        "momentum from w₀ = 0, δ₀ = 0 ends at the minimum-norm solution (its norm)",
        "it does, if it converges",
        float(jnp.linalg.norm(bias.min_norm_solution(X, t))),
        float(jnp.linalg.norm(found.params)),
    )


def momentum_drift() -> Row:
    """1.1.2: a first velocity drifts along the null space."""
    X, t, _ = _wide()
    delta0, eta, alpha = jnp.ones(5), 0.1, 0.9
    optimizer = optax.sgd(eta, momentum=alpha)
    state = optax.tree.set(optimizer.init(jnp.zeros(5)), trace=-delta0 / eta)
    found = bias.limit(X, t, optimizer, opt_state=state)
    return Row(
        "1.1.2",
        "loose",
        "the same with any δ₀; distance to minimum norm for δ₀ = 1, α = 0.9",
        "X⁺t + P_null(w₀ + α/(1−α)·δ₀)",
        0.0,
        float(found.distance_to_min_norm),
    )


def adagrad_conclusion() -> Row:
    """1.2.1: AdaGrad need not find the minimum norm: right."""
    X, t = _example(1.0, 2.0)
    found = bias.limit(X, t, _exact_adagrad())
    best = float(jnp.linalg.norm(bias.min_norm_solution(X, t)))
    return Row(
        "1.2.1",
        "right",
        "AdaGrad need not end at minimum norm: excess norm of t·sign(x)/‖x‖₁",
        "it ends at (1, 1), norm √2 against √1.8",
        float(jnp.linalg.norm(theory.sign_limit(X[0], 3.0))) - best,
        float(found.excess_norm),
    )


def adagrad_gradient() -> Row:
    """1.2.1: a factor 2 is dropped in the second gradient."""
    X, t = _example(1.0, 2.0)
    loss = metalr.problems.least_squares(X, t)
    gradient = jax.grad(loss)(jnp.array([6.0, 12.0]), None, None)
    return Row(
        "1.2.1",
        "wrong",
        "the gradient at (6, 12) is (27, 54): first entry",
        "(54, 108): a factor 2 is dropped",
        27.0,
        float(gradient[0]),
    )


def adagrad_iterate() -> Row:
    """1.2.1: the second iterate of the notes' own variant."""
    X, t = _example(1.0, 2.0)
    w = bias.path(X, t, lagged_adagrad(1e-4, 1e-4), steps=2)
    return Row(
        "1.2.1",
        "wrong",
        "W₂ = (5.99955, 11.99955): first entry",
        "(5.9991, 11.9991), by the notes' own rule",
        5.99955,
        float(w[2, 0]),
    )


def adagrad_definition() -> Row:
    """1.2.1: AdaGrad's accumulator includes the current gradient."""
    X, t = _example(1.0, 2.0)
    w = bias.path(X, t, _exact_adagrad(1e-4), steps=1)
    return Row(
        "1.2.1",
        "wrong",
        "W₁ = (6, 12): first entry, with an accumulator that lags by one step",
        "AdaGrad includes the current gradient: W₁ = η·sign(x), η = 1e-4",
        6.0,
        float(w[1, 0]),
    )


def adagrad_lagged_limit() -> Row:
    """1.2.1: the notes' variant ends at (−3, 3), AdaGrad at (1, 1)."""
    X, t = _example(1.0, 2.0)
    # After the first step all move along (1, 1): the rate changes only the time.
    rate = optax.join_schedules(
        [optax.constant_schedule(1e-4), optax.constant_schedule(1.0)], [1]
    )
    lagged = bias.limit(X, t, lagged_adagrad(rate, 1e-4))
    exact = bias.limit(X, t, _exact_adagrad())
    return Row(
        "1.2.1",
        "wrong",
        "where the notes' AdaGrad ends: (−3, 3), first entry",
        "AdaGrad ends at (1, 1)",
        float(lagged.params[0]),
        float(exact.params[0]),
    )


def one_iterate_proves_nothing() -> Row:
    """1.2.1: an iterate off the row space says nothing about the limit."""
    X, t = _example(1.0, 2.0)
    w0, alpha, eta = jnp.array([2.0, -1.0]), 0.5, 0.05
    optimizer = optax.sgd(eta, momentum=alpha)
    delta0 = -(1.0 - alpha) / alpha * w0  # drifts back exactly onto the row space
    state = optax.tree.set(optimizer.init(w0), trace=-delta0 / eta)
    first = bias.path(X, t, optimizer, steps=1, w0=w0, opt_state=state)[1]
    found = bias.limit(X, t, optimizer, w0=w0, opt_state=state)
    space = theory.row_space(X)
    return Row(
        "1.2.1",
        "wrong",
        "W₂ off the row space, so the limit is off it: here W₁ of a momentum run is "
        "off by",
        "and its limit, the minimum-norm solution, by",
        float(jnp.linalg.norm(space.outside(first))),
        float(jnp.linalg.norm(space.outside(found.params))),
    )


def adagrad_equal_entries() -> Row:
    """1.2.1: for x = (1, 1) AdaGrad does reach the minimum norm."""
    X, t = _example(1.0, 1.0)
    found = bias.limit(X, t, _exact_adagrad())
    return Row(
        "1.2.1",
        "missing",
        "–",
        "for x = (1, 1) AdaGrad does reach the minimum norm: distance to it",
        None,
        float(found.distance_to_min_norm),
    )


def graph_of_two_steps() -> Row:
    """2.1.1: the derivative along the edges of the missing graph."""
    x, t, eta = 1.5, 3.0, 0.07
    w0, curvature = 0.0, 2.0 * x * x

    def slope(w: float) -> float:
        return 2.0 * x * (x * w - t)

    w1 = w0 - eta * slope(w0)
    w2 = w1 - eta * slope(w1)
    # η → w₁ → (w₂, ∇L₁ → w₂) and η → w₂; L₀ and L₁ are side outputs.
    through_w1 = (1.0 - eta * curvature) * -slope(w0)
    by_edges = slope(w2) * (through_w1 - slope(w1))
    return Row(
        "2.1.1",
        "missing",
        "–",
        "w₀→∇L₀; (w₀,∇L₀,η)→w₁; w₁→∇L₁; (w₁,∇L₁,η)→w₂→L₂: dL₂/dη along these edges, "
        "x = 1.5, η = 0.07",
        None,
        by_edges,
    )


def memory_reverse() -> Row:
    """2.1.2: back-propagation keeps every state."""
    return Row(
        "2.1.2",
        "right",
        "back-propagation through t steps takes O(t): bytes a step, 64 float64 numbers",
        "bytes a step of the compiled program",
        8.0 * 64,
        _bytes_per_step(metalr.Reverse()),
    )


def memory_forward() -> Row:
    """2.1.2: forward mode needs no more for more steps."""
    return Row(
        "2.1.2",
        "missing",
        "–",
        "forward-mode differentiation is O(1) in t: bytes a step of the program",
        None,
        _bytes_per_step(metalr.Forward()),
    )


def _bytes_per_step(engine: metalr.Reverse | metalr.Forward) -> float:
    X = jax.random.normal(jax.random.key(0), (8, 64))
    loss = metalr.problems.least_squares(X, jnp.ones(8))

    def temporary(steps: int) -> int:
        objective = metalr.Unrolled(loss, optax.sgd, jnp.zeros(64), steps=steps)
        return metalr.profiling.memory(objective, 0.1, engine).temp_bytes

    return (temporary(300) - temporary(200)) / 100


def one_step_slope() -> Row:
    """2.2.1: the derivative of the loss after one step."""
    X, t, w0 = _wide()
    a, K, n, eta = X @ w0 - t, X @ X.T, X.shape[0], 0.05
    objective = metalr.Unrolled(
        metalr.problems.least_squares(X, t), optax.sgd, w0, steps=1
    )
    return Row(
        "2.2.1",
        "right",
        "L₁' = −(4/n²)·aᵀ(I − (2η/n)K)Ka; 3 examples, 5 columns, η = 0.05",
        "jax.grad of the unroll",
        float(-4.0 / n**2 * a @ (K @ a - 2.0 * eta / n * K @ K @ a)),
        float(jax.grad(objective)(eta)),
    )


def one_step_curvature() -> Row:
    """2.2.2: L₁ is convex in η."""
    X, t, w0 = _wide()
    a, K, n = X @ w0 - t, X @ X.T, X.shape[0]
    objective = metalr.Unrolled(
        metalr.problems.least_squares(X, t), optax.sgd, w0, steps=1
    )
    return Row(
        "2.2.2",
        "right",
        "L₁'' = (8/n³)‖Ka‖² ≥ 0; the same",
        "jax.hessian of the unroll",
        float(8.0 / n**3 * (K @ a) @ (K @ a)),
        float(jax.hessian(objective)(0.05)),
    )


def one_step_rate() -> Row:
    """2.2.3: the optimal rate of one step."""
    X, t, w0 = _wide()
    a, K, n = X @ w0 - t, X @ X.T, X.shape[0]
    learned = metalr.learn(
        metalr.Unrolled(metalr.problems.least_squares(X, t), optax.sgd, w0, steps=1),
        0.01,
        outer_optimizer=metalr.Newton(),
        steps=50,
    )
    return Row(
        "2.2.3",
        "right",
        "η* = (n/2)·aᵀKa/aᵀKKa (3 examples, 5 columns)",
        "learned by the hypergradient of one step",
        float(n / 2 * (a @ K @ a) / (a @ K @ K @ a)),
        float(learned.hyper),
    )


def one_step_condition() -> Row:
    """2.2.3: the formula needs Xᵀa ≠ 0."""
    X, t = jnp.array([[1.0], [1.0]]), jnp.array([-1.0, 1.0])
    exact = Quadratic.from_regression(X, t)
    return Row(
        "2.2.3",
        "loose",
        "one η* always: their number, for X = (1; 1), t = (−1; 1)",
        "needs Xᵀa ≠ 0; here L₁ is constant: eigenvalues that a rate acts on",
        1.0,
        float(exact.eigenvalues.size),
    )


def _printed_loss(eta: jax.Array, steps: int) -> jax.Array:
    """‖a − ((2η/n)K)ᵗa‖² for x = (1, 1), t = 3, w₀ = 0: a = −3, K = 2."""
    return (-3.0 - (4.0 * eta) ** steps * -3.0) ** 2


def _loss(steps: int, *x: float) -> metalr.Unrolled:
    X, t = _example(*x)
    loss = metalr.problems.least_squares(X, t)
    return metalr.Unrolled(loss, optax.sgd, jnp.zeros(len(x)), steps=steps)


def loss_after_t() -> Row:
    """2.3.1: the printed loss after t steps is wrong from t = 2."""
    eta = jnp.array(0.1)
    return Row(
        "2.3.1",
        "wrong",
        "L_t = ‖a − ((2η/n)K)ᵗa‖²; x = (1, 1), η = 0.1, t = 2",
        "L_t = ‖(I − (2η/n)K)ᵗa‖²/n",
        float(_printed_loss(eta, 2)),
        float(_loss(2, 1.0, 1.0)(eta)),
    )


def loss_is_no_double_well() -> Row:
    """2.3.1: the printed loss has two minima, the true one has one."""
    rates = jnp.linspace(-0.5, 0.7, 481)

    def minima(values: jax.Array) -> float:
        inner = (values[1:-1] < values[:-2]) & (values[1:-1] < values[2:])
        return float(jnp.sum(inner))

    return Row(
        "2.3.1",
        "wrong",
        "the printed L₂ over η: number of minima (a double well, not convex)",
        "L₂ = 9(1 − 4η)⁴: number of minima",
        minima(_printed_loss(rates, 2)),
        minima(jax.vmap(_loss(2, 1.0, 1.0))(rates)),
    )


def _notes_derivatives(eta: float, steps: int) -> tuple[float, float, metalr.Unrolled]:
    """The two printed derivatives, and the unroll they belong to."""
    X, t, w0 = _wide()
    n, K, a = X.shape[0], X @ X.T, X @ w0 - t
    M = jnp.eye(n) - 2.0 * eta / n * K
    power = jnp.linalg.matrix_power
    slope = -4.0 * steps / n**2 * a @ power(M, 2 * steps - 1) @ K @ a
    curvature = (
        8.0 * steps * (2 * steps - 1) / n**3 * a @ power(M, 2 * steps - 2) @ K @ K @ a
    )
    loss = metalr.problems.least_squares(X, t)
    objective = metalr.Unrolled(loss, optax.sgd, w0, steps=steps)
    return float(slope), float(curvature), objective


def first_derivative() -> Row:
    """2.3.2: the printed first derivative is right."""
    slope, _, objective = _notes_derivatives(0.05, 3)
    return Row(
        "2.3.2",
        "right",
        "L_t' = −(4t/n²)·aᵀ(I − (2η/n)K)^{2t−1}Ka; 3 examples, t = 3, η = 0.05",
        "jax.grad of the unroll",
        slope,
        float(jax.grad(objective)(0.05)),
    )


def second_derivative() -> Row:
    """2.3.2: the printed second derivative is right."""
    _, curvature, objective = _notes_derivatives(0.05, 3)
    return Row(
        "2.3.2",
        "right",
        "L_t'' = (8t(2t−1)/n³)·aᵀ(I − (2η/n)K)^{2t−2}K²a; the same",
        "jax.hessian of the unroll",
        curvature,
        float(jax.hessian(objective)(0.05)),
    )


def not_strictly_convex() -> Row:
    """2.3.2: L_t'' > 0 is false: it vanishes at ¼ here."""
    curvatures = jax.vmap(jax.hessian(_loss(2, 1.0, 1.0)))(jnp.linspace(0.0, 0.5, 65))
    return Row(
        "2.3.2",
        "wrong",
        "L_t'' > 0; x = (1, 1), t = 2: of 65 rates on [0, ½], how many have L₂'' = 0",
        "η = ¼ has: L_t is convex always, strictly at all but such points",
        0.0,
        float(jnp.sum(curvatures == 0.0)),
    )


def optimal_for_every_t() -> Row:
    """2.1.3, 2.2.4, 2.3.3: unanswered; η* = ¼ for every t."""
    exact = Quadratic.from_regression(*_example(1.0, 1.0))
    return Row(
        "2.1.3, 2.2.4, 2.3.3",
        "missing",
        "–",
        "x = (1, 1): η* = ¼ for every t (here 7), to w₁ = (1.5, 1.5) in one step",
        None,
        float(exact.optimal_rate(7)),
    )


def edges_recovered() -> Row:
    """3.1: an edge detector whose output still holds the image."""
    kernel = jnp.array(LAPLACIAN, float)
    matrix = convnet.convolution_matrix(kernel, (len(IMAGE), len(IMAGE[0])))
    return Row(
        "3.1",
        "right",
        "the image can be recovered: smallest eigenvalue 4 − 4cos(π/6) > 0",
        "of the 25 × 25 system",
        float(4.0 - 4.0 * jnp.cos(jnp.pi / 6.0)),
        float(jnp.min(jnp.linalg.eigvalsh(matrix))),
    )


_NOTES_INPUT = (112, 112, 3)


def network_parameters() -> Row:
    """3.2: the totals are right."""
    table = convnet.size_table(to_layers(NOTES, _NOTES_INPUT), _NOTES_INPUT)
    return Row(
        "3.2",
        "right",
        "52 444 644 parameters",
        "counted",
        52_444_644.0,
        float(table.total.parameters),
    )


def network_neurons() -> Row:
    """3.2: the neurons are right."""
    table = convnet.size_table(to_layers(NOTES, _NOTES_INPUT), _NOTES_INPUT)
    return Row(
        "3.2",
        "right",
        "1 957 988 neurons",
        "counted, without the input and the softmax",
        1_957_988.0,
        float(table.total.neurons),
    )


def network_connections() -> Row:
    """3.2: the connections count taps on the padding."""
    table = convnet.size_table(to_layers(NOTES, _NOTES_INPUT), _NOTES_INPUT)
    return Row(
        "3.2",
        "loose",
        "999 407 616 connections: right if taps on the zero padding count",
        "961 041 152 that fall on the image",
        float(table.total.connections),
        float(table.total.connections_inside),
    )


def stride_of_its_own() -> Row:
    """3.3: a layer's stride enlarges only later fields."""
    before = [convnet.Conv(1, 3), convnet.Conv(1, 3)]
    last = convnet.Conv(1, 3, stride=2)
    fields = convnet.receptive_field([*before, last])
    return Row(
        "3.3",
        "loose",
        "a larger stride enlarges the field: of a 3 × 3, stride 2, after two 3 × 3, if "
        "its own stride counts",
        "its stride enlarges only the fields of later layers",
        float(fields[1] + (last.kernel - 1) * last.stride),
        float(fields[2]),
    )


def larger_input() -> Row:
    """3.3: a 224 × 224 input changes the dense layer, not the field."""
    wide = (224, 224, 3)
    sizes = [
        convnet.size_table(to_layers(NOTES, shape), shape).rows[7].parameters
        for shape in (_NOTES_INPUT, wide)
    ]
    fields = convnet.fields(to_layers(NOTES, wide), wide)
    return Row(
        "3.3",
        "loose",
        "224 × 224 input: stands as a remark on the receptive field, but what grows "
        "(by the factor) is FC-1024",
        "the last pool sees 30 × 30 pixels of either input: factor",
        sizes[1] / sizes[0],
        fields[6].size / convnet.receptive_field(to_layers(NOTES, _NOTES_INPUT))[6],
    )


ROWS: tuple[Callable[[], Row], ...] = (
    minimum_norm,
    contraction_is_a_matrix,
    full_row_rank,
    start_off_zero,
    half_n_diverges,
    momentum_right,
    momentum_drift,
    adagrad_conclusion,
    adagrad_gradient,
    adagrad_iterate,
    adagrad_definition,
    adagrad_lagged_limit,
    one_iterate_proves_nothing,
    adagrad_equal_entries,
    graph_of_two_steps,
    memory_reverse,
    memory_forward,
    one_step_slope,
    one_step_curvature,
    one_step_rate,
    one_step_condition,
    loss_after_t,
    loss_is_no_double_well,
    first_derivative,
    second_derivative,
    not_strictly_convex,
    optimal_for_every_t,
    edges_recovered,
    network_neurons,
    network_parameters,
    network_connections,
    stride_of_its_own,
    larger_input,
)


if __name__ == "__main__":
    from experiments._command.cli import module_main

    raise SystemExit(module_main("errata"))
