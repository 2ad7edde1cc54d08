"""The files of a new augmentation."""

MODULE = '''"""{title}: one sentence that says what it does to a training batch."""

import torch
from torch import Generator, Tensor


class {title}:
    """Gaussian noise of a random level on every clip (replace this with your augmentation).

    Args:
        most: largest standard deviation; normalised features have about 0.5.
    """

    def __init__(self, most: float = 0.1) -> None:
        self.most = most

    def __call__(
        self, features: Tensor, targets: Tensor, generator: Generator
    ) -> tuple[Tensor, Tensor]:
        """Normalised features [B, T, F] and targets [B, C] -> both, of the same shapes."""
        level = self.most * torch.rand(len(features), 1, 1, generator=generator)
        noise = torch.randn(features.shape, generator=generator)
        return features + (level * noise).to(features), targets
'''

CONFIG = """# {title}: toolkit train ESC50 {folder}/{name}.yaml
extends: ESC50/hparams/base.yaml
label: lora_{name}
lr: 0.005
peft: {{name: lora, rank: 6}}
augment:
  - !new:toolkit.data.augment.SpecAugment {{freq_mask: 24, time_mask: 80}}
  - !new:toolkit_plugins.{name}.{name}.{title} {{most: 0.1}}
"""

TEST = '''"""The plugin keeps the contract of every augmentation."""

from pathlib import Path

import torch

from toolkit import plugins
from toolkit.testing import check_augmentation

loaded = plugins.load([Path(__file__).parent])
assert not plugins.report(loaded), plugins.report(loaded)

from toolkit_plugins.{name}.{name} import {title}  # noqa: E402


def test_contract() -> None:
    check_augmentation({title}())


def test_the_level_is_a_bound() -> None:
    features, targets = torch.zeros(200, 10, 10), torch.eye(200)
    noisy, _ = {title}(0.5)(features, targets, torch.Generator().manual_seed(0))
    levels = noisy.flatten(1).std(dim=1)
    assert 0.4 < levels.max() < 0.7
    assert levels.min() < 0.1
'''

FILES = {"{name}.py": MODULE, "{name}.yaml": CONFIG, "test_{name}.py": TEST}
