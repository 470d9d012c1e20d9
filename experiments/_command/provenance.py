"""Where a result comes from: code, versions, machine, precision, seed."""

import functools
import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from experiments._command.config import digest
from experiments._command.experiment import ExperimentConfig

_PACKAGES = ("metalr", "jax", "jaxlib", "optax", "chex", "numpy", "scikit-learn")


def origin(config: ExperimentConfig) -> dict[str, Any]:
    """What this process, as it is now, makes of a config."""
    return {
        **_process(),
        **_devices(),
        "seed": config.seed,
        "config_hash": digest(config),
    }


@functools.cache
def _process() -> dict[str, Any]:
    changes = _git("status", "--porcelain", "--untracked-files=no")
    return {
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": changes not in ("", None),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "host": platform.node(),
        "process": os.getpid(),
    }


def _devices() -> dict[str, Any]:
    """What JAX computes on; nothing where the experiment has not imported it."""
    if "jax" not in sys.modules:
        return {"x64": None, "device": [], "backend": None}
    import jax

    return {
        "x64": bool(jax.config.jax_enable_x64),  # type: ignore[attr-defined]
        "device": [device.device_kind for device in jax.devices()],
        "backend": jax.default_backend(),
    }


def _git(*arguments: str) -> str | None:
    # Without a lock: a sweep's process may be killed at any moment, git with it.
    here = ("-C", str(Path(__file__).parent))
    command = ["git", "--no-optional-locks", *here, *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
