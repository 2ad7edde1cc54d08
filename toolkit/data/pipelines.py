"""Registered data pipelines: a table of clips -> a SpeechBrain DynamicItemDataset -> batches."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.utils.data_pipeline import provides, takes
from torch import Tensor

from toolkit.backbones.base import FeatureSpec
from toolkit.data.audio import read_audio
from toolkit.data.cache import FeatureCache, Segment, feature_cache
from toolkit.data.fbank import log_mel
from toolkit.registry import PIPELINES
from toolkit.settings import Settings


@dataclasses.dataclass
class Batch:
    """Clips ready for a backbone.

    Attributes:
        ids: B names.
        features: [B, T, F], not yet normalised; padded with zeros or cut to T frames.
        labels: [B] class numbers.
    """

    ids: list[str]
    features: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device | str) -> "Batch":
        """The batch with its tensors on a device."""
        return Batch(
            self.ids,
            self.features.to(device, non_blocking=True),
            self.labels.to(device, non_blocking=True),
        )

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory (called by the data loader)."""
        return Batch(self.ids, self.features.pin_memory(), self.labels.pin_memory())


class Pipeline(Settings, ABC):
    """How clips become batches of features."""

    @abstractmethod
    def cache(
        self, clips: pd.DataFrame, spec: FeatureSpec, root: Path, build: bool = True
    ) -> FeatureCache:
        """The features of all clips, computed now where they are not on disk."""

    @abstractmethod
    def dataset(self, clips: pd.DataFrame, rows: pd.Series, cache: FeatureCache) -> Any:
        """A data set of some of the clips.

        Args:
            clips: these clips.
            rows: id -> position of its features in `cache`.
            cache: see `cache`.
        """

    @abstractmethod
    def collate(self, spec: FeatureSpec) -> Callable[[list[dict[str, Any]]], Batch]:
        """The function that makes a batch of a list of examples."""


@PIPELINES.register("fbank", paper="arXiv:2104.01778")
class Fbank(Pipeline):
    """Cached log-mel frames, padded with zeros or cut at the end to the backbone's length."""

    def cache(
        self, clips: pd.DataFrame, spec: FeatureSpec, root: Path, build: bool = True
    ) -> FeatureCache:
        """See `Pipeline.cache`; whole clips are kept, so that any length can be cut from them."""
        settings = {
            "kind": spec.kind,
            "sample_rate": spec.sample_rate,
            "mel_bins": spec.mel_bins,
        }
        segments = [Segment(path) for path in clips["path"]]

        def compute(segment: Segment) -> np.ndarray:
            return fbank_of_file(segment.path, spec).numpy()

        return feature_cache(root, segments, settings, spec.mel_bins, compute, build=build)

    def dataset(
        self, clips: pd.DataFrame, rows: pd.Series, cache: FeatureCache
    ) -> DynamicItemDataset:
        """See `Pipeline.dataset`; examples have `id`, `features` [T, F] and `label`."""

        @takes("row")
        @provides("features")
        def features(row: int) -> np.ndarray:
            return cache[row]

        data = {
            clip.id: {"row": int(rows[clip.id]), "label": int(clip.label)}
            for clip in clips.itertuples()
        }
        return DynamicItemDataset(data, [features], ["id", "features", "label"])

    def collate(self, spec: FeatureSpec) -> Callable[[list[dict[str, Any]]], Batch]:
        """See `Pipeline.collate`."""

        def collate(examples: list[dict[str, Any]]) -> Batch:
            features = torch.zeros(len(examples), spec.max_length, spec.mel_bins)
            frames = features.numpy()
            for i, example in enumerate(examples):
                clip = example["features"][: spec.max_length]
                frames[i, : len(clip)] = clip
            labels = torch.tensor([example["label"] for example in examples])
            return Batch([example["id"] for example in examples], features, labels)

        return collate


def fbank_of_file(path: str | Path, spec: FeatureSpec) -> Tensor:
    """Log-mel frames [T, F] of a whole file, not normalised."""
    waveform = torch.from_numpy(read_audio(path, spec.sample_rate))
    return log_mel(waveform[None], spec.sample_rate, spec.mel_bins)[0]
