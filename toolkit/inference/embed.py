"""Embeddings: files or arrays -> one vector per clip."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from toolkit.backbones.base import Backbone
from toolkit.bundle import Bundle
from toolkit.features.windows import Windows
from toolkit.inference.clips import Clip, own_pipeline, several
from toolkit.inference.windows import evaluating, in_windows
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
        BackboneError, BundleError: a module of your own, whose input is not made from audio.
    """
    windows: Windows
    if isinstance(model, Bundle):
        whole: nn.Module = model.model
        backbone, pipeline, pool = model.model.backbone, model.reader, model.model.pool
        windows = model.windows
    else:
        whole, backbone, pipeline = model, model, own_pipeline(model)
        windows = "average"

        def pool(tokens: Tensor) -> Tensor:
            return masked_mean(tokens, backbone.context.output_mask, backbone.prefix_tokens)

    spec = backbone.features

    def compute(rows: Tensor, lengths: Tensor | None) -> Tensor:
        return pool(backbone(spec.normalise(rows, lengths), lengths))

    clips = several(clips)
    with evaluating(whole, device):
        found = [
            clip.results.mean(dim=0)
            for clip in in_windows(clips, pipeline, spec, compute, device, batch_size, windows)
        ]
    return torch.stack(found).float() if found else torch.empty(0, backbone.dim)
