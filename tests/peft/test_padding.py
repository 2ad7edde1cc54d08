"""Padding has no part: not in what is predicted, not in what is trained, on any backbone.

`tests/backbones` checks the backbones alone; here every method is swept over those whose clips
differ in length.
"""

from typing import Any

import pytest
import torch

from toolkit import plugins, testing
from toolkit.errors import ConfigError
from toolkit.peft.base import PeftMethod
from toolkit.registry import PEFT
from toolkit.routing.topk import TopKRouter

plugins.load()
VARIABLE = ["clap", "data2vec_audio", "hubert", "sew", "wav2vec2_bert", "wavlm", "whisper"]
VARIANTS: list[dict[str, Any]] = [
    {"name": "adapter", "block": "conformer"},
    {"name": "adapter", "block": "convpass", "mode": "sequential"},
    {"name": "dense_moa", "block": "conformer", "placement": "ffn"},
    {"name": "soft_moa", "block": "conformer", "slots": 3},
    {"name": "soft_moa", "normalize": True, "phi_init": "xavier"},
    {"name": "topk_moa", "capacity": 1.0, "w_z": 0.1, "w_entropy": 0.1},
    {"name": "topk_moa", "block": "conformer", "k": 1},
    {"name": "mumoe", "norm": "layer", "act": "softmax"},
    {"name": "mumoe", "hierarchy": 2, "factorisation": "tr"},
    {"name": "peer", "score": "sigmoid", "share_pool": False},
    {"name": "thor", "draw": "sample", "infer": "sample"},
    {"name": "thor", "infer": "sample", "block": "conformer"},
    {"name": "thor", "infer": "merge", "block": "conformer"},
    {"name": "thor", "infer": "mean", "block": "convpass"},
]


def named(config: dict[str, Any]) -> str:
    """A test's name."""
    return ",".join(str(value) for value in config.values())


def made(config: dict[str, Any], family: str) -> PeftMethod:
    """A method that this family takes."""
    method = PEFT.create(config)
    try:
        testing.tiny_classifier(method, family=family)
    except ConfigError as refused:
        pytest.skip(str(refused))
    return method


@pytest.mark.parametrize("config", [*({"name": n} for n in PEFT.names()), *VARIANTS], ids=named)
def test_on_wav2vec2(config: dict[str, Any]) -> None:
    testing.check_padding(made(config, "wav2vec2"), "wav2vec2")
    testing.check_padding_in_training(made(config, "wav2vec2"), "wav2vec2")


@pytest.mark.wide
@pytest.mark.parametrize("family", VARIABLE)
@pytest.mark.parametrize("config", [*({"name": n} for n in PEFT.names()), *VARIANTS], ids=named)
def test_on_every_family(config: dict[str, Any], family: str) -> None:
    testing.check_padding(made(config, family), family)
    testing.check_padding_in_training(made(config, family), family)


@pytest.mark.parametrize("infer", ["token", "sample", "mean", "merge"])
def test_thor_chooses_for_a_clip_whatever_else_is_in_the_batch(infer: str) -> None:
    """Alone, in a batch of others, and padded: the same experts, so the same logits."""
    method = PEFT.create({"name": "thor", "infer": infer, "num_experts": 7})
    model = testing.tiny_classifier(method, family="wav2vec2", noise=0.2, pooling="mean").eval()
    rows, lengths = testing.tiny_rows(model.backbone)
    assert lengths is not None
    with torch.no_grad():
        together = model.logits(rows, lengths)
        turned = model.logits(rows.flip(0), lengths.flip(0)).flip(0)
        for number, length in enumerate(lengths.tolist()):
            alone = model.logits(rows[number : number + 1, :length], lengths[number : number + 1])
            torch.testing.assert_close(alone[0], together[number], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(turned, together, rtol=1e-3, atol=1e-4)


def test_thor_counts_draws_of_real_tokens_only() -> None:
    method = PEFT.create({"name": "thor", "draw": "token"})
    model = testing.tiny_classifier(method, family="wav2vec2", pooling="mean").train()
    rows, lengths = testing.tiny_rows(model.backbone, 2)
    model.logits(torch.cat([rows, torch.zeros_like(rows)], dim=1), lengths)
    mask = model.backbone.context.mask
    assert mask is not None
    counts = method.statistics(model.backbone)["draws"]
    assert isinstance(counts, list) and sum(counts) == model.backbone.depth * int(mask.sum())


@pytest.mark.parametrize("padding", [0, 1, 8])
@pytest.mark.parametrize(("capacity", "k", "taken"), [(1.0, 1, 4), (0.5, 1, 2), (1.0, 2, 8)])
def test_capacity_is_a_share_of_the_real_tokens(
    capacity: float, k: int, taken: int, padding: int
) -> None:
    router = TopKRouter(8, 2, k=k, capacity=capacity).train()
    tokens = torch.randn(1, 8, 8)
    tokens[..., 0] = 9.0
    with torch.no_grad():
        router.linear.weight.zero_()
        router.linear.weight[:, 0] = torch.tensor([1.0, -1.0])  # every token prefers the first
    mask = torch.arange(8 + padding)[None] < 8
    gates = router(torch.cat([tokens, torch.randn(1, padding, 8)], dim=1), mask)
    assert int((gates[..., 0] > 0).sum()) == taken
