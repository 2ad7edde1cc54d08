"""Every registered method fulfils the contract; what is specific to one is tested below."""

import pytest
import torch
from torch import nn

from toolkit import plugins
from toolkit.backbones.ast import AST
from toolkit.errors import ConfigError
from toolkit.model import AudioClassifier
from toolkit.peft import insertion
from toolkit.registry import PEFT
from toolkit.testing import CLASSES, check_method, tiny_backbone, tiny_batch

plugins.load()
D, L, F = 768, 12, 3072  # AST-base
NORM = 2 * D
VARIANTS = [
    ("adapter", {"mode": "sequential"}),
    ("adapter", {"placement": "both", "reduction": 8}),
    ("adapter", {"placement": "mhsa", "mode": "sequential", "norms": False}),
    ("lora", {"targets": ["q", "k", "v", "o", "up", "down"], "dropout": 0.2}),
    ("soft_moa", {"placement": "both", "num_experts": 3, "slots": 2, "normalize": True}),
    ("soft_moa", {"placement": "ffn", "noise": 0.5, "reduction": 12}),
    ("linear_probe", {"final_norm": False}),
]
COUNTS = [  # trainable parameters outside the head, in closed form
    ("linear_probe", {}, NORM),
    ("linear_probe", {"final_norm": False}, 0),
    ("lora", {"rank": 6}, L * 2 * 2 * D * 6 + NORM),
    ("lora", {"rank": 4, "targets": ["up", "down"]}, L * 2 * 4 * (D + F) + NORM),
    ("adapter", {}, L * (2 * D * 12 + 12 + D + NORM) + NORM),
    ("adapter", {"placement": "both"}, 2 * L * (2 * D * 12 + 12 + D + NORM) + NORM),
    ("soft_moa", {}, L * (7 * D + 7 * (2 * D * 6 + 6 + D) + NORM) + NORM),
    (
        "soft_moa",
        {"num_experts": 14, "slots": 2, "normalize": True},
        L * (28 * D + 1 + 14 * (2 * D * 6 + 6 + D) + NORM) + NORM,
    ),
    ("ssf", {}, L * 2 * (4 * D + F + D + 2 * D) + NORM),
]


@pytest.mark.parametrize("name", PEFT.names())
def test_contract(name: str) -> None:
    check_method(name)


@pytest.mark.parametrize(("name", "settings"), VARIANTS)
def test_contract_of_variants(name: str, settings: dict) -> None:
    check_method(name, settings)


@pytest.mark.parametrize(("name", "settings", "count"), COUNTS)
def test_parameter_count(name: str, settings: dict, count: int) -> None:
    with torch.device("meta"):
        method = PEFT.create({"name": name, **settings})
        model = AudioClassifier(AST().architecture(500), method, 50, "all")
    assert model.count().method == count
    assert model.count().head == 50 * D + 50


@pytest.mark.parametrize("name", PEFT.names())
def test_stock_modules_stay_in_eval(name: str) -> None:
    model = AudioClassifier(tiny_backbone(), PEFT.create(name), CLASSES, "all").train()
    expected = PEFT.get(name).trains_backbone
    own = {part for module in insertion.inserted(model.backbone) for part in module.modules()}
    dropouts = [m for m in model.backbone.model.modules() if isinstance(m, nn.Dropout)]
    stock = [module for module in dropouts if module not in own]
    assert stock and all(m.training is expected for m in stock)
    assert all(m.training for m in insertion.inserted(model.backbone))
    assert model.head.training
    model.eval()
    assert not any(m.training for m in model.modules())


def test_lasting_names_do_not_depend_on_wrapping() -> None:
    before = tiny_backbone()
    model = AudioClassifier(
        tiny_backbone(), PEFT.create({"name": "adapter", "placement": "both"}), 3, "all"
    )
    names = {model.backbone.canonical(n) for n in model.backbone.model.state_dict()}
    assert before.stock <= names
    inserted = names - before.stock
    assert inserted == {
        f"blocks.{block}.{site}.adapter.experts.{tensor}"
        for block in range(2)
        for site in ("mhsa", "ffn")
        for tensor in ("down", "down_bias", "up", "up_bias")
    }
    assert {f"blocks.1.norm.{site}.weight" for site in ("mhsa", "ffn")} <= model.state().keys()


def test_sequential_adapter_by_hand() -> None:
    torch.manual_seed(0)
    model = AudioClassifier(
        tiny_backbone(), PEFT.create({"name": "adapter", "mode": "sequential"}), 3, "all"
    ).eval()
    wrapper = model.backbone.site(0, "ffn").module
    with torch.no_grad():
        wrapper.inserted.experts.up.normal_()
    x = torch.randn(2, 5, 96)
    inner = wrapper.wrapped(x)
    down, up = wrapper.inserted.experts.down[0], wrapper.inserted.experts.up[0]
    torch.testing.assert_close(wrapper(x), inner + nn.functional.gelu(inner @ down.T) @ up.T)


def test_lora_by_hand() -> None:
    torch.manual_seed(0)
    method = PEFT.create({"name": "lora", "rank": 3, "alpha": 12})
    model = AudioClassifier(tiny_backbone(), method, 3, "all").eval()
    wrapper = model.backbone.site(1, "attn.q").module
    with torch.no_grad():
        wrapper.inserted.up.weight.normal_()
    delta = 4 * wrapper.inserted.up.weight @ wrapper.inserted.down.weight
    x = torch.randn(2, 5, 96)
    merged = nn.functional.linear(x, wrapper.wrapped.weight + delta, wrapper.wrapped.bias)
    torch.testing.assert_close(wrapper(x), merged, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("soft_moa", {"slots": 0}, "'slots' must be at least 1"),
        ("soft_moa", {"reduction": 500}, "leaves no bottleneck"),
        ("adapter", {"reduction": 193}, "leaves no bottleneck"),
        ("adapter", {"placement": "fnn"}, "did you mean 'ffn'"),
        ("lora", {"rank": 97}, "larger than the projection"),
        ("lora", {"targets": []}, "'targets' must name"),
        ("lora", {"targets": ["q", "q"]}, "each once"),
        ("lora", {"targets": ["query"]}, "'targets' must be"),
        ("lora", {"rank": 2.5}, "'rank' must be int"),
    ],
)
def test_what_cannot_work_is_refused(name: str, settings: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        PEFT.create({"name": name, **settings}).apply(tiny_backbone())


@pytest.mark.parametrize("pooling", ["mean", "cls", "all"])
def test_pooling(pooling: str) -> None:
    model = AudioClassifier(tiny_backbone(), PEFT.create("linear_probe"), 3, pooling)
    features, _ = tiny_batch(model.backbone)
    tokens = model.backbone(features)
    expected = {
        "mean": tokens[:, 2:].mean(1),
        "cls": (tokens[:, 0] + tokens[:, 1]) / 2,
        "all": tokens.mean(1),
    }[pooling]
    torch.testing.assert_close(model(features), model.head(expected))


def test_statistics_are_recorded_on_request() -> None:
    method = PEFT.create({"name": "soft_moa", "num_experts": 3})
    model = AudioClassifier(tiny_backbone(), method, CLASSES, "all").eval()
    features, _ = tiny_batch(model.backbone)
    model(features)
    assert method.statistics(model.backbone) == {}
    method.record(model.backbone, on=True)
    model(features)
    numbers = method.statistics(model.backbone)
    assert sum(numbers["load"]) == pytest.approx(1) and len(numbers["load"]) == 3
    assert 0 < numbers["combine_entropy"] <= 1
