"""Executes one run: the command line of its recipe in a separate process, then the record of it."""

import contextlib
import dataclasses
import math
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from toolkit.errors import RunError
from toolkit.features.cache import default_cache_folder
from toolkit.files import locked_with_others
from toolkit.os_errors import sentence
from toolkit.study.plan import Problem, Run
from toolkit.study.records import DONE, FAILED, Record, read_record, remove_record
from toolkit.study.run.children import GRACE_SECONDS, Children, end_all
from toolkit.study.run.outcome import read_outcome
from toolkit.typed_json import read_if_there, write_json

INTERRUPTED = (130, -signal.SIGINT)
LOG_LINES = 40
PROCESS = "process.json"
REASON = 600  # characters kept of a reason


@dataclasses.dataclass(frozen=True)
class Workplace:
    """Where a run is executed.

    Attributes:
        engine: `local` or `ray`.
        cwd: working directory, the same on every machine.
        threads: of the CPU; None: all.
        device: number of the GPU; None: whichever the process sees.
    """

    engine: str
    cwd: str
    threads: int | None = None
    device: int | None = None

    def environment(self) -> dict[str, str]:
        """The environment of the process."""
        found = dict(os.environ)
        if self.threads is not None:
            found |= {"OMP_NUM_THREADS": str(self.threads), "MKL_NUM_THREADS": str(self.threads)}
        if self.device is not None:
            found["CUDA_VISIBLE_DEVICES"] = str(self.device)
        return found


@dataclasses.dataclass(frozen=True)
class ProcessNote:
    """What distinguishes a process from all others, including a later one with its number."""

    host: str
    pid: int
    started: float

    @classmethod
    def of(cls, process: psutil.Process) -> "ProcessNote":
        """The note of a process."""
        return cls(platform.node(), process.pid, process.create_time())


@dataclasses.dataclass(frozen=True)
class Request:
    """What the files of a run were made for: the digest of its configuration."""

    digest: str


def finished(run: Run) -> Record | None:
    """The record of a run that is done and whose configuration has not changed since."""
    record = read_record(run.folder)
    return record if record is not None and record.done and record.digest == run.digest else None


def attempts(run: Run | Problem) -> int:
    """How often a run has been executed."""
    record = read_record(run.folder)
    return 0 if record is None else record.attempts


def execute(
    run: Run, workplace: Workplace, before: int, children: Children | None = None
) -> Record | None:
    """Execute a run, unless another process has just done so.

    Args:
        run: the run.
        workplace: where to execute it.
        before: how often it had been executed when the study was started. If it is more now,
            another process has executed it since, and that record counts.
        children: the processes that end with the study; None: this run's process alone.

    Returns:
        the record; None if another process is executing the run, or if it was interrupted.
    """
    children = children or Children()
    run.folder.mkdir(parents=True, exist_ok=True)
    with _exclusive(run.folder) as free:
        if not free:
            return None
        record = read_record(run.folder)
        if record is not None and record.digest != run.digest:
            record = None  # of another configuration
        if record is not None and (record.attempts > before or (record.done and not run.again)):
            return record
        output = _prepare(run)
        command = [sys.executable, str(run.train), *run.arguments, "--output_folder", str(output)]
        if run.again:
            command += ["--overwrite", "true"]
            remove_record(run.folder)  # else it would count again if this run is interrupted
        started, clock = datetime.now(UTC), time.monotonic()
        with machine(shared=True):
            code, log = _process(command, run, workplace, children)
        if code in INTERRUPTED or children.stopping:
            return None
        outcome, problem = None, failure_reason(code, log) if code else None
        if not code:
            try:
                outcome = read_outcome(output)
            except RunError as error:
                problem = str(error)
            except OSError as error:
                problem = f"its results cannot be read: {sentence(error)}"
        record = Record(
            cell=run.cell,
            digest=run.digest,
            step=run.step,
            status=FAILED if problem else DONE,
            reason=problem,
            log="\n".join(log[-LOG_LINES:]) if problem else "",
            command=command,
            attempts=(record.attempts if record else 0) + 1,
            seconds=time.monotonic() - clock,
            started=started.isoformat(timespec="seconds"),
            host=platform.node(),
            engine=workplace.engine,
            threads=workplace.threads,
            fit=run.fit,
            outcome=outcome,
        )
        record.write(run.folder)
        return record


