"""The computation graph is that of question 2.1.1; reverse mode keeps T states."""

import jax.numpy as jnp
import optax

import metalr
from metalr.graph import computation_graph, reverse_residuals
from metalr.problems import least_squares
from tests.helpers import regression

SGD = {
    ("w0", "L0"), ("w0", "∇L0"), ("w0", "w1"), ("∇L0", "w1"), ("η", "w1"),
    ("w1", "L1"), ("w1", "∇L1"), ("w1", "w2"), ("∇L1", "w2"), ("η", "w2"),
    ("w2", "L2"),
}  # fmt: skip


def unrolled(steps, optimizer=optax.sgd, loss=None):
    X, t = regression()
    loss = loss or least_squares(X, t)
    return metalr.Unrolled(loss, optimizer, jnp.zeros(8), steps=steps)


def test_two_steps_of_gradient_descent_have_the_graph_of_the_theory():
    graph = computation_graph(unrolled(2), 0.1)
    assert graph.edges == SGD
    assert set(graph.nodes) == {"η", "w0", "L0", "∇L0", "w1", "L1", "∇L1", "w2", "L2"}
    assert graph.output == "L2"
    assert graph.side_outputs() == ("L0", "L1")


def test_momentum_adds_the_edge_from_the_first_gradient_to_the_last_parameters():
    graph = computation_graph(unrolled(2, lambda h: optax.sgd(h, momentum=0.9)), 0.1)
    assert graph.edges == SGD | {("∇L0", "w2")}


def test_a_hyperparameter_in_the_loss_reaches_gradients_and_losses():
    loss = lambda params, hyper, batch: hyper["l2"] * jnp.sum(params**2)
    optimizer = lambda h: optax.sgd(h["rate"])
    graph = computation_graph(unrolled(1, optimizer, loss), {"l2": 0.1, "rate": 0.1})
    into = {node: {a for a, b in graph.edges if b == node} for node in graph.nodes}
    assert into["∇L0"] == {"w0", "η['l2']"}
    assert into["w1"] == {"w0", "∇L0", "η['rate']"}
    assert into["L1"] == {"w1", "η['l2']"}


def test_plain_reverse_mode_keeps_8d_bytes_a_step_on_a_quadratic():
    kept = [reverse_residuals(unrolled(steps), 0.1).bytes for steps in (10, 20, 40)]
    assert kept[1] - kept[0] == 10 * 8 * 8
    assert kept[2] - kept[1] == 20 * 8 * 8
