"""Settings of every test: float64, and programs that are compiled once for all."""

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

# Before JAX is imported, and for the processes that tests start as well.
_COMPILED = Path(tempfile.gettempdir()) / "metalr-compiled"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_COMPILED))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_enable_x64", True)

# A suite started in the background ignores Ctrl-C, and so would what its tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module", autouse=True)
def _forgotten() -> Iterator[None]:
    """No module's programs stay: thousands in one process end it in LLVM."""
    yield
    jax.clear_caches()


@pytest.fixture
def key() -> jax.Array:
    return jax.random.key(0)
