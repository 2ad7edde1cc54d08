"""Reports of studies: `toolkit report`."""

import argparse
from pathlib import Path

from toolkit.cli.parser import Commands


def add(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Add the command `report`."""
    report = commands.add_parser(
        "report", parents=[common], help="tables and pictures of a study (tools/benchmark.py)"
    )
    report.add_argument("study", type=Path, help="its YAML file, or the folder of its results")
    report.add_argument(
        "-o", "--output", type=Path, metavar="DIR", help="default: report/ in that folder"
    )
    report.add_argument(
        "--text", type=Path, metavar="FILE.md", help="write the Markdown and its pictures here too"
    )
    report.set_defaults(run=report_study)


def report_study(options: argparse.Namespace) -> None:
    """`toolkit report STUDY`."""
    from toolkit.study.report.load import Results
    from toolkit.study.report.write import write_report

    results = Results.read(options.study, options.plugins)
    for file in write_report(results, options.output or results.folder / "report", options.text):
        print(f"wrote {file}")
