"""The files of a new PEFT method."""

MODULE = '''"""{title}: one sentence that says what it does (authors, arXiv id, equation)."""

import torch
from torch import Tensor, nn

from toolkit.backbones.base import Backbone
from toolkit.peft.base import PeftMethod, Placement, insertion, setting
from toolkit.registry import PEFT


@PEFT.register("{name}", paper="your paper")
class {title}(PeftMethod):
    """{title}: y = gamma * x behind each sublayer (replace this with your method)."""

    placement: Placement = setting("both", "which sublayers: mhsa, ffn or both")

    def insert(self, backbone: Backbone) -> None:
        """One module per site. Other places: insertion.parallel; other roles: backbones/base.py."""
        for site in self.sites(backbone, self.placement):
            insertion.after(site, "{name}", Scale(site.out_dim))


class Scale(nn.Module):
    """`gamma * x`; an identity at the start, so that training begins at the frozen backbone."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """[..., d] -> [..., d]."""
        return self.gamma * x
'''

CONFIG = """# {title}: toolkit train ESC50 {folder}/{name}.yaml
extends: ESC50/hparams/base.yaml
lr: 0.005
peft: {{name: {name}, placement: both}}
"""

TEST = '''"""The plugin keeps the contract of every PEFT method, and does what its paper says."""

from pathlib import Path

import torch

from toolkit import plugins
from toolkit.testing import check_method, tiny_backbone

loaded = plugins.load([Path(__file__).parent])
assert not plugins.report(loaded), plugins.report(loaded)


def test_contract() -> None:
    check_method("{name}")


def test_parameter_count() -> None:
    from toolkit.registry import PEFT

    backbone = tiny_backbone()
    PEFT.create({{"name": "{name}", "final_norm": False}}).apply(backbone)
    trained = sum(p.numel() for p in backbone.parameters() if p.requires_grad)
    assert trained == backbone.depth * 2 * backbone.dim


def test_scale_by_hand() -> None:
    from toolkit_plugins.{name}.{name} import Scale

    module = Scale(3)
    with torch.no_grad():
        module.gamma.copy_(torch.tensor([1.0, 2.0, 3.0]))
    assert module(torch.tensor([[1.0, 1.0, 2.0]])).tolist() == [[1.0, 2.0, 6.0]]
'''

FILES = {"{name}.py": MODULE, "{name}.yaml": CONFIG, "test_{name}.py": TEST}
