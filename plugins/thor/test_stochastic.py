"""Draws of experts and the losses that make two passes agree, as THOR uses them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, kl_divergence

from toolkit import plugins

plugins.load([Path(__file__).parent])

from toolkit_plugins.thor import stochastic  # noqa: E402

CLASSES, NUMBER = 5, 4


def test_consistency_is_the_symmetric_divergence() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(2, 9, CLASSES).unbind()
    p, q = Categorical(logits=a), Categorical(logits=b)
    expected = 0.5 * (kl_divergence(p, q) + kl_divergence(q, p)).mean()
    torch.testing.assert_close(stochastic.symmetric_kl(a, b), expected)
    p, q = Bernoulli(logits=a), Bernoulli(logits=b)
    expected = 0.5 * (kl_divergence(p, q) + kl_divergence(q, p)).sum(dim=-1).mean()
    torch.testing.assert_close(stochastic.symmetric_bernoulli_kl(a, b), expected)


@pytest.mark.parametrize("divergence", [stochastic.symmetric_kl, stochastic.symmetric_bernoulli_kl])
def test_consistency_is_symmetric_not_negative_and_zero_for_equals(
    divergence: Callable[[Tensor, Tensor], Tensor],
) -> None:
    torch.manual_seed(0)
    for scale in (1e-3, 1.0, 100.0):
        a, b = (scale * torch.randn(2, 50, CLASSES)).unbind()
        assert divergence(a, b).item() >= 0
        torch.testing.assert_close(divergence(a, b), divergence(b, a))
        assert divergence(a, a).item() == 0
    logits = torch.randn(2, 4, CLASSES, requires_grad=True)
    divergence(*logits.unbind()).backward()
    assert (logits.grad.flatten(1).abs().sum(dim=1) > 0).all()  # both passes
    assert divergence(*torch.randn(2, 3, CLASSES).bfloat16().unbind()).dtype == torch.float32


def test_two_passes_draw_independently() -> None:
    torch.manual_seed(0)
    draws = torch.stack([stochastic.uniform_draws((2,), 2) for _ in range(4000)])
    agree = (draws[:, 0] == draws[:, 1]).float().mean().item()
    assert abs(agree - 0.5) < 4 * 0.5 / 4000**0.5


def test_fixed_draws_are_uniform_and_of_the_seed() -> None:
    tables = [stochastic.fixed_draws(NUMBER, seed) for seed in range(20)]
    counts = torch.bincount(torch.cat(tables), minlength=NUMBER)
    total = counts.sum().item()
    assert (counts - total / NUMBER).abs().max() < 4 * (total * 0.25 * 0.75) ** 0.5
    assert torch.equal(tables[3], stochastic.fixed_draws(NUMBER, 3))
    assert not torch.equal(tables[3], tables[4])
