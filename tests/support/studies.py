"""Miniature studies: a recipe that finishes immediately, and invented results."""

import dataclasses
import json
import multiprocessing
import os
import shutil
from collections.abc import Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pandas as pd
from recipe import ROOT

from toolkit.settings import NamedSettings
from toolkit.study.plan import Cell, Run
from toolkit.study.planner import Planner
from toolkit.study.records import (
    DONE,
    FAILED,
    Curves,
    FoldOutcome,
    Machine,
    Measurement,
    Outcome,
    OutcomeParameters,
    Record,
    Timing,
)
from toolkit.study.run.queue import StudyQueue
from toolkit.study.spec import Study

CLASSES = ["dog", "rain", "sea", "bell"]
CLIPS = 6  # per class in each fold

QUICK = '''\
"""Stands in for a recipe: writes the files of a run immediately, without torch.

Files next to it control what happens to a method: `lora.fails` makes it fail, `lora.hangs` makes it
wait until the file is gone. Every execution adds a line to executions.txt.
"""

import json
import random
import struct
import sys
import time
from pathlib import Path
from types import MappingProxyType

HERE = Path(__file__).parent
method = Path(sys.argv[1]).stem
values = dict(zip(sys.argv[2::2], sys.argv[3::2], strict=True))
output, fold = Path(values["--output_folder"]), int(values["--folds"])
with open(HERE / "executions.txt", "a") as stream:
    stream.write(f"{method} {values['--seed']} {fold}\\n")
while (HERE / f"{method}.hangs").exists():
    time.sleep(0.02)
if (HERE / f"{method}.fails").exists():
    print("error: the disk of this test is full:\\nfree some of it", file=sys.stderr)
    sys.exit(2)

names = ["dog", "rain"]
chance = random.Random(f"{method} {values['--seed']} {fold}")
truths = [label for label in range(2) for _ in range(5)]
answers = [label if chance.random() < 0.7 else 1 - label for label in truths]
counts = [[0, 0], [0, 0]]
for truth, answer in zip(truths, answers):
    counts[truth][answer] += 1
accuracy = (counts[0][0] + counts[1][1]) / len(truths)
history = [
    {"epoch": n, "lr": 0.1, "train_loss": 1 / n, "valid_loss": 1 / n, "valid_score": n / 4,
     "metric": "accuracy", "train_seconds": 0.5, "valid_seconds": 0.1, "auxiliary": {},
     "statistics": {}}
    for n in (1, 2, 3)
]
parameters = {"method": 10, "head": 2, "total": 102}
(output / "bundle").mkdir(parents=True, exist_ok=True)
(output / f"fold-{fold}").mkdir(exist_ok=True)
header = {"blocks.0.ffn.weight": {"dtype": "F32", "shape": [3, 4], "data_offsets": [0, 48]}}
head = json.dumps(header).encode()
head += b" " * (-len(head) % 8)
(output / "bundle" / "weights.safetensors").write_bytes(
    struct.pack("<Q", len(head)) + head + bytes(48)
)
rows = [f"{i}.wav,{fold},{names[t]},{names[a]}" for i, (t, a) in enumerate(zip(truths, answers))]
(output / "predictions.csv").write_text("\\n".join(["id,fold,truth,prediction", *rows]) + "\\n")
(output / f"fold-{fold}" / "fold.json").write_text(json.dumps({
    "test_fold": fold, "valid_fold": 0, "train_folds": [], "metric": "accuracy",
    "score": accuracy, "valid_score": 0.75, "best_epoch": 3, "per_class": [None, None],
    "metrics": {"accuracy": accuracy, "uar": accuracy}, "confusion": counts,
    "parameters": parameters, "peak_memory_bytes": 2**20, "training_clips": 30,
    "history": history,
}))
(output / "result.json").write_text(json.dumps({
    "recipe": "Quick", "hparams": method, "method": method, "corpus": "two classes",
    "embedded": False, "classes": names, "folds_of_corpus": [fold], "metric": "accuracy",
    "metrics": {"accuracy": {"mean": accuracy, "std": None}},
    "score": {"folds": {str(fold): accuracy}, "mean": accuracy, "std": None,
              "per_class": [None, None]},
    "valid_score": {str(fold): 0.75}, "best_epoch": {str(fold): 3}, "confusion": counts,
    "parameters": parameters, "seconds_per_epoch": 0.5, "peak_memory_bytes": 2**20, "seed": 0,
    "device": "cpu", "peft": {"name": method}, "backbone": {"name": "none"}, "configuration": {},
    "configuration_hash": "",
    "toolkit": "0", "commit": "0", "python": "3", "packages": {},
}))
'''


