"""muMoE keeps the contract; its layers are tested in tests/test_multilinear.py."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from toolkit import plugins
from toolkit.errors import ConfigError
from toolkit.model import AudioClassifier
from toolkit.peft import insertion
from toolkit.registry import PEFT
from toolkit.testing import CLASSES, LargestTensor, check_method, tiny_backbone, tiny_batch

FOLDER = Path(__file__).parent

plugins.load([FOLDER])


def adapted(**settings: Any) -> AudioClassifier:
    """A tiny classifier."""
    torch.manual_seed(0)
    method = PEFT.create({"name": "mumoe", **settings})
    return AudioClassifier(tiny_backbone(), method, CLASSES, "all")


def mixtures(model: AudioClassifier) -> list[nn.Module]:
    """What was inserted."""
    return list(insertion.inserted(model.backbone))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"hierarchy": 4, "num_experts": 8, "act": "softmax", "placement": "both"},
        {"factorisation": "tr", "rank": 4, "norm": "layer"},
        {"factorisation": "tr", "rank": 4, "hierarchy": 3, "num_experts": 5, "norm": "none"},
        {"layers_per_block": 1, "input_norm": True},
    ],
)
def test_contract(settings: dict[str, Any]) -> None:
    check_method("mumoe", settings)


@pytest.mark.parametrize("hierarchy", [1, 3])
def test_every_expert_weighs_the_same_at_the_start(hierarchy: int) -> None:
    model = adapted(num_experts=8, hierarchy=hierarchy).train()
    model.method.record(model.backbone, on=True)
    model(tiny_batch(model.backbone)[0])
    found, experts = model.method.statistics(model.backbone), 8 * hierarchy
    assert found["load"] == pytest.approx([1 / experts] * experts)
    assert found["gate_entropy"] == pytest.approx(1.0)
    assert found["active_mean"] == experts


def test_statistics_of_trained_gates() -> None:
    model = adapted(num_experts=8).train()
    with torch.no_grad():
        for mixture in mixtures(model):
            mixture.block.gates[0].weight.normal_()
    model.method.record(model.backbone, on=True)
    model(tiny_batch(model.backbone)[0])
    found = model.method.statistics(model.backbone)
    assert sum(found["load"]) == pytest.approx(1.0)
    assert 0 < found["gate_entropy"] < 1 < found["active_mean"] < 8


def test_one_expert_has_a_gate_of_one() -> None:
    model = adapted(num_experts=1).eval()
    for mixture in mixtures(model):
        with torch.no_grad():
            for parameter in mixture.parameters():
                parameter.normal_()
        (gate,) = mixture.block.route(torch.randn(2, 3, 96))
        assert torch.equal(gate, torch.ones(2, 3, 1))


def test_gates_are_shared_by_both_layers_and_read_the_tokens() -> None:
    model = adapted(num_experts=8).eval()
    mixture = mixtures(model)[0]
    seen = []
    for layer in (mixture.block.down, mixture.block.up):
        layer.register_forward_pre_hook(lambda _, args: seen.append(args[1]))
    mixture(torch.randn(2, 3, 96))
    assert seen[0] is seen[1] and seen[0][0].shape == (2, 3, 8)


@pytest.mark.parametrize(
    ("settings", "closed"),
    [
        ({"num_experts": 8, "rank": 3}, 96 * 8 + 2 * 3 * (8 + 96 + 16 + 1)),
        (
            {"num_experts": 8, "rank": 3, "layers_per_block": 1, "input_norm": True},
            96 * 8 + 3 * (8 + 97 + 96) + 2 * 96,
        ),
        (
            {"num_experts": 8, "hierarchy": 4, "rank": 3},
            96 * 12 + 2 * 3 * (12 + 96 + 16 + 1),
        ),
        (
            {"num_experts": 8, "rank": 3, "factorisation": "tr"},
            96 * 8 + 2 * 16 * 8 + 8 * 3 * (96 + 16 + 1),
        ),
        (
            {"num_experts": 8, "hierarchy": 4, "rank": 3, "factorisation": "tr"},
            96 * 12 + 2 * 16 * 12 + 8 * 3 * (96 + 16 + 1),
        ),
    ],
)
def test_parameter_count(settings: dict[str, Any], closed: int) -> None:
    model = adapted(**settings, final_norm=False, norms=False)
    assert model.count().method == 2 * closed


@pytest.mark.parametrize("budget", [3000, 5000, 20_001])
@pytest.mark.parametrize("hierarchy", [1, 2])
def test_matched_rank_of_a_block(budget: int, hierarchy: int) -> None:
    settings = {"num_experts": 8, "hierarchy": hierarchy, "match_params": budget}
    modes = 8 + (hierarchy if hierarchy > 1 else 0)
    method = PEFT.create({"name": "mumoe", **settings})
    assert method.rank_at(96) == math.ceil((budget - 96 * modes) / (2 * (modes + 96 + 16 + 1)))
    method = PEFT.create({"name": "mumoe", "factorisation": "tr", **settings})
    fixed = 96 * modes + 2 * 16 * modes
    assert method.rank_at(96) == math.ceil((budget - fixed) / (8 * (96 + 16 + 1)))
    sizes = [
        adapted(rank=rank, **{k: v for k, v in settings.items() if k != "match_params"},
                final_norm=False, norms=False).count().method / 2
        for rank in (PEFT.create({"name": "mumoe", **settings}).rank_at(96) + s
                     for s in (-1, 0))
        if rank > 0
    ]  # fmt: skip
    assert sizes[-1] >= budget and all(size < budget for size in sizes[:-1])


def test_a_budget_below_the_gates_is_refused() -> None:
    with pytest.raises(ConfigError, match="'match_params' 100"):
        adapted(match_params=100)


def test_no_tensor_of_all_experts_weights() -> None:
    """Nothing of N d b numbers, forward or backward."""
    mixture = mixtures(adapted(num_experts=64))[0]
    x = torch.randn(2, 12, 96, requires_grad=True)
    with LargestTensor() as watch:
        mixture(x).sum().backward()
    assert watch.numel <= 64 * 96 < 64 * 96 * 16


def test_running_statistics_of_the_gates_are_saved() -> None:
    model = adapted().train()
    features, _ = tiny_batch(model.backbone)
    with torch.no_grad():
        for mixture in mixtures(model):
            mixture.block.gates[0].weight.normal_()
    model(features)
    names = [name for name in model.state() if name.endswith("running_var")]
    assert len(names) == 2 and all((model.state()[name] != 1).all() for name in names)
    again = adapted().eval()
    again.load_state({name: tensor.clone() for name, tensor in model.state().items()})
    assert torch.equal(again(features), model.eval()(features))
