"""Windows of long clips."""

import numpy as np
import pytest
import torch

from toolkit.features.windows import split_windows
from toolkit.inference.clips import own_pipeline
from toolkit.inference.windows import in_windows
from toolkit.registry import BACKBONES


@pytest.mark.parametrize(
    ("frames", "windows"), [(1, 1), (99, 1), (100, 1), (105, 1), (110, 2), (200, 2), (250, 3)]
)
def test_windows_cover_a_long_file(frames: int, windows: int) -> None:
    source = torch.arange(frames * 2, dtype=torch.float32).view(frames, 2) + 1
    cut = split_windows(source, 100)
    assert len(cut) == windows and all(len(window) == 100 for window in cut[:-1])
    flat = torch.cat(cut)
    assert torch.equal(flat, source[: len(flat)])
    assert frames - len(flat) < 10  # what is left out is less than a tenth of a window


@pytest.mark.parametrize("family", ["wav2vec2", "ast"])
@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_short_clips_share_batches_and_keep_their_order(family: str, batch_size: int) -> None:
    """Also beside long clips, and beside clips that are none."""
    backbone = BACKBONES.get(family).tiny()
    spec, pipeline = backbone.features, own_pipeline(backbone)
    longest = spec.max_length / 100
    seconds = [longest, 0.3 * longest, 3.5 * longest, 0.0, 0.5 * longest, 1.2 * longest]
    clips = [(np.full(round(s * 16000), 0.1 * (n + 1), np.float32), 16000)
             for n, s in enumerate(seconds)]  # fmt: skip
    sizes: list[int] = []

    def compute(rows: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor:
        sizes.append(len(rows))
        counts = torch.full((len(rows),), rows.shape[1]) if lengths is None else lengths
        return torch.stack([r[:n].sum().float() for r, n in zip(rows, counts, strict=True)])

    found = list(in_windows(clips, pipeline, spec, compute, "cpu", batch_size))
    assert [clip.name for clip in found] == [f"clip {n}" for n in range(1, 7)]
    assert [clip.error is not None for clip in found] == [s == 0 for s in seconds]
    windows = sum(len(clip.results) for clip in found if clip.error is None)
    assert sizes.count(batch_size) >= windows // batch_size
    for clip, one in zip(found, clips, strict=True):
        if clip.error is None:
            [alone] = in_windows([one], pipeline, spec, compute, "cpu", batch_size)
            torch.testing.assert_close(clip.results, alone.results, rtol=1e-4, atol=1e-4)
