"""SSF keeps the contract of every PEFT method, and is the affine map that its paper describes."""

from pathlib import Path

import pytest
import torch

from toolkit import config, plugins
from toolkit.backbones.base import LINEAR_ROLES, Backbone
from toolkit.peft import insertion
from toolkit.registry import PEFT
from toolkit.testing import check_method, tiny_backbone, tiny_batch

FOLDER = Path(__file__).parent
NORM_ROLES = ("norm.mhsa", "norm.ffn")

plugins.load([FOLDER])


def adapted(**settings: object) -> Backbone:
    """A tiny backbone with SSF in it and nothing else to train."""
    backbone = tiny_backbone()
    PEFT.create({"name": "ssf", "final_norm": False, **settings}).apply(backbone)
    return backbone


def scramble(backbone: Backbone) -> None:
    """Give every gamma and beta a value of its own."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for module in insertion.inserted(backbone):
            for parameter in module.parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))


def test_contract() -> None:
    check_method("ssf")


def test_affine_by_hand() -> None:
    from toolkit_plugins.ssf.ssf import Affine

    module = Affine(3, std=0.0)
    x = torch.tensor([[1.0, 2.0, -4.0]])
    assert torch.equal(module(x), x)
    with torch.no_grad():
        module.gamma.copy_(torch.tensor([1.0, 2.0, 0.5]))
        module.beta.copy_(torch.tensor([0.0, -1.0, 3.0]))
    assert module(x).tolist() == [[1.0, 3.0, 1.0]]


def test_parameter_count() -> None:
    backbone = adapted()
    trained = sum(p.numel() for p in backbone.parameters() if p.requires_grad)
    d, hidden = backbone.dim, backbone.site(0, "ffn.up").out_dim
    widths = 4 * d + (hidden + d) + 2 * d  # q, k, v, o; up, down; two norms
    assert trained == backbone.depth * 2 * widths


def test_absorbed_exactly() -> None:
    """gamma * (W x + b) + beta = (gamma W) x + (gamma b + beta), at every site."""
    backbone, stock = adapted(), tiny_backbone()
    scramble(backbone)
    with torch.no_grad():
        for site in backbone.sites(*LINEAR_ROLES, *NORM_ROLES):
            affine, target = site.module.inserted, stock.site(site.block, site.role).module
            gamma = affine.gamma if target.weight.dim() == 1 else affine.gamma[:, None]
            target.weight.mul_(gamma)
            target.bias.mul_(affine.gamma).add_(affine.beta)
        features, _ = tiny_batch(backbone)
        found, frozen = backbone(features), tiny_backbone()(features)
        torch.testing.assert_close(found, stock(features), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, frozen, atol=1e-2)


@pytest.mark.parametrize("std", [0.0, 0.02])
def test_start_is_spread_as_asked(std: float) -> None:
    torch.manual_seed(0)
    modules = list(insertion.inserted(adapted(init_std=std)))
    gamma = torch.cat([module.gamma.detach() for module in modules])
    beta = torch.cat([module.beta.detach() for module in modules])
    for values, centre in ((gamma, 1.0), (beta, 0.0)):
        assert abs(values.mean().item() - centre) <= 3 * std / len(values) ** 0.5
        assert values.std().item() == pytest.approx(std, rel=0.1)


def test_configuration_holds_the_differences_only() -> None:
    lines = [
        line
        for line in (FOLDER / "ssf.yaml").read_text(encoding="utf-8").splitlines()
        if line.strip() and not line.startswith("#")
    ]
    assert len(lines) <= 15
    recipe = FOLDER.parents[1] / "recipes" / "ESC50"
    loaded = config.load(config.parse_command_line([str(FOLDER / "ssf.yaml")]), recipe)
    assert loaded.name == "ssf"
    assert loaded.values["lr"] == 0.005
    assert loaded.flat["optimizer.weight_decay"] == 0  # decay would pull gamma towards 0, not 1
    assert PEFT.create(loaded.values["peft"]).registered_name == "ssf"
