"""The files of a new data pipeline."""

MODULE = '''"""{title}: one sentence that says what rows it makes of samples."""

from torch import Tensor

from toolkit.features.fbank import Fbank
from toolkit.features.spec import FeatureSpec
from toolkit.registry import PIPELINES
from toolkit.settings import setting


@PIPELINES.register("{name}", paper="your paper")
class {title}(Fbank):
    """Log-mel frames of louder samples (replace this with your pipeline)."""

    gain: float = setting(2.0, "factor of the samples", above=0)

    def rows(self, waveform: Tensor, spec: FeatureSpec) -> Tensor:
        """Samples [S] in [-1, 1] at the backbone's rate -> rows [T, F], not normalised."""
        return super().rows(self.gain * waveform, spec)
'''

TEST = '''"""The plugin keeps the contract of every pipeline, and does what it says."""

import math
from pathlib import Path

import torch

from toolkit import plugins
from toolkit.registry import PIPELINES
from toolkit.testing import check_pipeline, tiny_backbone

loaded = plugins.load([Path(__file__).parent])
assert not plugins.report(loaded), plugins.report(loaded)


def test_contract() -> None:
    check_pipeline("{name}")


def test_a_gain_is_added_in_decibels() -> None:
    spec, sound = tiny_backbone().features, 0.1 * torch.randn(8000)
    plain = PIPELINES.create("fbank").rows(sound, spec)
    louder = PIPELINES.create({{"name": "{name}", "gain": 2.0}}).rows(sound, spec)
    torch.testing.assert_close(louder - plain, torch.full_like(plain, 2 * math.log(2)))
'''

FILES = {"{name}.py": MODULE, "test_{name}.py": TEST}
