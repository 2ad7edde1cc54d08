"""Several processes make the same updates and predictions as one, for every method."""

import functools
import multiprocessing
import os
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from toolkit import plugins, processes
from toolkit.data.augment import Augmentation, Mixup, SpecAugment
from toolkit.data.sampling import TrainingBatches, evaluation_batches
from toolkit.features.batch import Batch, padded
from toolkit.fewer_tokens.patchout import Patchout
from toolkit.model import AudioClassifier
from toolkit.registry import PEFT
from toolkit.task import ONE_CLASS
from toolkit.testing import CLASSES, tiny_classifier, tiny_rows
from toolkit.training.batch_norm import JointBatchNorm
from toolkit.training.brain import ClassificationBrain, TrainingPlan
from toolkit.training.progress import Progress

TRAINED, BATCH, VALIDATED = 13, 5, 1  # uneven batches, and one clip for all processes to validate
SETTINGS: dict[str, dict[str, Any]] = {
    "topk_moa": {"w_z": 0.1, "w_entropy": 0.1, "w_balance": 0.1},
    "dynmoe": {"w_balance": 0.1, "w_eff": 0.1},
    "mumoe": {"norm": "batch"},
}


def loader(model: AudioClassifier, batches: Any) -> DataLoader[Any]:
    """The batches of one process: random clips, of different lengths where the backbone allows."""
    rows, lengths = tiny_rows(model.backbone, TRAINED)
    cuts = [rows.shape[1]] * TRAINED if lengths is None else lengths.tolist()

    def collate(numbers: list[int]) -> Batch:
        clips = [rows[number, : cuts[number]].numpy() for number in numbers]
        features, real = padded(clips, model.backbone.features)
        labels = torch.tensor(numbers) % CLASSES
        return Batch([f"{number:02}" for number in numbers], features, labels, real)

    return DataLoader(range(TRAINED), batch_sampler=batches, collate_fn=collate)


def train(
    name: str,
    family: str,
    augment: list[Augmentation],
    rank: int,
    world: int,
    patchout: Patchout | None = None,
) -> Any:
    """Two epochs of a method: its tensors, and the predictions for the validation clip."""
    torch.manual_seed(0)
    method = PEFT.create({"name": name, **SETTINGS.get(name, {})})
    model = tiny_classifier(method, family=family, noise=0.02)
    for module in model.backbone.modules():  # attention drops out without `functional.dropout`
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    model.drop_patches(patchout)
    optimizer = functools.partial(torch.optim.SGD, lr=0.05)
    plan = TrainingPlan(2, 0.05, optimizer, 0.0, 0.0, augment, 3, ONE_CLASS)
    brain = ClassificationBrain(
        model, plan, {"device": "cpu"}, None, Progress(0, hidden=True), lambda record: None, name
    )
    batches = TrainingBatches(TRAINED, BATCH, 7, rank, world)
    valid = evaluation_batches(VALIDATED, BATCH, rank, world)
    brain.train_on(loader(model, batches), batches, loader(model, valid))
    return model.state(), brain.predictions, brain.history.epochs[-1].statistics


def everything(family: str, rank: int, world: int) -> dict[str, Any]:
    """Train all methods one after the other."""
    runs: dict[str, list[Augmentation]] = {name: [] for name in PEFT.names()}
    found = {name: train(name, family, augment, rank, world) for name, augment in runs.items()}
    augmented: list[Augmentation] = [SpecAugment(8, 20), Mixup(0.5, 0.5)]
    found["lora, augmented"] = train("lora", family, augmented, rank, world)
    if family == "ast":
        for patchout in (Patchout(time=0.4, frequency=0.5), Patchout(share=0.5)):
            found[f"lora, {patchout}"] = train("lora", family, [], rank, world, patchout)
    return found


def _process(family: str, folder: Path, rank: int, world: int) -> None:
    torch.set_num_threads(1)
    torch.nn.functional.dropout = lambda x, *_, **__: x  # each process draws its own
    if world > 1:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world))
        store = torch.distributed.FileStore(str(folder / f"store-{world}"), world)
        torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=world)
    found = everything(family, rank, world)
    if rank == 0:
        torch.save(found, folder / f"{world}.pt")


def _job(family: str, folder: Path, world: int) -> dict[str, Any]:
    context = multiprocessing.get_context("fork")
    jobs = [
        context.Process(target=_process, args=(family, folder, rank, world))
        for rank in range(world)
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(timeout=300)
    ended = [job.exitcode for job in jobs]
    for job in jobs:
        job.kill()
    assert ended == [0] * world, f"exit codes {ended} of {world} processes"
    found: dict[str, Any] = torch.load(folder / f"{world}.pt", weights_only=False)
    return found


@pytest.mark.parametrize("family", ["ast", pytest.param("wav2vec2", marks=pytest.mark.wide)])
def test_two_and_three_processes_equal_one(family: str, tmp_path: Path) -> None:
    plugins.discover()
    one, *several = (_job(family, tmp_path, world) for world in (1, 2, 3))
    wrong = []
    for world, found in zip((2, 3), several, strict=True):
        assert list(found) == list(one)
        for name, (state, predictions, statistics) in found.items():
            expected, predicted, counted = one[name]
            assert statistics.keys() == counted.keys(), name
            errors = [(state[key].float() - expected[key].float()).abs().max() for key in expected]
            errors.append(_probabilities(predictions).sub(_probabilities(predicted)).abs().max())
            if max(errors) > 1e-5:
                wrong.append(f"{name}, {world} processes: {max(errors):.1e}")
    assert not wrong, wrong


def test_joint_batch_norm_is_batch_norm() -> None:
    torch.manual_seed(0)
    expected, made = torch.nn.BatchNorm1d(4), JointBatchNorm(4)
    for values in (torch.randn(6, 4), torch.randn(3, 4, 5)):
        outs = []
        for norm in (expected, made):
            x = values.clone().requires_grad_()
            out = norm(x)
            out.square().mul(values).sum().backward()
            outs.append((out, x.grad))
        for one, other in zip(*outs, strict=True):
            torch.testing.assert_close(other, one)
    for one, other in zip(expected.buffers(), made.buffers(), strict=True):
        torch.testing.assert_close(other, one)


def test_alone_nothing_is_shared() -> None:
    values: Tensor = torch.randn(3, 2)
    assert processes.number() == 1
    for same in (processes.total, processes.first, processes.own):
        assert same(values) is values
    assert processes.gather(values, 3) is values and processes.largest(3, values.device) == 3


def _probabilities(predictions: pd.DataFrame) -> Tensor:
    return torch.tensor(predictions["probabilities"].tolist())
