"""Where a result comes from: code, versions, machine, precision, seed."""

import functools
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import jax

from experiments._command.config import digest
from experiments._command.experiment import ExperimentConfig

_PACKAGES = ("metalr", "jax", "jaxlib", "optax", "chex", "numpy", "scikit-learn")


def origin(config: ExperimentConfig) -> dict[str, Any]:
    """What this process, as it is now, makes of a config."""
    return {
        **_process(),
        "x64": bool(jax.config.jax_enable_x64),  # type: ignore[attr-defined]
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
        "device": [device.device_kind for device in jax.devices()],
        "backend": jax.default_backend(),
        "host": platform.node(),
        "process": os.getpid(),
    }


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
