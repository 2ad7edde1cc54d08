"""rsLoRA: LoRA with a scale that suits any rank (Kalajdzievski, arXiv:2312.03732)."""

import math

from toolkit.peft.lora import LoRA
from toolkit.registry import PEFT


@PEFT.register("rslora", paper="arXiv:2312.03732")
class RsLoRA(LoRA):
    """LoRA scaled by alpha / sqrt(rank)."""

    def scale_at(self, rank: int) -> float:
        """`alpha / sqrt(rank)`, so that the update does not shrink as the rank grows."""
        return self.alpha / math.sqrt(rank)
