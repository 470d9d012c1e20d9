"""Run by `test_tasks.py` in a process of its own: four devices against one.

Means over tasks whose tasks are spread, and single runs whose arrays are.
"""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import metalr
from metalr.profiling import compiled
from metalr.tasks import Each, Mean, stack
from tests.helpers import (
    HEAVY_BALL as HYPER,
    assert_close,
    heavy_ball_task as problem,
)


def four_devices(kind: AxisType = AxisType.Auto) -> jax.sharding.Mesh:
    """All of them, as one axis of tasks."""
    return jax.make_mesh((4,), ("tasks",), axis_types=(kind,))


def check(count: int, kind: AxisType) -> None:
    """`count` tasks on four devices are the same tasks on one; the start is shared."""
    tasks = [problem(seed) for seed in range(count)]
    weights = range(1, count + 1)
    one = Mean(tasks, weights=weights)
    four = Mean(tasks, four_devices(kind), weights=weights)
    assert any(one.shared)
    pairs = [
        (one.values(HYPER), four.values(HYPER)),
        (jax.grad(one)(HYPER), jax.grad(four)(HYPER)),
        (jax.jacfwd(one)(HYPER), jax.jacfwd(four)(HYPER)),
    ]
    for engine in (metalr.Forward(), metalr.Reverse(checkpoints=2)):
        found = [metalr.hypergradient(f, HYPER, Each(engine)) for f in (one, four)]
        pairs.append(tuple((r.value, r.grad, r.values, r.grads) for r in found))
    for expected, actual in pairs:
        assert_close(actual, expected, rtol=1e-12, atol=1e-14)


def check_placement() -> None:
    """Each device holds its share, and no task's arrays cross between devices."""
    mean = Mean(stack([problem(seed) for seed in range(8)]), four_devices())
    for leaf in jax.tree.leaves(mean):
        shapes = {shard.data.shape[0] for shard in leaf.addressable_shards}
        assert shapes == {2}
        assert len({shard.device for shard in leaf.addressable_shards}) == 4
    engine = Each(metalr.Reverse())
    run = jax.jit(lambda mean, hyper: metalr.hypergradient(mean, hyper, engine)[:2])
    compiled = run.lower(mean, HYPER).compile()
    crossing = [
        line
        for line in str(compiled.as_text()).splitlines()
        if re.search(r" (all-\w+|collective-\w+|reduce-scatter)\(", line)
    ]
    assert crossing  # values and gradients meet somewhere
    shapes = re.findall(r"\w\d+\[([\d,]+)\]", " ".join(crossing))
    assert all(math.prod(map(int, s.split(","))) <= mean.count for s in shapes), shapes


WIDTH, EXAMPLES, STEPS = 32, 8, 24
RATES = {"rate": 0.05, "decay": 0.001}
PLACES = {  # of weights, output weights, inputs and targets of all steps
    "data parallel": (P(), P(), P(None, "d"), P(None, "d")),
    "split weights": (P(None, "d"), P("d"), P(None, "d"), P(None, "d")),
    "split rows": (P("d", None), P(), P(None, "d"), P(None, "d")),
}
ENGINES = (metalr.Reverse(checkpoints=6), metalr.Mixed(), metalr.Forward())


def network_loss(params, hyper, batch):
    """A network whose weights have a decay that is learned."""
    inputs, targets = batch
    outputs = jnp.tanh(inputs @ params["W"]) @ params["v"]
    decay = hyper["decay"] * jnp.sum(params["W"] ** 2)
    return jnp.mean((outputs - targets) ** 2) + decay


def momentum(hyper):
    """Its trace lies where the weights do."""
    return optax.sgd(hyper["rate"], 0.9)


def network(place):
    """An inner run whose arrays lie where `place(array, which)` puts them."""
    rng = np.random.default_rng(0)
    shapes = [(WIDTH, WIDTH), (WIDTH,), (STEPS, EXAMPLES, WIDTH), (STEPS, EXAMPLES)]
    arrays = [
        place(jnp.asarray(rng.normal(size=shape) / math.sqrt(WIDTH)), which)
        for which, shape in enumerate(shapes)
    ]
    params, batches = {"W": arrays[0], "v": arrays[1]}, tuple(arrays[2:])
    return metalr.Unrolled(network_loss, momentum, params, steps=STEPS, batches=batches)


def program(objective, engine):
    """Its hypergradient, compiled and run."""
    rates = jax.tree.map(jnp.asarray, RATES)
    made = compiled(lambda o, h: metalr.hypergradient(o, h, engine), objective, rates)
    return made, made.run(objective, rates)


def check_sharded() -> None:
    """A run larger than one device: results of one, and states kept in parts."""
    whole = network(lambda array, which: array)
    alone = {engine: program(whole, engine) for engine in ENGINES}
    cases = [("split weights", AxisType.Auto, engine) for engine in ENGINES]
    cases += [("data parallel", AxisType.Auto, metalr.Mixed())]
    cases += [("split rows", AxisType.Explicit, metalr.Reverse(checkpoints=6))]
    cases += [("split rows", AxisType.Explicit, metalr.Forward())]
    for name, kind, engine in cases:
        mesh = jax.make_mesh((4,), ("d",), axis_types=(kind,))
        put = lambda x, i, n=name, m=mesh: jax.device_put(
            x, NamedSharding(m, PLACES[n][i])
        )
        parts, found = program(network(put), engine)
        one, expected = alone[engine]
        assert_close(tuple(found), tuple(expected), rtol=1e-11)
        gathered = re.findall(r"\w\d+\[([\d,]+)\]\S* all-gather", parts.run.as_text())
        largest = max((math.prod(map(int, g.split(","))) for g in gathered), default=0)
        # Of one step at most, and its tangents: never of the states that are kept.
        assert largest <= len(RATES) * WIDTH**2, (name, engine, gathered)
        if name == "split weights" and engine != metalr.Forward():
            assert parts.temp_bytes <= one.temp_bytes / 3, (engine, parts, one)


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    assert jax.device_count() == 4
    check(8, AxisType.Auto)
    check(6, AxisType.Explicit)  # not a multiple of the devices
    check_placement()
    check_sharded()
    print("several devices: the same results")  # noqa: T201
