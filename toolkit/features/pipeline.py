"""Data pipelines: how the waveform of a clip becomes the rows that a backbone reads.

A pipeline declares the kind of rows that it makes. The backbone's `FeatureSpec` asks for a kind,
and the pipeline registered under that name is the default; any other registered pipeline of the
same kind can replace it (`pipeline: {name: ...}`), and the bundle records which one was used.
"""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from toolkit.errors import ConfigError, DataError
from toolkit.features.audio import read_audio
from toolkit.features.cache import FeatureCache, Segment, feature_cache, segments_of
from toolkit.features.spec import FeatureSpec
from toolkit.features.windows import is_sliver, split_windows
from toolkit.registry import PIPELINES
from toolkit.settings import Settings
from toolkit.source_code import source_digest

if TYPE_CHECKING:  # pandas is slow to import
    import pandas as pd


@dataclasses.dataclass(frozen=True)
class Reach:
    """Which samples a row is made of: row t of [t * hop, t * hop + window), and of no others."""

    hop: int
    window: int


class Pipeline(Settings, ABC):
    """From a waveform to rows [T, F]; a subclass declares `kind` and implements `rows`.

    Cached rows are found by the pipeline's registered name and settings, and those of a pipeline
    that is not the library's own by its source too.

    Attributes:
        kind: the kind of rows that it makes, as `FeatureSpec.kind` names it.
    """

    kind: ClassVar[str] = ""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "rows" in vars(cls) and "reach" not in vars(cls):  # what is inherited is of other rows
            cls.reach = Pipeline.reach  # type: ignore[method-assign]

    def reach(self, spec: FeatureSpec) -> Reach | None:
        """Which samples each of the `rows` is made of.

        With it, a recording of hours is read and predicted piece by piece. A class that overrides
        `rows` says it anew.

        Args:
            spec: what the backbone reads.

        Returns:
            None (the default): a row may depend on the whole clip, which then has to fit into
            memory.
        """
        return None

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
        return self.checked_rows(torch.from_numpy(samples), spec, segment.path)

    def checked_rows(self, waveform: Tensor, spec: FeatureSpec, name: str) -> Tensor:
        """What `rows` makes, refused if the backbone cannot read it.

        Args:
            waveform: [samples].
            spec: what the backbone reads.
            name: what messages call the clip.

        Raises:
            ConfigError: the rows have another shape than the backbone reads.
            DataError: they are not finite.
        """
        rows = self.rows(waveform, spec)
        if rows.ndim != 2 or rows.shape[1] != spec.width:
            raise ConfigError(
                f"the pipeline '{self.registered_name}' makes rows of shape "
                f"{list(rows.shape)}, and the backbone reads [T, {spec.width}]: correct its `rows`"
            )
        if not bool(rows.isfinite().all()):
            raise DataError(
                f"{name}: the pipeline '{self.registered_name}' makes features of it that are not "
                "finite numbers"
            )
        return rows

    def windows(
        self, blocks: Iterable[NDArray[np.float32]], spec: FeatureSpec, name: str
    ) -> Iterator[Tensor]:
        """The rows of a recording in windows of what the backbone reads, as they are needed.

        A last window shorter than a tenth of a whole one is left out, unless it is all there is: it
        would weigh as much as a whole one and is mostly padding.

        Args:
            blocks: [samples] each; one after the other they are the recording.
            spec: what the backbone reads.
            name: what messages call the recording.

        Yields:
            [T, F], T being `spec.rows`, less in the last one.
        """
        reach = self.reach(spec)
        if reach is None:
            whole = torch.from_numpy(np.concatenate(list(blocks)))
            yield from split_windows(self.checked_rows(whole, spec, name), spec.rows)
            return
        step = spec.rows * reach.hop
        size = max(step - reach.hop + reach.window, step)  # of a window, and of the gap behind it
        kept, first = np.zeros(0, np.float32), True
        for block in blocks:
            kept = np.concatenate([kept, block])
            while len(kept) >= size:
                yield self.checked_rows(torch.from_numpy(kept[:size]), spec, name)
                kept, first = kept[step:], False
        if first or len(kept) >= reach.window:
            rest = self.checked_rows(torch.from_numpy(kept), spec, name)
            if first or not is_sliver(len(rest), spec.rows):
                yield rest

    def require(self, spec: FeatureSpec) -> None:
        """Refuse a backbone that reads another kind of rows.

        Raises:
            ConfigError: the kinds differ; the message names the pipelines that fit.
        """
        if not self.kind:
            raise ConfigError(
                f"the pipeline '{self.registered_name}' does not say which kind of rows it makes: "
                f'give its class `kind = "{spec.kind}"` if it makes what this backbone reads'
            )
        if self.kind != spec.kind:
            fitting = [name for name in PIPELINES.names() if PIPELINES.get(name).kind == spec.kind]
            raise ConfigError(
                f"the pipeline '{self.registered_name}' makes {self.kind} rows, and the backbone "
                f"reads {spec.kind} rows: use `--pipeline {spec.kind}`, its default (available: "
                f"{', '.join(fitting)})"
            )

    def cache(
        self, clips: "pd.DataFrame", spec: FeatureSpec, root: Path, build: bool = True
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

        settings = self.row_settings(spec)
        return feature_cache(root, segments_of(clips), settings, spec.width, compute, build=build)

    def row_settings(self, spec: FeatureSpec) -> dict[str, Any]:
        """All that cached rows depend on besides the audio.

        Args:
            spec: what the backbone reads.
        """
        settings = {"pipeline": self.named().as_dict(), **spec.row_key}
        if not type(self).__module__.startswith("toolkit."):
            settings["source"] = source_digest(type(self))
        return settings


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
