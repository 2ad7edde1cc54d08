"""`toolkit study`: compare methods on corpora, over folds and seeds, and report what was found."""

import argparse
import contextlib
import sys
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.cli.parser import Commands, Parser, at_least
from toolkit.own_folders import require_ours

if TYPE_CHECKING:
    from toolkit.study.planner import Planner

RUN = """\
Execute the runs of a study.

  toolkit study run tools/studies/esc10.yaml --data DIR
  toolkit study run tools/studies/esc10.yaml --dry-run    list the runs and estimate their time

Each run has a folder in results/studies/STUDY/runs. Finished runs are skipped unless their
configuration has changed, and failed runs are retried. If clips, a backbone or the source of a
method have changed, the study says what, and does those runs again with --overwrite. Several of
these processes can work on one study at the same time, also on several machines that share the
folder.
"""

TIME = """\
Measure what each configuration of a study costs: training speed, memory, latency, operations.

  toolkit study time tools/studies/esc10.yaml --data DIR

Each one is measured once per round, in its own process, while no run of a study uses the machine.
"""

REPORT = """\
Write tables and pictures of a study's results: HTML, Markdown, CSV, PNG and SVG.

  toolkit study report tools/studies/esc10.yaml
"""


def add(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Add `study run`, `study time` and `study report` to the command line."""
    study = commands.add_parser("study", help="compare methods: run, time and report a study")
    verbs = study.add_subparsers(required=True, metavar="COMMAND")

    planned = Parser(add_help=False)
    planned.add_argument("study", type=Path, help="its YAML file, or the folder of its results")
    planned.add_argument(
        "--data", type=Path, default=Path("data"), metavar="DIR",
        help="the folder that holds the corpora (default: data)",
    )  # fmt: skip
    planned.add_argument(
        "--recipe", dest="recipes", type=Path, action="append", default=[], metavar="DIR",
        help="a recipe of your own that the study may run",
    )  # fmt: skip
    planned.add_argument(
        "-o", "--output", type=Path, metavar="DIR",
        help="the folder of the results (default: results/studies/STUDY)",
    )  # fmt: skip
    planned.add_argument(
        "--only", nargs="+", default=[], metavar="GLOB", help="runs such as 'ESC-10/lora*'"
    )

    run = _verb(verbs, "run", RUN, [common, planned])
    run.add_argument("--dry-run", action="store_true", help="list the runs and estimate their time")
    run.add_argument(
        "--overwrite", action="store_true",
        help="do runs again whose clips, backbone or source have changed",
    )  # fmt: skip
    run.add_argument("--limit", type=at_least(0), metavar="N", help="execute at most N runs")
    run.add_argument("--engine", default="local", help="local (default) or ray")
    run.add_argument(
        "--jobs",
        type=at_least(1),
        metavar="N",
        help="runs at the same time (default: one per GPU, or 1)",
    )
    run.set_defaults(run=run_study, continues=True)

    time = _verb(verbs, "time", TIME, [common, planned])
    time.add_argument(
        "--rounds", type=at_least(1), default=3, help="measurements of each (default: 3)"
    )
    time.set_defaults(run=time_study, continues=True)

    report = _verb(verbs, "report", REPORT, [common])
    report.add_argument("study", type=Path, help="its YAML file, or the folder of its results")
    report.add_argument(
        "-o", "--output", type=Path, metavar="DIR", help="default: report/ in that folder"
    )
    report.add_argument(
        "--text", type=Path, metavar="FILE.md", help="write the Markdown and its pictures here too"
    )
    report.set_defaults(run=report_study)


def _verb(
    verbs: Commands,
    name: str,
    description: str,
    parents: list[argparse.ArgumentParser],
) -> argparse.ArgumentParser:
    return verbs.add_parser(
        name,
        parents=parents,
        help=description.partition("\n")[0].rstrip("."),
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def run_study(options: argparse.Namespace) -> None:
    """`toolkit study run STUDY`: exit status 1 if a run has failed."""
    from toolkit.study.run.queue import StudyQueue

    planner = _planner(options)
    queue = StudyQueue(planner, options.only, options.limit, options.overwrite)
    if options.dry_run:
        _print(queue.describe())
        return
    planner.save(queue.runs)
    _print(queue.run(options.engine, options.jobs))
    print(f"tables and pictures: toolkit study report {planner.folder}")
    if queue.failures:
        sys.exit(1)


def time_study(options: argparse.Namespace) -> None:
    """`toolkit study time STUDY`."""
    from toolkit.study.plan import Run
    from toolkit.study.run.timing_rounds import distinct, take_timings

    planner = _planner(options, to_time=True)
    runs = [run for run in planner.runs(options.only) if isinstance(run, Run)]
    planner.save()
    _print(take_timings(planner.folder, distinct(runs), options.rounds))


def report_study(options: argparse.Namespace) -> None:
    """`toolkit study report STUDY`."""
    from toolkit.study.report.load import Results
    from toolkit.study.report.write import write_report

    results = Results.read(options.study, options.plugins)
    folder = options.output or results.folder / "report"
    _print(f"wrote {file}" for file in write_report(results, folder, options.text))


def _planner(options: argparse.Namespace, to_time: bool = False) -> "Planner":
    from toolkit.study.planner import RESULTS, Planner
    from toolkit.study.spec import Study

    study = Study.read(options.study)
    folder = options.output or study.folder(options.study)
    require_ours(folder, RESULTS)
    return Planner(
        study, folder, options.data, options.plugins, to_time=to_time, recipes=options.recipes
    )


def _print(lines: Generator[str]) -> None:
    with contextlib.closing(lines):
        for line in lines:
            print(line, flush=True)
