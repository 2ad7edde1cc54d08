"""Data pipelines: how the waveform of a clip becomes the rows that a backbone reads.

A pipeline declares the kind of rows that it makes. The backbone's `FeatureSpec` asks for a kind,
and the pipeline registered under that name is the default; any other registered pipeline of the
same kind can replace it (`pipeline: {name: ...}`), and the bundle records which one was used.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from toolkit.errors import ConfigError
from toolkit.features.audio import read_audio
from toolkit.features.cache import FeatureCache, Segment, feature_cache, segments_of
from toolkit.features.spec import FeatureSpec
from toolkit.registry import PIPELINES
from toolkit.settings import Settings
from toolkit.source_code import source_digest


class Pipeline(Settings, ABC):
    """From a waveform to rows [T, F]; a subclass declares `kind` and implements `rows`.

    Cached rows are found by the pipeline's registered name and settings, and those of a pipeline
    that is not the library's own by its source too.

    Attributes:
        kind: the kind of rows that it makes, as `FeatureSpec.kind` names it.
    """

    kind: ClassVar[str]

    @abstractmethod
    def rows(self, waveform: Tensor, spec: FeatureSpec) -> Tensor:
        """The rows [T, F] of a waveform, neither normalised nor cut.

        Args:
            waveform: [samples] float32 in [-1, 1] at `spec.sample_rate`.
            spec: what the backbone reads; F is `spec.width`.
        """

    def read(self, segment: Segment, spec: FeatureSpec) -> Tensor:
        """The rows [T, F] of a file, or of a part of it.

        Raises:
            DataError: the file cannot be read.
            ConfigError: the pipeline makes rows of another shape than the backbone reads.
        """
        samples = read_audio(segment.path, spec.sample_rate, segment.start, segment.stop)
        return self.checked_rows(torch.from_numpy(samples), spec)

    def checked_rows(self, waveform: Tensor, spec: FeatureSpec) -> Tensor:
        """What `rows` makes, refused if the backbone cannot read it.

        Raises:
            ConfigError: the rows have another shape than the backbone reads.
        """
        rows = self.rows(waveform, spec)
        if rows.ndim != 2 or rows.shape[1] != spec.width:
            raise ConfigError(
                f"the pipeline '{self.registered_name}' makes rows of shape "
                f"{list(rows.shape)}, and the backbone reads [T, {spec.width}]: correct its `rows`"
            )
        return rows

    def require(self, spec: FeatureSpec) -> None:
        """Refuse a backbone that reads another kind of rows.

        Raises:
            ConfigError: the kinds differ; the message names the pipelines that fit.
        """
        if self.kind != spec.kind:
            fitting = [name for name in PIPELINES.names() if PIPELINES.get(name).kind == spec.kind]
            raise ConfigError(
                f"the pipeline '{self.registered_name}' makes {self.kind} rows, and the backbone "
                f"reads {spec.kind} rows: use `--pipeline {spec.kind}`, its default (available: "
                f"{', '.join(fitting)})"
            )

    def cache(
        self, clips: pd.DataFrame, spec: FeatureSpec, root: Path, build: bool = True
    ) -> FeatureCache:
        """The features of all clips, computed now unless they are on disk.

        Whole clips are kept, so that any length can be cut from them.

        Args:
            clips: from a manifest.
            spec: what the backbone reads.
            root: folder of all caches.
            build: compute what is missing; if False, the cache must exist (ranks above 0).

        Raises:
            ConfigError: the backbone reads other features.
            DataError: clips cannot be read, or the disk is full.
        """
        self.require(spec)

        def compute(segment: Segment) -> NDArray[np.float32]:
            rows: NDArray[np.float32] = self.read(segment, spec).numpy()
            return rows

        settings = {"pipeline": self.named().as_dict(), **spec.row_key}
        if not type(self).__module__.startswith("toolkit."):
            settings["source"] = source_digest(type(self))
        return feature_cache(root, segments_of(clips), settings, spec.width, compute, build=build)


def pipeline_for(spec: FeatureSpec, config: Mapping[str, Any] | None = None) -> Pipeline:
    """The pipeline that a configuration or a bundle names, by default the backbone's own.

    Args:
        spec: what the backbone reads.
        config: `{"name": ..., setting: value}`; None: the default for the backbone's kind of rows.

    Raises:
        UnknownName, ConfigError: no such pipeline, wrong settings, or one of another kind.
    """
    pipeline = PIPELINES.create({"name": spec.kind} if config is None else config)
    pipeline.require(spec)
    return pipeline
