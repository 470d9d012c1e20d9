"""Run by `test_tasks.py` in a process of its own: four devices against one."""

import math
import re

import jax
from jax.sharding import AxisType

import metalr
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


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    assert jax.device_count() == 4
    check(8, AxisType.Auto)
    check(6, AxisType.Explicit)  # not a multiple of the devices
    check_placement()
    print("several devices: the same results")  # noqa: T201
