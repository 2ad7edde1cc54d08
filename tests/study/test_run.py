"""Running a study: what is skipped, tried again, isolated, resumed and shared."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import studies

from toolkit.errors import RunError
from toolkit.study.records import OutcomeParameters, Record, read_record
from toolkit.study.report.load import Results
from toolkit.study.run import process
from toolkit.study.run.outcome import epoch_to, read_outcome
from toolkit.study.run.process import Workplace, execute, failure_reason, finished


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe that finishes immediately."""
    return studies.quick_recipe(tmp_path)


def records(study: object, folder: Path) -> dict[str, Record | None]:
    """Name -> record, of all runs of a study."""
    return {run.cell.name: read_record(run.folder) for run in studies.planned(study, folder)}


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until something has happened."""
    limit = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < limit, "it did not happen"
        time.sleep(0.05)


def test_a_study_runs_and_then_has_nothing_to_do(recipe: Path, tmp_path: Path) -> None:
    """Every run once, all methods on a fold before the next fold; nothing the second time."""
    study, folder = studies.study_of(recipe), tmp_path / "out"
    lines = list(studies.benchmark(study, folder).run("local", 1))
    assert len(lines) == 4
    expected = ["linear 1 1", "lora 1 1", "linear 1 2", "lora 1 2"]
    assert studies.executions(recipe) == expected
    again = studies.benchmark(study, folder)
    assert (again.done, again.open) == (4, [])
    assert "nothing to do" in list(again.describe())[-1]
    assert list(again.run("local", 1)) == []
    assert studies.executions(recipe) == expected


def test_several_jobs_do_each_run_once(recipe: Path, tmp_path: Path) -> None:
    """Two runs at once share the threads."""
    study, folder = studies.study_of(recipe), tmp_path / "out"
    list(studies.benchmark(study, folder).run("local", 2))
    assert sorted(studies.executions(recipe)) == [
        "linear 1 1", "linear 1 2", "lora 1 1", "lora 1 2",
    ]  # fmt: skip
    share = max(1, len(os.sched_getaffinity(0)) // 2)
    assert {record.threads for record in records(study, folder).values()} == {share}


def test_only_and_limit_choose_runs(recipe: Path, tmp_path: Path) -> None:
    """By a pattern for names, and by a maximum number."""
    study = studies.study_of(recipe)
    some = studies.benchmark(study, tmp_path / "out", only=["two/lo*"], limit=1)
    assert [run.cell.name for run in some.open] == ["two/lora/ast_tiny/all/seed-1/fold-1"]


def test_a_failed_run_stops_nobody_and_is_tried_again(recipe: Path, tmp_path: Path) -> None:
    """Its reason is kept; once its cause is gone, it is the only one to run."""
    study, folder = studies.study_of(recipe), tmp_path / "out"
    (recipe / "linear.fails").touch()
    first = studies.benchmark(study, folder)
    lines = list(first.run("local", 1))
    assert first.failures == 2
    assert sum("failed: the disk of this test is full: free some of it" in x for x in lines) == 2
    results = Results.read(folder)
    assert {r.cell.method for r in results.failed} == {"linear"}
    assert {r.cell.method for r in results.done} == {"lora"}
    (recipe / "linear.fails").unlink()
    second = studies.benchmark(study, folder)
    assert {run.cell.method for run in second.open} == {"linear"}
    assert any("attempts so far: 1" in line for line in second.describe())
    list(second.run("local", 1))
    assert second.failures == 0
    assert {r.attempts for r in Results.read(folder).done if r.cell.method == "linear"} == {2}


def test_a_changed_configuration_runs_again_and_the_old_one_is_kept(
    recipe: Path, tmp_path: Path
) -> None:
    """Only the changed method runs again."""
    folder = tmp_path / "out"
    list(studies.benchmark(studies.study_of(recipe), folder).run("local", 1))
    methods = ["linear", {"hparams": "lora", "overrides": {"peft.rank": 3}}]
    changed = studies.benchmark(studies.study_of(recipe, methods=methods), folder)
    assert {run.cell.method for run in changed.open} == {"lora"}
    place = changed.open[0].folder
    list(changed.run("local", 1))
    kept = [file.name for file in place.iterdir() if file.name.startswith("train-")]
    assert len(kept) == 1
    assert (place / kept[0] / "result.json").is_file()
    assert read_record(place).attempts == 1


def test_a_run_that_takes_too_long_has_failed(recipe: Path, tmp_path: Path) -> None:
    """It is stopped, and the next one runs."""
    (recipe / "linear.hangs").touch()
    study = studies.study_of(recipe, timeout_minutes=0.05)
    folder = tmp_path / "out"
    list(studies.benchmark(study, folder, only=["*fold-1"]).run("local", 1))
    found = records(study, folder)
    slow = found["two/linear/ast_tiny/all/seed-1/fold-1"]
    assert slow.reason == "stopped after 3 s, the study's timeout"
    assert found["two/lora/ast_tiny/all/seed-1/fold-1"].done


def test_a_run_that_cannot_be_planned_is_recorded(recipe: Path, tmp_path: Path) -> None:
    """A missing recipe next to one that exists."""
    corpora = {
        "two": {"recipe": str(recipe), "folds": [1]},
        "gone": {"recipe": str(tmp_path / "nowhere")},
    }
    study, folder = studies.study_of(recipe, corpora=corpora), tmp_path / "out"
    made = studies.benchmark(study, folder)
    assert (len(made.runs), len(made.problems)) == (2, 2)
    list(made.run("local", 1))
    assert made.failures == 2
    assert all("there is no recipe" in r.reason for r in Results.read(folder).failed)
    assert len(Results.read(folder).done) == 2


def test_results_that_cannot_be_read_are_that_runs_failure(recipe: Path, tmp_path: Path) -> None:
    """A recipe that ends without an error and writes no results."""
    (recipe / "train.py").write_text("print('I have done nothing')\n")
    study, folder = studies.study_of(recipe), tmp_path / "out"
    list(studies.benchmark(study, folder).run("local", 1))
    reasons = {record.reason for record in records(study, folder).values()}
    assert reasons == {"the recipe ended well but left no result.json"}


def test_a_killed_study_is_resumed(recipe: Path, tmp_path: Path) -> None:
    """SIGKILL in the middle of a run: what was done stays, the rest is done, nothing twice."""
    study, folder = studies.study_of(recipe), tmp_path / "out"
    (recipe / "lora.hangs").touch()
    process = studies.start(study, folder)
    wait_for(lambda: "lora 1 1" in studies.executions(recipe))
    os.killpg(process.pid, signal.SIGKILL)
    process.join()
    assert sum(finished(run) is not None for run in studies.planned(study, folder)) == 1
    (recipe / "lora.hangs").unlink()
    lines = list(studies.benchmark(study, folder).run("local", 1))
    assert lines[-1].startswith("[3/3")
    assert len(Results.read(folder).done) == 4
    assert studies.executions(recipe) == [
        "linear 1 1", "lora 1 1", "lora 1 1", "linear 1 2", "lora 1 2",
    ]  # fmt: skip


def test_the_process_of_a_killed_study_is_left_to_its_end(recipe: Path, tmp_path: Path) -> None:
    """SIGKILL of the study alone: its run goes on, and nobody starts that run beside it."""
    study, folder = studies.study_of(recipe, methods=["lora"], baseline="lora"), tmp_path / "out"
    (recipe / "lora.hangs").touch()
    process = studies.start(study, folder)
    wait_for(lambda: "lora 1 1" in studies.executions(recipe))
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    run, place = studies.planned(study, folder)[0], Workplace("local", str(tmp_path))
    assert execute(run, place, before=0) is None
    (recipe / "lora.hangs").unlink()
    wait_for(lambda: (record := execute(run, place, before=0)) is not None and record.done)
    assert studies.executions(recipe) == ["lora 1 1", "lora 1 1"]


@pytest.mark.parametrize(
    ("number", "engine"),
    [
        (signal.SIGTERM, "local"),
        (signal.SIGINT, "local"),
        (signal.SIGHUP, "local"),
        (signal.SIGTERM, "ray"),
    ],
)
def test_a_stopped_study_ends_its_processes_and_says_how_to_go_on(
    recipe: Path, tmp_path: Path, number: signal.Signals, engine: str
) -> None:
    """What is done stays; the same command does the rest."""
    if engine == "ray":
        pytest.importorskip("ray", reason="needs Ray: pip install 'audio-peft-toolkit[ray]'")
    study, folder, said = studies.study_of(recipe), tmp_path / "out", tmp_path / "said"
    study.write(tmp_path)
    words = ["study", "run", str(tmp_path / "study.yaml"), "-o", str(folder)]
    words += ["--recipe", str(recipe), "--engine", engine]
    for method in ("linear", "lora"):
        (recipe / f"{method}.hangs").touch()
    first, second = (run.folder for run in studies.planned(study, folder)[:2])
    stopped = studies.start_command([*words, "--jobs", "2"], said)
    wait_for(lambda: (first / process.PROCESS).is_file() and (second / process.PROCESS).is_file())
    (recipe / "linear.hangs").unlink()
    wait_for(lambda: read_record(first) is not None and (second / process.PROCESS).is_file())
    running = [json.loads(file.read_text())["pid"] for file in folder.rglob(process.PROCESS)]
    os.kill(stopped.pid, number)
    stopped.join(300)
    assert stopped.exitcode == 128 + number
    word = "interrupted" if number == signal.SIGINT else f"stopped by {number.name}"
    assert said.read_text().endswith(f"{word}; the same command continues where this stopped\n")
    assert not any(psutil.pid_exists(pid) for pid in running)
    assert read_record(first).done and read_record(second) is None
    (recipe / "lora.hangs").unlink()
    again = studies.start_command(words, said)
    again.join(300)
    assert again.exitcode == 0 and len(Results.read(folder).done) == 4


def test_two_processes_share_a_study(recipe: Path, tmp_path: Path) -> None:
    """While one executes a run, the other one does the rest and then waits."""
    study, folder = studies.study_of(recipe), tmp_path / "out"
    (recipe / "linear.hangs").touch()
    first = studies.start(study, folder)
    wait_for(lambda: bool(studies.executions(recipe)))
    second = studies.benchmark(study, folder).run("local", 1)
    assert "two/lora" in next(second)
    (recipe / "linear.hangs").unlink()
    list(second)
    first.join(timeout=300)
    assert first.exitcode == 0
    assert sorted(studies.executions(recipe)) == [
        "linear 1 1", "linear 1 2", "lora 1 1", "lora 1 2",
    ]  # fmt: skip
    assert {record.attempts for record in records(study, folder).values()} == {1}


def test_a_run_that_fails_is_not_tried_again_by_the_process_that_waited(
    recipe: Path, tmp_path: Path
) -> None:
    """Its record counts for both of them."""
    study, folder = studies.study_of(recipe), tmp_path / "out"
    [run, *_] = studies.planned(study, folder)
    (recipe / "linear.fails").touch()
    place = process.Workplace("local", str(tmp_path))
    first = process.execute(run, place, before=0)
    second = process.execute(run, place, before=0)
    assert first == second
    assert len(studies.executions(recipe)) == 1


@pytest.mark.parametrize(
    ("code", "log", "reason"),
    [
        (-signal.SIGKILL, ["epoch 1"], "killed by SIGKILL (likely out of memory)"),
        (-signal.SIGSEGV, [], "killed by SIGSEGV"),
        (2, ["noise", "error: no such", "key"], "no such key"),
        (1, ["Traceback", "ValueError: bad"], "ValueError: bad"),
        (3, [], "exit status 3"),
    ],
)
def test_the_reason_of_a_failure(code: int, log: list[str], reason: str) -> None:
    """From the signal, the toolkit's message, or the last line."""
    assert failure_reason(code, log) == reason


