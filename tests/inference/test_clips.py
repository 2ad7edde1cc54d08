"""Arrays as clips."""

from typing import Any

import numpy as np
import pytest
import torch

from toolkit.errors import DataError
from toolkit.inference.clips import read_clips
from toolkit.testing.tiny import tiny_backbone

SOUND = np.sin(np.arange(16000, dtype=np.float32))


@pytest.mark.parametrize("rate", [16000.0, np.int64(16000), np.int32(16000), np.float64(16000)])
def test_a_rate_is_any_real_number(rate: Any) -> None:
    """Files of arrays, and tables, hold numbers of NumPy."""
    backbone = tiny_backbone()
    wanted, _ = read_clips([(SOUND, 16000)], backbone)
    rows, _ = read_clips([(SOUND, rate)], backbone)
    assert torch.equal(rows, wanted)
    with pytest.raises(DataError, match="this is one clip: give a list"):
        read_clips((SOUND, rate), backbone)


@pytest.mark.parametrize("rate", ["16000", None, 16000j, float("nan"), np.int64(0), True])
def test_other_rates_are_refused(rate: Any) -> None:
    with pytest.raises(DataError, match="rate"):
        read_clips([(SOUND, rate)], tiny_backbone())
