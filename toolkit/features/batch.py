"""Batches: clips of cached rows, padded and put together, with their labels and lengths."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from toolkit.features.spec import FeatureSpec


@dataclasses.dataclass
class Batch:
    """Clips ready for a backbone.

    Attributes:
        ids: the names of the B clips.
        features: [B, T, F], not yet normalised; padded with zeros or cut at the end.
        labels: [B] class numbers; in a multi-label corpus [B, C] of 0 and 1.
        lengths: real rows of each clip [B]; None: padding counts as sound.
    """

    ids: list[str]
    features: Tensor
    labels: Tensor
    lengths: Tensor | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device | str) -> "Batch":
        """The batch with its tensors on a device."""
        return self._with(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory (called by the data loader)."""
        return self._with(lambda tensor: tensor.pin_memory())

    def _with(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        lengths = None if self.lengths is None else change(self.lengths)
        return Batch(self.ids, change(self.features), change(self.labels), lengths)


def padded(clips: Sequence[NDArray[np.float32]], spec: FeatureSpec) -> tuple[Tensor, Tensor | None]:
    """Put clips of rows [T, F] into one tensor.

    Args:
        clips: B clips; those longer than the backbone reads are cut at the end.
        spec: says whether the batch is as long as its longest clip or as the backbone reads.

    Returns:
        [B, T, F] with zeros behind each clip, and the real rows of each clip [B]; None instead of
        these if the backbone treats padding as sound.
    """
    clips = [clip[: spec.rows] for clip in clips]
    counts = [len(clip) for clip in clips]
    features = torch.zeros(len(clips), max(counts) if spec.variable else spec.rows, spec.width)
    rows = features.numpy()
    for i, clip in enumerate(clips):
        rows[i, : len(clip)] = clip
    return features, torch.tensor(counts) if spec.variable else None


def collate(spec: FeatureSpec) -> Callable[[list[dict[str, Any]]], Batch]:
    """The function with which a data loader puts examples of `clip_dataset` into a `Batch`."""

    def collate_examples(examples: list[dict[str, Any]]) -> Batch:
        features, lengths = padded([example["features"] for example in examples], spec)
        labels = torch.from_numpy(np.array([example["label"] for example in examples]))
        return Batch([example["id"] for example in examples], features, labels, lengths)

    return collate_examples
