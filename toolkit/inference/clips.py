"""Clips as people have them (files, arrays with a rate) -> rows that a backbone reads."""

from collections.abc import Iterable, Iterator
from numbers import Real
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from toolkit.backbones.base import Backbone
from toolkit.backbones.own import NO_FILES, OwnBackbone
from toolkit.errors import BackboneError, DataError
from toolkit.features.audio import resampled, waveform_blocks
from toolkit.features.batch import padded
from toolkit.features.cache import Segment
from toolkit.features.pipeline import Pipeline, pipeline_for
from toolkit.features.spec import FeatureSpec

Clip = str | Path | tuple[np.ndarray | Tensor, int]
"""A file, or samples [S] or [channels, S] in [-1, 1] and their rate in Hz."""


def windows_of(clip: Clip, number: int, pipeline: Pipeline, spec: FeatureSpec) -> Iterator[Tensor]:
    """The rows of a clip, not normalised, in windows of what the backbone reads.

    Args:
        clip: a file is read as its windows are asked for, so that it may last hours.
        number: of the clip, for messages about an array.
        pipeline: makes the rows.
        spec: what the backbone reads.

    Raises:
        DataError: a file that cannot be read, or an array that is not sound.
    """
    name = name_of(clip, number)
    if isinstance(clip, str | Path):
        blocks = waveform_blocks(clip, spec.sample_rate)
    else:
        blocks = iter([_waveform(clip, name, spec.sample_rate)])
    yield from pipeline.windows(blocks, spec, name)


def rows_of(clip: Clip, number: int, pipeline: Pipeline, spec: FeatureSpec) -> Tensor:
    """Rows [T, F] of a whole clip, neither normalised nor cut; otherwise as `windows_of`."""
    if isinstance(clip, str | Path):
        return pipeline.read(Segment(str(clip)), spec)
    name = name_of(clip, number)
    waveform = torch.from_numpy(_waveform(clip, name, spec.sample_rate))
    return pipeline.checked_rows(waveform, spec, name)


def read_clips(
    clips: Iterable[Clip], backbone: Backbone, pipeline: Pipeline | None = None
) -> tuple[Tensor, Tensor | None]:
    """A batch of clips as a backbone reads them, for `AudioClassifier.logits`.

    Args:
        clips: B files, or pairs of samples ([S] or [channels, S], in [-1, 1]) and rate in Hz.
        backbone: reads them; a clip that is longer than it reads is cut at its end.
        pipeline: makes rows of samples; None: the backbone's own.

    Returns:
        rows [B, T, F], not normalised, and the real rows of each clip [B]; None instead of these
        where the backbone takes padding for sound.

    Raises:
        DataError: no clip, a file that cannot be read, or an array that is not sound.
        ConfigError: a pipeline that makes rows of another kind.
        BackboneError: a module of your own, whose input is not made from audio.
    """
    spec = backbone.features
    if pipeline is None:
        pipeline = own_pipeline(backbone)
    pipeline.require(spec)
    rows = [
        rows_of(clip, number, pipeline, spec).numpy()
        for number, clip in enumerate(several(clips), start=1)
    ]
    if not rows:
        raise DataError("no clips were given: name at least one file or array")
    return padded(rows, spec)


def several(clips: Iterable[Clip]) -> Iterable[Clip]:
    """The clips, refused if they are a single one: a path would be read letter by letter.

    Raises:
        DataError: one file, or one pair of samples and rate.
    """
    if isinstance(clips, str | Path):
        raise DataError(f"{str(clips)!r} is one clip: give a list, such as [{str(clips)!r}]")
    if isinstance(clips, tuple) and len(clips) == 2 and isinstance(clips[1], Real):
        raise DataError("this is one clip: give a list, such as [(samples, rate)]")
    return clips


def own_pipeline(backbone: Backbone) -> Pipeline:
    """The pipeline that makes rows for a backbone unless another one is chosen.

    Raises:
        BackboneError: a module of your own, whose input is not made from audio.
    """
    if isinstance(backbone, OwnBackbone):
        raise BackboneError(NO_FILES)
    return pipeline_for(backbone.features)


def name_of(clip: Clip, number: int) -> str:
    """What a clip is called: its path, or `clip 3` for the third array."""
    return str(clip) if isinstance(clip, str | Path) else f"clip {number}"


def _waveform(clip: Clip, name: str, wanted: int) -> NDArray[np.float32]:
    """Mono samples of an array, at the wanted rate."""
    if not isinstance(clip, tuple) or len(clip) != 2:
        raise DataError(
            f"{name}: {type(clip).__name__} is not a clip: give a file, or a pair of samples and "
            "their rate in Hz"
        )
    samples, rate = clip
    if isinstance(samples, Tensor):
        samples = samples.detach().cpu()
        samples = (samples.float() if samples.is_floating_point() else samples).numpy()
    array = np.asarray(samples)
    if not np.issubdtype(array.dtype, np.floating):
        raise DataError(
            f"{name}: an array of {array.dtype} is not a clip: scale the samples to floats in "
            "[-1, 1] (16-bit integers: divide by 32768)"
        )
    array = array.astype(np.float32)
    if array.ndim == 1:
        array = array[None]
    if array.ndim != 2 or array.size == 0:
        raise DataError(
            f"{name}: an array of shape {tuple(np.shape(samples))} is not a clip: give samples "
            "[S] or [channels, S] with their rate"
        )
    if array.shape[0] > array.shape[1]:
        raise DataError(
            f"{name}: an array of shape {tuple(array.shape)} has more channels than samples: give "
            "it as [channels, S]"
        )
    if isinstance(rate, bool) or not isinstance(rate, Real):  # numpy's numbers too
        raise DataError(f"{name}: {rate!r} is not a sample rate: give that of the samples in Hz")
    return resampled(array.T, rate, wanted, name)