def quick_recipe(folder: Path) -> Path:
    """A recipe with the configurations of ESC-50 and `QUICK` as its train.py."""
    recipe = folder / "Quick"
    shutil.copytree(ROOT / "recipes" / "ESC50" / "hparams", recipe / "hparams")
    (recipe / "train.py").write_text(QUICK)
    return recipe


def executions(recipe: Path) -> list[str]:
    """All executions of a quick recipe so far, each as `method seed fold`."""
    file = recipe / "executions.txt"
    return file.read_text().splitlines() if file.is_file() else []


def study_of(recipe: Path, **changes: object) -> Study:
    """A study of two methods, two folds and one seed on a recipe."""
    values = {
        "study": "quick",
        "corpora": {"two": {"recipe": str(recipe), "folds": [1, 2]}},
        "methods": ["linear", "lora"],
        "seeds": [1],
        "baseline": "linear",
    }
    return Study.from_mapping(values | changes, "quick")


def benchmark(study: Study, folder: Path, **options: object) -> StudyQueue:
    """The queue of a study in a folder, with the plan saved as `toolkit study run` saves it."""
    planner = Planner(study, folder)
    queue = StudyQueue(planner, **options)
    planner.save(queue.runs)
    return queue


def planned(study: Study, folder: Path) -> list[Run]:
    """The runs of a study; fails if one of them cannot be planned."""
    runs = list(Planner(study, folder).runs())
    assert all(isinstance(run, Run) for run in runs), runs
    return runs


def start(study: Study, folder: Path) -> BaseProcess:
    """Run a study as tools/benchmark.py does, in a new process with its own process group.

    The process is forked from this one, so nothing has to be imported again.
    """

    def work() -> None:
        os.setsid()
        list(benchmark(study, folder).run("local", 1))

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    return process


def made_up(
    folder: Path,
    skills: Mapping[str, float],
    corpora: Sequence[str] = ("Sounds",),
    folds: int = 5,
    seeds: int = 2,
    failed: Sequence[str] = (),
    plugins: Sequence[str] = (),
    metrics: Mapping[str, str] = MappingProxyType({}),
    **changes: object,
) -> Study:
    """Write invented results of a study, in which each method is right with a given probability.

    Args:
        folder: where they are written.
        skills: entry of `methods` -> the probability of a right answer.
        corpora: names of the corpora.
        folds, seeds: number of each.
        failed: methods all of whose runs fail.
        plugins: further plugin folders.
        metrics: corpus -> its metric if that is not accuracy; clips then have several classes.
        changes: further keys of the study.
    """
    values = {
        "study": "made-up",
        "question": "Which of these </script> is best?",
        "corpora": {name: {"folds": list(range(1, folds + 1))} for name in corpora},
        "methods": list(skills),
        "seeds": list(range(1, seeds + 1)),
        "baseline": next(iter(skills)),
    }
    study = Study.from_mapping(values | changes, "made-up")
    planner = Planner(study, folder, plugins=plugins)
    planner.save()
    for number, cell in enumerate(planner.cells()):
        skill = skills[planner.methods[cell.method].series]
        place = folder / "runs" / cell.name
        bad = cell.method in failed
        outcome = None if bad else _outcome(place, cell, skill, number)
        if outcome and metrics.get(cell.corpus, "accuracy") != "accuracy":
            outcome = _of_several_classes(outcome, metrics[cell.corpus])
        _record(cell, outcome).write(place)
    for method, skill in skills.items():
        _timing(skill).write(folder, f"step-{method}")
    return study