def record_failure(run: Run | Problem, reason: str, engine: str) -> Record:
    """Record the failure of a run that could not be started, or whose worker died."""
    record = Record(
        cell=run.cell, digest="", step="", status=FAILED, reason=reason[:REASON], log="",
        command=[], attempts=attempts(run) + 1, seconds=0.0,
        started=datetime.now(UTC).isoformat(timespec="seconds"), host=platform.node(),
        engine=engine, threads=None, fit=None, outcome=None,
    )  # fmt: skip
    record.write(run.folder)
    return record


def machine(shared: bool) -> contextlib.AbstractContextManager[None]:
    """Hold this machine, together with other runs or alone; wait until that is possible."""
    return locked_with_others(default_cache_folder() / "machine.sqlite", shared)


@contextlib.contextmanager
def _exclusive(folder: Path) -> Iterator[bool]:
    """Whether no other study and no process left by a killed study executes this run."""
    try:
        with FileLock(folder / ".lock", timeout=0):
            yield _noted(folder / PROCESS) is None
    except Timeout:
        yield False


def _noted(file: Path) -> psutil.Process | None:
    """The process that was noted in a file, if it is alive on this machine."""
    remedy = "delete it if no process executes this run"
    noted = read_if_there(file, ProcessNote, lambda values: values, remedy)
    if noted is None:
        return None
    try:
        process = psutil.Process(noted.pid)
        ended = process.status() == psutil.STATUS_ZOMBIE
        return process if noted == ProcessNote.of(process) and not ended else None
    except psutil.NoSuchProcess:
        return None


def end_left_processes(runs: Sequence[Run]) -> None:
    """Wait for the processes of interrupted runs to end, and kill those that do not.

    Processes on other machines are left to the workers there.
    """
    noted = [process for run in runs if (process := _noted(run.folder / PROCESS)) is not None]
    _, alive = psutil.wait_procs(noted, GRACE_SECONDS)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def _prepare(run: Run) -> Path:
    """The output folder for the recipe; one of another configuration is moved aside."""
    output, request = run.output, run.folder / "request.json"
    remedy = f"delete it and {output.name}/ beside it, and the study does this run again"
    made_for = read_if_there(request, Request, lambda values: values, remedy)
    if made_for is not None and output.exists() and made_for.digest != run.digest:
        output.rename(run.folder / f"train-{made_for.digest}-{time.time_ns()}")
    write_json(request, Request(run.digest))
    return output


def _process(
    command: list[str], run: Run, workplace: Workplace, children: Children
) -> tuple[int, list[str]]:
    """Run a command and return its exit status and its lines of output.

    The process is noted in a file: if this process is killed, no other one executes the run before
    the command has ended too.
    """
    log = run.folder / "output.log"
    with (
        open(log, "w", encoding="utf-8") as stream,
        children.started(
            command,
            cwd=workplace.cwd,
            env=workplace.environment(),
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
        ) as process,
    ):
        write_json(run.folder / PROCESS, ProcessNote.of(psutil.Process(process.pid)))
        try:
            # With a limit it polls, so that the interruption of a Ray task arrives.
            code = process.wait(run.timeout or math.inf)
        except subprocess.TimeoutExpired:
            end_all([process])
            stream.write(f"\nerror: stopped after {run.timeout:.0f} s, the study's timeout\n")
            code = 1
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return code, [line for line in lines if line.strip()]


def failure_reason(code: int, log: list[str]) -> str:
    """Why a process failed: the signal, the error message, or the last line that it wrote."""
    if code < 0:
        name = signal.Signals(-code).name
        memory = " (likely out of memory)" if name == "SIGKILL" else ""
        return f"killed by {name}{memory}"
    errors = [place for place, line in enumerate(log) if line.startswith("error: ")]
    if errors:
        return " ".join(log[errors[-1] :]).removeprefix("error: ")[:REASON]
    return (log[-1] if log else f"exit status {code}")[:REASON]
