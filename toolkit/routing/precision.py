"""The precision of routing: float32 at least, whatever the precision around it.

A softmax over experts is steep: with logits in bfloat16, up to a fifth of a token's gates goes to
other experts (Switch Transformer, arXiv:2101.03961, section 2.4, calls this selective precision).
"""

from contextlib import AbstractContextManager

import torch
from torch import Tensor


def without_autocast(x: Tensor) -> AbstractContextManager[None]:
    """A context in which operations keep the precision of their inputs on the device of `x`."""
    return torch.autocast(x.device.type, enabled=False)


def wide(x: Tensor) -> Tensor:
    """A tensor in float32, or as it is if it is wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
