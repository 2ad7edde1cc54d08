"""Draws of experts, as THOR uses them."""

from pathlib import Path

import torch

from toolkit import plugins

plugins.load([Path(__file__).parent])

from toolkit_plugins.thor import stochastic  # noqa: E402

NUMBER = 4


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
