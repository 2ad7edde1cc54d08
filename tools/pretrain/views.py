"""How a crop is changed before the student sees it: level, colour, band, noise, voice, gaps.

Everything happens on raw log-mel frames, where a gain is a sum and a mixture is close to a
logaddexp. NaN marks padding until `normalise`.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

from toolkit.features.log_mel import EPSILON
from toolkit.features.spec import FbankSpec

AST = FbankSpec(
    sample_rate=16_000, max_length=1024, mel_bins=128, mean=-4.2677393, std=4.5689974
)  # AudioSet's statistics, as in AST's feature extractor
SILENCE = math.log(EPSILON)


def normalise(frames: Tensor, spec: FbankSpec = AST) -> Tensor:
    """Raw log-mel frames, NaN where they are padding -> what the model reads.

    Padding becomes what zeros become, since features are padded before they are normalised.
    """
    return torch.nan_to_num(spec.normalise(frames), nan=-spec.mean / (2 * spec.std))


def augment(x: Tensor, speech_like: Tensor, generator: torch.Generator) -> Tensor:
    """Change crops of raw log-mel frames [B, T, F] at random; NaN (padding) stays NaN.

    The voice changes only where `speech_like` [B] says so.
    """
    b, t, bins = x.shape

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(*(shape or (b, 1, 1)), generator=generator) * (high - low) + low

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def some(share: float) -> Tensor:
        return torch.rand(b, 1, 1, generator=generator) < share

    axis = torch.linspace(0, 1, bins)
    warped = _warp(x, uniform(-0.14, 0.14, b))
    x = torch.where(some(0.6) & speech_like[:, None, None], warped, x)
    knots = functional.interpolate(normal(b, 1, 6), bins, mode="linear", align_corners=True)
    colour = 0.6 * knots + normal(b, 1, 1) * (axis - 0.5) * 1.5
    x = x + torch.where(some(0.7), colour, 0.0) + uniform(-5.0, 2.0)
    cut = torch.where(some(0.5), torch.tensor(0.757), uniform(0.55, 0.95))  # 0.757: 4 kHz
    lowered = torch.where(axis > cut, x - uniform(5.0, 14.0), x)
    x = torch.where(some(0.25), lowered, x)
    peak = torch.nan_to_num(x, nan=-99.0).amax(dim=(1, 2), keepdim=True)
    level = peak - uniform(3.0, 14.0) - (axis - 0.3) * uniform(-2.0, 6.0)
    grain = torch.log(-torch.log(torch.rand(b, t, bins, generator=generator).clamp(1e-6, 1 - 1e-6)))
    x = torch.where(some(0.5), torch.logaddexp(x, level + 0.5 * grain), x)
    return _gaps(x.clamp(min=SILENCE), some(0.3), generator)


def _warp(x: Tensor, strength: Tensor) -> Tensor:
    """Shift the mel axis of each crop as a longer or shorter vocal tract would, [B, T, F]."""
    bins = x.shape[2]
    axis = torch.arange(bins, dtype=torch.float32)
    bend = torch.sin(torch.pi * axis / (bins - 1))  # the ends stay
    source = (axis + strength[:, None] * bend * bins * 0.45).clamp(0, bins - 1)
    below = source.floor().long().clamp(max=bins - 2)
    share = (source - below)[:, None]
    index = below[:, None].expand(-1, x.shape[1], -1)
    return (1 - share) * x.gather(2, index) + share * x.gather(2, index + 1)


def _gaps(x: Tensor, chosen: Tensor, generator: torch.Generator) -> Tensor:
    """Hide a stretch of time and a band of frequency behind the crop's own mean level."""
    b, t, bins = x.shape
    mean = torch.nanmean(x, dim=(1, 2), keepdim=True)
    spans = []
    for size, most in ((t, t // 8), (bins, bins // 8)):
        width = torch.rand(b, 1, generator=generator) * most
        start = torch.rand(b, 1, generator=generator) * (size - width)
        place = torch.arange(size)
        spans.append((place >= start) & (place < start + width))
    hidden = spans[0][:, :, None] | spans[1][:, None, :]
    return torch.where(hidden & chosen & ~torch.isnan(x), mean, x)
