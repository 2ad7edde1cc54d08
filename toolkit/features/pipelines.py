"""Registered data pipelines: a table of clips -> a SpeechBrain DynamicItemDataset -> batches."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.utils.data_pipeline import provides, takes
from torch import Tensor

from toolkit.errors import ConfigError
from toolkit.features.audio import read_audio
from toolkit.features.cache import FeatureCache, Segment, feature_cache, segments_of
from toolkit.features.log_mel import log_mel
from toolkit.features.spec import FbankSpec, FeatureSpec
from toolkit.registry import PIPELINES
from toolkit.settings import Settings


@dataclasses.dataclass
class Batch:
    """Clips ready for a backbone.

    Attributes:
        ids: B names.
        features: [B, T, F], not yet normalised; padded with zeros or cut at the end.
        labels: [B] class numbers; of a multi-label corpus [B, C] of 0 and 1.
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
        return self._with(Tensor.pin_memory)

    def _with(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        lengths = None if self.lengths is None else change(self.lengths)
        return Batch(self.ids, change(self.features), change(self.labels), lengths)


class Pipeline(Settings, ABC):
    """How clips become batches of features: rows [T, F] of whole clips are cached, then cut."""

    @abstractmethod
    def settings(self, spec: FeatureSpec) -> dict[str, Any]:
        """All that the rows depend on besides the audio; the cache is keyed by it."""

    @abstractmethod
    def rows(self, segment: Segment, spec: FeatureSpec) -> Tensor:
        """Rows [T, F] of a clip, neither normalised nor cut.

        Raises:
            DataError: it cannot be read.
        """

    def require(self, spec: FeatureSpec) -> None:
        """Refuse a backbone that reads other features.

        Raises:
            ConfigError: it does.
        """
        if spec.kind != self.registered_name:
            raise ConfigError(
                f"the backbone reads the features '{spec.kind}', and this pipeline makes "
                f"'{self.registered_name}': use `--pipeline.name {spec.kind}`"
            )

    def cache(
        self, clips: pd.DataFrame, spec: FeatureSpec, root: Path, build: bool = True
    ) -> FeatureCache:
        """The features of all clips, computed now where they are not on disk.

        Whole clips are kept, so that any length can be cut from them.

        Raises:
            ConfigError: the backbone reads other features.
            DataError: see `feature_cache`.
        """
        self.require(spec)

        def compute(segment: Segment) -> np.ndarray:
            return self.rows(segment, spec).numpy()

        settings = self.settings(spec)
        return feature_cache(root, segments_of(clips), settings, spec.width, compute, build=build)

    def dataset(
        self, clips: pd.DataFrame, rows: pd.Series, cache: FeatureCache
    ) -> DynamicItemDataset:
        """A data set of some of the clips; examples have `id`, `features` [T, F] and `label`.

        Args:
            clips: these clips.
            rows: id -> position of its features in `cache`.
            cache: see `cache`.
        """

        @takes("row")
        @provides("features")
        def features(row: int) -> np.ndarray:
            return cache[row]

        data = {
            clip.id: {"row": int(rows[clip.id]), "label": clip.label} for clip in clips.itertuples()
        }
        return DynamicItemDataset(data, [features], ["id", "features", "label"])

    def collate(self, spec: FeatureSpec) -> Callable[[list[dict[str, Any]]], Batch]:
        """The function that makes a batch of a list of examples."""

        def collate(examples: list[dict[str, Any]]) -> Batch:
            features, lengths = padded([example["features"] for example in examples], spec)
            labels = torch.from_numpy(np.array([example["label"] for example in examples]))
            return Batch([example["id"] for example in examples], features, labels, lengths)

        return collate


@PIPELINES.register("fbank", paper="arXiv:2104.01778")
class Fbank(Pipeline):
    """Cached log-mel frames, padded with zeros or cut at the end to the backbone's length."""

    def settings(self, spec: FbankSpec) -> dict[str, Any]:
        """See `Pipeline.settings`."""
        return {"kind": spec.kind, "sample_rate": spec.sample_rate, "mel_bins": spec.mel_bins}

    def rows(self, segment: Segment, spec: FbankSpec) -> Tensor:
        """See `Pipeline.rows`: log-mel frames."""
        return fbank_of_file(segment.path, spec, segment.start, segment.stop)


@PIPELINES.register("waveform", paper="arXiv:2006.11477")
class Waveform(Pipeline):
    """Cached samples, padded to the longest clip of a batch, or cut to the backbone's length."""

    def settings(self, spec: FeatureSpec) -> dict[str, Any]:
        """See `Pipeline.settings`."""
        return {"kind": spec.kind, "sample_rate": spec.sample_rate}

    def rows(self, segment: Segment, spec: FeatureSpec) -> Tensor:
        """See `Pipeline.rows`: samples [S, 1] in [-1, 1]."""
        samples = read_audio(segment.path, spec.sample_rate, segment.start, segment.stop)
        return torch.from_numpy(samples)[:, None]


def padded(clips: Sequence[np.ndarray], spec: FeatureSpec) -> tuple[Tensor, Tensor | None]:
    """Clips of rows [T, F] as one batch.

    Args:
        clips: B of them; what is longer than the backbone reads is cut at the end.
        spec: says whether the batch is as long as its longest clip or as the backbone reads.

    Returns:
        [B, T, F] with zeros behind each clip, and the real rows of each [B]; None for these if
        the backbone takes padding for sound.
    """
    clips = [clip[: spec.rows] for clip in clips]
    counts = [len(clip) for clip in clips]
    features = torch.zeros(len(clips), max(counts) if spec.variable else spec.rows, spec.width)
    rows = features.numpy()
    for i, clip in enumerate(clips):
        rows[i, : len(clip)] = clip
    return features, torch.tensor(counts) if spec.variable else None


def fbank_of_file(
    path: str | Path, spec: FbankSpec, start: float | None = None, stop: float | None = None
) -> Tensor:
    """Log-mel frames [T, F] of a file or of a part of it (see `read_audio`), not normalised."""
    waveform = torch.from_numpy(read_audio(path, spec.sample_rate, start, stop))
    return log_mel(waveform[None], spec.sample_rate, spec.mel_bins)[0]
