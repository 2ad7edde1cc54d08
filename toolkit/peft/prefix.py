"""Prefix tuning: learned keys and values in every attention (Li and Liang, arXiv:2101.00190)."""

import math

import torch
from torch import Tensor, nn

from toolkit.backbones.base import Backbone
from toolkit.errors import ConfigError
from toolkit.peft.base import PeftMethod, insertion, setting
from toolkit.peft.prompt import PATCH
from toolkit.registry import PEFT


@PEFT.register("prefix", paper="arXiv:2101.00190")
class Prefix(PeftMethod):
    """Learned keys and values in every attention, after the projections and before the heads."""

    identity_at_start = False

    tokens: int = setting(24, "learned rows per block: half are keys, half values", minimum=2)

    def check(self) -> None:
        """Every key has its value."""
        if self.tokens % 2:
            raise ConfigError(f"'tokens' counts keys and values, so it is even, not {self.tokens}")

    def insert(self, backbone: Backbone) -> None:
        """One set of keys and values per block."""
        for site in self.sites(backbone, "mhsa"):
            rows = KeysValues(self.tokens // 2, site.out_dim)
            insertion.keys_values(backbone, site, "prefix", rows)


class KeysValues(nn.Module):
    """N learned keys and values of width d."""

    def __init__(self, count: int, dim: int) -> None:
        super().__init__()
        self.keys = nn.Parameter(torch.empty(count, dim))
        self.values = nn.Parameter(torch.empty(count, dim))
        bound = math.sqrt(6 / (3 * PATCH**2 + dim))
        nn.init.uniform_(self.keys, -bound, bound)
        nn.init.uniform_(self.values, -bound, bound)

    def forward(self) -> tuple[Tensor, Tensor]:
        """Keys [N, d] and values [N, d]."""
        return self.keys, self.values
