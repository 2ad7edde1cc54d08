"""transformers without the parts that encoders never use, which take longer to import than it."""

from contextlib import AbstractContextManager

from toolkit.postponed import postponed

UNUSED = (
    "scipy",  # in losses of object detection
    "torch._dynamo",  # in masks that are traced element by element
    "torch.distributed.tensor",  # in models that are spread over several devices
    "torch.distributed.fsdp",
    "torch.distributed._composable",
    "torch.distributed.checkpoint",
)
"""Modules that transformers imports -> where it would use them."""


def without_unused_parts() -> AbstractContextManager[None]:
    """A block in which transformers is imported and called without waiting for `UNUSED`."""
    return postponed(*UNUSED)
