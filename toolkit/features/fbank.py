"""The default pipeline of backbones that read log-mel frames, such as AST."""

from typing import cast

from torch import Tensor

from toolkit.features.log_mel import frame_sizes, log_mel
from toolkit.features.pipeline import Pipeline, Reach
from toolkit.features.spec import FbankSpec, FeatureSpec
from toolkit.registry import PIPELINES


@PIPELINES.register("fbank", paper="arXiv:2104.01778")
class Fbank(Pipeline):
    """Log-mel frames [T, mel bins] as AST was trained on, one per 10 ms."""

    kind = "fbank"

    def rows(self, waveform: Tensor, spec: FeatureSpec) -> Tensor:
        """The log-mel frames [T, F] of a waveform [samples]."""
        mel_bins = cast(FbankSpec, spec).mel_bins  # `require` has checked the kind
        return log_mel(waveform[None], spec.sample_rate, mel_bins)[0]

    def reach(self, spec: FeatureSpec) -> Reach:
        """A frame is made of the 25 ms of its window."""
        window, shift = frame_sizes(spec.sample_rate)
        return Reach(hop=shift, window=window)
