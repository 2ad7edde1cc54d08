#!/usr/bin/env python
"""Run a study: compare methods on corpora, over folds and seeds, resumably.

    python tools/benchmark.py tools/studies/esc10.yaml --data ../shared/data
    python tools/benchmark.py tools/studies/esc10.yaml --dry-run    its runs and their time
    python tools/benchmark.py tools/studies/esc10.yaml --timings    what each method costs
    toolkit report tools/studies/esc10.yaml                         tables and pictures

A run is a folder in results/studies/STUDY/runs/. What is done and unchanged is skipped, what failed
is tried again, and several of these processes can work on one study, also on several machines that
see the same folder. Timings are taken after the runs, while none shares the machine.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from toolkit import plugins
from toolkit.study.plan import Planner
from toolkit.study.run.engines import ENGINES
from toolkit.study.run.queue import Benchmark, default_folder
from toolkit.study.run.timings import distinct, take_timings
from toolkit.study.spec import Study
from toolkit.training.experiment import main


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("study", type=Path, help="the study's YAML file")
    made.add_argument(
        "--data", type=Path, default=Path("data"), help="folder of the corpora (default: data)"
    )
    made.add_argument("--output", type=Path, help="default: results/studies/STUDY")
    made.add_argument("--dry-run", action="store_true", help="list the runs and estimate the time")
    made.add_argument(
        "--only", nargs="+", default=[], metavar="GLOB", help="runs such as 'ESC-10/lora*'"
    )
    made.add_argument("--limit", type=int, metavar="N", help="execute at most N runs")
    made.add_argument("--engine", choices=list(ENGINES), default="local")
    made.add_argument(
        "--jobs", type=int, metavar="N", help="runs at once; default: one a GPU, or 1"
    )
    made.add_argument("--timings", action="store_true", help="take timings instead of running")
    made.add_argument("--rounds", type=int, default=3, help="of the timings (default: 3)")
    made.add_argument("--plugins", action="append", default=[], metavar="DIR")
    return made


def run(arguments: Sequence[str]) -> None:
    """Plan the study, then list it, time it or run it."""
    options = parser().parse_args(arguments)
    broken = plugins.report(plugins.load(options.plugins))
    if broken:
        print(broken, file=sys.stderr)
    study = Study.read(options.study)
    folder = options.output or default_folder(study.study)
    planner = Planner(study, folder, options.data, options.plugins, to_time=options.timings)
    benchmark = Benchmark(planner, options.only, options.limit)
    if options.dry_run:
        lines = benchmark.describe()
    elif options.timings:
        lines = take_timings(planner.folder, distinct(benchmark.runs), options.rounds)
    else:
        lines = benchmark.run(options.engine, options.jobs)
    if not options.dry_run:
        study.write(planner.folder)
    for line in lines:
        print(line, flush=True)
    if not options.dry_run and not options.timings:
        print(f"tables and pictures: toolkit report {folder}")
        sys.exit(1 if benchmark.failures else 0)


if __name__ == "__main__":
    main(run)
