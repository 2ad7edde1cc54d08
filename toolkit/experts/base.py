"""Batched experts: N adapters evaluated as a few large matrix products, never a Python loop.

An expert maps tokens of width d to r channels, transforms them, and maps them back to d. Kinds of
experts differ in the middle part; a single adapter is a batch of one expert. Shapes: B clips,
E experts, S slots per expert, T tokens.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.nn import functional

from toolkit.padding import TokenContext


class Experts(nn.Module, ABC):
    """E adapters `up(middle(down(x)))`.

    They are initialised so that every expert returns zero and still learns: `down` is
    Kaiming-uniform (as nn.Linear), `up` and all biases are zero.

    Args:
        num_experts: E.
        dim: token width d.
        width: channels r before `up`.
        widening: channels after `down`, in multiples of r.

    Attributes:
        context: which tokens are real, for kinds whose middle mixes tokens; None: all of them.
    """

    context: TokenContext | None = None
    convolves: ClassVar[bool] = False
    """Whether the middle part mixes neighbouring tokens."""

    def __init__(self, num_experts: int, dim: int, width: int, widening: int = 1) -> None:
        super().__init__()
        self.num_experts, self.dim, self.width = num_experts, dim, width
        self.down = nn.Parameter(torch.empty(num_experts, widening * width, dim))
        self.down_bias = nn.Parameter(torch.zeros(num_experts, widening * width))
        self.up = nn.Parameter(torch.zeros(num_experts, dim, width))
        self.up_bias = nn.Parameter(torch.zeros(num_experts, dim))
        bound = 1 / math.sqrt(dim)  # Kaiming-uniform with a = sqrt(5)
        nn.init.uniform_(self.down, -bound, bound)

    @property
    def in_full_precision(self) -> bool:
        """Whether the weights are parameters, not codes that a tool has packed."""
        return isinstance(self.down, nn.Parameter)

    @abstractmethod
    def like(self, num_experts: int) -> "Experts":
        """New experts of this kind and these widths.

        Args:
            num_experts: how many.
        """

    @abstractmethod
    def middle(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        """Channels after `down` [B, T, E, w] -> channels before `up` [B, T, E, r].

        Args:
            hidden: channels of tokens, or of slots in their place.
            mask: [B, T], True where a token is real; None: all are.
        """

    def projection(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The input of `down`, its weight [E, w, d] and its bias [E, w]; kinds may add a norm."""
        return x, self.down, self.down_bias

    def forward(self, slots: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, E, S, d] -> [B, E, S, d], group e through expert e.

        Args:
            slots: what each expert reads.
            mask: [B, S], if slots are tokens: True where they are real; None: all are.
        """
        batch = len(slots)
        x, down, bias = self.projection(rearrange(slots, "b e s d -> e (b s) d"))
        hidden = torch.baddbmm(bias[:, None], x, down.mT)
        hidden = self.middle(rearrange(hidden, "e (b s) w -> b s e w", b=batch), mask)
        out = torch.baddbmm(
            self.up_bias[:, None], rearrange(hidden, "b s e r -> e (b s) r"), self.up.mT
        )
        return rearrange(out, "e (b s) d -> b e s d", b=batch)

    def mix(self, x: Tensor, gates: Tensor | None = None) -> Tensor:
        """Apply every expert to every token and sum with gates: sum_e g_e E_e(x).

        Both projections are one product over all experts and the gates act in the bottleneck, so
        no tensor of E token widths exists.

        Args:
            x: tokens [B, T, d].
            gates: [B, T, E]; None: all ones.

        Returns:
            [B, T, d].
        """
        x, down, bias = self.projection(x)
        hidden = functional.linear(x, down.flatten(0, 1), bias.flatten())
        mask = None if self.context is None else self.context.mask
        hidden = self.middle(rearrange(hidden, "b t (e w) -> b t e w", e=self.num_experts), mask)
        up = rearrange(self.up, "e d r -> d (e r)")
        if gates is None:
            return functional.linear(hidden.flatten(2), up, self.up_bias.sum(dim=0))
        hidden = hidden * gates[..., None]
        return functional.linear(hidden.flatten(2), up) + gates @ self.up_bias

    def mix_chosen(self, x: Tensor, gates: Tensor) -> Tensor:
        """Like `mix`, for gates that are mostly zero: a kind may skip experts whose gate is zero.

        Args:
            x: tokens [B, T, d].
            gates: [B, T, E].

        Returns:
            [B, T, d].
        """
        return self.mix(x, gates)

    def shared_out(self, x: Tensor, experts: Tensor) -> Tensor:
        """Split the clips into equal consecutive shares and pass each through a single expert.

        Args:
            x: tokens [B, T, d].
            experts: number of the expert of each share [G]; G divides B.

        Returns:
            [B, T, d].
        """
        gates = functional.one_hot(experts, self.num_experts).to(x.dtype)
        gates = gates.repeat_interleave(len(x) // len(experts), dim=0)
        return self.mix(x, repeat(gates, "b e -> b t e", t=x.shape[1]))

    def only(self, numbers: Sequence[int]) -> "Experts":
        """Copies of some experts, in this order, as a smaller batch in the same mode.

        Args:
            numbers: of the experts.
        """
        some = self.like(len(numbers)).to(self.up.device, self.up.dtype)
        some.context = self.context
        some.take(self, numbers)
        return some.train(self.training)

    @torch.no_grad()
    def take(self, source: "Experts", numbers: Sequence[int]) -> None:
        """Copy experts of another batch of the same kind and widths.

        Args:
            source: the other batch.
            numbers: for each expert here, the number of the one to copy.
        """
        theirs = source.state_dict()
        for name, tensor in self.state_dict().items():
            if tensor.ndim:
                mine = by_expert(tensor, self.num_experts)
                mine.copy_(by_expert(theirs[name], source.num_experts)[list(numbers)])

    def of(self, expert: int) -> dict[str, Tensor]:
        """The tensors of one expert: views by name, whose first axis is the expert's part."""
        tensors = self.state_dict(keep_vars=True)
        return {n: by_expert(t, self.num_experts)[expert] for n, t in tensors.items() if t.ndim}


def by_expert(tensor: Tensor, num_experts: int) -> Tensor:
    """View a tensor of an experts module by expert: [E k, ...] -> [E, k, ...]."""
    return tensor.view(num_experts, -1, *tensor.shape[1:])


def without_padding(hidden: Tensor, mask: Tensor | None) -> Tensor:
    """Set the channels [B, T, E, w] of padding to zero, like those beyond the end of a clip.

    Args:
        hidden: channels.
        mask: [B, T], True where a token is real; None: all are.
    """
    if mask is None:
        return hidden
    return hidden.masked_fill(~rearrange(mask, "b t -> b t 1 1"), 0)
