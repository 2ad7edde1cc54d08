"""Measures what a configuration costs on this machine, in a separate process.

`timing_rounds.py` runs it as `python -m toolkit.study.run.measure_cost TRAIN.PY HPARAMS ...`; it
prints one line of JSON.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
import speechbrain as sb
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from toolkit.data.manifest import Manifest
from toolkit.data.sampling import TrainingBatches
from toolkit.errors import ConfigError
from toolkit.features.batch import Batch, collate
from toolkit.features.dataset import clip_dataset
from toolkit.study.records import Measurement
from toolkit.task import task_of
from toolkit.training.brain import ClassificationBrain
from toolkit.training.experiment import Experiment, main
from toolkit.training.progress import Progress
from toolkit.typed_json import to_json

SECONDS = 1.5  # each number is measured for at least as long
REPETITIONS = (5, 200)  # fewest and most


@dataclasses.dataclass(frozen=True)
class PredictionCost:
    """What predictions cost; the fields are those of `Measurement`."""

    latency_seconds: float
    throughput: float
    flops: int


def measure(experiment: Experiment) -> Measurement:
    """Time training steps and predictions on clips of the first fold, with features in memory."""
    manifest = experiment.manifest()
    clips = manifest.of_folds(manifest.splits[0].train)
    size = experiment.options.batch_size
    batch, single = (some_clips(experiment, manifest, clips, count) for count in (size, 1))
    batches = TrainingBatches(len(clips), size, seed=0)
    brain = trainer(experiment, manifest, batches)
    device = experiment.device
    step_seconds = timed(lambda: train_step(brain, batch, len(batches)), device)
    peak_memory = brain.peak_memory()
    adapted = predictions(brain, batch, single)
    merged: PredictionCost | None = None
    try:
        brain.model.method.merge(brain.model.backbone)
    except ConfigError:
        pass  # this method cannot be merged
    else:
        merged = predictions(brain, batch, single)
    return Measurement(
        samples_per_second=size / step_seconds,
        peak_memory_bytes=peak_memory,
        latency_seconds=adapted.latency_seconds,
        throughput=adapted.throughput,
        flops=adapted.flops,
        merged_latency_seconds=merged.latency_seconds if merged else None,
        merged_throughput=merged.throughput if merged else None,
        merged_flops=merged.flops if merged else None,
        training_clips=len(clips),
        classes=len(manifest.classes),
        batch_size=size,
        device=device if device == "cpu" else torch.cuda.get_device_name(device),
    )


def some_clips(
    experiment: Experiment, manifest: Manifest, clips: pd.DataFrame, count: int
) -> Batch:
    """A batch of the first `count` clips, repeated from the first one if there are fewer."""
    cache = experiment.features(manifest.clips)
    rows = pd.Series(range(len(manifest.clips)), index=manifest.clips["id"])
    dataset = clip_dataset(clips, rows, cache)
    return collate(experiment.spec)([dataset[i % len(clips)] for i in range(count)])


def trainer(
    experiment: Experiment, manifest: Manifest, batches: TrainingBatches
) -> ClassificationBrain:
    """The Brain that trains in the recipe, ready for a step of its first epoch."""
    torch.manual_seed(0)
    brain = ClassificationBrain(
        experiment.model(len(manifest.classes)),
        experiment.plan(seed=0, task=task_of(manifest)),
        experiment.run_opts(),
        checkpointer=None,
        progress=Progress(0, hidden=True),
        log=lambda record: None,
        title="timing",
    )
    brain.batches = batches
    brain.on_fit_start()
    brain.on_stage_start(sb.Stage.TRAIN, epoch=1)
    brain.modules.train()
    return brain


def train_step(brain: ClassificationBrain, batch: Batch, steps: int) -> None:
    """Train one batch as the recipe does.

    Args:
        brain: see `trainer`.
        batch: to train on.
        steps: per epoch; after the last one the first follows.
    """
    brain.step = brain.step % steps + 1
    brain.fit_batch(batch)


@torch.inference_mode()
def predictions(brain: ClassificationBrain, batch: Batch, single: Batch) -> PredictionCost:
    """Latency, throughput and operations of predictions."""
    brain.modules.eval()
    device = str(brain.device)
    flops = operations(brain.modules, lambda: brain.compute_forward(single, sb.Stage.TEST))
    latency = timed(lambda: brain.compute_forward(single, sb.Stage.TEST), device)
    seconds = timed(lambda: brain.compute_forward(batch, sb.Stage.TEST), device)
    return PredictionCost(latency, len(batch) / seconds, flops)


def operations(model: nn.Module, predict: Callable[[], Any]) -> int:
    """The number of multiplications and additions in a prediction of a model.

    Gradients are switched off meanwhile: the counter follows them through modules, and fails at a
    module that returns one of its own parameters, as prefix tuning's do.
    """
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    # Attention is counted where it is written out as products.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        predict()
    for parameter in learning:
        parameter.requires_grad_(True)
    return int(counter.get_total_flops())


def timed(action: Callable[[], Any], device: str) -> float:
    """Median seconds that an action takes, after a first one that is not counted."""
    action()
    least, most = REPETITIONS
    seconds: list[float] = []
    while len(seconds) < least or (sum(seconds) < SECONDS and len(seconds) < most):
        _wait(device)
        start = time.perf_counter()
        action()
        _wait(device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def run(arguments: Sequence[str]) -> None:
    """Measure the configuration of a recipe's command line and print it as JSON."""
    experiment = Experiment.from_command_line(arguments[0], arguments[1:])
    print(to_json(measure(experiment.settled())))


if __name__ == "__main__":
    main(run)
