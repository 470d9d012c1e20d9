"""Ctrl-C and SIGTERM end a command with their code, its output and its children."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

START = """
import subprocess, sys
from experiments._command.interrupt import entry
def main():
    child = subprocess.Popen(["sleep", "1000"])
    print(child.pid, flush=True)
    print("buffered")
    {work}
    return 0
entry(main)
"""

IN_XLA = """
    import jax  # XLA does not see that a sine stays above -2
    endless = lambda x: jax.lax.while_loop(lambda x: x > -2.0, jax.numpy.sin, x)
    compiled = jax.jit(endless).lower(1.0).compile()
    import threading  # "ready" comes from within the program, or nearly so
    threading.Timer(0.5, print, ["ready"], {"file": sys.stderr, "flush": True}).start()
    compiled(1.0).block_until_ready()
"""

IN_PYTHON = """
    try:
        print("ready", file=sys.stderr, flush=True)
        import time; time.sleep(1000)
    finally:
        print("closed")
"""


@contextmanager
def command(work):
    """A process that has reached its work, and its child's number."""
    with subprocess.Popen(
        [sys.executable, "-c", START.format(work=work.strip())],
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
        | {"JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
    ) as process:
        assert process.stdout
        assert process.stderr
        child = int(process.stdout.readline())
        assert process.stderr.readline() == b"ready\n"
        try:
            yield process, child
        finally:
            process.kill()


def ends(number):
    """Whether it is soon no more, killed as it was."""
    deadline = time.monotonic() + 10
    while running(number) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not running(number)


def running(number):
    """Alive, and not merely unburied."""
    try:
        state = Path(f"/proc/{number}/stat").read_text(encoding="utf-8")
    except OSError:
        return False
    return state.rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)]
)
def test_a_signal_closes_what_is_open_flushes_and_leaves_with_its_code(number, code):
    with command(IN_PYTHON) as (process, child):
        process.send_signal(number)
        assert process.communicate(timeout=30)[0] == b"buffered\nclosed\n"
    assert process.returncode == code
    assert ends(child)


def test_within_one_endless_program_the_second_interrupt_leaves():
    with command(IN_XLA) as (process, child):
        process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=0.5)
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=30)[0] == b"buffered\n"
    assert process.returncode == 130
    assert ends(child)
