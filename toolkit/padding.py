"""What the tokens of the current batch are: real or padding, and how many patches each stands for.

The backbone sets it; routers and methods that mix tokens read it, without knowing the backbone.
"""

import dataclasses

import torch
from torch import Tensor
from torch.nn import functional

from toolkit.reductions import Dropped, Merged


@dataclasses.dataclass
class TokenContext:
    """What a backbone says about the batch that it is processing.

    Attributes:
        frames: [B, T], True for output tokens that represent sound and False for padding, without
            the special tokens and prompts in front; None if there is no padding.
        front: number of special tokens and prompts in front of these tokens.
        rate: output tokens per token inside the blocks.
        reductions: where in this pass tokens were dropped or merged so far. Each leaves fewer, so
            the number of tokens tells which of them a tensor has gone through.
    """

    frames: Tensor | None = None
    front: int = 0
    rate: int = 1
    reductions: list[Dropped | Merged] = dataclasses.field(default_factory=list)

    def begin(self, front: int) -> None:
        """Start a pass with `front` special tokens and prompts; nothing is known of padding."""
        self.frames, self.front, self.reductions = None, front, []

    @property
    def mask(self) -> Tensor | None:
        """[B, M], True for real tokens inside the blocks; None if all of them are real."""
        if self.frames is None:
            return None
        return functional.pad(self.frames[:, :: self.rate], (self.front, 0), value=True)

    @property
    def output_mask(self) -> Tensor | None:
        """[B, M], True for real output tokens; None if all of them are real."""
        if self.frames is None:
            return None
        return functional.pad(self.frames, (self.front * self.rate, 0), value=True)

    @property
    def dropped(self) -> Dropped | None:
        """The patches that were dropped in this pass; None if all are there."""
        return next((r for r in self.reductions if isinstance(r, Dropped)), None)

    def sizes(self, tokens: Tensor) -> Tensor | None:
        """[B, M], how many patches each of the tokens [B, M, ...] stands for; None: one each."""
        found = (r.sizes for r in self.reductions if r.after == tokens.shape[1])
        return next(found, None)

    def weights(self, tokens: Tensor) -> Tensor | None:
        """[B, M], what each token [B, M, d] inside the blocks counts in a mean; None: all equal."""
        sizes = self.sizes(tokens)
        return self.mask if sizes is None else sizes

    def output_weights(self, tokens: Tensor) -> Tensor | None:
        """As `weights`, for output tokens."""
        sizes = self.sizes(tokens)
        return self.output_mask if sizes is None else sizes

    def followed(self, tokens: Tensor, count: int) -> Tensor:
        """Tokens [B, M, d] of earlier in this pass, reduced to `count` as the backbone's were."""
        for reduction in self.reductions:
            if count < tokens.shape[1] == reduction.before:
                tokens = reduction(tokens)
        return tokens

    def owners(self, tokens: Tensor) -> Tensor | None:
        """[B, M], the number of the token into which each token of the first block has merged.

        Args:
            tokens: [B, K, d], those that there are now; None is returned if none has merged.
        """
        found = None
        for reduction in self.reductions:
            if isinstance(reduction, Merged) and reduction.after >= tokens.shape[1]:
                to = reduction.destinations
                found = to if found is None else to.gather(1, found)
        return found


def real(lengths: Tensor, size: int) -> Tensor:
    """[B, size] bool: True for the first `lengths[b]` positions of row b."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]
