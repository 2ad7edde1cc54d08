"""Embeddings: files or arrays -> one vector per clip."""

from collections.abc import Iterable

import torch
from torch import Tensor

from toolkit.backbones.base import Backbone
from toolkit.bundle import Bundle
from toolkit.features.pipeline import pipeline_for
from toolkit.inference.clips import Clip, rows_of
from toolkit.inference.windows import in_windows
from toolkit.model import masked_mean


@torch.inference_mode()
def embed(
    model: Bundle | Backbone,
    clips: Iterable[Clip],
    device: str = "cpu",
    batch_size: int = 16,
) -> Tensor:
    """One vector per clip: what the head of a bundle reads, or the mean token of a backbone.

    A clip that is longer than the backbone reads is cut into windows, whose vectors are averaged.

    Args:
        model: a bundle (its adapted backbone and pooling are used), or a bare backbone (the mean
            over its tokens behind the special ones).
        clips: files, or pairs of samples ([S] or [channels, S], in [-1, 1]) and rate in Hz.
        device: where to compute.
        batch_size: windows computed at once.

    Returns:
        [N, d] float32 on the CPU, in the order of the clips.

    Raises:
        DataError: a file that cannot be read, or an array that is not sound.
    """
    backbone = model.model.backbone if isinstance(model, Bundle) else model
    pipeline = model.reader if isinstance(model, Bundle) else pipeline_for(model.features)
    classifier = model.model if isinstance(model, Bundle) else None
    backbone.to(device).eval()

    def compute(rows: Tensor, lengths: Tensor | None) -> Tensor:
        tokens = backbone(backbone.features.normalise(rows, lengths), lengths)
        if classifier is not None:
            return classifier.pool(tokens)
        return masked_mean(tokens, backbone.context.output_mask, backbone.prefix_tokens)

    spec = backbone.features
    found = [
        in_windows(rows_of(clip, pipeline, spec), spec, compute, device, batch_size).mean(dim=0)
        for clip in clips
    ]
    return torch.stack(found).float() if found else torch.empty(0, backbone.dim)
