"""Engines: they decide how many runs are executed at the same time, and where."""

import queue
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch

from toolkit import system
from toolkit.errors import ConfigError, first_line
from toolkit.program import handlers_kept
from toolkit.study.plan import Run
from toolkit.study.records import Record
from toolkit.study.run.children import GRACE_SECONDS, Children, Stopping
from toolkit.study.run.process import (
    Workplace,
    end_left_processes,
    execute,
    record_failure,
)

Attempt = tuple[Run, int]
"""A run, and how often it was executed before."""

Ended = Iterator[tuple[Attempt, Record | None]]


def run_locally(attempts: Sequence[Attempt], jobs: int | None) -> Ended:
    """Execute on this machine: one process per GPU, or `jobs` (default 1) that share the cores."""
    gpus = torch.cuda.device_count()
    jobs = jobs or gpus or 1
    threads = max(1, system.cores() // jobs)
    devices: queue.SimpleQueue[int | None] = queue.SimpleQueue()
    for number in range(jobs):
        devices.put(number % gpus if gpus else None)

    children = Children()

    def work(attempt: Attempt) -> Record | None:
        (run, before), device = attempt, devices.get()
        workplace = Workplace("local", str(Path.cwd()), threads, device)
        try:
            return execute(run, workplace, before, children)
        except Stopping:
            return None
        finally:
            devices.put(device)

    with ThreadPoolExecutor(jobs) as pool:
        futures = {pool.submit(work, attempt): attempt for attempt in attempts}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            children.end()
            raise


def run_on_ray(attempts: Sequence[Attempt], jobs: int | None) -> Ended:
    """Execute on a Ray cluster: the one that `RAY_ADDRESS` names or that runs here, else a new one.

    All machines must see the same folders. A run takes one GPU if there are any, else as many cores
    as let `jobs` runs (default 1) fit on the largest machine.

    Raises:
        ConfigError: Ray is not installed.
    """
    try:
        import ray
    except ImportError:
        raise ConfigError(
            "`--engine ray` needs Ray: `pip install 'audio-peft-toolkit[ray]'`, or use "
            "`--engine local`"
        ) from None
    started_here = not ray.is_initialized()
    if started_here:
        with handlers_kept():
            ray.init(include_dashboard=False, log_to_driver=False)
    waiting: dict[Any, Attempt] = {}
    try:
        gpus = ray.cluster_resources().get("GPU", 0)
        cores = max(node["Resources"].get("CPU", 1) for node in ray.nodes() if node["Alive"])
        threads = max(1, int(cores) // (jobs or 1))
        resources = {"num_gpus": 1} if gpus else {"num_cpus": threads}
        workplace = Workplace("ray", str(Path.cwd()), None if gpus else threads)
        remote = ray.remote(max_retries=0, **resources)(execute)
        for run, before in attempts:
            waiting[remote.remote(run, workplace, before)] = (run, before)
        while waiting:
            [reference], _ = ray.wait(list(waiting), num_returns=1)
            attempt = waiting.pop(reference)
            try:
                yield attempt, ray.get(reference)
            except ray.exceptions.RayError as error:
                reason = f"the Ray worker died: {first_line(error)}"
                yield attempt, record_failure(attempt[0], reason, "ray")
    except BaseException:
        for reference in waiting:  # interrupts the task, which then ends its process
            ray.cancel(reference)
        if waiting:
            ray.wait(list(waiting), num_returns=len(waiting), timeout=GRACE_SECONDS)
            end_left_processes([run for run, _ in waiting.values()])
        raise
    finally:
        if started_here:
            ray.shutdown()


ENGINES: dict[str, Callable[[Sequence[Attempt], int | None], Ended]] = {
    "local": run_locally,
    "ray": run_on_ray,
}
