"""The sparse mixture: gate and losses by hand, ragged dispatch against a loop."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from toolkit.experts import bottleneck as expert_module
from toolkit.experts.bottleneck import Bottleneck
from toolkit.peft.adapter import SingleAdapter
from toolkit.peft.dense_moa import DenseMixture
from toolkit.peft.topk import TopKMixture
from toolkit.routing import topk
from toolkit.testing import (
    LargestTensor,
)

D, R = 12, 3


def mixture(num_experts: int = 5, k: int = 2, **settings: Any) -> TopKMixture:
    """A mixture of width 12 in float64 whose tensors are not at their start."""
    torch.manual_seed(0)
    router = topk.TopKRouter(D, num_experts, k, **settings)
    made = TopKMixture(Bottleneck(num_experts, D, R), router).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=0.5)
    return made


def tokens(clips: int = 2, number: int = 40, dim: int = D) -> Tensor:
    """Isotropic tokens in float64."""
    return torch.randn(clips, number, dim, generator=torch.Generator().manual_seed(1)).double()


def by_loop(made: TopKMixture, x: Tensor) -> Tensor:
    """The mixture token by token and expert by expert."""
    router, experts = made.router, made.experts
    rows = []
    for token in x.flatten(0, 1):
        p = (router.linear.weight @ token).softmax(dim=0)
        best = sorted(range(len(p)), key=p.tolist().__getitem__, reverse=True)[: router.k]
        total = sum(p[e] for e in best) if router.renormalise else 1.0
        row = torch.zeros_like(token)
        for e in best:
            hidden = functional.gelu(experts.down[e] @ token + experts.down_bias[e])
            row = row + p[e] / total * (experts.up[e] @ hidden + experts.up_bias[e])
        rows.append(row)
    return torch.stack(rows).view_as(x)


def ragged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let experts of any number dispatch raggedly."""
    monkeypatch.setattr(expert_module, "SPARSE_FROM", 1)


