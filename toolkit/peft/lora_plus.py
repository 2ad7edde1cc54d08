"""LoRA+: a higher learning rate for B than for A (Hayou et al., arXiv:2402.12354)."""

from typing import Any

from torch import nn

from toolkit.peft.base import setting
from toolkit.peft.lora import LoRA
from toolkit.registry import PEFT


@PEFT.register("lora_plus", paper="arXiv:2402.12354")
class LoRAPlus(LoRA):
    """LoRA whose B learns `ratio` times as fast as everything else."""

    ratio: float = setting(16.0, "learning rate of B over that of A", above=0)

    def parameter_groups(
        self, parameters: dict[str, nn.Parameter], lr: float
    ) -> list[dict[str, Any]]:
        """Two groups: B matrices with the ratio times the learning rate, and everything else."""
        fast = {name for name in parameters if name.endswith(".lora_plus.up.weight")}
        rest = [p for name, p in parameters.items() if name not in fast]
        return [
            {"params": rest, "lr": lr},
            {"params": [parameters[name] for name in sorted(fast)], "lr": self.ratio * lr},
        ]
