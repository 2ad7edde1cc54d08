"""The queue of a study: which of its runs are done, and executing the others one after another."""

import dataclasses
import time
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path

from toolkit.errors import ConfigError, RunError, did_you_mean, listing
from toolkit.study.plan import Cell, Problem, Run
from toolkit.study.planner import Planner
from toolkit.study.records import Record
from toolkit.study.run.engines import ENGINES, Attempt
from toolkit.study.run.process import attempts, finished, record_failure
from toolkit.study.run.time_estimate import Estimate, duration

WAIT_SECONDS = 2.0  # before checking again for runs that another process is executing


class StudyQueue:
    """The runs of a study: those that are done, and those to execute.

    Args:
        planner: plans the runs.
        only: see `Planner.cells`.
        limit: the most runs to execute; None: all.
        overwrite: execute runs again whose clips, backbone or source have changed.

    Raises:
        RunError: some have changed, and `overwrite` is False.

    Attributes:
        runs, problems: the planned runs, and those that cannot be planned.
        done: the number of runs that are done.
        open: the runs to execute.
        failures: the number of runs that failed in this process.
    """

    def __init__(
        self,
        planner: Planner,
        only: Sequence[str] = (),
        limit: int | None = None,
        overwrite: bool = False,
    ):
        planned = list(planner.runs(only))
        self.runs = [run for run in planned if isinstance(run, Run)]
        self.problems = [run for run in planned if isinstance(run, Problem)]
        changes = {run.cell: changed for run in self.runs if (changed := planner.changes(run))}
        if not overwrite:
            _refuse_changes(planner.folder, changes)
        self.runs = [dataclasses.replace(run, again=run.cell in changes) for run in self.runs]
        unfinished = [run for run in self.runs if run.again or finished(run) is None]
        self.done, self.open = len(self.runs) - len(unfinished), unfinished[:limit]
        self.estimate = Estimate(planner.folder, self.runs)
        self.failures = 0

    def describe(self) -> Generator[str]:
        """The runs to execute, and how long they will take one after another."""
        known = [(run, self.estimate.seconds(run)) for run in self.open]
        for run, seconds in known:
            tried = f"  attempts so far: {attempts(run)}" if attempts(run) else ""
            yield f"{run.cell.name:<72} {'?' if seconds is None else duration(seconds):>10}{tried}"
        for problem in self.problems:
            yield f"{problem.cell.name:<72} cannot run: {problem.reason}"
        times = [seconds for _, seconds in known if seconds is not None]
        yield (
            f"{self.done} of {len(self.runs)} runs are done, {len(self.open)} to execute, "
            f"{len(self.problems)} cannot run; {_total(times, len(known))}"
        )

    def run(self, engine: str, jobs: int | None) -> Generator[str]:
        """Execute the open runs, with a line of text for each run that ends.

        Raises:
            ConfigError: there is no such engine, or it is not installed.
        """
        if engine not in ENGINES:
            raise ConfigError(
                f"there is no engine {engine!r}{did_you_mean(engine, ENGINES)} "
                f"(known: {', '.join(ENGINES)})"
            )
        for problem in self.problems:
            record_failure(problem, problem.reason, engine)
            self.failures += 1
            yield f"{problem.cell.name}: failed: {problem.reason}"
        pending: list[Attempt] = [(run, attempts(run)) for run in self.open]
        start, ended = time.monotonic(), 0
        total = len(pending)
        while pending:
            busy: list[Attempt] = []
            for attempt, record in ENGINES[engine](pending, jobs):
                if record is None:
                    busy.append(attempt)
                    continue
                ended += 1
                self.failures += not record.done
                met = ended + len(busy)  # other processes do these meanwhile
                left = (time.monotonic() - start) / met * (total - met)
                yield f"[{ended}/{total}, {duration(left)} left] {_line(record)}"
            if len(busy) == len(pending):
                time.sleep(WAIT_SECONDS)
            elif busy:
                yield f"waiting for {len(busy)} runs that other processes are executing"
            pending = busy


def _refuse_changes(folder: Path, changes: Mapping[Cell, list[str]]) -> None:
    """Raise a `RunError` that names the runs whose clips, backbone or source have changed."""
    if changes:
        cell, changed = next(iter(changes.items()))
        raise RunError(
            f"{len(changes)} runs in {folder} had other clips, another backbone or another source; "
            f"{cell.name}:\n{listing(changed)}\ndo them again with `--overwrite`, or choose "
            "another folder with `--output`"
        )


def _line(record: Record) -> str:
    if not record.done:
        return f"{record.cell.name}: failed: {record.reason}"
    scores = ", ".join(f"{100 * fold.score:.1f}" for fold in record.found().folds)
    return f"{record.cell.name}: {scores} % in {duration(record.seconds)}"


def _total(times: list[float], runs: int) -> str:
    if not runs:
        return "nothing to do"
    if not times:
        return "their time is unknown until one of them or `toolkit study time` has run"
    unknown = "" if len(times) == runs else f" for the {len(times)} whose time is known"
    return f"about {duration(sum(times))}{unknown}, one after another"
