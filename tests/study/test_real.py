"""A miniature study of real training runs, among them a plugin that raises and one that gives NaN;
and what is measured for timings."""

import dataclasses
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from programs import warm_programs
from recipe import ROOT, TRAIN
from torch import nn

from toolkit import plugins
from toolkit.registry import PEFT
from toolkit.study.records import Record
from toolkit.study.report.load import Results
from toolkit.study.report.write import write_report
from toolkit.study.run import measure_cost
from toolkit.testing import tiny_batch, tiny_classifier
from toolkit.training.experiment import Experiment

pytestmark = pytest.mark.wide  # a study of minutes

plugins.load()

STUDY = """\
study: tiny
corpora:
  synthetic:
    folds: [1]
    overrides: {corpus.clips_per_class: 5, max_length: 64, epochs: 2, batch_size: 10}
methods: [linear, raises, gives_nan, lora]
seeds: [1]
baseline: linear
"""
RAISES = '''
from toolkit.peft.base import PeftMethod
from toolkit.registry import PEFT

@PEFT.register("raises")
class Raises(PeftMethod):
    """A plugin that is broken."""

    def insert(self, backbone):
        raise ZeroDivisionError("this plugin is broken")
'''
GIVES_NAN = '''
import torch
from torch import nn

from toolkit.peft import insertion
from toolkit.peft.base import PeftMethod
from toolkit.registry import PEFT

class Nan(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return x * self.scale * float("nan")

@PEFT.register("gives_nan")
class GivesNan(PeftMethod):
    """Its output is not a number."""

    def insert(self, backbone):
        for site in self.sites(backbone, "ffn"):
            insertion.after(site, "nan", Nan())
'''


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """The study, run by its command line."""
    place = tmp_path_factory.mktemp("tiny")
    for name, code in (("raises", RAISES), ("gives_nan", GIVES_NAN)):
        plugin = place / "methods" / name
        plugin.mkdir(parents=True)
        (plugin / f"{name}.py").write_text(code)
        (plugin / f"{name}.yaml").write_text(f"extends: base.yaml\npeft: {{name: {name}}}\n")
    (place / "tiny.yaml").write_text(STUDY)
    command = [warm_programs() / "python", str(ROOT / "tools" / "benchmark.py"), "tiny.yaml"]
    done = subprocess.run(
        [*command, "--plugins", "methods", "--output", "out"],
        cwd=place,
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 1, done.stdout + done.stderr  # two runs have failed
    assert "[4/4" in done.stdout
    return Results.read(place / "out", [str(place / "methods")])


def record(results: Results, method: str) -> Record:
    """The record of a method's only run."""
    [found] = [r for r in results.records.values() if r.cell.method == method]
    return found


def test_broken_plugins_fail_with_their_reasons(results: Results) -> None:
    """They do not stop the other runs."""
    assert {r.cell.method for r in results.done} == {"linear", "lora"}
    assert record(results, "raises").reason == "ZeroDivisionError: this plugin is broken"
    assert record(results, "gives_nan").reason.startswith("the loss became nan in epoch 1")
    assert "Traceback" in record(results, "raises").log


def test_what_a_run_leaves_is_what_its_record_says(results: Results) -> None:
    """Parameters by hand; accuracy from the predictions; recall from the confusion matrix."""
    for method, trained in (("linear", 2 * 192), ("lora", 2 * 192 + 6 * 2 * 2 * 6 * 192)):
        outcome = record(results, method).found()
        [fold] = outcome.folds
        assert outcome.parameters.method == outcome.parameters.active == trained
        assert outcome.parameters.stored == trained + 10 * 192 + 10
        assert outcome.bundle_bytes > 4 * outcome.parameters.stored
        right = results.predictions.groupby("method")["right"].mean()[method]
        assert fold.score == pytest.approx(right)
        assert fold.uar == pytest.approx(np.trace(fold.confusion) / 10)
        assert fold.entropy is None and fold.busiest is None  # no experts
        curves = dataclasses.asdict(fold.curves).values()
        assert [len(curve) for curve in curves] == [2] * 4
        assert outcome.configuration["epochs"] == 2


def test_it_has_a_report(results: Results, tmp_path: Path) -> None:
    """It has both methods and both failures."""
    list(write_report(results, tmp_path))
    assert set(pd.read_csv(tmp_path / "report.csv")["method"]) == {"linear", "lora"}
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "this plugin is broken" in text and "the loss became nan" in text


def test_what_is_measured_for_timings(monkeypatch: pytest.MonkeyPatch) -> None:
    """LoRA costs what its products cost, and nothing once it is merged; an adapter cannot be."""
    monkeypatch.setattr(measure_cost, "SECONDS", 0.0)
    monkeypatch.setattr(measure_cost, "REPETITIONS", (1, 1))
    words = ["--corpus.clips_per_class", "5", "--max_length", "64", "--batch_size", "4"]
    found = {}
    for name in ("linear", "lora", "adapter"):
        experiment = Experiment.from_command_line(str(TRAIN), [f"hparams/{name}.yaml", *words])
        found[name] = measure_cost.measure(experiment)
    tokens = 2 + (64 // 16) * (128 // 16)
    products = 6 * 2 * (2 * tokens * 192 * 6 * 2)  # blocks, q and v, A and B
    assert found["lora"].flops - found["linear"].flops == products
    assert found["lora"].merged_flops == found["linear"].flops
    assert found["adapter"].merged_flops is None
    for values in found.values():
        assert (values.training_clips, values.classes, values.batch_size) == (30, 10, 4)
        assert values.samples_per_second > 0 and values.peak_memory_bytes > 0
        assert values.latency_seconds > 0 and values.throughput > 0


@pytest.mark.parametrize("name", PEFT.names())
def test_the_operations_of_every_method_can_be_counted(name: str) -> None:
    """Its parameters can still be trained afterwards."""
    model = tiny_classifier(PEFT.create(name)).eval()
    features, _ = tiny_batch(model.backbone)
    trainable = model.trainable().keys()
    with torch.inference_mode():
        counted = measure_cost.operations(model, lambda: model(features))
    assert counted > 2 * sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))
    assert model.trainable().keys() == trainable and trainable
