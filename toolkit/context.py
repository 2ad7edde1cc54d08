"""Which tokens of the present batch are real: told by the backbone, asked by whatever mixes tokens.

Apart from both, because neither a routing nor a method knows a particular backbone.
"""

import dataclasses

import torch
from torch import Tensor
from torch.nn import functional


@dataclasses.dataclass
class TokenContext:
    """What a backbone says about the batch that goes through it.

    Attributes:
        frames: [B, T], True where one of the backbone's output tokens behind the special tokens
            and prompts stands for sound, not for padding; None: all of them do.
        front: special tokens and prompts in front of them.
        rate: output tokens to a token inside the blocks.
    """

    frames: Tensor | None = None
    front: int = 0
    rate: int = 1

    @property
    def mask(self) -> Tensor | None:
        """[B, M], True where a token inside the blocks is real; None: all of them are."""
        if self.frames is None:
            return None
        return functional.pad(self.frames[:, :: self.rate], (self.front, 0), value=True)

    @property
    def output_mask(self) -> Tensor | None:
        """[B, M], True where an output token is real; None: all of them are."""
        if self.frames is None:
            return None
        return functional.pad(self.frames, (self.front * self.rate, 0), value=True)


def real(lengths: Tensor, size: int) -> Tensor:
    """[B, size] bool: True in the first `lengths` [B] places of each row."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]
