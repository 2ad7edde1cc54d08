"""Batched experts against single ones, and each kind by hand."""

import math

import pytest
import torch
from torch.nn import functional

from toolkit.context import TokenContext
from toolkit.experts.base import Experts
from toolkit.experts.bottleneck import Bottleneck
from toolkit.experts.conformer import Conformer
from toolkit.experts.convpass import Convpass, quick_gelu


def experts_of(kind: str, count: int) -> Experts:
    """Experts of a kind in float64 and eval mode, every tensor random."""
    torch.manual_seed(1)
    kinds = {
        "bottleneck": lambda n: Bottleneck(n, 12, 3),
        "conformer": lambda n: Conformer(n, 12, 3, kernel=4),
        "convpass": lambda n: Convpass(n, 12, 3),
        "convpass2d": lambda n: Convpass(n, 12, 3, grid=(2, 4), prefix_tokens=2),
    }
    experts = kinds[kind](count).double()
    with torch.no_grad():
        for parameter in experts.parameters():
            parameter.normal_()
    return experts.eval()


def test_experts_equal_separate_adapters() -> None:
    torch.manual_seed(0)
    experts = Bottleneck(4, 6, 3)
    with torch.no_grad():
        for parameter in experts.parameters():
            parameter.normal_()
    slots = torch.randn(2, 4, 5, 6)
    out = experts(slots)
    for e in range(4):
        hidden = functional.linear(slots[:, e], experts.down[e], experts.down_bias[e])
        expected = functional.linear(functional.gelu(hidden), experts.up[e], experts.up_bias[e])
        torch.testing.assert_close(out[:, e], expected)


@pytest.mark.parametrize("kind", ["bottleneck", "conformer", "convpass", "convpass2d"])
@pytest.mark.parametrize("training", [False, True])
def test_batched_experts_equal_single_ones(kind: str, training: bool) -> None:
    """E experts in one batch equal E separate adapters, including batch norm statistics."""
    batch = experts_of(kind, 3).train(training)
    x = torch.randn(2, 10, 12, dtype=torch.float64)
    gates = torch.randn(2, 10, 3, dtype=torch.float64).softmax(-1)
    mixed = batch.mix(x, gates)
    total = torch.zeros_like(x)
    for e in range(3):
        single = experts_of(kind, 1).train(training)
        own, all_of_them = single.state_dict(), batch.state_dict()
        for name, tensor in own.items():
            if tensor.ndim:
                size = len(tensor)
                tensor.copy_(all_of_them[name][e * size : (e + 1) * size])
        # Running statistics were moved by the batch's own pass; in training they are not read.
        total += gates[..., e : e + 1] * single.mix(x)
    torch.testing.assert_close(mixed, total)


@pytest.mark.parametrize("kind", ["bottleneck", "conformer", "convpass", "convpass2d"])
@pytest.mark.parametrize("training", [False, True])
def test_some_experts_alone_do_what_they_did_among_all(kind: str, training: bool) -> None:
    batch = experts_of(kind, 4).train(training)
    batch.context = TokenContext()
    some = batch.only([3, 1])
    assert type(some) is type(batch) and some.num_experts == 2 and some.training == training
    assert some.up.dtype == torch.float64 and some.context is batch.context
    x = torch.randn(2, 10, 12, dtype=torch.float64)
    gates = torch.rand(2, 10, 4, dtype=torch.float64)
    gates[..., [0, 2]] = 0
    torch.testing.assert_close(some.mix(x, gates[..., [3, 1]]), batch.mix(x, gates))


def test_conformer_by_hand() -> None:
    experts = experts_of("conformer", 1)
    x = torch.randn(2, 9, 12, dtype=torch.float64)
    normed = functional.layer_norm(x, (12,), experts.norm_weight[0], experts.norm_bias[0])
    hidden = functional.linear(normed, experts.down[0], experts.down_bias[0])
    value, gate = hidden[..., :3], hidden[..., 3:]
    padded = functional.pad((value * gate.sigmoid()).mT, (1, 2))  # kernel 4: one before, two after
    mixed = torch.stack(
        [
            sum(experts.depthwise.weight[c, 0, k] * padded[:, c, k : k + 9] for k in range(4))
            + experts.depthwise.bias[c]
            for c in range(3)
        ],
        dim=1,
    )
    norm = experts.batch_norm
    mixed = norm.weight[:, None] * mixed / math.sqrt(1 + norm.eps) + norm.bias[:, None]
    out = functional.linear(functional.silu(mixed).mT, experts.up[0], experts.up_bias[0])
    torch.testing.assert_close(experts.mix(x), out)


def test_convpass_starts_as_two_activations() -> None:
    experts = Convpass(2, 12, 3)
    with torch.no_grad():
        experts.up.normal_()
    x = torch.randn(2, 5, 12)
    plain = Convpass(2, 12, 3, convolve=False)
    plain.load_state_dict(experts.state_dict())
    torch.testing.assert_close(experts.mix(x), plain.mix(x))
    assert quick_gelu(torch.tensor(1.0)).item() == pytest.approx(1 / (1 + math.exp(-1.702)))


def test_convpass_over_the_grid_reaches_neighbours_only() -> None:
    """Frequency-major, two special tokens: patches reach their 3 x 3, special tokens themselves."""
    f, t = 4, 5
    experts = Convpass(1, 6, 3, grid=(f, t), prefix_tokens=2)
    with torch.no_grad():
        for parameter in experts.parameters():
            parameter.normal_()
    x = torch.randn(1, 2 + f * t, 6)
    before = experts.mix(x)
    for token in (0, 1, 2, 2 + 1 * t + 2, 2 + 3 * t + 4):
        changed = x.clone()
        changed[0, token] += 1
        moved = {
            i for i in range(2 + f * t) if not torch.equal(experts.mix(changed)[0, i], before[0, i])
        }
        if token < 2:
            assert moved == {token}
        else:
            row, column = divmod(token - 2, t)
            near = {
                2 + r * t + c
                for r in range(max(row - 1, 0), min(row + 2, f))
                for c in range(max(column - 1, 0), min(column + 2, t))
            }
            assert moved == near
