"""The command line: list the experiments, run one, sweep over one, see the results.

A subcommand is a function that adds its arguments and names its action (`_COMMANDS`).
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from experiments._command.config import (
    ConfigError,
    override,
    read_yaml,
    to_yaml,
    validate,
)
from experiments._command.interrupt import Terminated, entry
from experiments._command.registry import find, load, names

__all__ = ["load", "main", "module_main", "names"]


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m experiments …`; returns the exit code.

    0: all is well; 1: points of a sweep failed; 2: the input or the store is wrong;
    130: interrupted; 143: terminated.
    """
    parser = _parser()
    options, further = parser.parse_known_args(arguments)
    _take_overrides(parser, options, further)
    return _guarded(lambda: options.action(options))


def module_main(name: str, arguments: Sequence[str] | None = None) -> int:
    """`python -m experiments.NAME [key=value …]`: that experiment, its defaults."""
    if arguments is None:  # as the whole of a process
        entry(lambda: module_main(name, sys.argv[1:]))
    module = load(name)
    parser = argparse.ArgumentParser(
        prog=f"python -m experiments.{name}",
        description=module.__doc__,
        epilog=_options(module),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _common(parser)
    options, further = parser.parse_known_args(arguments)
    _take_overrides(parser, options, further)
    return _guarded(lambda: _run(module, {"experiment": name}, options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments",
        description="Without a command: list the experiments.",
    )
    parser.set_defaults(action=_list)
    commands = parser.add_subparsers(dest="command")
    for add in _COMMANDS:
        add(commands)
    return parser


def _add_run(commands: Any) -> None:
    run = commands.add_parser("run", help="run the experiment of a config file")
    _config(run)
    _common(run)
    run.set_defaults(action=_run_file)


def _add_sweep(commands: Any) -> None:
    from experiments._sweep import axes

    sweep = commands.add_parser(
        "sweep",
        help="run an experiment at many points; the same command again goes on",
        description=axes.__doc__,
        epilog="executor: {kind: serial | dask, address: tcp://…, workers: N, "
        "time_limit: SECONDS, retries: N, memory_limit: 1GiB, batch: POINTS}; "
        "store: FILE (inside the folder of results). "
        "Exit code 1: points failed; give the same command again to retry them.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _config(sweep)
    _common(sweep)
    sweep.add_argument(
        "--store", type=Path, help="results file (RUNS/<name of the config>.sqlite)"
    )
    sweep.add_argument(
        "--dry-run", action="store_true", help="print the points, compute nothing"
    )
    sweep.set_defaults(action=_sweep)


def _add_results(commands: Any) -> None:
    from experiments._store.results import FORMATS

    results = commands.add_parser("results", help="show the results of a sweep")
    results.add_argument("store", type=Path, help="e.g. runs/NAME.sqlite")
    results.add_argument(
        "--where",
        nargs="+",
        action="extend",
        default=[],
        metavar="CONDITION",
        help="KEY=VALUE, or != < <= > >=; quote it: 'T<100' status=finished",
    )
    results.add_argument("--format", choices=FORMATS, default="table")
    results.add_argument("--out", type=Path, help="write to this file")
    results.add_argument(
        "--all", action="store_true", help="also those of earlier code, if recomputed"
    )
    results.set_defaults(action=_results)


def _add_report(commands: Any) -> None:
    report = commands.add_parser("report", help="make an HTML page of results")
    report.add_argument(
        "sources",
        nargs="+",
        type=Path,
        metavar="STORE-or-RUN",
        help="a sweep's store, or the folder of a run (RUNS/EXPERIMENT/ID)",
    )
    report.add_argument(
        "--out", type=Path, default=Path("report.html"), help="the page (report.html)"
    )
    report.set_defaults(action=_report)


_COMMANDS: tuple[Callable[[Any], None], ...] = (
    _add_run,
    _add_sweep,
    _add_results,
    _add_report,
)


def _config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "config", type=Path, help="YAML file, e.g. configs/learning_rate.yaml"
    )


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="e.g. data.name=digits"
    )
    parser.add_argument(
        "--runs", type=Path, default=Path("runs"), help="folder for results (runs)"
    )


def _take_overrides(
    parser: argparse.ArgumentParser, options: argparse.Namespace, further: list[str]
) -> None:
    """key=value after an option: argparse leaves these over."""
    strange = [text for text in further if text.startswith("-") or "=" not in text]
    if strange or (further and not hasattr(options, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(strange or further)}")
    if further:
        options.overrides = [*options.overrides, *further]


def _list(options: argparse.Namespace) -> int:
    del options
    for name in names():
        question = (load(name).__doc__ or "").splitlines()[0]
        print(f"{name:<16} {question.removeprefix('Question: ')}")
    print("\nRun one: python -m experiments run configs/NAME.yaml [key=value …]")
    print("Its options: python -m experiments.NAME --help")
    print("Many points: python -m experiments sweep CONFIG.yaml, then results STORE")
    print("A page to look at: python -m experiments report STORE-or-RUN…")
    return 0


def _run_file(options: argparse.Namespace) -> int:
    content = read_yaml(options.config)
    module = find(override(content, options.overrides).get("experiment"))
    return _run(module, content, options)


def _run(
    module: ModuleType, content: dict[str, Any], options: argparse.Namespace
) -> int:
    from experiments._command.runner import execute

    config = validate(module.Config, override(content, options.overrides))
    execute(module, config, options.runs)
    return 0


def _sweep(options: argparse.Namespace) -> int:
    from experiments._sweep.plan import make_plan
    from experiments._sweep.sweep import preview, run_sweep, store_path

    plan = make_plan(override(read_yaml(options.config), options.overrides))
    path = store_path(plan, options.runs, options.config.stem, options.store)
    if options.dry_run:
        preview(plan, path)
        return 0
    totals = run_sweep(plan, path)
    print(
        f"{path}: {totals.finished} computed, {totals.skipped} skipped, "
        f"{totals.failed} failed, {totals.timed_out} timed out"
    )
    return 1 if totals.failed or totals.timed_out else 0


def _results(options: argparse.Namespace) -> int:
    from experiments._store.results import query, render

    found = query(options.store, options.where, every=options.all)
    render(found, options.format, options.out)
    return 0


def _report(options: argparse.Namespace) -> int:
    from experiments._report.page import write_report

    write_report(options.sources, options.out)
    print(options.out)
    return 0


def _guarded(action: Callable[[], int]) -> int:
    try:
        return action()
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Terminated:
        print("terminated", file=sys.stderr)
        return 143


def _options(module: ModuleType) -> str:
    """The default config as YAML: every option with its default."""
    indented = to_yaml(module.Config()).replace("\n", "\n  ")
    return f"options and their defaults (dotted: data.name=…):\n  {indented}"
