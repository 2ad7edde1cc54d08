"""Routing without a router: experts drawn at random.

Zuo et al., Taming Sparsely Activated Transformer with Stochastic Experts (arXiv:2110.04260).
"""

import torch
from torch import Tensor
from torch.nn import functional

TABLE = 1021
"""Number of draws in a `fixed_draws` table; a prime, so that regular keys reach all of them."""
SPREAD = 7919
"""A prime that sets the two parts of a clip's key apart."""


def uniform_draws(
    shape: tuple[int, ...], num_experts: int, device: torch.device | None = None
) -> Tensor:
    """Independent expert numbers, uniform over 0 .. E - 1, from the device's default generator."""
    return torch.randint(num_experts, shape, device=device)


def fixed_draws(num_experts: int, seed: int) -> Tensor:
    """[TABLE] uniform draws that depend only on the seed, on the CPU; read them with `look_up`."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(num_experts, (TABLE,), generator=generator, device="cpu")


def look_up(table: Tensor, keys: Tensor) -> Tensor:
    """The draw for each integer key, of any shape: equal keys have equal draws."""
    return table[keys % TABLE]


def clip_keys(tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    """An integer per clip [B] that depends only on its own real tokens [B, T, d].

    It is made of where their largest and their smallest number are, because these places are the
    same whatever the other clips of the batch, while sums differ in the last bits.

    Args:
        tokens: of a batch.
        mask: [B, T], True where a token is real; None: all are.
    """
    highest = lowest = tokens
    if mask is not None:
        padding = ~mask[..., None]
        highest = tokens.masked_fill(padding, -torch.inf)
        lowest = tokens.masked_fill(padding, torch.inf)
    return highest.flatten(1).argmax(dim=1) + SPREAD * lowest.flatten(1).argmin(dim=1)


def one_hot(draws: Tensor, num_experts: int, like: Tensor) -> Tensor:
    """Gates [B, T, E] of one expert per token, from draws [B, T], [B, 1] or [1, T].

    Args:
        draws: expert numbers.
        num_experts: E.
        like: tokens [B, T, d].
    """
    gates = functional.one_hot(draws, num_experts).to(like.dtype)
    return gates.expand(*like.shape[:2], num_experts)
