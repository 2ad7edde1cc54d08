"""Mixtures: `toolkit compress`, `toolkit prune`, `toolkit experts` and `toolkit search`."""

import argparse
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toolkit.cli.parser import Commands
from toolkit.errors import ConfigError

VERBS = {
    "compress": "make a trained mixture smaller",
    "prune": "drop experts of a trained mixture",
}


def add(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Add the commands `compress`, `prune`, `experts` and `search`."""
    for verb, text in VERBS.items():
        change = commands.add_parser(
            verb,
            parents=[common],
            help=text,
            epilog="Further options are the tool's settings, e.g. --avg-bits 2.5; see `toolkit "
            "describe tool NAME`.",
        )
        change.add_argument("bundle", type=Path)
        change.add_argument("--method", required=True, metavar="TOOL")
        change.add_argument("-o", "--output", type=Path, required=True, metavar="BUNDLE")
        change.add_argument(
            "--data_folder",
            type=Path,
            help="the corpus it was trained on; default: the embedded one",
        )
        change.add_argument(
            "--corpus",
            metavar="NAME[:setting=value,...]",
            help="which corpus is in the data folder (default: esc50)",
        )
        change.set_defaults(run=functools.partial(change_mixture, verb), takes_settings=True)

    view = commands.add_parser(
        "experts",
        parents=[common],
        help="draw which parts of a file each expert processes",
    )
    view.add_argument("bundle", type=Path, help="the folder 'bundle' of a run")
    view.add_argument("file", type=Path, metavar="FILE")
    view.add_argument("-o", "--output", type=Path, metavar="FOLDER", help="default: experts-FILE")
    view.add_argument("--most", type=int, default=8, help="experts drawn per layer (default: 8)")
    view.add_argument(
        "--window", type=int, default=1, help="which window of a long file, from 1 (default: 1)"
    )
    view.add_argument("--backbone", help="the bundle's backbone, if it has moved")
    view.set_defaults(run=draw_experts)

    search = commands.add_parser(
        "search",
        parents=[common],
        help="search for an architecture within a budget",
        epilog="Further options, after the file, are the search's settings (--iterations 10; see "
        "`toolkit describe search NAME`) and keys of the configuration (--data_folder DIR).",
    )
    search.add_argument("file", type=Path, metavar="YAML", help="of a recipe or of a plugin")
    search.add_argument("--method", required=True, metavar="SEARCH")
    search.add_argument("--budget", action="append", default=[], metavar="COST=MOST[,COST=MOST]")
    search.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER")
    search.set_defaults(run=search_architecture, takes_settings=True, continues=True)


def change_mixture(verb: str, options: argparse.Namespace) -> None:
    """`toolkit compress BUNDLE` and `toolkit prune BUNDLE`."""
    from toolkit.config import parse_settings, parse_spec
    from toolkit.features.cache import default_cache_folder
    from toolkit.mixtures.tool import run_tool
    from toolkit.registry import CORPORA, TOOLS

    other = TOOLS.peek(options.method).metadata.get("verb")
    if other != verb:
        raise ConfigError(f"'{options.method}' is for `toolkit {other}`")
    settings = parse_settings(options.settings)
    tool = TOOLS.create({"name": options.method, **settings}, options.method)
    folder, name = options.data_folder, options.corpus or "esc50"
    if folder is None:
        if options.corpus is not None:
            raise ConfigError(f"where is '{name}'? Name its folder with `--data_folder`")
        folder, name = default_cache_folder() / "synthetic", "synthetic"
    corpus = CORPORA.create(parse_spec(name))
    report = run_tool(tool, options.bundle, corpus, folder, options.output)
    _print_report(options.output, report.as_dict())


def draw_experts(options: argparse.Namespace) -> None:
    """`toolkit experts BUNDLE FILE`."""
    from toolkit.mixtures.view.page import show_experts

    output = options.output or Path(f"experts-{options.file.stem}")
    page = show_experts(
        options.bundle, options.file, output, options.most, options.window, options.backbone
    )
    print(f"wrote {page} and its pictures")


def search_architecture(options: argparse.Namespace) -> None:
    """`toolkit search YAML`."""
    from toolkit.training.search import run_search

    report = run_search(
        options.method, options.file, options.settings, options.budget, options.output
    )
    _print_report(options.output, report.as_dict())


def _print_report(output: Path, report: Mapping[str, Any]) -> None:
    print(f"wrote {output}")
    for key, value in report.items():
        print(f"  {key}: {value:.4f}" if isinstance(value, float) else f"  {key}: {value}")