# Mixture and dispatch


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize(("k", "renormalise"), [(1, False), (2, True), (3, False), (5, True)])
def test_mixture_equals_a_loop_in_values_and_gradients(
    sparse: bool, k: int, renormalise: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T4: whichever way it is computed."""
    if sparse:
        ragged(monkeypatch)
    found, looped = (mixture(k=k, renormalise=renormalise) for _ in range(2))
    x, other = (tokens().requires_grad_() for _ in range(2))
    upstream = tokens().flip(1)
    out, reference = found(x), by_loop(looped, other)
    torch.testing.assert_close(out, reference)
    (out * upstream).sum().backward()
    (reference * upstream).sum().backward()
    torch.testing.assert_close(x.grad, other.grad)
    for name, parameter in found.named_parameters():
        torch.testing.assert_close(parameter.grad, looped.get_parameter(name).grad)


def test_dispatch_computes_what_was_chosen_and_not_every_expert() -> None:
    """No tensor of tokens x experts x r, nor one of the weights' size for each token."""
    made = mixture(num_experts=64).float()
    x = tokens(2, 200).float()
    made.router(x)
    gates = made.router.route(x).gates
    with LargestTensor() as watched:
        made.experts.mix_chosen(x, gates).sum().backward()
    blocks = 2 * 400 // 16 + 64
    # rows x d, blocks x (d x (r + 1)), or the gates themselves
    assert watched.numel <= max(blocks * 16 * D, blocks * D * (R + 1), 400 * 64)
    assert watched.numel < 400 * 64 * R


def test_no_token_chosen_gives_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    ragged(monkeypatch)
    made = mixture()
    out = made(tokens(), torch.zeros(2, 40, dtype=torch.bool))
    assert torch.count_nonzero(out) == 0


def test_all_experts_chosen_is_the_dense_mixture() -> None:
    sparse = mixture(k=5, renormalise=False)
    dense = DenseMixture(sparse.experts).double()
    with torch.no_grad():
        dense.router.linear.weight.copy_(sparse.router.linear.weight)
        dense.router.linear.bias.zero_()
    torch.testing.assert_close(sparse(tokens()), dense(tokens()))


def test_one_expert_is_the_single_adapter() -> None:
    """T3."""
    for renormalise in (True, False):
        made = mixture(num_experts=1, k=2, renormalise=renormalise)
        torch.testing.assert_close(
            made(tokens()), SingleAdapter(made.experts, 1.0, False, False)(tokens())
        )


def test_masked_tokens_get_nothing_and_count_for_nothing() -> None:
    made = mixture().train()
    x = tokens()
    mask = torch.arange(40).expand(2, 40) < 25
    cut, masked = made(x[:, :25]), made(x, mask)
    torch.testing.assert_close(masked[:, :25], cut)
    assert torch.count_nonzero(masked[:, 25:]) == 0
    with_padding, without = made.router.route(x, mask), made.router.route(x[:, :25])
    for loss in (topk.balance, topk.z_loss, topk.entropy):
        torch.testing.assert_close(loss(with_padding), loss(without))
    for key, value in topk.metrics(without).items():
        torch.testing.assert_close(topk.metrics(with_padding)[key], value)


# The gate


def test_gates_are_the_largest_probabilities() -> None:
    for renormalise in (True, False):
        routing = mixture(renormalise=renormalise).router.route(tokens())
        values = routing.probabilities.topk(2, dim=-1).values
        if renormalise:
            values = values / values.sum(dim=-1, keepdim=True)
        torch.testing.assert_close(routing.gates.topk(2, dim=-1).values, values)
        assert torch.equal((routing.gates > 0).sum(dim=-1), torch.full((2, 40), 2))


def test_switch_router_learns_at_one_expert_a_token_and_a_renormalised_one_does_not() -> None:
    for renormalise in (False, True):
        made = mixture(k=1, renormalise=renormalise)
        made(tokens()).sum().backward()
        largest = made.router.linear.weight.grad.abs().max()
        assert (largest < 1e-12) == renormalise


def test_experts_that_are_not_alive_are_never_chosen() -> None:
    made = mixture(k=3)
    made.router.alive[:3] = False
    routing = made.router.route(tokens())
    assert torch.count_nonzero(routing.gates[..., :3]) == 0
    torch.testing.assert_close(routing.gates.sum(dim=-1), torch.ones(2, 40).double())
    small = mixture(num_experts=2, k=2)
    small.experts.take(made.experts, [3, 4])
    with torch.no_grad():
        small.router.linear.weight.copy_(made.router.linear.weight[3:])
    torch.testing.assert_close(made(tokens()), small(tokens()))
    torch.testing.assert_close(topk.balance(routing), topk.balance(small.router.route(tokens())))


def test_noise_and_jitter_act_in_training_alone() -> None:
    for settings in ({"noise": 1.0}, {"jitter": 0.5}):
        made = mixture(**settings)
        plain = mixture().router.route(tokens()).logits
        torch.manual_seed(0)
        noisy = made.train().router.route(tokens()).logits
        assert not torch.allclose(noisy, plain)
        torch.testing.assert_close(made.eval().router.route(tokens()).logits, plain)
    noise = mixture(noise=0.3).train()
    torch.manual_seed(0)
    difference = (
        noise.router.route(tokens(40)).logits - noise.eval().router.route(tokens(40)).logits
    )
    assert difference.std().item() == pytest.approx(0.3, rel=0.05)


def test_routing_is_decided_in_float32_under_autocast() -> None:
    made = mixture().float()
    with torch.autocast("cpu", torch.bfloat16):
        routing = made.router.route(tokens().bfloat16())
    assert routing.logits.dtype == torch.float32
    assert made.router(tokens().bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("sparse", [True, False])
def test_mixture_works_under_autocast(sparse: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if sparse:
        ragged(monkeypatch)
    made, x = mixture().float(), tokens().float()
    expected = made(x)
    with torch.autocast("cpu", torch.bfloat16):
        found = made(x)
        found.float().sum().backward()
    torch.testing.assert_close(
        found.float(), expected, rtol=0.05, atol=0.05 * expected.std().item()
    )


def test_capacity_serves_first_choices_first_and_drops_in_training_alone() -> None:
    made = mixture(num_experts=3, k=2, capacity=0.75)
    x = tokens(1, 16)
    room = math.ceil(0.75 * 2 * 16 / 3)
    gates = made.train().router(x)[0]
    free = made.eval().router(x)[0]
    probabilities = made.router.route(x).probabilities[0]
    taken = [0] * 3
    expected = torch.zeros_like(free)
    ranked = probabilities.argsort(dim=-1, descending=True)
    for choice in range(2):
        for token in range(16):
            e = int(ranked[token, choice])
            if taken[e] < room:
                expected[token, e] = free[token, e]
                taken[e] += 1
    torch.testing.assert_close(gates, expected)
    assert (gates > 0).sum() < (free > 0).sum() == 32


# Losses


def test_losses_by_hand() -> None:
    made = mixture(num_experts=4)
    routing = made.router.route(tokens())
    logits = (tokens() @ made.router.linear.weight.T).flatten(0, 1)
    p = logits.exp() / logits.exp().sum(dim=-1, keepdim=True)
    count = [0] * 4
    for row in p.tolist():
        for e in sorted(range(4), key=lambda e: -row[e])[:2]:
            count[e] += 1
    balance = 4 * sum(count[e] / 160 * p[:, e].mean() for e in range(4))
    torch.testing.assert_close(topk.balance(routing), balance)
    torch.testing.assert_close(topk.z_loss(routing), logits.exp().sum(dim=-1).log().pow(2).mean())
    torch.testing.assert_close(topk.entropy(routing), -(p * p.log()).sum(dim=-1).mean())


def test_balance_is_one_for_even_routing_and_e_for_collapsed() -> None:
    made = mixture(num_experts=4, k=1)
    with torch.no_grad():
        made.router.linear.weight.copy_(100 * torch.eye(4, D))
    even = torch.eye(4, D).double().expand(2, 4, D)
    assert topk.balance(made.router.route(even)).item() == pytest.approx(1)
    alone = torch.eye(4, D)[:1].double().expand(2, 4, D)
    assert topk.balance(made.router.route(alone)).item() == pytest.approx(4)


@pytest.mark.parametrize("loss", ["balance", "entropy"])
def test_a_step_on_a_loss_lowers_it(loss: str) -> None:
    made = mixture()
    optimizer = torch.optim.SGD(made.router.parameters(), lr=0.5)
    function = getattr(topk, loss)
    before = function(made.router.route(tokens()))
    before.backward()
    optimizer.step()
    assert function(made.router.route(tokens())) < before


def test_losses_have_finite_gradients_where_experts_are_not_alive() -> None:
    made = mixture()
    made.router.alive[:2] = False
    for loss in (topk.balance, topk.z_loss, topk.entropy):
        made.zero_grad()
        loss(made.router.route(tokens())).backward()
        grad = made.router.linear.weight.grad
        assert torch.isfinite(grad).all() and torch.count_nonzero(grad[:2]) == 0
