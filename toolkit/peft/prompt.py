"""Prompt tuning: learned tokens beside the patches (VPT, Jia et al., arXiv:2203.12119)."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from toolkit.backbones.base import Backbone
from toolkit.errors import ConfigError
from toolkit.peft.base import PeftMethod, insertion, quirk, setting
from toolkit.registry import PEFT

PATCH = 16
"""Side of the patches in the initial spread of prompts, whatever the backbone's own are."""


class PromptMethod(PeftMethod):
    """Base of shallow and deep prompts."""

    identity_at_start = False

    prompts: int = setting(25, "learned tokens", minimum=1)
    dropout: float = setting(0.0, "of the prompts", minimum=0, below=1)
    replace_distillation: bool | None = quirk("prompts take the distillation token's place")

    def check(self) -> None:
        """Prompts enter at the first block."""
        if self.layers != "all":
            raise ConfigError("prompts go through all blocks: leave 'layers' out")

    def insert(self, backbone: Backbone) -> None:
        """The first block's prompts, behind the special tokens."""
        backbone.require("tokens")
        kept = backbone.prefix_tokens
        if self.is_on("replace_distillation"):
            if kept < 2:
                raise ConfigError(
                    f"the backbone '{backbone.name}' has no distillation token that prompts could "
                    "replace: set `replace_distillation` to false"
                )
            kept = 1
        entry = Prompts(self.prompts, backbone.dim, self.dropout, kept, backbone.prefix_tokens)
        insertion.after(backbone.tokens, "prompt", entry)
        backbone.prefix_tokens, backbone.prompt_tokens = kept, self.prompts


@PEFT.register("prompt_shallow", paper="arXiv:2203.12119")
class ShallowPrompts(PromptMethod):
    """Learned tokens at the first block."""


@PEFT.register("prompt_deep", paper="arXiv:2203.12119")
class DeepPrompts(PromptMethod):
    """Learned tokens at every block, each block's replacing those of the one before."""

    def insert(self, backbone: Backbone) -> None:
        """Insert prompts before the first block; each later block overwrites their places."""
        super().insert(backbone)
        begin = backbone.prefix_tokens
        for site in backbone.sites("block"):
            if site.block > 0:
                again = Prompts(
                    self.prompts, backbone.dim, self.dropout, begin, begin + self.prompts
                )
                insertion.before(site, "prompt", again)


class Prompts(nn.Module):
    """Puts N learned tokens in the place of tokens `begin` to `end` of a sequence.

    Args:
        count: N.
        dim: token width d.
        dropout: of the prompts.
        begin, end: the tokens that go; none if they are equal.
    """

    def __init__(self, count: int, dim: int, dropout: float, begin: int, end: int) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.empty(1, count, dim))
        self.dropout, self.begin, self.end = dropout, begin, end
        bound = math.sqrt(6 / (3 * PATCH**2 + dim))  # as VPT, Xavier over patch and width
        nn.init.uniform_(self.tokens, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, d] -> [B, T + N - (end - begin), d]."""
        prompts = functional.dropout(self.tokens, self.dropout, self.training)
        prompts = prompts.to(x.dtype).expand(len(x), -1, -1)
        return torch.cat([x[:, : self.begin], prompts, x[:, self.end :]], dim=1)
