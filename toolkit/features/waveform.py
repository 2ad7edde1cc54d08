"""The default pipeline of backbones that read samples, such as Wav2Vec 2.0."""

from torch import Tensor

from toolkit.features.pipeline import Pipeline, Reach
from toolkit.features.spec import FeatureSpec
from toolkit.registry import PIPELINES


@PIPELINES.register("waveform", paper="arXiv:2006.11477")
class Waveform(Pipeline):
    """Samples [S, 1] in [-1, 1], one per row."""

    kind = "waveform"

    def rows(self, waveform: Tensor, spec: FeatureSpec) -> Tensor:
        """The samples [S, 1] of a waveform [S]."""
        return waveform[:, None]

    def reach(self, spec: FeatureSpec) -> Reach:
        """A row is one sample."""
        return Reach(hop=1, window=1)
