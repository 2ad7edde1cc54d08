"""Kaldi-compatible log-mel features in torch, batched and on any device.

The settings are those of AST's feature extractor: 25 ms Hann windows every 10 ms, first-order
pre-emphasis, no dither, power spectrum, natural logarithm; waveforms in [-1, 1], not scaled.
"""

import functools
import warnings
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional
from torchaudio.compliance import kaldi

WINDOW_SECONDS, SHIFT_SECONDS = 0.025, 0.010
PREEMPHASIS, LOW_HZ = 0.97, 20.0
EPSILON = torch.finfo(torch.float32).eps
BLOCK = 512  # frames at a time: bounds the memory of long files and stays in the processor's cache
BANDS = 4


def num_frames(samples: int, sample_rate: int) -> int:
    """The number of frames of a waveform; one shorter than a window is padded to one frame."""
    window, shift = frame_sizes(sample_rate)
    return 1 + max(0, samples - window) // shift


def log_mel(waveforms: Tensor, sample_rate: int, mel_bins: int) -> Tensor:
    """Compute the log-mel frames of waveforms of equal length.

    Args:
        waveforms: [B, samples] float32 in [-1, 1]; padded with zeros to at least 25 ms.
        sample_rate: Hz.
        mel_bins: F.

    Returns:
        [B, T, F], T = `num_frames`; silence gives log(float32 epsilon), -15.94.
    """
    window, shift = frame_sizes(sample_rate)
    if waveforms.shape[-1] < window:
        waveforms = functional.pad(waveforms, (0, window - waveforms.shape[-1]))
    frames = waveforms.unfold(-1, window, shift)  # [B, T, window]
    hann, bands = _tables(sample_rate, mel_bins, waveforms.device)
    features = [
        torch.cat([power[..., low:high] @ weights for low, high, weights in bands], dim=-1)
        for power in map(partial(_power, hann=hann), torch.split(frames, BLOCK, dim=1))
    ]
    return torch.cat(features, dim=1).clamp_(min=EPSILON).log_()


def _power(frames: Tensor, hann: Tensor) -> Tensor:
    """Power spectrum [B, T, fft / 2 + 1] of frames [B, T, window]."""
    frames = frames - frames.mean(dim=-1, keepdim=True)
    spectrum: Tensor = torch.fft.rfft(_emphasise(frames).mul_(hann), n=_fft_size(len(hann)))
    return spectrum.real.square().addcmul_(spectrum.imag, spectrum.imag)


def _emphasise(frames: Tensor) -> Tensor:
    """`x[n] - 0.97 x[n - 1]` within each frame, with `x[-1] = x[0]`.

    The product is rounded before the difference, as in Kaldi: the logarithm of an almost empty band
    shows this.
    """
    out = torch.empty_like(frames)
    torch.mul(frames[..., :-1], -PREEMPHASIS, out=out[..., 1:])
    torch.mul(frames[..., :1], -PREEMPHASIS, out=out[..., :1])
    return out.add_(frames)


def frame_sizes(sample_rate: int) -> tuple[int, int]:
    """The samples of a window, and from one window to the next."""
    return int(sample_rate * WINDOW_SECONDS), int(sample_rate * SHIFT_SECONDS)


def _fft_size(window: int) -> int:
    return 1 << (window - 1).bit_length()


@functools.lru_cache(maxsize=8)
def _tables(
    sample_rate: int, mel_bins: int, device: torch.device
) -> tuple[Tensor, list[tuple[int, int, Tensor]]]:
    """The window [window], and the mel filters in bands.

    A filter covers few of the FFT's bins, so neighbouring filters are kept as a band (first bin,
    last bin + 1, weights [bins, filters]), and the zeros outside are not multiplied.
    """
    window, _ = frame_sizes(sample_rate)
    size = _fft_size(window)
    with warnings.catch_warnings():  # an empty lowest filter is part of AST's features
        warnings.simplefilter("ignore")
        mel, _ = kaldi.get_mel_banks(mel_bins, size, sample_rate, LOW_HZ, 0.0, 100.0, -500.0, 1.0)
    bands = []
    for filters in mel.to(device).chunk(BANDS):  # [filters, fft / 2]: the last bin has no weight
        used = filters.any(dim=0).nonzero()
        low, high = int(used.min()), int(used.max()) + 1
        bands.append((low, high, filters[:, low:high].T.contiguous()))
    return torch.hann_window(window, periodic=False, device=device), bands
