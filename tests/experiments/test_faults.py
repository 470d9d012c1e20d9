"""Nothing computed is lost, and nothing computed twice, whatever is killed or full."""

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import CancelledError
from pathlib import Path
from unittest.mock import Mock

import pytest

from experiments._command.config import ConfigError
from experiments._store import store
from experiments._sweep import cluster
from experiments._sweep.greeting import check_greeting
from experiments._sweep.jobs import Job

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


SMALL_FILES = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (120_000, 120_000))
os.execv(sys.argv[1], sys.argv[1:])
"""
"""Starts a program whose files cannot grow: a full disk, on any machine."""

SMALL_DISK = """
mount -t tmpfs -o size=200k tmpfs "$1" || exit 77
shift
"$@"; first=$?
mount -o remount,size=10m tmpfs "$DISK" && "$@"; second=$?
cp "$DISK/tiny.sqlite" "$DISK.sqlite"
echo "exit codes: $first, $second"
"""
"""A command on a disk that is full, and again on one that is not any more."""

HURRIED = """
from experiments._command import cli
from experiments._sweep import cluster
cluster.SILENCE, cluster.CONNECT_LIMIT, cluster._POLL = 1.0, 3.0, 0.2
raise SystemExit(cli.main())
"""
"""The command line with a driver that soon gives up."""


class Driver:
    """Sweeps of tests/sweep_points.py in processes of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder, folder / "log"
        self.store = folder / "runs" / "tiny.sqlite"
        self.log.touch()
        (folder / "tiny.yaml").write_text("experiment: sweep_points\n")
        self.environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "METALR_EXPERIMENTS": "tests.experiments.sweep_points",
            "SWEEP_LOG": str(self.log),
            "JAX_PLATFORMS": "cpu",
        }

    def command(self, *arguments, program=("-m", "experiments")):
        config, runs = str(self.folder / "tiny.yaml"), str(self.folder / "runs")
        return [
            *(sys.executable, *program, "sweep", config),
            *("--runs", runs, "executor.batch=1", "jax=false", *arguments),
        ]

    def start(self, *arguments, wrapper=(), **options):
        return subprocess.Popen(
            [*wrapper, *self.command(*arguments, **options)],
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *arguments, code=0, **options):
        process = self.start(*arguments, **options)
        output, _ = process.communicate(timeout=300)
        assert process.returncode == code, output
        return output

    def rows(self):
        return store.read(self.store)

    def counts(self):
        """How often each point was started, and how often it ended."""
        lines = [line.split() for line in self.log.read_text().splitlines()]
        return [
            Counter(int(x) for what, x in lines if what == w) for w in ("start", "end")
        ]

    def wait_for(self, count):
        """Until so many points have started."""
        deadline = time.monotonic() + 120
        while self.counts()[0].total() < count:
            assert time.monotonic() < deadline, "no progress"
            time.sleep(0.02)

    def wait_until_all_end(self):
        """Until nothing that the test has started is left."""
        deadline = time.monotonic() + 30
        while self.processes():
            assert time.monotonic() < deadline, self.processes()
            time.sleep(0.05)

    def processes(self):
        """Those of this test that are alive: they have its log in their environment."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if str(self.log).encode() in (process / "environ").read_bytes():
                    found.append(process.name)
        return found


@pytest.fixture
def driver(tmp_path):
    return Driver(tmp_path)


@pytest.mark.parametrize(
    ("executor", "kills", "in_flight"),
    [
        ("kind: serial", 4, 1),
        ("kind: serial, time_limit: 60", 3, 1),
        # Two running, and two that the driver had not been told of.
        ("kind: dask, workers: 2", 2, 4),
    ],
)
def test_killed_drivers_lose_nothing_and_repeat_only_what_was_in_flight(
    driver, executor, kills, in_flight
):
    points = 40
    axis = (f"sweep.axes.x={{range: [0, {points}, 1]}}", "pause=0.05")
    rng = random.Random(executor)
    for _ in range(kills):
        process = driver.start(*axis, f"executor={{{executor}, batch: 1}}")
        driver.wait_for(driver.counts()[0].total() + 1)
        time.sleep(rng.uniform(0.0, 0.3))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert len(driver.rows()) < points, "killed too late to show anything"
    before = {row.key for row in driver.rows()}
    output = driver.run(*axis, f"executor={{{executor}, batch: 1}}")
    assert f"{len(before)} skipped, 0 failed" in output
    found = driver.rows()
    assert sorted(row.config["x"] for row in found) == list(range(points))
    assert all(row.status == "finished" for row in found)
    started, ended = driver.counts()
    assert set(ended) == set(range(points))
    assert started.total() <= points + kills * in_flight
    driver.wait_until_all_end()  # the dead drivers' workers end by themselves


@pytest.mark.parametrize(
    "executor", ["kind: dask, workers: 2", "kind: serial, time_limit: 60"]
)
def test_a_point_whose_worker_is_killed_is_tried_again(driver, executor):
    output = driver.run(
        "sweep.axes.x={range: [0, 6, 1]}",
        "behavior=die_once",
        "bad=3",
        f"executor={{{executor}, batch: 1, retries: 1}}",
    )
    assert "6 computed, 0 skipped, 0 failed" in output
    found = {row.config["x"]: row for row in driver.rows()}
    assert {x: row.status for x, row in found.items()} == dict.fromkeys(
        range(6), "finished"
    )
    assert found[3].attempts == 2
    started, ended = driver.counts()
    assert started[3] == 2
    assert set(ended) == set(range(6))
    # A result that the dead worker had not handed over yet is computed again.
    assert ended.total() <= 7


def test_a_point_that_always_kills_its_worker_fails_and_the_others_do_not(driver):
    output = driver.run(
        "sweep.axes.x={range: [0, 5, 1]}",
        "behavior=die",
        "bad=2",
        "executor={kind: dask, workers: 1, batch: 4, retries: 1}",
        code=1,
    )
    assert "4 computed, 0 skipped, 1 failed" in output
    found = {row.config["x"]: row for row in driver.rows()}
    assert found[2].status == "failed"
    assert "its process died (exit code -9)" in str(found[2].error)
    assert driver.counts()[0][2] == 2  # and a batch before


@pytest.mark.parametrize("executor", ["kind: serial", "kind: dask, workers: 1"])
def test_a_point_that_never_ends_is_recorded_and_the_others_are_computed(
    driver, executor
):
    arguments = (
        "sweep.axes.behavior=[raise, nan, hang, ok]",
        f"executor={{{executor}, batch: 1, time_limit: 3, retries: 0}}",
    )
    output = driver.run(*arguments, code=1)
    assert "2 computed, 0 skipped, 1 failed, 1 timed out" in output
    found = {row.config["behavior"]: row for row in driver.rows()}
    assert {name: row.status for name, row in found.items()} == {
        "raise": "failed",
        "nan": "finished",
        "hang": "timed_out",
        "ok": "finished",
    }
    assert "RuntimeError: [bold]point 0 is broken" in str(found["raise"].error)
    assert str(found["nan"].records[0]["square"]) == "nan"
    assert "time limit of 3 s" in str(found["hang"].error)
    assert found["hang"].seconds >= 3.0


def test_in_a_batch_that_never_ends_only_the_guilty_point_times_out(driver):
    output = driver.run(
        "sweep.axes.x=[1, 2, 3]",
        "behavior=hang",
        "bad=2",
        "executor={batch: 3, time_limit: 1, retries: 0}",
        code=1,
    )
    assert "2 computed, 0 skipped, 0 failed, 1 timed out" in output
    statuses = {row.config["x"]: row.status for row in driver.rows()}
    assert statuses == {1: "finished", 2: "timed_out", 3: "finished"}


def test_a_second_driver_is_refused_until_the_first_is_dead(driver):
    first = driver.start("behavior=hang")
    driver.wait_for(1)
    output = driver.run("x=2", code=2)
    assert f"another sweep is writing to {driver.store}" in output
    assert f"process {first.pid}" in output
    first.kill()
    first.communicate()
    driver.run("x=2")
    assert [row.config["x"] for row in driver.rows()] == [2]


def test_a_full_disk_is_a_clear_error_and_the_sweep_goes_on_after_it(driver):
    axis = "sweep.axes.x={range: [0, 60, 1]}"
    output = driver.run(axis, code=2, wrapper=[sys.executable, "-c", SMALL_FILES])
    assert "The rows already in it are intact" in output
    kept = driver.rows()
    assert 0 < len(kept) < 60
    output = driver.run(axis)
    assert f"{len(kept)} skipped" in output
    assert len(driver.rows()) == 60
    assert max(driver.counts()[0].values()) <= 2  # the one that could not be kept


def test_a_disk_that_is_full_loses_nothing_and_is_written_to_when_it_is_not(driver):
    disk = driver.folder / "runs"
    disk.mkdir()
    # Its own mounts, gone with it: nothing of the machine is touched.
    done = subprocess.run(
        [
            *("unshare", "--map-root-user", "--mount", "sh", "-c", SMALL_DISK, "sh"),
            *(str(disk), *driver.command("sweep.axes.x={range: [0, 60, 1]}")),
        ],
        cwd=ROOT,
        env=driver.environment | {"DISK": str(disk)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if done.returncode in (1, 77, 127) and "exit codes" not in done.stdout:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    assert "exit codes: 2, 0" in done.stdout, done
    assert "The rows already in it are intact" in done.stderr
    driver.store = disk.with_name("runs.sqlite")
    assert sorted(row.config["x"] for row in driver.rows()) == list(range(60))
    assert max(driver.counts()[0].values()) <= 2  # the one that could not be kept


@pytest.mark.parametrize("executor", ["kind: serial", "kind: serial, time_limit: 60"])
def test_what_a_point_does_to_python_is_its_own_row(driver, executor):
    names = ["base", "interrupt", "unprintable", "surrogate", "huge", "escapes", "ok"]
    output = driver.run(
        f"sweep.axes.behavior={json.dumps(names)}",
        f"executor={{{executor}, batch: 1, retries: 0}}",
        code=1,
    )
    assert "1 computed, 0 skipped, 6 failed" in output
    assert "\x1b" not in output
    found = {row.config["behavior"]: row for row in driver.rows()}
    assert list(found) == names
    assert [row.status for row in found.values()] == ["failed"] * 6 + ["finished"]


def test_a_point_that_is_given_up_takes_its_children_with_it(driver):
    output = driver.run(
        "behavior=child", "executor={time_limit: 1, retries: 0, batch: 1}", code=1
    )
    assert "1 timed out" in output
    driver.wait_until_all_end()


@pytest.mark.parametrize(
    ("number", "code", "executor"),
    [
        (signal.SIGINT, 130, "kind: serial"),
        (signal.SIGTERM, 143, "kind: serial"),
        (signal.SIGTERM, 143, "kind: serial, time_limit: 60"),
        (signal.SIGINT, 130, "kind: dask, workers: 1"),
    ],
)
def test_a_signal_ends_a_sweep_with_all_that_its_points_have_started(
    driver, number, code, executor
):
    process = driver.start(
        *("sweep.axes.x=[0, 1]", "behavior=child", "bad=1"),
        f"executor={{{executor}, batch: 1}}",
    )
    driver.wait_for(2)
    time.sleep(0.2)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == code, output
    assert "Traceback" not in output
    assert [row.config["x"] for row in driver.rows()] == [0]
    driver.wait_until_all_end()


def test_a_store_that_is_moved_away_ends_the_sweep_and_goes_on_when_it_is_back(driver):
    points = ("sweep.axes.x={range: [0, 5, 1]}", "pause=0.3")
    process = driver.start(*points)
    driver.wait_for(2)
    away = driver.folder / "away.sqlite"
    driver.store.rename(away)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "was moved or deleted while it was written to: put it back" in output
    assert not driver.store.exists()
    away.rename(driver.store)  # its log, if any is left, is still there
    kept = len(driver.rows())
    assert 0 < kept < 5
    assert f"{kept} skipped" in driver.run(*points)
    assert len(driver.rows()) == 5


def dask(driver, *arguments):
    command = [sys.executable, "-m", "dask", *arguments]
    output = subprocess.DEVNULL
    environment = driver.environment
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=output, stderr=output
    )


class Hand:
    """A scheduler and workers that are started by hand."""

    def __init__(self, driver, stack):
        self.driver, self.stack = driver, stack
        self.file = driver.folder / "scheduler.json"
        self.host = ("--host", "127.0.0.1", "--scheduler-file", str(self.file))
        pages = ("--no-dashboard", "--dashboard-address", "127.0.0.1:0")
        self.begin("scheduler", *self.host, "--port", "0", *pages)

    def begin(self, *arguments):
        process = dask(self.driver, *arguments)
        self.stack.callback(process.wait)
        self.stack.callback(process.kill)
        return process

    def worker(self):
        one = ("--nthreads", "1", "--memory-limit", "0", "--no-nanny", "--no-dashboard")
        return self.begin("worker", *self.host, *one)

    def executor(self, **options):
        deadline = time.monotonic() + 60
        while not self.file.exists() or not self.file.read_text().strip():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        address = json.loads(self.file.read_text())["address"]
        content = {"kind": "dask", "address": address, "batch": 1, **options}
        return f"executor={json.dumps(content)}"


def test_workers_started_by_hand_serve_a_sweep_and_may_be_lost_with_their_node(driver):
    """In a point, with results that nobody has fetched, and stopped."""
    with contextlib.ExitStack() as stack:
        hand = Hand(driver, stack)
        first = hand.worker()
        sweep = driver.start(
            "sweep.axes.x={range: [0, 5, 1]}", "pause=0.5", hand.executor()
        )
        driver.wait_for(2)
        first.kill()
        second = hand.worker()
        output, _ = sweep.communicate(timeout=120)
        assert sweep.returncode == 0, output
        assert "5 computed, 0 skipped, 0 failed" in output
        assert sorted(row.config["x"] for row in driver.rows()) == list(range(5))
        # What the first had, and had not handed over.
        assert driver.counts()[0].total() <= 7

        sweep = driver.start("sweep.axes.x={range: [10, 16, 1]}", hand.executor())
        driver.wait_for(driver.counts()[0].total() + 1)
        sweep.send_signal(signal.SIGSTOP)
        deadline = time.monotonic() + 60
        while not set(range(10, 16)) <= set(driver.counts()[1]):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(0.3)  # the outcomes are with the worker
        second.kill()
        third = hand.worker()
        sweep.send_signal(signal.SIGCONT)
        output, _ = sweep.communicate(timeout=120)
        assert sweep.returncode == 0, output
        assert "6 computed, 0 skipped, 0 failed" in output
        assert len(driver.rows()) == 11
        assert max(driver.counts()[1].values()) == 2  # some had been lost

        sweep = driver.start(
            *("x=20", "pause=3", hand.executor(time_limit=4, retries=0)),
            program=("-c", HURRIED),
        )
        driver.wait_for(driver.counts()[0].total() + 1)
        third.send_signal(signal.SIGSTOP)
        output, _ = sweep.communicate(timeout=120)
        assert sweep.returncode == 1, output
        assert "its worker has not answered for 5 s" in str(driver.rows()[-1].error)


class Forgetful:
    """A client of Dask whose futures are cancelled before they are fetched."""

    def __init__(self, losses, status):
        self.losses, self.status, self.scheduler = losses, status, Mock()
        self.sync = lambda ask, **options: {}

    def submit(self, function, job, limit, **options):
        lost = self.losses > 0
        self.losses -= 1
        future = Mock(status="cancelled" if lost else "finished")
        future.result = Mock(side_effect=[CancelledError() if lost else ["outcome"]])
        future.add_done_callback = lambda callback: callback(future)
        return future


@pytest.mark.parametrize(
    ("losses", "status", "expected"),
    [
        (0, "closed", ["outcome"]),
        (1, "running", ["outcome"]),
        (4, "running", ["outcome"]),
        (5, "running", "lost with a worker 5 times"),
        (1, "closed", ConfigError),
    ],
)
def test_lost_results_are_asked_for_again_and_a_lost_scheduler_is_an_error(
    losses, status, expected
):
    flight = cluster._Flight(Forgetful(losses, status), time_limit=None)
    flight.send(Job("module", "code", ("key",), ({},)))
    found = []
    if expected is ConfigError:
        with pytest.raises(
            ConfigError, match=r"scheduler was lost \(the client is clo"
        ):
            list(flight.arrivals())
        return
    while flight.jobs:
        found += flight.arrivals()
    if isinstance(expected, str):
        assert [(one.key, one.status) for one in found] == [("key", "failed")]
        assert expected in found[0].error
    else:
        assert found == expected


def test_each_worker_has_keys_and_a_gpu_of_its_own_where_there_are_several(driver):
    program = """
