"""Which tokens of the current batch are real, and which are padding.

The backbone sets it; routers and methods that mix tokens read it, without knowing the backbone.
"""

import dataclasses

import torch
from torch import Tensor
from torch.nn import functional


@dataclasses.dataclass
class TokenContext:
    """What a backbone says about the batch that it is processing.

    Attributes:
        frames: [B, T], True for output tokens that represent sound and False for padding, without
            the special tokens and prompts in front; None if there is no padding.
        front: number of special tokens and prompts in front of these tokens.
        rate: output tokens per token inside the blocks.
    """

    frames: Tensor | None = None
    front: int = 0
    rate: int = 1

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


def real(lengths: Tensor, size: int) -> Tensor:
    """[B, size] bool: True for the first `lengths[b]` positions of row b."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]