def test_what_is_read_of_a_run(recipe: Path, tmp_path: Path) -> None:
    """Numbers of the quick recipe, by hand; a loss that is not finite is a failure."""
    study, folder = studies.study_of(recipe), tmp_path / "out"
    list(studies.benchmark(study, folder, limit=1).run("local", 1))
    [run, *_] = studies.planned(study, folder)
    outcome = read_record(run.folder).found()
    assert outcome.parameters == OutcomeParameters(
        method=10, head=2, total=102, stored=12, active=10
    )
    [fold] = outcome.folds
    assert fold.epoch_to_95 == 3
    assert fold.score == pytest.approx(fold.uar)  # as many clips of each class
    file = run.folder / "train" / "fold-1" / "fold.json"
    several = json.loads(file.read_text()) | {"confusion": None, "metrics": {"mAP": 0.5}}
    file.write_text(json.dumps(several))  # as a corpus leaves it whose clips have several classes
    [fold] = read_outcome(run.folder / "train").folds
    assert fold.uar is None and fold.confusion is None
    file.write_text(file.read_text().replace('"valid_loss": 0.5', '"valid_loss": NaN'))
    with pytest.raises(RunError, match="valid loss became nan in epoch 2"):
        read_outcome(run.folder / "train")


def test_epochs_by_hand() -> None:
    assert epoch_to(0.95, [0.1, 0.76, 0.75, 0.8]) == 2
    assert epoch_to(1.0, [0.5]) == 1
