"""Timings, taken in rounds while no run of a study uses the machine.

Each configuration is measured once per round (A B C A B C ...), every time in a separate process,
so that slow changes of the machine affect all configurations alike.
"""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Generator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from toolkit import system
from toolkit.study.plan import Run
from toolkit.study.records import Machine, Measurement, Timing, read_timing
from toolkit.study.run.process import failure_reason, machine
from toolkit.typed_json import from_plain

BUSY = 0.3  # load average per core


def distinct(runs: Sequence[Run]) -> list[Run]:
    """One run for each distinct training step."""
    return list({run.step: run for run in reversed(runs)}.values())[::-1]


def take_timings(folder: Path, runs: Sequence[Run], rounds: int) -> Generator[str]:
    """Measure configurations until each has `rounds` measurements; wait until the machine is free.

    Args:
        folder: of the study's results.
        runs: one for each configuration, see `distinct`.
        rounds: measurements per configuration.

    Yields:
        a line of text for each measurement.
    """
    with machine(shared=False):
        here = describe_machine()
        if here.load_before > BUSY * here.cores:
            load = f"{here.load_before:.1f}"
            yield f"this machine is busy (load {load}): the timings will be less accurate"
        for number in range(1, rounds + 1):
            for run in runs:
                timing = read_timing(folder, run.step) or Timing(here, [])
                if len(timing.rounds) < number:
                    said = _measure(folder, run, timing)
                    yield f"round {number}/{rounds}  {run.cell.method:<32} {said}"


def _measure(folder: Path, run: Run, timing: Timing) -> str:
    command = [
        sys.executable,
        "-m",
        "toolkit.study.run.measure_cost",
        str(run.train),
        *run.arguments,
    ]
    process = subprocess.run(command, capture_output=True, text=True)
    if process.returncode:
        lines = process.stderr.strip().splitlines()
        return f"failed: {failure_reason(process.returncode, lines)}"
    measured = from_plain(Measurement, json.loads(process.stdout.splitlines()[-1]))
    Timing(timing.machine, [*timing.rounds, measured]).write(folder, run.step)
    return (
        f"{measured.samples_per_second:8.1f} clips/s trained, "
        f"{1000 * measured.latency_seconds:6.1f} ms per single clip"
    )


def describe_machine() -> Machine:
    """This machine, with its load at the moment."""
    return Machine(
        host=platform.node(),
        processor=system.processor(),
        cores=system.cores(),
        load_before=os.getloadavg()[0],
        date=datetime.now(UTC).date().isoformat(),
    )
