"""The command line: list the experiments, run one."""

import argparse
import importlib
import pkgutil
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import experiments
from experiments.config import ConfigError, override, read_yaml, to_yaml, validate


def names() -> list[str]:
    """The experiments: the modules of this package with a `Config` and a `run`."""
    return [name for name in _modules() if _is_experiment(_load(name))]


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m experiments …`; returns the exit code (2 for a wrong config)."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.command is None:
        _list()
        return 0
    return _guarded(lambda: _run_file(options))


def module_main(name: str, arguments: Sequence[str] | None = None) -> int:
    """`python -m experiments.NAME [key=value …]`: that experiment, its defaults."""
    module = _load(name)
    parser = argparse.ArgumentParser(
        prog=f"python -m experiments.{name}",
        description=module.__doc__,
        epilog=_options(module),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _common(parser)
    options = parser.parse_args(arguments)
    return _guarded(lambda: _run(module, {"experiment": name}, options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments",
        description="Without a command: list the experiments.",
    )
    commands = parser.add_subparsers(dest="command")
    run = commands.add_parser("run", help="run the experiment of a config file")
    run.add_argument(
        "config", type=Path, help="YAML file, e.g. configs/learning_rate.yaml"
    )
    _common(run)
    return parser


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="e.g. data.name=digits"
    )
    parser.add_argument(
        "--runs", type=Path, default=Path("runs"), help="folder for results (runs)"
    )


def _list() -> None:
    for name in names():
        question = (_load(name).__doc__ or "").splitlines()[0]
        print(f"{name:<16} {question.removeprefix('Question: ')}")
    print("\nRun one: python -m experiments run configs/NAME.yaml [key=value …]")
    print("Its options: python -m experiments.NAME --help")


def _run_file(options: argparse.Namespace) -> int:
    content = read_yaml(options.config)
    name = override(content, options.overrides).get("experiment")
    known = names()
    if name not in known:
        msg = f"experiment = {name!r}: must be one of {', '.join(known)}"
        raise ConfigError(msg)
    return _run(_load(name), content, options)


def _run(
    module: ModuleType, content: dict[str, Any], options: argparse.Namespace
) -> int:
    from experiments.runner import execute

    config = validate(module.Config, override(content, options.overrides))
    execute(module, config, options.runs)
    return 0


def _guarded(action: Any) -> int:
    try:
        return action()
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _options(module: ModuleType) -> str:
    """The default config as YAML: every option with its default."""
    indented = to_yaml(module.Config()).replace("\n", "\n  ")
    return f"options and their defaults (dotted: data.name=…):\n  {indented}"


def _modules() -> list[str]:
    return sorted(info.name for info in pkgutil.iter_modules(experiments.__path__))


def _load(name: str) -> ModuleType:
    return importlib.import_module(f"experiments.{name}")


def _is_experiment(module: ModuleType) -> bool:
    return hasattr(module, "Config") and hasattr(module, "run")
