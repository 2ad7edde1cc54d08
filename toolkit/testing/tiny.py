"""Small random backbones, classifiers and batches."""

from typing import Any

import pandas as pd
import torch
from torch import Tensor

from toolkit.backbones.base import Backbone
from toolkit.features.batch import Batch
from toolkit.features.spec import FbankSpec
from toolkit.mixtures.tool import MixtureData
from toolkit.model import AudioClassifier, Pooling
from toolkit.padding import real
from toolkit.peft.base import PeftMethod
from toolkit.peft.mixture import Mixture, mixtures
from toolkit.registry import BACKBONES, PEFT
from toolkit.task import ONE_CLASS, BatchObjective, Task

CLASSES = 5


def tiny_backbone(seed: int = 0, family: str = "ast") -> Backbone:
    """A small random backbone of a registered family; AST's has width 96 and two blocks."""
    return BACKBONES.get(family).tiny(seed)


def tiny_rows(backbone: Backbone, clips: int = 6, seed: int = 1) -> tuple[Tensor, Tensor | None]:
    """Random rows [clips, T, F] of a batch, and the real ones of each [clips] if clips may differ.

    The first clip is whole, the others are ever shorter, down to half.
    """
    generator = torch.Generator().manual_seed(seed)
    spec = backbone.features
    rows = torch.randn(clips, spec.rows, spec.width, generator=generator)
    if not spec.variable:
        return rows, None
    lengths = spec.rows - torch.arange(clips) * spec.rows // (2 * clips)
    return rows * real(lengths, spec.rows)[..., None], lengths


def tiny_lengths(backbone: Backbone, clips: int = 6) -> Tensor | None:
    """The lengths of the clips of `tiny_batch`."""
    return tiny_rows(backbone, clips)[1]


def tiny_batch(backbone: Backbone, clips: int = 6, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Random normalised features [clips, T, F] and labels [clips]."""
    rows, lengths = tiny_rows(backbone, clips, seed)
    if lengths is not None:  # the rows of other backbones stand for features
        rows = backbone.features.normalise(rows, lengths)
    return rows, torch.arange(clips) % CLASSES


def tiny_objective(labels: Tensor, task: Task = ONE_CLASS) -> BatchObjective:
    """The loss of a batch of `CLASSES` classes, for `PeftMethod.training_losses`."""
    return BatchObjective(task, task.targets(labels, CLASSES))


def tiny_classifier(
    method: PeftMethod,
    seed: int = 0,
    family: str = "ast",
    *,
    noise: float = 0.0,
    pooling: Pooling = "all",
    merge_tokens: int | None = None,
) -> AudioClassifier:
    """A tiny classifier of `CLASSES` classes.

    Args:
        method: how its backbone is adapted.
        seed: of all that the method draws; the backbone is always the same.
        family: of the backbone.
        noise: standard deviation of what is added to every trainable tensor.
        pooling, merge_tokens: see `AudioClassifier`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = tiny_backbone(family=family)
        model = AudioClassifier(backbone, method, CLASSES, pooling, merge_tokens=merge_tokens)
        with torch.no_grad():
            for parameter in model.trainable().values():
                parameter.add_(noise * torch.randn_like(parameter))
    return model


def tiny_mixture(name: str, seed: int = 0, **settings: Any) -> AudioClassifier:
    """A tiny classifier in eval mode, as if trained: every tensor of the method is random."""
    method = PEFT.create({"name": name, **settings})
    return tiny_classifier(method, seed, noise=0.2).eval()


def first_mixture(model: AudioClassifier) -> Mixture:
    """The mixture of the first site."""
    return next(iter(mixtures(model.backbone).values()))


def tiny_data(backbone: Backbone, clips: int = 10) -> MixtureData:
    """Random clips for a tool on a tiny mixture: as many to calibrate on as to measure on."""
    features, labels = tiny_batch(backbone, 2 * clips)
    spec = backbone.features
    assert isinstance(spec, FbankSpec)
    raw = features * 2 * spec.std + spec.mean
    table = pd.DataFrame({"id": [f"clip {i}" for i in range(2 * clips)], "label": labels.numpy()})

    def collate(examples: list[dict[str, Any]]) -> Batch:
        rows = [example["row"] for example in examples]
        return Batch([table["id"][row] for row in rows], raw[rows], labels[rows])

    return MixtureData(
        calibration=table[:clips],
        test=table[clips:],
        classes=[f"class {number}" for number in range(CLASSES)],
        task=ONE_CLASS,
        _windows=lambda chosen: chosen,
        _dataset=lambda chosen: [{"row": row} for row in chosen.index],
        _collate=collate,
    )