import os
from distributed import Client
from experiments._command.config import ConfigError
from experiments._sweep.cluster import _cluster
from experiments._sweep.greeting import check_greeting
def card():
    return os.environ.get("CUDA_VISIBLE_DEVICES")
with _cluster(None) as cluster, Client(cluster) as client:
    client.wait_for_workers(2)
    address = cluster.scheduler_address
    print(sorted(client.run(card).values()), address.split(":")[0])
    for scheme in ("tcp", "tls"):
        try:
            check_greeting(address.replace("tls", scheme), limit=0.5)
        except ConfigError as error:
            print(str(error).partition("there ")[2])
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=driver.environment | {"CUDA_VISIBLE_DEVICES": "5,7"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    first, *refused = done.stdout.splitlines()
    assert first == "['5', '7'] tls", done.stderr
    assert refused[0] == "(what listens there says nothing within 0.5 s)"
    assert refused[1].startswith("(tls needs keys")


def test_a_scheduler_that_is_not_there_is_a_clear_error(driver):
    arguments = "executor={kind: dask, address: 'tcp://127.0.0.1:9'}"
    output = driver.run(arguments, code=2, program=("-c", HURRIED))
    assert "no scheduler answers there" in output
    assert driver.rows() == []


@pytest.mark.parametrize(
    ("banner", "message"),
    [
        (b"", "says nothing within 0.3 s"),  # as an HTTP server, until it is asked
        (b"SSH-2.0-OpenSSH_9.6\r\n", "begins with b'SSH-2.0-'"),
        (b"hi", "begins with b'hi'"),
    ],
)
def test_a_port_where_something_else_listens_is_a_clear_error(banner, message):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer():
            connection, _ = server.accept()
            with connection, contextlib.suppress(ConnectionResetError):
                connection.sendall(banner)
                if len(banner) != 2:
                    connection.recv(1)  # until the other side is gone

        thread = threading.Thread(target=answer)
        thread.start()
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(ConfigError, match=f"no scheduler answers.*{message}"):
            check_greeting(address, limit=0.3)
        thread.join()


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("tcp://127.0.0.1", "no scheduler answers"),
        ("nonsense://127.0.0.1:1", None),  # Dask says that itself
        ("tls://127.0.0.1:9", "tls needs keys"),
    ],
)
def test_an_address_that_cannot_be_is_a_clear_error(address, message):
    if message is None:
        check_greeting(address, limit=0.1)
        return
    with pytest.raises(ConfigError, match=message):
        check_greeting(address, limit=0.1)