def _outcome(place: Path, cell: Cell, skill: float, number: int) -> Outcome:
    rng = np.random.default_rng(number)
    truth = np.repeat(np.arange(len(CLASSES)), CLIPS)
    wrong = (truth + rng.integers(1, len(CLASSES), truth.size)) % len(CLASSES)
    answer = np.where(rng.random(truth.size) < skill, truth, wrong)
    counts = np.zeros((len(CLASSES), len(CLASSES)), int)
    np.add.at(counts, (truth, answer), 1)
    table = pd.DataFrame(
        {
            "id": [f"{cell.corpus}-{cell.fold}-{i}.wav" for i in range(truth.size)],
            "fold": cell.fold,
            "truth": np.array(CLASSES)[truth],
            "prediction": np.array(CLASSES)[answer],
        }
    )
    (place / "train").mkdir(parents=True, exist_ok=True)
    table.to_csv(place / "train" / "predictions.csv", index=False)
    accuracy = float(np.mean(truth == answer))
    curve = np.linspace(0.3, accuracy, 4).tolist()
    curves = Curves(
        train_loss=[2.0, 1.0, 0.5, 0.4], valid_loss=[2.1, 1.2, 0.8, 0.7], valid_score=curve,
        train_seconds=[1.0, 1.0, 1.0, 1.0],
    )  # fmt: skip
    fold = FoldOutcome(
        fold=cell.fold, score=accuracy, uar=accuracy, valid_score=accuracy, best_epoch=4,
        epoch_to_95=3, training_clips=72, confusion=counts.tolist(), curves=curves, entropy=0.9,
        busiest=0.25,
    )  # fmt: skip
    parameters = OutcomeParameters(
        method=round(10_000 * skill), head=100, total=1_000_100, stored=10_100, active=5_000
    )
    return Outcome(
        recipe="Made", method=cell.method, corpus=cell.corpus, metric="accuracy", classes=CLASSES,
        device="cpu", seconds_per_epoch=1.0, peak_memory_bytes=64 * 2**20,
        peft=NamedSettings(cell.method, {}), backbone=NamedSettings(cell.backbone, {}),
        configuration={"lr": 0.01, "seed": cell.seed}, toolkit="0.1", commit="abc",
        python="3.11", packages={"torch": "2"}, folds=[fold], parameters=parameters,
        bundle_bytes=40_960,
    )  # fmt: skip


def _of_several_classes(outcome: Outcome, metric: str) -> Outcome:
    folds = [dataclasses.replace(fold, uar=None, confusion=None) for fold in outcome.folds]
    return dataclasses.replace(outcome, metric=metric, folds=folds)


def _record(cell: Cell, outcome: Outcome | None) -> Record:
    return Record(
        cell=cell, digest="d", step=f"step-{cell.method}",
        status=FAILED if outcome is None else DONE,
        reason="out of memory" if outcome is None else None,
        log="line of the log" if outcome is None else "", command=["python", "train.py"],
        attempts=1, seconds=12.0, started="2026-01-01T00:00:00+00:00", host="here",
        engine="local", threads=1, fit=None, outcome=outcome,
    )  # fmt: skip


def _timing(skill: float) -> Timing:
    machine = Machine(
        host="here", processor="a processor", cores=2, load_before=0.1, date="2026-01-01"
    )
    one = Measurement(
        samples_per_second=36.0, peak_memory_bytes=32 * 2**20, latency_seconds=skill / 100,
        throughput=100.0, flops=10**9, merged_latency_seconds=None, merged_throughput=None,
        merged_flops=None, training_clips=72, classes=len(CLASSES), batch_size=8, device="cpu",
    )  # fmt: skip
    return Timing(machine, [one, dataclasses.replace(one, samples_per_second=40.0), one])


def page_data(file: Path) -> dict[str, object]:
    """The JSON that the page of a report contains."""
    text = file.read_text(encoding="utf-8")
    _, _, rest = text.partition('<script type="application/json" id="data">')
    return json.loads(rest.partition("</script>")[0])
