"""A loop that is interrupted and continued is the loop that was not, bit for bit."""

import json
import shutil
import signal
import subprocess
import sys
import time
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metalr
from experiments import long_unroll, resume
from experiments._command import cli
from experiments._command.experiment import ConfigError, ExperimentConfig, output_folder
from experiments._command.runner import execute
from experiments.resume import learn_resumably
from metalr import Learned
from metalr.outer.learn import History
from metalr.problems import least_squares
from tests.helpers import regression


def objective(steps=3, dtype="float64"):
    X, t = regression()
    loss = least_squares(X.astype(dtype), t.astype(dtype))
    make = lambda h: optax.sgd(h["rate"], h["momentum"])
    return metalr.Unrolled(loss, make, jnp.zeros(8, dtype), steps=steps)


def rates(steps=3, dtype="float64"):
    """Of one scalar, for Newton."""
    X, t = regression()
    loss = least_squares(X.astype(dtype), t.astype(dtype))
    return metalr.Unrolled(loss, optax.sgd, jnp.zeros(8, dtype), steps=steps)


def in_chunks(learn, hyper, steps, chunks):
    """What `chunks` continued calls return, put together as one."""
    learned = learn(hyper, steps=steps)
    rows, made = [learned.history], int(learned.steps)
    for _ in range(chunks - 1):
        learned = learn(learned.hyper, steps=steps, state=learned.state)
        rows.append(jax.tree.map(lambda x: x[1:], learned.history))
        made += int(learned.steps)
    history = jax.tree.map(lambda *parts: jnp.concatenate(parts), *rows)
    return learned._replace(history=history, steps=jnp.array(made, jnp.int32))


