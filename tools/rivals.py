"""What `bench_step.py` compares our methods with: other implementations, a loop, and the floor.

The implementations are modules from features [B, T, F] to logits [B, C]; the floor is a time.
"""

import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from transformers import ASTConfig, ASTModel

from toolkit.errors import ToolkitError
from toolkit.experts.base import Experts
from toolkit.model import AudioClassifier
from toolkit.peft import insertion
from toolkit.peft.dense_moa import DenseMixture
from toolkit.peft.soft_moa import SoftMixture
from toolkit.routing import soft


class HuggingFaceLoRA(nn.Module):
    """LoRA from Hugging Face PEFT on the stock model, with r = 6 on queries and values.

    The final norm and the head are trained too, as with our methods.
    """

    def __init__(self, folder: str, max_length: int, num_classes: int) -> None:
        super().__init__()
        try:
            from peft import LoraConfig, get_peft_model
        except ImportError:
            raise ToolkitError("hf_lora needs Hugging Face PEFT: `pip install peft`") from None
        config = ASTConfig.from_pretrained(folder)
        config.max_length = max_length
        stock = ASTModel.from_pretrained(folder, config=config, ignore_mismatched_sizes=True)
        lora = LoraConfig(r=6, lora_alpha=0.75, target_modules=["q_proj", "v_proj"])
        self.model = get_peft_model(stock, lora)
        self.model.base_model.model.layernorm.requires_grad_(True)
        self.head = nn.Linear(config.hidden_size, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        """[B, T, F] -> [B, C]."""
        return self.head(self.model(input_values=features).last_hidden_state.mean(dim=1))


def loop_over_experts(model: AudioClassifier) -> AudioClassifier:
    """Make a model's mixtures evaluate experts one after the other, as the papers' code does."""
    for wrapper in list(insertion.wrappers(model.backbone)):
        mixture = wrapper.inserted
        if not isinstance(mixture, SoftMixture | DenseMixture):
            raise ToolkitError("only soft_moa and dense_moa can be looped over: use one of these")
        wrapper.add_module(wrapper.name, LoopedMixture(mixture))
    return model


class LoopedMixture(nn.Module):
    """A Soft-MoA or Dense-MoA that evaluates each expert separately and stacks the outputs."""

    def __init__(self, mixture: SoftMixture | DenseMixture) -> None:
        super().__init__()
        self.mixture = mixture

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, d] -> [B, T, d]."""
        experts = self.mixture.experts
        if isinstance(self.mixture, SoftMixture):
            routing = soft.route(x, self.mixture.phi)
            slots = routing.slots(x)
            count = experts.num_experts
            outputs = torch.stack([_one(experts, e, slots[:, e]) for e in range(count)], dim=1)
            return routing.tokens(outputs)
        gates = self.mixture.router(x)
        outputs = torch.stack([_one(experts, e, x) for e in range(experts.num_experts)], dim=-1)
        return (outputs * gates[:, :, None]).sum(dim=-1)  # [B, T, d, E]


def _one(experts: Experts, e: int, x: Tensor) -> Tensor:
    hidden = nn.functional.linear(x, experts.down[e], experts.down_bias[e])
    hidden = nn.functional.gelu(hidden)
    return nn.functional.linear(hidden, experts.up[e], experts.up_bias[e])


def floor_seconds(
    config: ASTConfig, tokens: int, batch: int, device: str, repeats: int = 3
) -> float:
    """Seconds per step for the matrix products that every method on a frozen backbone needs.

    These are the output of every linear layer and the gradient of its input, and attention forward
    and backward. Each product is measured on this machine at its shape, the fastest of `repeats`.
    """
    d, hidden, heads = config.hidden_size, config.intermediate_size, config.num_attention_heads
    rows = batch * tokens
    products = {(d, d): 4, (d, hidden): 1, (hidden, d): 1}  # linear layers of one block
    seconds, random = 0.0, partial(torch.randn, device=device)
    fastest = partial(_fastest, device=device, repeats=repeats)
    for (inner, outer), count in products.items():
        x, weight, gradient = random(rows, inner), random(inner, outer), random(rows, outer)
        seconds += count * fastest(partial(torch.matmul, x, weight))
        seconds += count * fastest(partial(torch.matmul, gradient, weight.T))
    q = random(batch * heads, tokens, d // heads)
    scores = random(batch * heads, tokens, tokens)
    seconds += 3 * fastest(lambda: q @ q.mT)  # scores, and their gradient by values
    seconds += 3 * fastest(lambda: scores @ q)  # output, gradients of q and k
    return config.num_hidden_layers * seconds


def wait(device: str) -> None:
    """Wait until a device has computed what it was given."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def _fastest(function: Callable[[], object], device: str, repeats: int) -> float:
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        function()
        wait(device)
        times.append(time.perf_counter() - start)
    return min(times[1:])
