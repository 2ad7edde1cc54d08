"""What a configuration costs on this machine, measured in a process of its own.

`timing_rounds.py` runs it as `python -m toolkit.study.run.measure_cost TRAIN.PY HPARAMS ...`; it
prints one line of JSON.
"""

import json
import statistics
import time
from collections.abc import Callable
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
from toolkit.task import task_of
from toolkit.training.brain import ClassificationBrain
from toolkit.training.experiment import Experiment, main
from toolkit.training.progress import Progress

SECONDS = 1.5  # that each number is measured for, at least
REPETITIONS = (5, 200)  # at least, at most
PREDICTION = ("latency_seconds", "throughput", "flops")


def measure(experiment: Experiment) -> dict[str, Any]:
    """Time training steps and predictions on clips of the first fold, their features in memory.

    Returns:
        `samples_per_second` trained (of the median step), `peak_memory_bytes` in training; of
        prediction: `latency_seconds` (batch 1), `throughput` (clips per second, batches as in
        training), `flops` per clip (a multiplication and an addition are two); the same three with
        the prefix `merged_`, None where the method cannot be merged; `training_clips` of the fold,
        `classes`, `batch_size` and `device`.
    """
    manifest = experiment.manifest()
    clips = manifest.of_folds(manifest.splits[0].train)
    size = experiment.options.batch_size
    batch, single = (some_clips(experiment, manifest, clips, count) for count in (size, 1))
    brain = trainer(experiment, manifest, len(clips))
    device = experiment.device
    step_seconds = timed(lambda: train_step(brain, batch), device)
    found = {
        "samples_per_second": size / step_seconds,
        "peak_memory_bytes": brain.peak_memory(),
        **predictions(brain, batch, single),
    }
    try:
        brain.model.method.merge(brain.model.backbone)
    except ConfigError:
        merged = dict.fromkeys(PREDICTION)
    else:
        merged = predictions(brain, batch, single)
    return {
        **found,
        **{f"merged_{key}": value for key, value in merged.items()},
        "training_clips": len(clips),
        "classes": len(manifest.classes),
        "batch_size": size,
        "device": device if device == "cpu" else torch.cuda.get_device_name(device),
    }


def some_clips(
    experiment: Experiment, manifest: Manifest, clips: pd.DataFrame, count: int
) -> Batch:
    """A batch of the first clips, again from the first if there are fewer."""
    cache = experiment.features(manifest.clips)
    rows = pd.Series(range(len(manifest.clips)), index=manifest.clips["id"])
    dataset = clip_dataset(clips, rows, cache)
    return collate(experiment.spec)([dataset[i % len(clips)] for i in range(count)])


def trainer(experiment: Experiment, manifest: Manifest, clips: int) -> ClassificationBrain:
    """The Brain that the recipe trains with, in its first epoch."""
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
    brain.batches = TrainingBatches(clips, experiment.options.batch_size, seed=0)
    brain.on_fit_start()
    brain.on_stage_start(sb.Stage.TRAIN, epoch=1)
    brain.modules.train()
    return brain


def train_step(brain: ClassificationBrain, batch: Batch) -> None:
    """Train one batch as the recipe does."""
    brain.step = brain.step % len(brain.batches) + 1
    brain.fit_batch(batch)


@torch.inference_mode()
def predictions(brain: ClassificationBrain, batch: Batch, single: Batch) -> dict[str, float]:
    """Latency, throughput and operations of prediction."""
    brain.modules.eval()
    device = str(brain.device)
    flops = operations(brain.modules, lambda: brain.compute_forward(single, sb.Stage.TEST))
    latency = timed(lambda: brain.compute_forward(single, sb.Stage.TEST), device)
    seconds = timed(lambda: brain.compute_forward(batch, sb.Stage.TEST), device)
    values = (latency, len(batch) / seconds, flops)
    return dict(zip(PREDICTION, values, strict=True))


def operations(model: nn.Module, predict: Callable[[], Any]) -> int:
    """Multiplications and additions of a prediction of a model.

    The counter follows gradients through modules, and fails at one that returns a parameter of its
    own (as prefix tuning's do), so that meanwhile nothing is to learn.
    """
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    # Attention is counted where it is written out as products.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        predict()
    for parameter in learning:
        parameter.requires_grad_(True)
    return counter.get_total_flops()


def timed(action: Callable[[], Any], device: str) -> float:
    """Median seconds of an action, after one that does not count."""
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


def run(arguments: list[str]) -> None:
    """Measure what a recipe's command line would run."""
    print(json.dumps(measure(Experiment.from_command_line(arguments[0], arguments[1:]))))


if __name__ == "__main__":
    main(run)