def assert_identical(actual, expected):
    """Every bit, nan and the sign of zero included."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert (a.dtype, a.shape) == (e.dtype, e.shape)
        assert bits(a) == bits(e)


def bits(leaf):
    key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if key else leaf).tobytes()


PAIR = {"rate": 0.3, "momentum": 0.1}


def shifted(noise, hyper):
    return {"rate": hyper["rate"] + noise, "momentum": hyper["momentum"]}


LOOPS = {
    "adam, log": lambda: (
        objective(),
        PAIR,
        {"outer_optimizer": optax.adam(0.1), "log": True, "engine": metalr.Forward()},
    ),
    "lbfgs, log of one": lambda: (
        objective(),
        PAIR,
        {"outer_optimizer": optax.lbfgs(), "log": {"rate": True, "momentum": False}},
    ),
    "noise": lambda: (
        objective(),
        PAIR,
        {"outer_optimizer": optax.noisy_sgd(0.01, key=0)},
    ),
    "Newton, log, converged early": lambda: (
        rates(5),
        0.1,
        {"outer_optimizer": metalr.Newton(), "log": True, "atol": 1e-2},
    ),
    "sgd backs off": lambda: (rates(200), 0.5, {"outer_optimizer": optax.sgd(1e4)}),
    "Newton backs off": lambda: (
        rates(200),
        0.5,
        {"outer_optimizer": metalr.Newton(first_step=1e4)},
    ),
    "a start that diverged": lambda: (
        rates(200),
        1e6,
        {"outer_optimizer": optax.sgd(0.1)},
    ),
    "fresh draws, a box": lambda: (
        lambda key: metalr.reparametrized(
            objective(), jax.tree_util.Partial(shifted, 0.01 * jax.random.normal(key))
        ),
        PAIR,
        {
            "outer_optimizer": optax.adam(0.1),
            "key": 5,
            "project": lambda h: jax.tree.map(lambda x: jnp.clip(x, 0.05, 0.4), h),
            "history": "scalars",
        },
    ),
    "the best of an oscillation": lambda: (
        rates(),
        0.5,
        {"outer_optimizer": optax.sgd(1.0, momentum=0.9), "keep": "best"},
    ),
    "float32": lambda: (
        objective(dtype="float32"),
        jax.tree.map(jnp.float32, PAIR),
        {"outer_optimizer": optax.adam(0.1), "log": True},
    ),
}


@pytest.mark.parametrize("name", LOOPS)
def test_steps_in_chunks_are_the_steps_at_once_bit_for_bit(name):
    L, hyper, options = LOOPS[name]()
    learn = lambda hyper, **more: metalr.learn(L, hyper, **options, **more)
    whole = learn(hyper, steps=12)
    assert_identical(in_chunks(learn, hyper, steps=4, chunks=3), whole)
    made = int(whole.steps)
    if "early" in name:
        assert 0 < made < 12
        assert whole.converged
    if "back" in name:
        assert np.any(np.diff(whole.history.value[: made + 1]) == 0.0)


def test_the_state_of_another_loop_is_refused():
    adam, sgd = optax.adam(0.1), optax.sgd(0.1)
    learned = metalr.learn(rates(), 0.1, outer_optimizer=adam, steps=0)
    with pytest.raises(ValueError, match="same outer_optimizer"):
        metalr.learn(rates(), 0.1, outer_optimizer=sgd, steps=1, state=learned.state)
    with pytest.raises(ValueError, match="same outer_optimizer"):
        metalr.learn(
            objective(), PAIR, outer_optimizer=adam, steps=1, state=learned.state
        )


LOOP = {"outer_optimizer": optax.adam(0.1), "log": True, "engine": metalr.Forward()}


def resumably(folder, **more):
    options = {"every": 4, "steps": 10, "fingerprint": "this problem", **LOOP, **more}
    return learn_resumably(objective(), PAIR, folder=folder, **options)


@pytest.fixture(scope="module")
def whole():
    return metalr.learn(objective(), PAIR, steps=10, **LOOP)


class Stop(Exception):
    """A kill that Python can see."""


def stop_at(made):
    def on_progress(learned):
        if int(learned.steps) == made:
            raise Stop

    return on_progress


def checkpoints(folder):
    return sorted(int(path.stem) for path in folder.glob("*.checkpoint"))


def test_a_loop_stopped_between_chunks_ends_as_if_it_had_not_been(
    tmp_path, whole, capfd
):
    with pytest.raises(Stop):
        resumably(tmp_path, on_progress=stop_at(8))
    assert checkpoints(tmp_path) == [4, 8]
    seen = []
    learned = resumably(tmp_path, on_progress=seen.append)
    assert [int(known.steps) for known in seen] == [8, 10]
    assert_identical(learned, whole)
    for known in seen:
        made = int(known.steps) + 1
        assert np.all(np.isnan(known.history.value[made:]))
        np.testing.assert_array_equal(
            known.history.value[:made], whole.history.value[:made]
        )
    assert capfd.readouterr() == ("", "")


def walk(hyper, *, steps, state=None):
    """A random walk in place of a loop that learns: its key is part of its state."""
    key: Any = jax.random.key(3, impl="rbg") if state is None else state
    rows = [jnp.asarray(hyper)]
    for _ in range(steps):
        key, now = jax.random.split(key)
        rows.append(rows[-1] + jax.random.normal(now))
    history = History(*4 * [jnp.stack(rows)])
    steps_made = jnp.array(steps, jnp.int32)
    end = (rows[-1], rows[-1], history, jnp.array(False), steps_made, key)
    return Learned(*end)


def test_random_keys_come_back_as_the_keys_that_they_were(tmp_path):
    options = {"folder": tmp_path, "every": 2, "fingerprint": "a walk"}
    for steps in (2, 4):
        *_, learned = resume.in_chunks(walk, 0.5, steps=steps, **options)
    assert_identical(learned, walk(0.5, steps=4))


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """Checkpoints after 4 and 8 of 10 steps."""
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.raises(Stop):
        resumably(folder, on_progress=stop_at(8))
    return folder


def flip(checkpoint, at=-100):
    """One bit, of a learned number unless another place is given."""
    content = bytearray(checkpoint.read_bytes())
    content[at] ^= 1
    checkpoint.write_bytes(content)


DAMAGE = {
    "a bit flipped": flip,
    "a bit of its hash flipped": lambda at: flip(at, 0),
    "a bit of its head flipped": lambda at: flip(at, 100),
    "truncated": lambda at: at.write_bytes(at.read_bytes()[:-1]),
    "lengthened": lambda at: at.write_bytes(at.read_bytes() + b"x"),
    "empty": lambda at: at.write_bytes(b""),
    "another checkpoint's content": lambda at: shutil.copy(
        at.with_name("4.checkpoint"), at
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_warned_of_and_the_one_before_taken(
    damage, stopped, tmp_path, whole
):
    folder = tmp_path / "copy"
    shutil.copytree(stopped, folder)
    DAMAGE[damage](folder / "8.checkpoint")
    seen = []
    with pytest.warns(UserWarning, match="copy/8.checkpoint is damaged"):
        learned = resumably(folder, on_progress=seen.append)
    assert [int(known.steps) for known in seen] == [4, 8, 10]
    assert_identical(learned, whole)
    assert checkpoints(folder) == [4, 8, 10]


def test_with_every_checkpoint_damaged_the_loop_begins_anew(stopped, tmp_path, whole):
    folder = tmp_path / "copy"
    shutil.copytree(stopped, folder)
    flip(folder / "8.checkpoint")
    flip(folder / "4.checkpoint")
    with pytest.warns(UserWarning, match="damaged") as caught:
        learned = resumably(folder, every=10)
    assert len(caught) == 2
    assert_identical(learned, whole)
    assert checkpoints(folder) == [10]
    resumably(folder)  # and it is mended: no warning


@pytest.mark.parametrize("every", [4, 9], ids=["within a chunk", "at its end"])
def test_a_finished_loop_computes_nothing_more(every, tmp_path):
    early = {"atol": 0.2, "steps": 20}
    whole = metalr.learn(objective(), PAIR, **LOOP, **early)
    assert int(whole.steps) == 9  # it stops by itself
    assert_identical(resumably(tmp_path, every=every, **early), whole)
    times = lambda: {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")}
    before, seen = times(), []
    again = resumably(tmp_path, every=every, **early, on_progress=seen.append)
    assert_identical(again, whole)
    assert len(seen) == 1
    assert before == times()  # nothing was written


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    resumably(tmp_path, every=2)
    assert checkpoints(tmp_path) == [6, 8, 10]


@pytest.mark.parametrize(
    ("name", "steps"), [("fresh draws, a box", 10), ("the best of an oscillation", 10)]
)
def test_what_a_loop_carries_comes_back_from_the_disk(name, steps, tmp_path):
    L, hyper, options = LOOPS[name]()
    kept = {"folder": tmp_path, "every": 4, "fingerprint": name, "steps": steps}
    with pytest.raises(Stop):
        learn_resumably(L, hyper, on_progress=stop_at(8), **kept, **options)
    learned = learn_resumably(L, hyper, **kept, **options)
    assert_identical(learned, metalr.learn(L, hyper, steps=steps, **options))


@pytest.mark.parametrize("at", [3, 4, 6], ids=["within a chunk", "at its end", "later"])
def test_a_loop_that_its_callback_stopped_stays_stopped(at, tmp_path):
    seen = []

    def callback(known):
        seen.append(int(known.steps))
        return seen[-1] == at

    learned = resumably(tmp_path, callback=callback)
    assert seen == list(range(1, at + 1))
    again = resumably(tmp_path, callback=callback)
    assert seen == list(range(1, at + 1))
    assert int(learned.steps) == int(again.steps) == at
    assert_identical(again, learned)


REFUSED = {
    "of another problem": {"fingerprint": "that problem"},
    "steps = 7, but .* holds 8": {"steps": 7},
    "every = 0": {"every": 0},
}


@pytest.mark.parametrize("message", REFUSED)
def test_a_folder_that_does_not_fit_is_refused(message, stopped):
    with pytest.raises(ConfigError, match=message) as caught:
        resumably(stopped, **REFUSED[message])
    assert "every" in message or str(stopped) in str(caught.value)


def test_two_processes_do_not_share_a_folder(tmp_path):
    def again(learned):
        resumably(tmp_path)

    with pytest.raises(ConfigError, match="another process"):
        resumably(tmp_path, on_progress=again)


DRIVER = """
import sys
from pathlib import Path
import jax
jax.config.update("jax_enable_x64", True)
from tests.experiments.test_resume import resumably
report = lambda learned: print(int(learned.steps), flush=True)
resumably(Path(sys.argv[1]), every=1, steps=40, on_progress=report)
"""


@pytest.mark.slow
def test_a_loop_killed_at_any_moment_ends_as_if_it_had_not_been(tmp_path):
    """Killed at some moment of a chunk or of its save, again and again."""
    delays = iter(np.random.default_rng(0).uniform(0.0, 0.4, size=2))
    made = 0
    for delay in delays:
        with subprocess.Popen(
            [sys.executable, "-c", DRIVER, str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as driver:
            assert driver.stdout is not None
            first = int(driver.stdout.readline())
            assert first >= made  # goes on from where the one before was seen
            time.sleep(delay)
            driver.kill()
            further = driver.communicate()[0].split()
            made = int(further[-1]) if further else first
        assert driver.returncode == -signal.SIGKILL  # and was not done before
    learned = resumably(tmp_path, every=1, steps=40)  # and no checkpoint is half there
    assert_identical(learned, metalr.learn(objective(), PAIR, steps=40, **LOOP))


def records(folder):
    lines = (folder / "records.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_an_experiment_knows_the_folder_that_its_runs_share(tmp_path):
    module = ModuleType("somewhere.probe")
    vars(module)["Config"] = ExperimentConfig
    vars(module)["run"] = lambda config: iter([{"folder": str(output_folder())}])
    for _ in range(2):
        folder = execute(module, ExperimentConfig(), tmp_path)
        (record,) = records(folder)
        assert record["folder"] == str(tmp_path / "probe") == str(folder.parent)
    assert output_folder() is None


def test_checkpoints_need_a_run_with_a_folder():
    config = long_unroll.Config(checkpoint_every=1)
    with pytest.raises(ConfigError, match="leave it out of a sweep"):
        next(long_unroll.run(config))


def small_unroll(config):
    """In place of the conv net, which takes long to compile."""
    X, t = (array.astype(config.dtype) for array in regression())
    return metalr.Unrolled(
        least_squares(X, t),
        metalr.per_step(optax.adam),
        jnp.zeros(8, config.dtype),
        steps=config.steps,
    )


@pytest.mark.slow
def test_the_same_command_goes_on_where_the_long_unroll_was_stopped(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(long_unroll, "_objective", small_unroll)
    options = ["steps=3", "outer_steps=5", "checkpoint_every=2"]

    def run():
        status = cli.module_main("long_unroll", [*options, "--runs", str(tmp_path)])
        (folder,) = (path.parent for path in tmp_path.glob("*/*/records.jsonl"))
        rows = [row for row in records(folder) if "rates" in row]
        shutil.rmtree(folder)
        return status, rows

    def interrupted(before, chunk):
        if before is not None:
            raise KeyboardInterrupt
        return joined(before, chunk)

    joined = resume.joined
    with monkeypatch.context() as patch:
        patch.setattr(resume, "joined", interrupted)
        status, first = run()
    assert status == 130
    assert [row["outer_step"] for row in first] == [0, 1, 2]
    status, whole = run()
    assert status == 0
    assert [row["outer_step"] for row in whole] == list(range(6))
    assert whole[:3] == first
    assert len({row["held_out_loss"] for row in whole}) == 6
    monkeypatch.setattr(resume, "joined", interrupted)  # nothing is left to join
    assert run() == (0, whole)
    options.pop()
    assert run() == (0, whole)  # the same without checkpoints
