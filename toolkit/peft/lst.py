"""LST: a ladder beside the backbone (Sung et al., arXiv:2206.06522).

Only a narrow side network trains. It reads what enters the backbone's blocks, and no gradient goes
through the backbone, which therefore keeps no activations.
"""

import torch
from torch import Tensor, nn

from toolkit.backbones.base import Backbone
from toolkit.errors import ConfigError
from toolkit.padding import TokenContext
from toolkit.peft.base import PeftMethod, insertion, setting
from toolkit.registry import PEFT

TEMPERATURE = 0.1


@PEFT.register("lst", paper="arXiv:2206.06522")
class LadderSideTuning(PeftMethod):
    """A narrow transformer beside the backbone; its output is added behind the final norm."""

    reduction: int = setting(8, "side width is the token width divided by this", minimum=1)
    heads: int = setting(4, "attention heads of the side network", minimum=1)

    def insert(self, backbone: Backbone) -> None:
        """Taps at the blocks that `layers` names, and the ladder at the final norm."""
        width = backbone.width // self.reduction
        if width < self.heads or width % self.heads:
            raise ConfigError(
                f"a side network of width {width} ({backbone.dim} / {self.reduction}) cannot have "
                f"{self.heads} heads; choose another 'reduction' or 'heads'"
            )
        taps = [insertion.tap(site) for site in self.sites(backbone, "block")]
        ladder = Ladder(taps, backbone.dim, width, self.heads, backbone.context)
        insertion.reparametrise(backbone.final, "lst", ladder)


class Ladder(nn.Module):
    """`norm(x) + up(side)`, with `h <- block(mu h + (1 - mu) down(H))` at every rung.

    mu = sigmoid(a / 0.1) with a learned a that starts at 0; `up` starts at zero.

    Args:
        taps: where the backbone's tokens H are read, from the first block on.
        dim: token width d of the backbone.
        width: of the side network.
        heads: of its attention.
        context: which tokens are real, and which were dropped or merged between two rungs.
    """

    def __init__(
        self,
        taps: list[insertion.Tap],
        dim: int,
        width: int,
        heads: int,
        context: TokenContext,
    ) -> None:
        super().__init__()
        self.context = context
        self.taps = tuple(taps)  # in a tuple: references, not children
        self.downs = nn.ModuleList(nn.Linear(dim, width) for _ in taps)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, heads, 4 * width, dropout=0.0, activation="gelu",
                batch_first=True, norm_first=True,
            )
            for _ in taps
        )  # fmt: skip
        self.gates = nn.Parameter(torch.zeros(len(taps) - 1))
        self.up = nn.Linear(width, dim)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor, norm: nn.Module) -> Tensor:
        """Tokens [B, T, d] behind the last block -> [B, T, d], in place of `norm`."""
        states = [insertion.take(tap).detach() for tap in self.taps]
        mask = self.context.mask
        padding = None if mask is None else ~mask
        side = self.blocks[0](self.downs[0](states[0]), src_key_padding_mask=padding)
        shares = torch.sigmoid(self.gates / TEMPERATURE)
        for rung in range(1, len(states)):
            read = self.downs[rung](states[rung])
            side = self.context.followed(side, read.shape[1])
            mixed = torch.lerp(read, side, shares[rung - 1])
            side = self.blocks[rung](mixed, src_key_padding_mask=padding)
        return norm(x) + self.up(self.context.followed(side, x.shape[1]))
