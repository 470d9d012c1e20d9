"""The command line: list the experiments, run one, sweep over one, see the results.

A subcommand is a function that adds its arguments and names its action (`_COMMANDS`).
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from experiments._command.errors import ConfigError
from experiments._command.interrupt import Terminated, entry
from experiments._command.registry import docstring, find, load, names, questions
from experiments._command.streams import Stream, forgiving, say

__all__ = ["load", "main", "module_main", "names"]

_FORMATS = ("table", "csv", "json", "parquet")


class _Parser(argparse.ArgumentParser):
    """Says what is wrong without echoing control characters."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        say(f"{self.prog}: error: {message}", error=True)
        raise SystemExit(2)


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m experiments …`; returns the exit code.

    0: all is well; 1: points of a sweep failed, or a page is not what the records say;
    2: the input, the machine or the store is at fault; 130: interrupted; 143: ended.
    """
    with forgiving() as (out, _):
        parser = _parser()
        options, further = parser.parse_known_args(arguments)
        _take_overrides(parser, options, further)
        return _guarded(lambda: options.action(options), out, kept=options.kept)


def module_main(name: str, arguments: Sequence[str] | None = None) -> int:
    """`python -m experiments.NAME [key=value …]`: that experiment, its defaults."""
    if arguments is None:  # as the whole of a process
        entry(lambda: module_main(name, sys.argv[1:]))
    with forgiving() as (out, _):
        module = load(name)
        parser = _Parser(
            prog=f"python -m experiments.{name}",
            description=module.__doc__,
            epilog=_options(module),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        _common(parser)
        options, further = parser.parse_known_args(arguments)
        _take_overrides(parser, options, further)
        content = {"experiment": name}
        return _guarded(lambda: _run(module, content, options), out, kept=True)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m experiments",
        description="Without a command: list the experiments.",
    )
    parser.set_defaults(action=_list, kept=False)
    commands = parser.add_subparsers(dest="command")
    for add in _COMMANDS:
        add(commands)
    return parser


def _add_run(commands: Any) -> None:
    run = commands.add_parser("run", help="run the experiment of a config file")
    _config(run)
    _common(run)
    run.set_defaults(action=_run_file, kept=True)


def _add_sweep(commands: Any) -> None:
    sweep = commands.add_parser(
        "sweep",
        help="run an experiment at many points; the same command again goes on",
        description=docstring("experiments._sweep.axes"),
        epilog=docstring("experiments._sweep.executors"),
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
    sweep.set_defaults(action=_sweep, kept=True)


def _add_results(commands: Any) -> None:
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
    results.add_argument("--format", choices=_FORMATS, default="table")
    results.add_argument("--out", type=Path, help="write to this file")
    results.add_argument(
        "--all", action="store_true", help="also those of earlier code, if recomputed"
    )
    results.set_defaults(action=_results)


def _add_report(commands: Any) -> None:
    report = commands.add_parser("report", help="make an HTML page of results")
    report.add_argument(
        "sources",
        nargs="*",
        type=Path,
        metavar="STORE-or-RUN",
        help="a sweep's store, or the folder of a run (RUNS/EXPERIMENT/ID); "
        "without one: the gallery of all published results",
    )
    report.add_argument(
        "--out", type=Path, default=Path("report.html"), help="the page (report.html)"
    )
    report.set_defaults(action=_report)


def _add_publish(commands: Any) -> None:
    publish = commands.add_parser(
        "publish", help="keep finished runs; make RESULTS.md and README's table of them"
    )
    publish.add_argument(
        "sources",
        nargs="*",
        type=Path,
        metavar="STORE-or-RUN",
        help="a finished run (RUNS/EXPERIMENT/ID), or a sweep without failed points",
    )
    publish.add_argument(
        "--check", action="store_true", help="write nothing; 1 if a page is out of date"
    )
    publish.add_argument("--name", help="of the record (the name of the run's config)")
    publish.add_argument(
        "--configs", type=Path, help="folder of records and figures (configs)"
    )
    publish.set_defaults(action=_publish)


def _add_docs(commands: Any) -> None:
    docs = commands.add_parser("docs", help="make the site of guides and docstrings")
    docs.add_argument("out", type=Path, help="its folder")
    docs.set_defaults(action=_docs)


_COMMANDS: tuple[Callable[[Any], None], ...] = (
    _add_run,
    _add_sweep,
    _add_results,
    _add_report,
    _add_publish,
    _add_docs,
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
    for name, question in questions().items():
        say(f"{name:<18} {question}")
    say("\nRun one: python -m experiments run configs/NAME.yaml [key=value …]")
    say("Its options: python -m experiments.NAME --help")
    say("Many points: python -m experiments sweep CONFIG.yaml, then results STORE")
    say("A page to look at: python -m experiments report [STORE-or-RUN…]")
    return 0


def _run_file(options: argparse.Namespace) -> int:
    from experiments._command.config import override, read_yaml

    content = read_yaml(options.config)
    module = find(override(content, options.overrides).get("experiment"))
    return _run(module, content, options)


def _run(
    module: ModuleType, content: dict[str, Any], options: argparse.Namespace
) -> int:
    from experiments._command.config import override, validate

    config = validate(module.Config, override(content, options.overrides))
    from experiments._command.runner import execute

    execute(module, config, options.runs)
    return 0


def _sweep(options: argparse.Namespace) -> int:
    from experiments._command.config import override, read_yaml
    from experiments._sweep.plan import make_plan
    from experiments._sweep.sweep import preview, run_sweep, store_path

    plan = make_plan(override(read_yaml(options.config), options.overrides))
    path = store_path(plan, options.runs, options.config.stem, options.store)
    if options.dry_run:
        preview(plan, path)
        return 0
    totals = run_sweep(plan, path)
    say(
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
    from experiments._report.page import write_gallery, write_report

    if options.sources:
        write_report(options.sources, options.out)
    else:
        write_gallery(options.out)
    say(str(options.out))
    return 0


def _publish(options: argparse.Namespace) -> int:
    from experiments._report.publish import faults, publish
    from experiments._report.records import CONFIGS

    configs = options.configs or CONFIGS
    if options.check:
        found = faults(configs)
        for fault in found:
            say(fault, error=True)
        return 1 if found else 0
    for path in publish(options.sources, options.name, configs):
        say(str(path))
    return 0


def _docs(options: argparse.Namespace) -> int:
    from experiments._docs.site import write_site

    say(str(write_site(options.out)))
    return 0


def _guarded(action: Callable[[], int], out: Stream, *, kept: bool) -> int:
    """The exit code of an action.

    Args:
        action: what was asked for.
        out: where it prints.
        kept: whether its results are on disk, whatever becomes of what is printed.
    """
    try:
        code = action()
    except ConfigError as error:
        say(f"error: {error}", error=True)
        return 2
    except KeyboardInterrupt:
        say("interrupted", error=True)
        return 130
    except Terminated:
        say("terminated", error=True)
        return 143
    out.flush()
    if out.failed and out.lost is not None:
        say(f"error: standard output: {out.lost.strerror}", error=True)
        return code if kept else 2
    return code


def _options(module: ModuleType) -> str:
    """The default config as YAML: every option with its default."""
    from experiments._command.config import to_yaml

    indented = to_yaml(module.Config()).replace("\n", "\n  ")
    return f"options and their defaults (dotted: data.name=…):\n  {indented}"
