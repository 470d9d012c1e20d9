"""Where experiments are found: the modules of this package, and those a user names."""

import importlib
import os
import pkgutil
from types import ModuleType

import experiments
from experiments._command.config import ConfigError

VARIABLE = "METALR_EXPERIMENTS"
"""Environment variable: dotted names of further modules, comma-separated.

An experiment has the last part of its module's name. Configs cannot name modules, since
importing one runs its code."""


def names() -> list[str]:
    """The experiments: modules with a `Config` and a `run`."""
    return [name for name in _modules() if is_experiment(load(name))]


def load(name: str) -> ModuleType:
    """The module of that name, experiment or not."""
    return importlib.import_module(_modules()[name])


def find(name: object) -> ModuleType:
    """The experiment of that name.

    Raises:
        ConfigError: if there is none; the message lists those that there are.
    """
    if isinstance(name, str) and name in _modules() and is_experiment(load(name)):
        return load(name)
    msg = f"experiment = {name!r}: must be one of {', '.join(names())}"
    raise ConfigError(msg)


def is_experiment(module: ModuleType) -> bool:
    """Whether it has what an experiment needs."""
    return hasattr(module, "Config") and hasattr(module, "run")


def _modules() -> dict[str, str]:
    own = {
        info.name: f"experiments.{info.name}"
        for info in pkgutil.iter_modules(experiments.__path__)
    }
    further = filter(None, os.environ.get(VARIABLE, "").replace(" ", "").split(","))
    return dict(sorted(own.items())) | {
        path.rpartition(".")[2]: path for path in further
    }
