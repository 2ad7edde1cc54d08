"""Ragged dispatch: every choice stands in one block of its expert."""

import pytest
import torch

from toolkit.routing.dispatch import in_blocks


@pytest.mark.parametrize("shares", [[0, 0, 9], [16, 16, 16], [1, 33, 0, 47], [0, 0], [5]])
def test_blocks_hold_every_choice_once_and_belong_to_its_expert(shares: list[int]) -> None:
    experts = torch.arange(len(shares)).repeat_interleave(torch.tensor(shares))
    experts = experts[torch.randperm(len(experts), generator=torch.Generator().manual_seed(0))]
    blocks = in_blocks(experts, len(shares), size=16)
    assert len(blocks.places.unique()) == len(experts)
    assert torch.equal(blocks.owners[blocks.places // 16], experts)
    numbers = torch.arange(1, len(experts) + 1)
    filled = blocks.fill(numbers)
    assert torch.equal(blocks.read(filled[..., None])[:, 0], numbers)
    assert filled.sum() == numbers.sum()
