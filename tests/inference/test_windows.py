"""Windows of long clips."""

import pytest
import torch

from toolkit.features.windows import split_windows


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
