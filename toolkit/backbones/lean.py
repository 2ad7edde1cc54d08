"""transformers without the parts that encoders never use, which take longer to import than it."""

from contextlib import AbstractContextManager

from toolkit.postponed import postponed

UNUSED = (
    "scipy",  # in losses of object detection
    "torch._dynamo",  # where something is compiled
    "torch.nn.attention.flex_attention",  # as an attention kernel that is compiled
    "transformers.integrations.flex_attention",
    "transformers.distributed.expert_parallel",
    "transformers.distributed.tensor_parallel",
    "transformers.integrations.deepgemm",  # in mixtures of language models, on GPUs
    "transformers.integrations.sonicmoe",
    "accelerate",
    "transformers.generation.continuous_batching",  # where text is generated
    "torch.distributed.tensor",  # in models that are spread over several devices
    "torch.distributed.fsdp",
    "torch.distributed._composable",
    "torch.distributed.checkpoint",
)
"""Modules that transformers imports for other models, for training or for several devices."""


def without_unused_parts() -> AbstractContextManager[None]:
    """A block in which transformers is imported and called without waiting for `UNUSED`."""
    return postponed(*UNUSED)
